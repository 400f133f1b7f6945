"""Exports of stores, and imports: laws on random lives, and files that are broken."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gregor.core.export import (
    MAX_LINE,
    ExportedTombstone,
    ExportedUser,
    ExportEnd,
    ExportPage,
    ExportPlace,
    decode_line,
    encode_line,
    head_line,
)
from gregor.core.history import Cutoff
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, create, dismiss, dismiss_category
from gregor.core.sync import After, Changes, PageLimits, Snapshot
from gregor.errors import Malformed
from gregor.interfaces import Duplicate, Rejected, Slot, StateMachineOfRecord
from gregor.node.exporting import export
from gregor.node.importing import import_export
from gregor.protocol.answers import ImportAnswer
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql.exports import PAGE_ROWS
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock
from gregor.testing.conformance import prune, result_or_code, take_step
from gregor.testing.strategies import ForgetStep, Life, devices, lives, times
from tests.fleet.servers import PostgreSQL
from tests.shards.harness import opened as shards

NOW = 100
LIMITS = PageLimits(100, 1_000_000)

_numbers = count()


def new_uid() -> UID:
    return f"user{next(_numbers)}"


@asynccontextmanager
async def opened(url: str = "sqlite://") -> AsyncIterator[tuple[SQLStateMachine, ManualClock]]:
    clock = ManualClock(NOW)
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        yield machine, clock


async def exported(machine: StateMachineOfRecord, uid: UID | None = None) -> bytes:
    return b"".join([chunk async for chunk in export(machine, uid)])


async def imported(
    machine: StateMachineOfRecord, text: bytes, *, chunk: int = 1 << 16
) -> ImportAnswer:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), chunk):
            yield text[start : start + chunk]

    return await import_export(machine, chunks())


async def live(machine: StateMachineOfRecord, clock: ManualClock, uid: UID, life: Life) -> None:
    for now, step in life:
        clock.now = now
        await take_step(machine, uid, step)
    clock.now = NOW


async def answers(
    machine: StateMachineOfRecord, uid: UID, device_id: DeviceID | None, cursor: Time
) -> list[object]:
    """What a device hears from its cursor, the state, and the erasure."""
    return [
        await machine.erasure(uid),
        await machine.ctime(uid),
        await machine.state(uid, device_id),
        await machine.sync(uid, device_id, cursor),
        await result_or_code(machine.messages_page(uid, device_id, After(cursor), LIMITS)),
    ]


class SourceAndTarget(NamedTuple):
    source: SQLStateMachine
    source_clock: ManualClock
    target: SQLStateMachine
    target_clock: ManualClock


@pytest.fixture
async def stores() -> AsyncIterator[SourceAndTarget]:
    async with opened() as source, opened() as target:
        yield SourceAndTarget(*source, *target)


class Machines(NamedTuple):
    """The same, of any kind."""

    source: StateMachineOfRecord
    source_clock: ManualClock
    target: StateMachineOfRecord
    target_clock: ManualClock


@pytest.fixture(params=["SQLite", "memory"])
async def machines(request: pytest.FixtureRequest, stores: SourceAndTarget) -> Machines:
    if request.param == "SQLite":
        return Machines(*stores)
    clocks = ManualClock(NOW), ManualClock(NOW)
    source, target = map(MemoryStateMachine, clocks)
    return Machines(source, clocks[0], target, clocks[1])


@settings(max_examples=60)
@given(life=lives(), device_id=devices, cursor=times)
async def test_law_a_new_store_has_the_same_export_and_answers_each_cursor_alike(
    machines: Machines, life: Life, device_id: DeviceID | None, cursor: Time
) -> None:
    source, clock, target, _ = machines
    uid = new_uid()
    await live(source, clock, uid, life)
    text = await exported(source, uid)
    assume(not knows_more_than_its_store(text, life))
    answer = await imported(target, text)
    assert answer.complete
    assert not answer.problems
    copied = await exported(target, uid)
    assert_same(life, copied, text)
    heard = await answers(source, uid, device_id, cursor)
    assert await answers(target, uid, device_id, cursor) == heard
    assert list(await target.check_hashes([uid])) == []
    again = await imported(target, text)
    assert again.complete
    assert not again.problems
    assert not again.stored
    assert await exported(target, uid) == copied


@settings(max_examples=40)
@given(life=lives(), lines=st.integers(1, 12), floor=times, device_id=devices)
async def test_law_an_import_that_was_interrupted_ends_right_when_it_is_run_again(
    machines: Machines, life: Life, lines: int, floor: Time, device_id: DeviceID | None
) -> None:
    """Also if the store is pruned in between: then what is live is the same."""
    source, clock, target, _ = machines
    uid = new_uid()
    await live(source, clock, uid, life)
    text = await exported(source, uid)
    assume(not knows_more_than_its_store(text, life))
    part = b"".join(text.splitlines(keepends=True)[:lines])
    assert (await imported(target, part)).complete == (part == text)
    if floor % 2:
        await prune(target, floor)
    answer = await imported(target, text)
    assert answer.complete
    assert not answer.problems
    assert await target.state(uid, device_id) == await source.state(uid, device_id)
    if not floor % 2:
        assert_same(life, await exported(target, uid), text)


def knows_more_than_its_store(text: bytes, life: Life) -> bool:
    """Whether it may say that an item is dead which is live in the store, that has forgotten it: an
    id was dismissed and forgotten, and then an item came with it. Then the item is live as long as
    its store, and not in a copy, which has that dismissal with the rest of its message. Ids are
    kept for longer than a message takes, so that this does not happen."""
    if not _forgets(life):
        return False
    dismissed: set[str] = set()
    for line in map(msgspec.json.decode, text.splitlines()):
        message = line.get("message", {})
        if message.get("msg_id") in dismissed:
            return True
        dismissed |= set(message.get("dismissal", {}).get("msg_ids", ()))
    return False


def _forgets(life: Life) -> bool:
    return any(isinstance(step, ForgetStep) for _, step in life)


def assert_same(life: Life, copied: bytes, text: bytes) -> None:
    """What a store has forgotten of dismissed ids is known again if the dismissal is still stored,
    as one of a message whose item is live. And if it names a message of which only the id is left,
    whose line comes later, that id becomes a tombstone, or an earlier one: it has no item."""
    if _forgets(life):
        assert dismissed_ids(text) <= dismissed_ids(copied)
        copied, text = without_tombstones(copied), without_tombstones(text)
    assert copied == text


def dismissed_ids(text: bytes) -> set[str]:
    lines = [decode_line(line) for line in text.splitlines()[1:]]
    return {line.msg_id for line in lines if isinstance(line, ExportedTombstone)}


def without_tombstones(text: bytes) -> bytes:
    return b"".join(
        line for line in text.splitlines(keepends=True) if not line.startswith(b'{"tombstone"')
    )


@settings(max_examples=40)
@given(life=lives(), other=lives())
async def test_law_a_second_import_into_a_store_with_another_life_changes_nothing(
    machines: Machines, life: Life, other: Life
) -> None:
    source, clock, target, target_clock = machines
    uid = new_uid()
    await live(source, clock, uid, life)
    await live(target, target_clock, uid, other)
    text = await exported(source, uid)
    before = known_ids(await exported(target, uid))
    first = await imported(target, text)
    merged = await exported(target, uid)
    assert first.complete
    assert list(await target.check_hashes([uid])) == []
    if not (await source.erasure(uid)).epoch:
        assert before <= known_ids(merged)
    refused = {problem.line for problem in first.problems}
    assert len(refused) == first.refused
    again = await imported(target, text)
    assert not again.stored
    assert await exported(target, uid) == merged


def known_ids(text: bytes) -> set[str]:
    lines = [msgspec.json.decode(line) for line in text.splitlines()[1:]]
    return {
        line[kind]["msg_id"] for line in lines for kind in ("message", "pruned") if kind in line
    }


# One user of many messages


async def long_user(machine: SQLStateMachine, messages: int) -> UID:
    uid = new_uid()
    await machine.consume_messages([create(uid, "c", n, msg_id=f"{n}") for n in range(messages)])
    return uid


async def test_a_user_of_several_pages_is_exported_whole(stores: SourceAndTarget) -> None:
    source, _, target, _ = stores
    uid = await long_user(source, 2 * PAGE_ROWS + 1)
    await source.consume_message(dismiss(uid, *(f"later{n}" for n in range(PAGE_ROWS + 1))))
    text = await exported(source, uid)
    assert text.endswith(b'{"end":{"users":1,"messages":%d}}\n' % (2 * PAGE_ROWS + 2))
    await imported(target, text)
    assert await exported(target, uid) == text


class Interfering:
    """Does something to a store after a page of an export was read."""

    def __init__(
        self, machine: SQLStateMachine, after: int, interfere: Callable[[], Awaitable[object]]
    ) -> None:
        self._machine, self._pages, self._interfere = machine, after, interfere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        page = await self._machine.export_page(uid, place)
        self._pages -= 1
        if not self._pages:
            await self._interfere()
        return page


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_erase_between_two_pages_leaves_nothing_of_the_user_in_the_export(
    stores: SourceAndTarget, after: int
) -> None:
    source = stores.source
    uid = await long_user(source, 2 * PAGE_ROWS)
    interfering: Any = Interfering(source, after, lambda: source.erase(uid))
    text = await exported(interfering, uid)
    epoch = (await source.erasure(uid)).epoch
    if after < 3:
        assert known_ids(text) == set()
        assert b'"epoch":%d' % epoch in text
    else:
        assert len(known_ids(text)) == 2 * PAGE_ROWS
        assert b'"epoch":0' in text


async def test_death_is_exported_if_its_dismissal_is_forgotten_between_two_pages(
    stores: SourceAndTarget,
) -> None:
    source, clock, target, _ = stores
    uid = await long_user(source, 2 * PAGE_ROWS)
    clock.now = 10_000
    await source.consume_message(dismiss_category(uid, "c"))
    clock.now = 20_000
    interfering: Any = Interfering(source, 1, lambda: source.prune(Cutoff(15_000, 0)))
    await imported(target, await exported(interfering, uid))
    assert (await target.state(uid)).items == ()
    assert len(known_ids(await exported(target, uid))) == 2 * PAGE_ROWS + 1


async def test_message_that_is_stored_between_two_pages_is_not_of_the_export(
    stores: SourceAndTarget,
) -> None:
    source = stores.source
    uid = await long_user(source, 2 * PAGE_ROWS)
    text = await exported(source, uid)
    late = create(uid, "c", msg_id="late")
    interfering: Any = Interfering(source, 1, lambda: source.consume_message(late))
    assert await exported(interfering, uid) == text


# Merging


async def test_authors_and_digests_are_kept(stores: SourceAndTarget) -> None:
    source, clock, target, target_clock = stores
    target_clock.now = 1_000
    uid = new_uid()
    message = create(uid, "c", msg_id="a")
    gone = create(uid, "c", msg_id="gone")
    await source.store([Slot(message, "device:d1"), Slot(gone, "service:s")])
    await source.consume_message(dismiss(uid, "gone", msg_id="d"))
    clock.now = 300
    await prune(source, 200)
    text = await exported(source, uid)
    assert b'"author":"device:d1"' in text
    assert await imported(target, text)
    assert await exported(target, uid) == text
    again, other = create(uid, "c", msg_id="gone"), create(uid, "other", msg_id="gone")
    outcomes = await target.consume_messages([again, other])
    assert isinstance(outcomes[0], Duplicate)
    assert isinstance(outcomes[1], Rejected)


async def test_death_whose_dismissal_is_forgotten_is_exported(stores: SourceAndTarget) -> None:
    """The item was dismissed before it arrived, so it is not past when its dismissal is."""
    source, clock, target, _ = stores
    uid = new_uid()
    await source.consume_message(dismiss(uid, "late"))
    clock.now = 300
    await source.consume_message(create(uid, "c", msg_id="late"))
    await prune(source, 200)
    text = await exported(source, uid)
    assert b'{"tombstone":{"uid":"%s","msg_id":"late","at":100}}' % uid.encode() in text
    await imported(target, text)
    assert (await target.state(uid)).items == ()
    assert await exported(target, uid) == text


async def test_older_life_is_refused_line_by_line(stores: SourceAndTarget) -> None:
    source, _, target, target_clock = stores
    uid = new_uid()
    await source.consume_messages([create(uid, "c", msg_id="a"), create(uid, "c", msg_id="b")])
    target_clock.now = 500
    await target.erase(uid)
    answer = await imported(target, await exported(source, uid))
    assert [(p.line, p.code) for p in answer.problems] == [(3, "erased"), (4, "erased")]
    assert answer.complete
    assert known_ids(await exported(target, uid)) == set()


async def test_later_life_erases_what_is_older(stores: SourceAndTarget) -> None:
    source, clock, target, _ = stores
    uid = new_uid()
    await target.consume_message(create(uid, "c", msg_id="old"))
    clock.now = 500
    erasure = (await source.erase(uid)).erasure
    await source.consume_message(create(uid, "c", msg_id="new"))
    await imported(target, await exported(source, uid))
    assert known_ids(await exported(target, uid)) == {"new"}
    assert await target.erasure(uid) == erasure


async def test_device_of_either_store_gets_a_snapshot_after_a_merge(
    stores: SourceAndTarget,
) -> None:
    """Of the messages of the other store, no cursor could hear."""
    source, clock, target, target_clock = stores
    uid = new_uid()
    target_clock.now = 200
    await target.consume_message(create(uid, "c", msg_id="a"))
    clock.now = 300
    await source.consume_message(create(uid, "c", msg_id="b"))
    cursor = await source.ctime(uid)
    assert not (await imported(target, await exported(source, uid))).problems
    assert await target.ctime(uid) == cursor + 1
    sync = await target.sync(uid, None, cursor)
    assert isinstance(sync.content, Snapshot)
    assert (await target.sync(uid, None, cursor + 1)).content == Changes(())


async def test_tombstone_kills_an_item_of_the_store_and_devices_hear_of_it(
    stores: SourceAndTarget,
) -> None:
    target = stores.target
    uid = new_uid()
    await target.consume_message(create(uid, "c", msg_id="a"))
    cursor = await target.ctime(uid)
    text = (
        head_line()
        + encode_line(ExportedUser(uid, 90))
        + encode_line(ExportedTombstone(uid, "a", 90))
        + encode_line(ExportEnd(1, 0))
    )
    assert not (await imported(target, text)).problems
    assert list(await target.check_hashes([uid])) == []
    assert (await target.state(uid)).items == ()
    assert isinstance((await target.sync(uid, None, cursor)).content, Snapshot)


async def test_conflicts_are_listed_and_nothing_is_lost(stores: SourceAndTarget) -> None:
    source, clock, target, target_clock = stores
    uid = new_uid()
    clock.now, target_clock.now = 200, 201
    await source.consume_messages([create(uid, "c", 1, msg_id="a"), create(uid, "c", msg_id="b")])
    await target.consume_messages([create(uid, "c", 2, msg_id="a"), create(uid, "c", msg_id="x")])
    answer = await imported(target, await exported(source, uid))
    assert [(p.line, p.code) for p in answer.problems] == [(3, "conflict"), (4, "conflict")]
    assert "another message of this user has this ctime" in answer.problems[1].reason
    assert known_ids(await exported(target, uid)) == {"a", "x"}


# Files


USER = '{"user":{"uid":"u","ctime":9,"mark":0,"epoch":0,"floor":0,"erased_at":0}}'
MESSAGE = '{"message":{"uid":"u","msg_id":"a","ctime":8,"creation":{"category":"c","body":1}}}'
END = '{"end":{"users":1,"messages":1}}'


class BadFile(NamedTuple):
    name: str
    lines: list[str]
    problems: list[tuple[int, str]]
    complete: bool = True


BAD_FILES = [
    BadFile("none", [USER, MESSAGE, END], []),
    BadFile("blank lines", [USER, "", MESSAGE, "  ", END], []),
    BadFile("not JSON", [USER, "{", MESSAGE, END], [(3, "not JSON")]),
    BadFile("no line of an export", [USER, '{"item":{}}', MESSAGE, END], [(3, "unknown field")]),
    BadFile("an empty line", [USER, "{}", MESSAGE, END], [(3, "a line has one of user,")]),
    BadFile(
        "two in one line",
        [USER, MESSAGE[:-1] + "," + END[1:], MESSAGE, END],
        [(3, "a line has one of user,")],
    ),
    BadFile("a user without a uid", ['{"user":{}}', MESSAGE, END], [(2, "uid")]),
    BadFile(
        "a message without a ctime",
        [USER, MESSAGE.replace('"ctime":8,', ""), MESSAGE, END],
        [(3, "`ctime`")],
    ),
    BadFile(
        "a message without contents",
        [USER, '{"message":{"uid":"u","msg_id":"b","ctime":7}}', MESSAGE, END],
        [(3, "needs a `creation` or a `dismissal`")],
    ),
    BadFile(
        "a ctime in the far future",
        [USER, MESSAGE.replace("8", "90071992547409910"), MESSAGE, END],
        [(3, "ctime")],
    ),
    BadFile(
        "a digest that is none",
        [USER, MESSAGE, '{"pruned":{"uid":"u","msg_id":"p","ctime":3,"digest":"?"}}', END],
        [(4, "`digest`")],
    ),
    BadFile(
        "NUL in an id",
        [USER, MESSAGE, '{"tombstone":{"uid":"u","msg_id":"\\u0000","at":3}}', END],
        [(4, "NUL")],
    ),
    BadFile(
        "the same message twice, once otherwise",
        [USER, MESSAGE, MESSAGE, MESSAGE.replace("1", "2"), END.replace("1}", "3}")],
        [(5, "other contents")],
    ),
    BadFile("a very long line", [USER, "x" * (MAX_LINE + 1), MESSAGE, END], [(3, "at most")]),
    BadFile("too little", [USER, MESSAGE, END.replace("1}", "2}")], [(4, "lines are missing")]),
    BadFile("more after the end", [USER, MESSAGE, END, USER], [(5, "after the end")]),
    BadFile("cut short", [USER, MESSAGE], [], complete=False),
    BadFile("cut within a line", [USER, MESSAGE, END[:9]], [(4, "not JSON")], complete=False),
]


@pytest.mark.parametrize("chunk", [7, 1 << 22])
@pytest.mark.parametrize("case", BAD_FILES, ids=lambda case: case.name)
async def test_broken_line_is_named_and_loses_nothing_else(case: BadFile, chunk: int) -> None:
    if chunk == 7 and case.name == "a very long line":
        chunk = 1000
    text = "\n".join(['{"gregor_export":1}', *case.lines]).encode()
    async with opened() as (machine, _):
        answer = await imported(machine, text, chunk=chunk)
        assert [problem.line for problem in answer.problems] == [line for line, _ in case.problems]
        for problem, (_, reason) in zip(answer.problems, case.problems, strict=True):
            assert reason in problem.reason
        assert answer.complete == case.complete
        (item,) = (await machine.state("u")).items
        assert (item.msg_id, item.ctime, item.body) == ("a", 8, 1)
        assert await machine.ctime("u") == (9 if case.complete and "uid" in case.lines[0] else 8)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "not an export"),
        (b"{}\n", "not an export"),
        (b"\x1f\x8b\x08", "not an export"),
        (b'{"gregor_export":"1"}\n', "not an export"),
        (b'{"gregor_export":2}\n', "of version 2, and this Gregor reads version 1: import it with"),
    ],
)
async def test_other_file_is_refused(stores: SourceAndTarget, head: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        await imported(stores.target, head)


async def test_later_version_may_say_more_in_the_first_line(stores: SourceAndTarget) -> None:
    head = b'{"gregor_export":1,"by":"gregor 9"}\n'
    assert (await imported(stores.target, head + b'{"end":{"users":0,"messages":0}}')).complete


async def test_unknown_user_is_not_in_an_export(stores: SourceAndTarget) -> None:
    assert await exported(stores.source, "nobody") == (
        b'{"gregor_export":1}\n{"end":{"users":0,"messages":0}}\n'
    )


# From store to store


async def test_users_go_from_store_to_store_and_nothing_changes(
    postgresql_server: PostgreSQL,
) -> None:
    """SQLite, PostgreSQL, three shards, SQLite."""
    urls = {name: await postgresql_server.create_database() for name in "abc"}
    async with (
        opened() as (first, clock),
        opened(await postgresql_server.create_database()) as (second, second_clock),
        shards(urls) as harness,
        harness.machine(lambda: NOW) as third,
        opened() as (fourth, _),
    ):
        uids = [f"user {n}" for n in range(40)]
        for number, uid in enumerate(uids):
            await first.consume_messages([create(uid, "c", n, msg_id=f"{n}") for n in range(6)])
            await first.consume_message(dismiss(uid, "1", "later", msg_id="d"))
            if number % 3 == 0:
                await first.erase(uid)
                await first.consume_message(create(uid, "c", "new", msg_id="new"))
        clock.now = 400
        await prune(first, 300)
        clock.now = second_clock.now = NOW
        cursors = {uid: await first.ctime(uid) for uid in uids}
        heard = [await answers(first, uid, None, cursor) for uid, cursor in cursors.items()]
        text = await exported(first)
        machines: list[StateMachineOfRecord] = [second, third, fourth]
        for machine in machines:
            assert not (await imported(machine, text)).problems
            assert [await answers(machine, u, None, c) for u, c in cursors.items()] == heard
            copied = await exported(machine)
            assert copied == text
            text = copied
