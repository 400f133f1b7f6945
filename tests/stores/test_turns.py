"""Writes and reads take turns on the connection of a file."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from threading import Event

import pytest
import pytest_asyncio

from gregor.stores.sql.turns import Turns
from gregor.stores.sql.worker_thread import WorkerThread

pytestmark = pytest.mark.asyncio


class Line:
    """What waits for its turn behind something, and the order in which it had it."""

    def __init__(self, thread: WorkerThread) -> None:
        self.turns = Turns(thread.submit)
        self.order: list[str] = []
        self._has_begun, self._go_on = Event(), Event()
        self.turns.run(self._hold, is_write=False)
        self._has_begun.wait()

    def _hold(self) -> None:
        self._has_begun.set()
        self._go_on.wait()

    def join(self, names: str) -> list["asyncio.Future[None]"]:
        """Let each of these names wait: a capital letter is a write."""
        return [
            self.turns.run(partial(self.order.append, name), is_write=name.isupper())
            for name in names
        ]

    async def end(self) -> str:
        self._go_on.set()
        await self.turns.run(lambda: None, is_write=False)
        return "".join(self.order)


@pytest_asyncio.fixture
async def line() -> AsyncIterator[Line]:
    thread = WorkerThread("test")
    yield Line(thread)
    thread.end()


@pytest.mark.parametrize(
    ("came", "served"),
    [
        pytest.param("abcW", "Wabc", id="a write is next, however many reads wait"),
        pytest.param("VWXab", "VaWbX", id="a read is next after a write"),
        pytest.param("abc", "abc", id="each kind is served as it came"),
    ],
)
async def test_writes_and_reads_take_turns(line: Line, came: str, served: str) -> None:
    line.join(came)
    assert await line.end() == served


async def test_who_is_cancelled_while_it_waits_loses_its_turn_alone(line: Line) -> None:
    line.join("aWb")[1].cancel()
    assert await line.end() == "ab"


async def test_who_is_cancelled_in_its_turn_does_not_harm_the_others(line: Line) -> None:
    loop, errors = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda loop, context: errors.append(context))

    def cancel() -> None:
        loop.call_soon_threadsafe(cancelled.cancel)
        line.order.append("cancelled")

    cancelled = line.turns.run(cancel, is_write=True)
    line.join("a")
    assert await line.end() == "cancelleda"
    assert cancelled.cancelled()
    assert not errors


async def test_error_is_raised_where_it_is_awaited(line: Line) -> None:
    def fail() -> None:
        raise ValueError("no")

    failed = line.turns.run(fail, is_write=True)
    line.join("a")
    assert await line.end() == "a"
    with pytest.raises(ValueError, match="no"):
        await failed
