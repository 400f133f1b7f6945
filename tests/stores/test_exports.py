"""Exports of stores, and imports: laws on random lives, and files that are broken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given, settings

from gregor.core.instant import Time
from gregor.core.item_history import Author
from gregor.core.message import UID, DeviceID
from gregor.core.sync import After, PageLimits
from gregor.interfaces import StateMachineOfRecord
from gregor.node.exporting import export
from gregor.node.importing import import_export
from gregor.protocol.answers import ImportAnswer
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock
from gregor.testing.conformance import result_or_code, take_step
from gregor.testing.strategies import Life, devices, lives, times

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


async def live(
    machine: StateMachineOfRecord, clock: ManualClock, uid: UID, life: Life, author: Author = "a"
) -> None:
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


class Stores(NamedTuple):
    source: SQLStateMachine
    source_clock: ManualClock
    target: SQLStateMachine
    target_clock: ManualClock


@pytest.fixture
async def stores() -> AsyncIterator[Stores]:
    async with opened() as source, opened() as target:
        yield Stores(*source, *target)


@settings(max_examples=60)
@given(life=lives(), device_id=devices, cursor=times)
async def test_law_a_new_store_has_the_same_export_and_answers_each_cursor_alike(
    stores: Stores, life: Life, device_id: DeviceID | None, cursor: Time
) -> None:
    source, clock, target, _ = stores
    uid = new_uid()
    await live(source, clock, uid, life)
    text = await exported(source, uid)
    answer = await imported(target, text)
    assert answer.complete
    assert not answer.problems
    assert await exported(target, uid) == text
    heard = await answers(source, uid, device_id, cursor)
    assert await answers(target, uid, device_id, cursor) == heard
    assert list(await target.check_hashes([uid])) == []
    again = await imported(target, text)
    assert again.complete
    assert not again.problems
    assert not again.stored
    assert await exported(target, uid) == text
