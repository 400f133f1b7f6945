"""Many messages to a server: in order for each user, side by side for different users.

Each user has a lane, and a lane has one request under way at a time. A request that was not
answered is sent again: each message has its id, so nothing is stored twice.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias
from zlib import crc32

from msgspec import Raw

from gregor.cli.stream import Bad, parse
from gregor.core.message import MAX_BATCH, InBandMessage
from gregor.errors import Unavailable
from gregor.protocol.frames import Result

LANES = 4
BATCH_BYTES = 4 * 1024 * 1024
PATIENCE_SECONDS = 60.0
PROBLEMS_KEPT = 1_000

Send: TypeAlias = Callable[[Sequence[InBandMessage | Raw]], Awaitable[Sequence[Result]]]


class Problem(NamedTuple):
    line: int
    reason: str


@dataclass
class Tally:
    """What has become of the lines so far."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0
    bad: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.stored + self.duplicates + self.rejected + self.bad

    def no_message(self, line: int, bad: Bad) -> None:
        self.bad += 1
        self._keep(Problem(line, bad.reason))

    def result(self, line: int, result: Result) -> None:
        match result.status:
            case "duplicate":
                self.duplicates += 1
            case "rejected":
                self.rejected += 1
                reason = "" if result.error is None else result.error.message
                self._keep(Problem(line, f"rejected: {reason}"))
            case _:
                self.stored += 1

    def _keep(self, problem: Problem) -> None:
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)


class Numbered(NamedTuple):
    """A message, and the line that it was read from."""

    line: int
    message: InBandMessage
    size: int


Lane: TypeAlias = "asyncio.Queue[Numbered | None]"


async def send_all(lines: AsyncIterable[tuple[int, bytes]], send: Send, tally: Tally) -> None:
    """Send what the lines hold, and tell the tally what becomes of it. Raises what `send` raises;
    Unavailable only after a minute of trying again."""
    lanes: list[Lane] = [asyncio.Queue(2 * MAX_BATCH) for _ in range(LANES)]
    async with asyncio.TaskGroup() as tasks:
        for lane in lanes:
            tasks.create_task(_drive(lane, send, tally))
        async for number, line in lines:
            tally.lines += 1
            match parse(line):
                case Bad() as bad:
                    tally.no_message(number, bad)
                case message:
                    lane = lanes[crc32(message.uid.encode()) % LANES]
                    await lane.put(Numbered(number, message, len(line)))
        for lane in lanes:
            await lane.put(None)


async def _drive(lane: Lane, send: Send, tally: Tally) -> None:
    while (first := await lane.get()) is not None:
        batch, ended = _batch(first, lane)
        results = await patiently(send, [numbered.message for numbered in batch])
        for numbered, result in zip(batch, results, strict=True):
            tally.result(numbered.line, result)
        if ended:
            return


def _batch(first: Numbered, lane: Lane) -> tuple[list[Numbered], bool]:
    """What one request takes of what waits in the lane, and whether the lane ends there."""
    batch, size = [first], first.size
    while len(batch) < MAX_BATCH and size < BATCH_BYTES and not lane.empty():
        numbered = lane.get_nowait()
        if numbered is None:
            return batch, True
        batch.append(numbered)
        size += numbered.size
    return batch, False


async def patiently(send: Send, messages: Sequence[InBandMessage | Raw]) -> Sequence[Result]:
    """Send, and again until the server answers; give up after a minute."""
    clock = asyncio.get_running_loop().time
    deadline, pause = clock() + PATIENCE_SECONDS, 0.1
    while True:
        try:
            results = await send(messages)
            if not any(result.to_repeat for result in results) or clock() + pause > deadline:
                return results
        except Unavailable:
            if clock() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, 5.0)
