"""What a user may have in a store: a new message that adds too much is rejected, nothing else.

One suite for the memory and SQL stores; for SQL also what another process has written."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.json import encode

from gregor.core.holdings import Holdings
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    UID,
    Creation,
    DeviceID,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    MsgID,
    Range,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
    raw,
)
from gregor.errors import Action, LimitExceeded
from gregor.interfaces import Duplicate, Rejected, StateMachineOfRecord, Stored
from gregor.limits import NO_LIMITS, Limits
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql.allowance import Allowance
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock

START = 2_000_000_000 * SECOND


def limited(**limits: int) -> Limits:
    return structs.replace(NO_LIMITS, **limits)


class LimitedStore:
    """A store for one user, with a clock that the test sets."""

    def __init__(self, machine: StateMachineOfRecord, clock: ManualClock) -> None:
        self.machine = machine
        self.clock = clock

    async def store(self, *messages: InBandMessage) -> list[str]:
        """What came of each message of one batch: the name of the outcome, or of the limit."""
        self.clock.now += 1
        outcomes = await self.machine.consume_messages(messages)
        return [_name(outcome) for outcome in outcomes]

    async def visible(self) -> set[str]:
        return {item.msg_id for item in (await self.machine.state("u")).items}


def _name(outcome: Any) -> str:
    match outcome:
        case Rejected(error=LimitExceeded() as error):
            assert error.action is Action.STOP
            assert error.retry_after_ms is None
            return error.limit
        case Rejected(error=error):
            raise error
        case Stored():
            return "stored"
        case Duplicate():
            return "duplicate"
        case _:
            raise AssertionError(outcome)


@asynccontextmanager
async def opened(kind: str, limits: Limits) -> AsyncIterator[LimitedStore]:
    clock = ManualClock(START)
    if kind == "memory":
        yield LimitedStore(MemoryStateMachine(clock, limits), clock)
        return
    async with (
        database_at(kind, migrate) as database,
        SQLStateMachine(database, clock, limits=limits) as machine,
    ):
        yield LimitedStore(machine, clock)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The memory, or the URL of a new database."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return "sqlite://" if request.param == "sqlite" else "memory"


def items(number: int, **options: Any) -> Sequence[InBandMessage]:
    return [create("u", "c", n, **options) for n in range(number)]


async def test_item_above_the_limit_is_rejected_alone(kind: str) -> None:
    async with opened(kind, limited(live_items=3)) as store:
        assert await store.store(*items(5)) == ["stored"] * 3 + ["live_items"] * 2
        assert await store.store(create("u", "c")) == ["live_items"]
        assert len(await store.visible()) == 3
        (other,) = await store.machine.consume_messages([create("other", "c")])
        assert isinstance(other, Stored)


async def test_put_that_takes_the_place_of_an_item_is_stored_at_the_limit(kind: str) -> None:
    async with opened(kind, limited(live_items=2)) as store:
        assert await store.store(put("u", "a", 1), create("u", "c", 1)) == ["stored"] * 2
        assert await store.store(put("u", "a", 2)) == ["stored"]
        assert await store.store(put("u", "a", 3), put("u", "a", 4)) == ["stored"] * 2
        assert await store.store(put("u", "b", 1)) == ["live_items"]
        assert await store.store(put("u", "a", 5, device_id="d")) == ["live_items"]
        assert await store.store(dismiss_category("u", "a")) == ["stored"]
        assert await store.store(put("u", "b", 1)) == ["stored"]
        assert await store.store(put("u", "a", 1)) == ["live_items"]  # it is dead now


async def test_dismissal_is_stored_at_the_limit_and_makes_place(kind: str) -> None:
    async with opened(kind, limited(live_items=2, scheduled_items=2)) as store:
        await store.store(create("u", "c", msg_id="a"), create("u", "c", msg_id="b"))
        assert await store.store(dismiss("u", "a"), create("u", "c", msg_id="d")) == ["stored"] * 2
        assert await store.store(create("u", "c")) == ["live_items"]
        assert await store.store(dismiss_category("u", "c")) == ["stored"]
        assert await store.store(*items(3)) == ["stored", "stored", "live_items"]


async def test_message_that_dismisses_an_item_and_creates_one_is_stored_at_the_limit(
    kind: str,
) -> None:
    async with opened(kind, limited(live_items=1)) as store:
        await store.store(create("u", "c", msg_id="a"))
        update = structs.replace(create("u", "c"), dismissal=dismiss("u", "a").dismissal)
        assert await store.store(update) == ["stored"]
        assert await store.store(create("u", "c")) == ["live_items"]


async def test_dismissal_of_nothing_makes_no_place(kind: str) -> None:
    async with opened(kind, limited(live_items=3)) as store:
        assert await store.store(*items(3)) == ["stored"] * 3
        for _ in range(2):
            outcomes = await store.store(dismiss_category("u", "nothing"), *items(2))
            assert outcomes == ["stored", "live_items", "live_items"]


async def test_put_in_place_of_an_item_takes_none_of_what_follows_it(kind: str) -> None:
    async with opened(kind, limited(live_items=5)) as store:
        await store.store(*(put("u", f"k{n}", n) for n in range(4)))
        outcomes = await store.store(put("u", "k1", 1), create("u", "c"), create("u", "c"))
        assert outcomes == ["stored", "stored", "live_items"]


async def test_puts_of_one_key_take_one_place(kind: str) -> None:
    async with opened(kind, limited(live_items=5)) as store:
        outcomes = await store.store(*(put("u", "k", n) for n in range(5)), *items(5))
        assert outcomes == ["stored"] * 9 + ["live_items"]


async def test_item_that_arrives_dead_takes_no_place(kind: str) -> None:
    async with opened(kind, limited(live_items=3)) as store:
        await store.store(dismiss("u", "x", "y"))
        arriving = [create("u", "c", msg_id=msg_id) for msg_id in "xabcy"]
        assert await store.store(*arriving) == ["stored"] * 4 + ["stored"]
        assert await store.store(create("u", "c")) == ["live_items"]
        expired = create("u", "c", expires=TimeOrOffset(time=START - SECOND))
        assert await store.store(expired) == ["stored"]


async def test_item_that_has_expired_before_it_arrives_takes_no_place(kind: str) -> None:
    async with opened(kind, limited(live_items=2)) as store:
        await store.store(dismiss_category("u", "nothing"))
        store.clock.now += 10 * SECOND
        expired = create("u", "c", expires=TimeOrOffset(time=START + 5 * SECOND))
        assert await store.store(expired, *items(3)) == ["stored"] * 3 + ["live_items"]


async def test_item_is_dead_that_was_dismissed_before_a_message_that_is_refused(
    kind: str,
) -> None:
    async with opened(kind, limited(live_items=1)) as store:
        batch = [create("u", "c", msg_id="a"), dismiss("u", "x"), *items(1)]
        arriving = create("u", "c", msg_id="x")
        assert await store.store(*batch, arriving) == ["stored", "stored", "live_items", "stored"]
        assert await store.visible() == {"a"}


async def test_what_is_dismissed_in_a_batch_makes_place_in_it(kind: str) -> None:
    """However often, and also when the user has more than the limit."""
    replays = [put("u", f"k{n}").stamp(START - 1000 + n, 0) for n in range(6)]
    async with opened(kind, limited(live_items=3)) as store:
        await store.store(*replays)
        batch = [message for n in range(6) for message in (dismiss_key("u", f"k{n}"), *items(1))]
        made = ["stored", "live_items"] * 3 + ["stored", "stored"] * 3
        assert await store.store(*batch) == made
        assert await store.store(dismiss_category("u", "c"), *items(4)) == [
            *["stored"] * 4,
            "live_items",
        ]


async def test_items_that_have_expired_do_not_count(kind: str) -> None:
    async with opened(kind, limited(live_items=2)) as store:
        await store.store(*items(2, expires=TimeOrOffset(offset=10 * SECOND)))
        assert await store.store(create("u", "c")) == ["live_items"]
        store.clock.now += 11 * SECOND
        assert await store.store(*items(3)) == ["stored", "stored", "live_items"]


async def test_bytes_are_those_of_the_messages_of_live_items(kind: str) -> None:
    message = create("u", "c", "é" * 1000, msg_id="a")
    size = len(encode(message.stamp(START, START)))
    async with opened(kind, limited(live_bytes=2 * size)) as store:
        assert await store.store(message) == ["stored"]
        assert await store.store(create("u", "c", "x" * size)) == ["live_bytes"]
        assert await store.store(put("u", "k", "x" * (size - 300))) == ["stored"]
        assert await store.store(put("u", "k", "y" * (size - 300))) == ["stored"]
        assert await store.store(put("u", "k", "y" * (size + 300))) == ["live_bytes"]
        assert await store.store(dismiss("u", "a"), put("u", "k", "y" * size)) == ["stored"] * 2


async def test_scheduled_items_count_until_they_begin(kind: str) -> None:
    later = TimeOrOffset(offset=10 * SECOND)
    async with opened(kind, limited(scheduled_items=2)) as store:
        assert await store.store(*items(3, starts=later)) == ["stored"] * 2 + ["scheduled_items"]
        assert await store.store(create("u", "c")) == ["stored"]
        store.clock.now += 11 * SECOND
        assert await store.store(*items(3, starts=later)) == ["stored"] * 2 + ["scheduled_items"]


async def test_ids_that_have_not_arrived_are_limited(kind: str) -> None:
    async with opened(kind, limited(tombstones=3)) as store:
        await store.store(create("u", "c", msg_id="a"))
        assert await store.store(dismiss("u", "x", "y", "z")) == ["stored"]
        assert await store.store(dismiss("u", "w")) == ["tombstones"]
        assert await store.store(dismiss("u", "a", "x")) == ["stored"]
        assert await store.store(dismiss_category("u", "c")) == ["stored"]
        await store.store(create("u", "c", msg_id="x"))  # it arrives, dead
        store.clock.now += 2 * SECOND
        assert await store.store(dismiss("u", "w")) == ["stored"]


async def test_dismissals_that_leave_no_tombstone_do_not_count(kind: str) -> None:
    async with opened(kind, limited(tombstones=5)) as store:
        known = [f"i{n}" for n in range(4)]
        await store.store(*(create("u", "c", msg_id=msg_id) for msg_id in known))
        assert await store.store(dismiss("u", *known)) == ["stored"]
        assert await store.store(*(dismiss("u", f"x{n}") for n in range(6))) == [
            *["stored"] * 5,
            "tombstones",
        ]


async def test_id_that_is_dismissed_twice_counts_once(kind: str) -> None:
    async with opened(kind, limited(tombstones=4)) as store:
        twice = [dismiss("u", "a", "b", "c"), dismiss("u", "a", "b", "c", "c")]
        assert await store.store(*twice, dismiss("u", "d"), dismiss("u", "e", "a")) == [
            *["stored"] * 3,
            "tombstones",
        ]


async def test_tombstone_whose_item_arrives_makes_place_at_once(kind: str) -> None:
    async with opened(kind, limited(tombstones=2)) as store:
        assert await store.store(dismiss("u", "x", "y"), dismiss("u", "z")) == [
            "stored",
            "tombstones",
        ]
        x = create("u", "c", msg_id="x")
        assert await store.store(x, dismiss("u", "z"), dismiss("u", "w")) == [
            *["stored"] * 2,
            "tombstones",
        ]
        assert await store.store(create("u", "c", msg_id="y")) == ["stored"]
        assert await store.store(dismiss("u", "w")) == ["stored"]


async def test_what_follows_a_refusal_in_its_batch_is_counted(kind: str) -> None:
    """All was counted for the refusal. From then on, each message counts with what it ends."""
    async with opened(kind, limited(live_items=3, tombstones=2)) as store:
        await store.store(create("u", "c", msg_id="a"), put("u", "c", key="k"))
        written = [
            (create("u", "c"), "stored"),
            (create("u", "c"), "live_items"),
            (put("u", "c", key="k"), "stored"),
            (dismiss("u", "a"), "stored"),
            (create("u", "c"), "stored"),
            (create("u", "c"), "live_items"),
            (dismiss("u", "x", "y"), "stored"),
            (dismiss("u", "z"), "tombstones"),
            (create("u", "c", msg_id="x"), "stored"),  # it arrives, dead
            (dismiss("u", "z"), "stored"),
            (dismiss("u", "w"), "tombstones"),
        ]
        assert await store.store(*(message for message, _ in written)) == [
            expected for _, expected in written
        ]


async def test_message_that_is_sent_again_is_a_duplicate_at_the_limit(kind: str) -> None:
    async with opened(kind, limited(live_items=1)) as store:
        message = create("u", "c")
        assert await store.store(message) == ["stored"]
        assert await store.store(message, create("u", "c")) == ["duplicate", "live_items"]
        assert await store.store(message) == ["duplicate"]


async def test_replays_are_not_limited(kind: str) -> None:
    async with opened(kind, limited(live_items=1)) as store:
        replays = [create("u", "c").stamp(START - 1000 + n, 0) for n in range(3)]
        assert await store.store(*replays) == ["stored"] * 3
        assert await store.store(create("u", "c")) == ["live_items"]


async def test_erased_user_has_nothing(kind: str) -> None:
    async with opened(kind, limited(live_items=1)) as store:
        await store.store(create("u", "c"))
        await store.machine.erase("u")
        assert await store.store(create("u", "c")) == ["stored"]
        assert await store.store(create("u", "c")) == ["live_items"]


@asynccontextmanager
async def two_processes(
    url: str, clock: ManualClock, limits: Limits
) -> AsyncIterator[tuple[SQLStateMachine, SQLStateMachine]]:
    """Two state machines, which know nothing of each other but what is in their database."""
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, clock, limits=limits) as one,
        SQLStateMachine(database, clock, limits=limits) as other,
    ):
        yield one, other


async def test_what_another_process_has_stored_counts(url: str) -> None:
    clock = ManualClock(START)
    async with two_processes(url, clock, limited(live_items=3)) as (one, two):
        first, second = LimitedStore(one, clock), LimitedStore(two, clock)
        assert await first.store(create("u", "c")) == ["stored"]
        assert await second.store(create("u", "c", msg_id="m")) == ["stored"]
        assert await first.store(*items(2)) == ["stored", "live_items"]
        assert await second.store(create("u", "c")) == ["live_items"]
        assert await second.store(dismiss("u", "m")) == ["stored"]
        assert await first.store(*items(2)) == ["stored", "live_items"]


async def test_ids_that_another_process_has_dismissed_count(url: str) -> None:
    clock = ManualClock(START)
    async with two_processes(url, clock, limited(tombstones=20)) as machines:
        stores = [LimitedStore(machine, clock) for machine in machines]
        outcomes = [(await stores[n % 2].store(dismiss("u", f"x{n}")))[0] for n in range(42)]
        assert outcomes == ["stored"] * 20 + ["tombstones"] * 22


async def test_all_is_counted_once_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """That reads all that is live. A batch with a refusal takes two transactions: the second also
    looks the ids up."""
    counted = 0
    count_now = Allowance._counted_now

    def count_and_note(self: Allowance, uids: Sequence[UID]) -> dict[UID, Holdings]:
        nonlocal counted
        counted += len(uids)
        return count_now(self, uids)

    clock = ManualClock(START)
    async with two_processes("sqlite://", clock, limited(live_items=3)) as (machine, _):
        store = LimitedStore(machine, clock)
        await store.store(create("u", "c"), create("u", "c"), create("u", "c"))
        monkeypatch.setattr(Allowance, "_counted_now", count_and_note)
        assert await store.store(*(create("u", "c") for _ in range(9))) == ["live_items"] * 9
        assert counted == 2


# A user of a law has few ids, keys and categories, so messages meet each other.
FIRST = START - 100  # when a user of a law has the first message
LAW_LIMITS = limited(live_items=4, live_bytes=1_000, scheduled_items=2, tombstones=3)
ids = st.sampled_from("abcdefgh")
named_ids = st.lists(ids, min_size=1, max_size=3).map(tuple)
names = st.sampled_from(["x", "xy", "z"])
instants = st.one_of(
    st.none(),
    st.builds(lambda s: TimeOrOffset(offset=s * SECOND), st.integers(0, 3)),
    st.builds(lambda s: TimeOrOffset(time=START + s * SECOND), st.integers(0, 8)),
)
past = st.one_of(
    st.none(), st.builds(lambda s: TimeOrOffset(offset=-s * SECOND), st.integers(0, 3))
)
scopes = st.sampled_from([None, None, "d1", "d2"])
creations = st.builds(
    Creation,
    names,
    st.sampled_from([raw(1), raw("x" * 150)]),
    key=st.one_of(st.none(), names),
    starts=st.one_of(st.none(), instants),
)
expiring = st.builds(
    Creation, names, st.just(raw(1)), expires=instants, key=st.one_of(st.none(), names)
)
dismissals = st.builds(
    Dismissal,
    st.one_of(st.just(()), named_ids),
    st.lists(st.builds(Range, names, past, st.just(()) | named_ids, st.booleans(), st.booleans()))
    .map(tuple)
    .filter(lambda ranges: len(ranges) < 3),
    st.lists(st.builds(KeyDismissal, names, past), max_size=2).map(tuple),
).filter(bool)


class MessageOfLaw(NamedTuple):
    """A message of a law, whose user is not known yet."""

    msg_id: MsgID
    device_id: DeviceID | None
    creation: Creation | None
    dismissal: Dismissal | None
    replayed: int | None  # since the first message, if another deployment has stored it

    def by(self, uid: UID) -> InBandMessage:
        message = InBandMessage(
            uid, self.msg_id, 0, 0, self.device_id, self.creation, self.dismissal
        )
        return message if self.replayed is None else message.stamp(FIRST + self.replayed, FIRST)


fresh_ids = st.uuids().map(lambda id_: id_.hex)  # that nothing dismisses
new_ids = ids | fresh_ids
new_messages = st.one_of(
    st.builds(MessageOfLaw, new_ids, scopes, creations | expiring, st.none(), st.none()),
    st.builds(MessageOfLaw, fresh_ids, scopes, st.none(), dismissals, st.none()),
    st.builds(MessageOfLaw, new_ids, scopes, creations, dismissals, st.none()),
    st.builds(
        MessageOfLaw,
        new_ids,
        scopes,
        creations | expiring,
        st.none() | dismissals,
        st.integers(1, 99),
    ),
)
batches = st.lists(
    st.tuples(
        st.lists(new_messages, min_size=1, max_size=8),
        st.integers(0, 1),  # the process that stores it
        st.sampled_from([0, 0, SECOND // 2, SECOND, 3 * SECOND]),  # until the next one
    ),
    min_size=1,
    max_size=6,
)


class Law(NamedTuple):
    """What an example of the law needs, which has a user of its own."""

    clock: ManualClock
    memory: MemoryStateMachine
    processes: tuple[SQLStateMachine, SQLStateMachine]
    uids: Iterator[UID]


@pytest.fixture
async def law(url: str) -> AsyncIterator[Law]:
    clock = ManualClock(START)
    memory = MemoryStateMachine(clock, LAW_LIMITS)
    async with two_processes(url, clock, LAW_LIMITS) as machines:
        yield Law(clock, memory, machines, (f"u{n}" for n in count()))


@given(batches)
async def test_law_a_message_is_refused_exactly_if_it_would_exceed_a_limit(
    law: Law, written: list[tuple[list[MessageOfLaw], int, int]]
) -> None:
    """The memory compares what the user has before and after each message, and nothing else."""
    law.clock.now, uid = START, next(law.uids)
    # After a first message no `prev` is 0: that one would not be in the JSON, whose size counts.
    first = dismiss_category(uid, "nothing").stamp(FIRST, 0)
    for store in (law.memory, *law.processes):
        await store.consume_message(first)
    for batch, process, pause in written:
        messages = [message.by(uid) for message in batch]
        expected = await law.memory.consume_messages(messages)
        stored = await law.processes[process].consume_messages(messages)
        # What a replay has done to messages of its batch that were stored before a refusal, a
        # store need not say.
        shown = _stored if any(message.stamped for message in messages) else _outcome
        assert list(map(shown, stored)) == list(map(shown, expected))
        law.clock.now += pause


def _outcome(outcome: Any) -> Any:
    match outcome:
        case Rejected(error=LimitExceeded() as error):
            return error.limit
        case Rejected(error=error):
            return type(error)
        case _:
            return outcome


def _stored(outcome: Any) -> Any:
    match _outcome(outcome):
        case Stored(message) | Duplicate(message):
            return message
        case other:
            return other
