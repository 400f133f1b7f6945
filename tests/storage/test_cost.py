"""D15: what things cost does not grow with a user's history. SQLite counts its own steps, so this
needs no watch: in the original, every message was slower than the one before."""

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import pytest
from sqlalchemy import Connection, text

from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, replace
from gregor.state_machines.sql import SQLStateMachine
from gregor.state_machines.transactions import consume, read_since, read_state, read_sync
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL

T = TypeVar("T")
LONG = 3_000
DAY = 86_400 * SECOND
NOW = 20_000 * DAY


def steps(connection: Connection, work: Callable[[Connection], T]) -> int:
    """About how many steps of SQLite's machine the work takes, in tens."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    counted = 0

    def step() -> int:
        nonlocal counted
        counted += 1
        return 0

    driver.set_progress_handler(step, 10)
    work(connection)
    driver.set_progress_handler(None, 0)
    return counted


def stored(*messages: InBandMessage) -> Callable[[Connection], object]:
    return lambda connection: consume(connection, messages, NOW)


EVERYDAY: dict[str, Callable[[Connection], object]] = {
    "a creation": stored(create("u", "a")),
    "a replacement": stored(replace("u", "badge", 1)),
    "a dismissal of an unknown id": stored(dismiss("u", "unknown")),
    "a dismissal of a category": stored(dismiss_category("u", "a")),
    "a dismissal of everything": stored(dismiss_category("u", "b", prefix=True)),
    "a state": lambda c: read_state(c, "u", None, NOW, None),
    "a snapshot": lambda c: read_sync(c, "u", "d1", 0, NOW),
    "a sync of a device long away": lambda c: read_sync(c, "u", "d1", 1, NOW),
    "a sync of a device that was just here": lambda c: read_sync(c, "u", "d1", NOW, NOW),
    "the latest messages": lambda c: read_since(c, "u", "d1", NOW + DAY, NOW),
}


async def lived(url: str, length: int, work: Callable[[Connection], T]) -> T:
    """What the work says of a user who has so long a history."""
    async with database_at(url, migrate) as database:
        async with SQLStateMachine(database, lambda: NOW) as machine:
            for _ in range(length // 10):
                await machine.consume_messages([replace("u", "badge", n) for n in range(9)])
                await machine.consume_message(create("u", "gone", dtime=NOW - DAY))
        return await database.write(work)


@pytest.mark.parametrize("what", EVERYDAY)
async def test_d15_a_long_history_costs_nothing(what: str) -> None:
    short, long = [
        await lived("sqlite://", length, lambda c: steps(c, EVERYDAY[what]))
        for length in (10, LONG)
    ]
    assert short > 0
    assert long < 3 * short + 50


def rows_read(connection: Connection, work: Callable[[Connection], T]) -> int:
    """How many rows the work has PostgreSQL look at."""
    counted = text("SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables")
    before = connection.scalar(counted)
    work(connection)
    return int(connection.scalar(counted) - before)


async def test_d15_a_long_history_costs_nothing_on_postgresql(
    postgresql_server: PostgreSQL,
) -> None:
    def costs(connection: Connection) -> dict[str, int]:
        return {what: rows_read(connection, work) for what, work in EVERYDAY.items()}

    short, long = [
        await lived(await postgresql_server.create_database(), length, costs)
        for length in (10, LONG)
    ]
    assert sum(short.values()) > 0
    assert {what for what in EVERYDAY if long[what] > 3 * short[what] + 50} == set()
