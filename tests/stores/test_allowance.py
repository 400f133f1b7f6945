"""What a user may have in a store: a new message that adds too much is rejected, nothing else.

One suite for the memory and SQL stores; for SQL also what another process has written."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from msgspec.json import encode

from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, put
from gregor.errors import Action, LimitExceeded
from gregor.interfaces import Duplicate, Rejected, StateMachineOfRecord, Stored
from gregor.limits import NO_LIMITS, Limits
from gregor.stores.memory import MemoryStateMachine
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


async def test_dismissal_of_nothing_exceeds_a_limit_by_one_batch_at_most(kind: str) -> None:
    async with opened(kind, limited(live_items=3)) as store:
        for _ in range(5):
            await store.store(dismiss_category("u", "nothing"), *items(4))
        assert len(await store.visible()) <= 3 + 4


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


async def test_what_another_process_has_stored_counts(tmp_path: Path) -> None:
    clock, limits = ManualClock(START), limited(live_items=3)
    async with (
        database_at(f"sqlite:///{tmp_path / 'gregor.db'}", migrate) as database,
        SQLStateMachine(database, clock, limits=limits) as one,
        SQLStateMachine(database, clock, limits=limits) as two,
    ):
        first, second = LimitedStore(one, clock), LimitedStore(two, clock)
        assert await first.store(create("u", "c")) == ["stored"]
        assert await second.store(create("u", "c", msg_id="m")) == ["stored"]
        assert await first.store(*items(2)) == ["stored", "live_items"]
        assert await second.store(create("u", "c")) == ["live_items"]
        assert await second.store(dismiss("u", "m")) == ["stored"]
        clock.now += 2 * SECOND
        assert await first.store(*items(2)) == ["stored", "live_items"]


MOST = 4
steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.integers(0, 3)),
        st.tuples(st.just("put"), st.integers(0, 2)),
        st.tuples(st.just("dismiss"), st.integers(0, 3)),
        st.tuples(st.just("expiring"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=6,
)


def written(what: str, number: int) -> InBandMessage:
    match what:
        case "create":
            return create("u", f"c{number}")
        case "put":
            return put("u", f"k{number}", number)
        case "expiring":
            return create("u", "c", expires=TimeOrOffset(offset=(number + 1) * SECOND))
        case _:
            return dismiss_category("u", f"c{number}")


@given(st.lists(st.tuples(steps, st.integers(0, 3)), max_size=8))
@settings(max_examples=50)
async def test_law_a_user_has_the_limit_and_a_commit_at_most_and_all_that_is_free_can_be_used(
    batches: list[tuple[list[tuple[str, int]], int]],
) -> None:
    largest = max((len(batch) for batch, _ in batches), default=0)
    async with opened("sqlite://", limited(live_items=MOST)) as store:
        for batch, seconds in batches:
            await store.store(*(written(*step) for step in batch))
            assert len(await store.visible()) <= MOST + largest
            store.clock.now += seconds * SECOND
        store.clock.now += 2 * SECOND + SECOND // 2  # nothing expires between the next two lines
        free = max(0, MOST - len(await store.visible()))
        outcomes = await store.store(*items(MOST + 1))
        assert outcomes == ["stored"] * free + ["live_items"] * (MOST + 1 - free)
