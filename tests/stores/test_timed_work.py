"""A transaction that takes long says in the log what it took long for."""

import logging
from collections.abc import Iterator
from functools import partial
from operator import methodcaller

import pytest

from gregor.log_event import LogEvent
from gregor.stores.sql import timed_work
from gregor.stores.sql.database import DatabaseConnection, Work
from gregor.stores.sql.sqlite import SQLiteDatabase

# When the turn of a transaction came, its work began, its work ended, and it had committed.
LONG = (10.0, 10.125, 10.5, 11.0)
SHORT = (10.0, 10.125, 10.5, 10.999)


def logged(caplog: pytest.LogCaptureFixture) -> list[object]:
    return [r.msg.fields for r in caplog.records if isinstance(r.msg, LogEvent)]


async def transact(times: Iterator[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(connection: DatabaseConnection) -> list[tuple[int]]:
        return connection.execute_sql("SELECT 1")

    async with SQLiteDatabase("", None) as database:
        processor = iter((1.0, 1.25))
        monkeypatch.setattr(timed_work, "perf_counter", times.__next__)
        monkeypatch.setattr(timed_work, "thread_time", processor.__next__)
        assert await database.read(answer) == [(1,)]


async def test_long_transaction_is_logged_with_its_parts(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, "gregor.store"):
        await transact(iter(LONG), monkeypatch)
    parts = {"waited_ms": 125, "worked_ms": 375, "committed_ms": 500, "processor_ms": 250}
    assert logged(caplog) == [{"work": "transact", **parts}]


async def test_short_transaction_is_not_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.WARNING, "gregor.store"):
        await transact(iter(SHORT), monkeypatch)
    assert not logged(caplog)


async def test_work_that_fails_is_timed_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_work, "LONG_SECONDS", 0.0)

    def fail(connection: DatabaseConnection) -> None:
        raise KeyError("planned")

    with caplog.at_level(logging.WARNING, "gregor.store"):
        async with SQLiteDatabase("", None) as database:
            with pytest.raises(KeyError, match="planned"):
                await database.write(fail)
    assert "fail" in caplog.text


class CallableWork:
    def __call__(self, connection: DatabaseConnection) -> int:
        return 5


def five(connection: DatabaseConnection, *, number: int = 5) -> int:
    return number


KINDS_OF_WORK: dict[str, Work[object]] = {
    "five": five,
    "<lambda>": lambda connection: 5,
    "CallableWork": CallableWork(),
    "methodcaller": methodcaller("execute_sql", "SELECT 5"),
}


@pytest.mark.parametrize("name", KINDS_OF_WORK)
@pytest.mark.parametrize("partially", [False, True])
async def test_long_work_of_any_kind_is_logged_with_a_name_and_has_its_result(
    name: str, partially: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_work, "LONG_SECONDS", 0.0)
    work = KINDS_OF_WORK[name]
    with caplog.at_level(logging.WARNING, "gregor.store"):
        async with SQLiteDatabase("", None) as database:
            result = await database.read(partial(partial(work)) if partially else work)
    assert result in (5, [(5,)])
    (fields,) = logged(caplog)
    assert isinstance(fields, dict)
    assert fields["work"] == name
