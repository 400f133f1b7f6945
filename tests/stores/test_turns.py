"""Writes and reads take turns on the connection of a file."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Event

import pytest

from gregor.stores.sql.turns import Turns


class Line:
    """What waits for its turn behind something, and the order in which it had it."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self.turns = Turns(thread.submit)
        self.order: list[str] = []
        self._go_on = Event()
        self.turns.run(self._go_on.wait, is_write=False)

    def join(self, names: str) -> list[Future[None]]:
        """Let each of these names wait: a capital letter is a write."""
        return [
            self.turns.run(partial(self.order.append, name), is_write=name.isupper())
            for name in names
        ]

    def end(self) -> str:
        self._go_on.set()
        self.turns.run(lambda: None, is_write=False).result(timeout=60)
        return "".join(self.order)


@pytest.fixture
def line() -> Iterator[Line]:
    with ThreadPoolExecutor(1) as thread:
        yield Line(thread)


@pytest.mark.parametrize(
    ("came", "served"),
    [
        pytest.param("abcW", "Wabc", id="a write is next, however many reads wait"),
        pytest.param("VWXab", "VaWbX", id="a read is next after a write"),
        pytest.param("abc", "abc", id="each kind is served as it came"),
    ],
)
def test_writes_and_reads_take_turns(line: Line, came: str, served: str) -> None:
    line.join(came)
    assert line.end() == served


def test_who_is_cancelled_while_it_waits_loses_its_turn_alone(line: Line) -> None:
    line.join("aWb")[1].cancel()
    assert line.end() == "ab"


def test_error_is_raised_where_it_is_awaited(line: Line) -> None:
    def fail() -> None:
        raise ValueError("no")

    failed = line.turns.run(fail, is_write=True)
    line.join("a")
    assert line.end() == "a"
    with pytest.raises(ValueError, match="no"):
        failed.result()
