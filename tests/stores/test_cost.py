"""D15: the cost of an operation does not grow with the length of a user's history. In the original,
every message was slower than the one before. SQLite counts its steps, so no time is measured."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pytest

from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.core.state_page import PageStart, StateQuery
from gregor.core.sync import After, Changes, PageLimits, Since
from gregor.interfaces import Slot
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.reads import (
    read_counts,
    read_next_state_page,
    read_segments,
    read_since,
    read_state_page,
    read_sync,
)
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.transactions import check_hashes, consume
from tests.fleet.servers import PostgreSQL
from tests.steps import rows_read, sqlite_steps

T = TypeVar("T")
LONG_HISTORY = 3_000
DAY = 86_400 * SECOND
NOW = 20_000 * DAY


def stored(*messages: InBandMessage) -> Callable[[DatabaseConnection], object]:
    return lambda connection: consume(connection, [Slot(m) for m in messages], NOW)


LATER_PAGE = PageStart(NOW, NOW + DAY, "", 0, "")

OPERATIONS: dict[str, Callable[[DatabaseConnection], object]] = {
    "creation": stored(create("u", "a")),
    "put": stored(put("u", "badge", 1)),
    "dismissal_of_key": stored(dismiss_key("u", "badge")),
    "dismissal_of_key_on_a_device": stored(dismiss_key("u", "badge", device_id="d1")),
    "check_of_the_hash": lambda c: check_hashes(c, ["u"], NOW),
    "dismissal_of_unknown_id": stored(dismiss("u", "unknown")),
    "dismissal_of_category": stored(dismiss_category("u", "a")),
    "dismissal_of_category_beside_a_late_replay_of_another_user": stored(
        create("v", "a"), create("v", "a").stamp(1, 0), dismiss_category("u", "a")
    ),
    "dismissals_beside_a_late_creation": stored(
        create("u", "a").stamp(1, 0), dismiss_category("u", "a"), dismiss_key("u", "badge")
    ),
    "dismissal_of_prefix": stored(dismiss_category("u", "b", prefix=True)),
    "state": lambda c: read_state_page(c, "u", StateQuery(), NOW),
    "value_of_key": lambda c: read_state_page(c, "u", StateQuery(key="badge"), NOW),
    "state_a_moment_ago": lambda c: read_state_page(c, "u", StateQuery(), NOW, DAY + NOW),
    "later_page": lambda c: read_next_state_page(c, "u", StateQuery(limit=1), LATER_PAGE),
    "count": lambda c: read_counts(c, "u", None, ["b"], NOW),
    "count_by_segment": lambda c: read_segments(c, "u", None, "b", NOW),
    "snapshot": lambda c: read_sync(c, "u", "d1", 0, NOW),
    "sync_from_old_cursor": lambda c: read_sync(c, "u", "d1", 1, NOW),
    "sync_from_recent_cursor": lambda c: read_sync(c, "u", "d1", NOW, NOW),
    "messages_since_tomorrow": lambda c: read_since(c, "u", "d1", Since(NOW + DAY), NOW),
}


async def with_history(url: str, length: int, work: Callable[[DatabaseConnection], T]) -> T:
    """The result of the work on a user who has stored so many messages."""
    async with database_at(url, migrate) as database:
        async with SQLStateMachine(database, lambda: NOW) as machine:
            for _ in range(length // 10):
                await machine.consume_messages([put("u", "badge", n) for n in range(9)])
                await machine.consume_message(
                    create("u", "expired", expires=TimeOrOffset(time=NOW - DAY))
                )
        return await database.write(work)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_d15_cost_does_not_grow_with_history(operation: str) -> None:
    short, long = [
        await with_history(
            "sqlite://", length, lambda c: sqlite_steps(c, lambda: OPERATIONS[operation](c))
        )
        for length in (10, LONG_HISTORY)
    ]
    assert short > 0
    assert long < 3 * short + 50


async def test_d15_cost_does_not_grow_with_history_on_postgresql(
    postgresql_server: PostgreSQL,
) -> None:
    def costs(connection: DatabaseConnection) -> dict[str, int]:
        connection.execute_sql("ANALYZE")  # as PostgreSQL does in the first minute
        return {
            name: rows_read(connection, partial(work, connection))
            for name, work in OPERATIONS.items()
        }

    short, long = [
        await with_history(await postgresql_server.create_database(), length, costs)
        for length in (10, LONG_HISTORY)
    ]
    assert sum(short.values()) > 0
    assert {name for name in OPERATIONS if long[name] > 3 * short[name] + 50} == set()


# What is new, not what is live

MISSED = NOW - 1


def resumes(connection: DatabaseConnection) -> object:
    """A device comes back that has missed one message."""
    sync = read_sync(connection, "u", "d1", MISSED, NOW)
    assert isinstance(sync.content, Changes)
    assert len(sync.content.messages) == 1
    return sync


async def with_live_items(url: str, live: int, work: Callable[[DatabaseConnection], T]) -> T:
    """The result of the work on a user with so many live items, and a last message at NOW."""
    async with database_at(url, migrate) as database:
        async with SQLStateMachine(database, lambda: NOW - DAY) as machine:
            for start in range(0, live, 500):
                size = min(500, live - start)
                await machine.consume_messages([create("u", "a", n) for n in range(size)])
        async with SQLStateMachine(database, lambda: MISSED) as machine:
            await machine.consume_message(create("u", "a"))
        async with SQLStateMachine(database, lambda: NOW) as machine:
            await machine.consume_message(put("u", "a", device_id="d1"))
        return await database.write(work)


async def test_device_that_missed_one_message_resumes_whatever_is_live() -> None:
    few, many = [
        await with_live_items(
            "sqlite://", live, lambda c: sqlite_steps(c, lambda: [resumes(c) for _ in range(10)])
        )
        for live in (10, 10_000)
    ]
    assert 0 < many <= few + 1


async def test_device_that_missed_one_message_resumes_whatever_is_live_on_postgresql(
    postgresql_server: PostgreSQL,
) -> None:
    def rows(connection: DatabaseConnection) -> int:
        connection.execute_sql("ANALYZE")
        return rows_read(connection, partial(resumes, connection))

    few, many = [
        await with_live_items(await postgresql_server.create_database(), live, rows)
        for live in (10, 2_000)
    ]
    assert 0 < many <= few


async def test_dismissal_of_one_item_costs_the_same_whatever_is_live() -> None:
    """With the hash of all that is live."""
    few, many = [
        await with_live_items(
            "sqlite://",
            live,
            lambda c: sqlite_steps(c, lambda: stored(dismiss("u", "unknown"), put("u", "a"))(c)),
        )
        for live in (10, 10_000)
    ]
    assert 0 < many <= 1.2 * few


async def test_page_of_a_log_of_large_bodies_reads_a_part_of_it(url: str) -> None:
    """A body that is replaced is read, although it is not sent."""
    body = "x" * 60_000
    limits = PageLimits(500, 1_000_000, bytes_read=20 * 60_000)
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, lambda: NOW) as machine,
    ):
        for _ in range(20):
            await machine.consume_messages([put("u", "badge", body) for _ in range(10)])
        pages = [await machine.messages_page("u", None, Since(0), limits)]
        while pages[-1].more:
            start = After(pages[-1].cursor)
            pages.append(await machine.messages_page("u", None, start, limits))
    assert len(pages) == 10
