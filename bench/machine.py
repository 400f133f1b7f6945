"""How long the machine stood still while a bench ran: others may share it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import msgspec

from bench.report import Figure


class Machine(msgspec.Struct):
    """The longest of each, in seconds."""

    late: float = 0.0  # how late a thread was woken that only slept, on the worst processor
    sync: float = 0.0  # how long an fsync of a page took

    def figure(self) -> Figure:
        return Figure(
            name="the machine meanwhile",
            measured=f"a thread that only sleeps, on each processor: {self.late * 1e3:.0f} ms late"
            " at worst",
            beside=f"an fsync: {self.sync * 1e3:.0f} ms at worst",
        )


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Machine]:
    """The machine and the disk of this folder. The numbers are there when the block has ended."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.watch_machine", str(folder)), stdout=PIPE
    )
    machine = Machine()
    try:
        yield machine
    finally:
        process.terminate()
        printed, _ = await process.communicate()
    seen = msgspec.json.decode(printed, type=Machine)
    machine.late, machine.sync = seen.late, seen.sync
