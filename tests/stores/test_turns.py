"""Writes and reads take turns on the connection of a file."""

import asyncio

from gregor.stores.sql.turns import Turns


class Line:
    """Tasks that wait for their turn, and the order in which they had it."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, names: str) -> None:
        """Let a task wait for each of these names: a capital letter is a write."""
        for name in names:
            self.tasks.append(asyncio.create_task(self._have_a_turn(name)))
            await asyncio.sleep(0)

    async def _have_a_turn(self, name: str) -> None:
        async with self.turns.turn(is_write=name.isupper()):
            self.order.append(name)
            await asyncio.sleep(0)

    async def end(self) -> str:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return "".join(self.order)


async def line_behind_another(names: str) -> Line:
    line = Line()
    async with line.turns.turn(is_write=False):
        await line.join(names)
    return line


async def test_write_is_next_however_many_reads_wait() -> None:
    line = await line_behind_another("abcW")
    assert (await line.end()) == "Wabc"


async def test_read_is_next_after_a_write() -> None:
    line = await line_behind_another("VWXab")
    assert (await line.end()) == "VaWbX"


async def test_each_kind_is_served_as_it_came() -> None:
    line = await line_behind_another("abc")
    assert (await line.end()) == "abc"


async def test_who_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    line = await line_behind_another("aWb")  # it is W's turn
    line.tasks[1].cancel()
    assert (await line.end()) == "ab"
    await line.join("W")
    assert (await line.end()) == "abW"


async def test_who_is_cancelled_while_it_waits_keeps_nobody_waiting() -> None:
    line = Line()
    async with line.turns.turn(is_write=False):
        await line.join("aWb")
        line.tasks[1].cancel()
        await asyncio.sleep(0)
    assert (await asyncio.wait_for(line.end(), 10)) == "ab"
