"""An operation costs the sum of what it holds and what it touches, never their product: one request
must not make all other users wait. Steps and rows are counted, so no time is measured."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import pytest

from gregor.core.facts import DismissedRange
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    Dismissal,
    InBandMessage,
    KeyDismissal,
    Range,
    create,
    dismiss,
    dismiss_key,
    put,
)
from gregor.core.range_deaths import range_deaths
from gregor.core.state import Item
from gregor.core.state_page import StateQuery
from gregor.core.sync import Since
from gregor.interfaces import Slot
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.reads import read_counts, read_since, read_state_page, read_sync
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.transactions import check_hashes, consume
from tests.fleet.servers import PostgreSQL
from tests.steps import python_steps, rows_read, sqlite_steps

T = TypeVar("T")
NOW = 20_000 * 86_400 * SECOND
SIZE = 60


class Growth(NamedTuple):
    """What is stored first, and the operation, both by size."""

    history: Callable[[int], Sequence[InBandMessage]]
    operation: Callable[[int, DatabaseConnection], object]


def items(category: Callable[[int], str] = lambda n: "a") -> Callable[[int], list[InBandMessage]]:
    return lambda size: [create("u", category(n), msg_id=f"i{n}") for n in range(size)]


def dismissal(msg_id: str, ranges: Sequence[Range], ids: Sequence[str] = ()) -> InBandMessage:
    return InBandMessage("u", msg_id, dismissal=Dismissal(tuple(ids), tuple(ranges)))


def storing(batch: Callable[[int], Sequence[InBandMessage]]) -> Callable[..., object]:
    return lambda size, connection: consume(
        connection, [Slot(message) for message in batch(size)], NOW
    )


def replays(size: int) -> list[InBandMessage]:
    """Creations that are older than all that is stored."""
    return [create("u", "a", msg_id=f"r{n}").stamp(n + 1, 0) for n in range(size)]


def ranges_of_the_past(size: int) -> list[InBandMessage]:
    return [
        dismissal(f"d{n}", [Range("a", TimeOrOffset(time=NOW - n), skip_msg_ids=(f"r{n}",))])
        for n in range(size)
    ]


def sizes(size: int) -> range:
    """The lengths of prefixes."""
    return range(1, size + 1)


def past(length: int) -> Range:
    """A range that begins like the items, and that is created before them by its end."""
    return Range("a" * length, TimeOrOffset(time=NOW - 1), prefix=True)


def ids(number: int) -> tuple[str, ...]:
    return tuple(f"i{n}" for n in range(number))


def ends_in_the_past(number: int) -> InBandMessage:
    end = TimeOrOffset(time=NOW - number)
    return InBandMessage("u", f"d{number}", dismissal=Dismissal(keys=(KeyDismissal("a", end),)))


CASES = {
    "puts_of_one_key": Growth(
        items(), storing(lambda size: [put("u", "a", n) for n in range(size)])
    ),
    "puts_of_many_keys": Growth(
        lambda size: [put("u", "a", key=f"k{n}") for n in range(size)],
        storing(lambda size: [put("u", "a", n, key=f"k{n}") for n in range(size)]),
    ),
    "puts_of_one_key_in_many_scopes": Growth(
        lambda size: [put("u", "a", device_id=f"d{n}") for n in range(size)],
        storing(lambda size: [put("u", "a", n, device_id=f"d{n}") for n in range(size)]),
    ),
    "puts_that_are_replayed_behind_others": Growth(
        lambda size: [put("u", "a", n) for n in range(size)],
        storing(lambda size: [put("u", "a", n).stamp(n + 1, 0) for n in range(size)]),
    ),
    "dismissals_of_one_key": Growth(
        lambda size: [put("u", "a", device_id=f"d{n}") for n in range(size)],
        storing(lambda size: [dismiss_key("u", "a", device_id=f"d{n}") for n in range(size)]),
    ),
    "dismissals_of_many_keys": Growth(
        lambda size: [put("u", "a", key=f"k{n}") for n in range(size)],
        storing(lambda size: [dismiss_key("u", *(f"k{n}" for n in range(size)))]),
    ),
    "replays_behind_many_dismissals_of_their_key": Growth(
        lambda size: [ends_in_the_past(n) for n in range(size)],
        storing(lambda size: [put("u", "a", n).stamp(n + 1, 0) for n in range(size)]),
    ),
    "dismissals_of_many_keys_behind_others": Growth(
        lambda size: [put("u", "a", key=f"k{n}") for n in range(size)],
        storing(lambda size: [dismiss_key("u", f"k{n}").stamp(n + 1, 0) for n in range(size)]),
    ),
    "ranges_of_many_devices": Growth(
        lambda size: [create("u", "a", device_id=f"d{n}") for n in range(size)],
        storing(
            lambda size: [
                msgspec.structs.replace(dismissal(f"x{n}", [Range("a")]), device_id=f"d{n}")
                for n in range(size)
            ]
        ),
    ),
    "ranges_that_match_nothing": Growth(
        items(), storing(lambda size: [dismissal("d", [Range(f"z{n}") for n in range(size)])])
    ),
    "prefixes_that_match_nothing": Growth(
        items(),
        storing(lambda size: [dismissal("d", [Range(f"z{n}", prefix=True) for n in range(size)])]),
    ),
    "prefixes_that_begin_with_each_other": Growth(
        items(lambda n: "a" * 240 + f".{n}"),
        storing(lambda size: [dismissal("d", [Range("a" * n, prefix=True) for n in sizes(size)])]),
    ),
    "prefixes_that_begin_with_each_other_and_end_before": Growth(
        items(lambda n: "a" * 240 + f".{n}"),
        storing(lambda size: [dismissal(f"d{n}", [past(n)]) for n in sizes(size)]),
    ),
    "categories_of_many_items": Growth(
        items(lambda n: f"c{n}"),
        storing(lambda size: [dismissal("d", [Range(f"c{n}") for n in range(size)])]),
    ),
    "ids_that_a_range_skips": Growth(
        items(),
        storing(
            lambda size: [dismissal("d", [Range("a", skip_msg_ids=ids(2 * size))] * 2)],
        ),
    ),
    "ranges_that_skip_what_others_dismiss": Growth(
        items(),
        storing(
            lambda size: [
                dismissal("d", [Range("a", skip_msg_ids=(f"i{n}",)) for n in range(size)])
            ]
        ),
    ),
    "ranges_that_end_before_the_items": Growth(
        items(),
        storing(
            lambda size: [dismissal("d", [Range("a", TimeOrOffset(time=n)) for n in range(size)])]
        ),
    ),
    "replays_behind_many_ranges": Growth(ranges_of_the_past, storing(replays)),
    "ranges_of_the_past_after_dead_items": Growth(
        lambda size: [*items()(size), dismissal("all", [Range("a")])],
        storing(lambda size: [m.stamp(n + 1, 0) for n, m in enumerate(ranges_of_the_past(size))]),
    ),
    "ids_that_are_unknown": Growth(
        items(), storing(lambda size: [dismiss("u", *(f"unknown{n}" for n in range(size)))])
    ),
    "ids_that_are_stored": Growth(
        items(), storing(lambda size: [dismiss("u", *(f"i{n}" for n in range(size)))])
    ),
    "counts_of_many_prefixes": Growth(
        items(lambda n: f"c{n}"),
        lambda size, c: read_counts(c, "u", None, [f"c{n}" for n in range(size)], NOW),
    ),
    "snapshot": Growth(items(), lambda size, c: read_sync(c, "u", "d1", 0, NOW)),
    "dead_puts_since": Growth(
        lambda size: [put("u", "a", n) for n in range(size)],
        lambda size, c: read_since(c, "u", "d1", Since(1), NOW),
    ),
    "first_page_of_a_state": Growth(
        items(), lambda size, c: read_state_page(c, "u", StateQuery("d1", limit=10), NOW)
    ),
    "check_of_a_hash": Growth(items(), lambda size, c: check_hashes(c, ["u"], NOW)),
    "messages_since": Growth(items(), lambda size, c: read_since(c, "u", "d1", Since(1), NOW)),
}


async def costs(
    url: str,
    case: Growth,
    size: int,
    count: Callable[[DatabaseConnection, Callable[[], object]], T],
) -> T:
    async with database_at(url, migrate) as database:
        async with SQLStateMachine(database, lambda: NOW) as machine:
            await machine.consume_messages(case.history(size))
        return await database.write(lambda c: count(c, lambda: case.operation(size, c)))


@pytest.mark.parametrize("name", CASES)
async def test_cost_in_sqlite_grows_with_the_sum(name: str) -> None:
    small, large = [
        await costs("sqlite://", CASES[name], size, sqlite_steps) for size in (SIZE, 4 * SIZE)
    ]
    assert 0 < large < 6 * small


@pytest.mark.parametrize("name", CASES)
async def test_cost_in_python_grows_with_the_sum(name: str) -> None:
    small, large = [
        await costs("sqlite://", CASES[name], size, lambda _, work: python_steps(work))
        for size in (SIZE, 4 * SIZE)
    ]
    assert 0 < large < 6 * small


def rows_read_with_statistics(connection: DatabaseConnection, work: Callable[[], object]) -> int:
    """As after the first minute of a new database: then PostgreSQL has analyzed its tables."""
    connection.execute_sql("ANALYZE")
    return rows_read(connection, work)


async def test_cost_in_postgresql_grows_with_the_sum(postgresql_server: PostgreSQL) -> None:
    for name, case in CASES.items():
        small, large = [
            await costs(
                await postgresql_server.create_database(), case, size, rows_read_with_statistics
            )
            for size in (SIZE, 4 * SIZE)
        ]
        assert large < 6 * small + 50, name


def test_ranges_that_each_skip_an_item_are_compared_once() -> None:
    def work(size: int) -> Callable[[], object]:
        ranges = [DismissedRange(size, n, "a", skip_msg_ids=(f"i{n}",)) for n in range(size)]
        created = [create("u", "a", msg_id=f"i{n}").stamp(n + 1, 0) for n in range(size)]
        found = [item for message in created if (item := Item.of(message)) is not None]
        return lambda: list(range_deaths(ranges, found))

    assert python_steps(work(400)) < 6 * python_steps(work(100))


async def test_count_takes_no_step_of_python_for_an_item() -> None:
    case = Growth(items(), lambda _, c: read_counts(c, "u", None, ["a"], NOW))
    few, many = [
        await costs("sqlite://", case, size, lambda _, work: python_steps(work))
        for size in (10, 400)
    ]
    assert 0 < many < 2 * few
