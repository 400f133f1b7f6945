"""Sends many messages to a server: in order for each user, concurrently for different users.

The messages of one user go through one queue, and each queue has one batch in flight. Retrying it
is up to `send`; storing a message is idempotent, so no message is stored twice. If `send` gives up,
all ends, and the same lines can be sent again.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias
from zlib import crc32

from gregor.cli.stream import BadLine, parse
from gregor.core.message import MAX_BATCH, InBandMessage
from gregor.errors import Unavailable
from gregor.protocol.frames import Result

QUEUES = 4
MAX_PROBLEMS = 1_000

Send: TypeAlias = Callable[[Sequence[InBandMessage]], Awaitable[Sequence[Result]]]


class LineProblem(NamedTuple):
    """A line that is not a valid message, or whose message was rejected."""

    line: int
    reason: str


@dataclass
class Tally:
    """The results of the lines so far, with the first MAX_PROBLEMS problems."""

    lines: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0
    bad: int = 0
    problems: list[LineProblem] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.stored + self.duplicates + self.rejected + self.bad

    def add_bad_line(self, line: int, bad: BadLine) -> None:
        self.bad += 1
        self._add_problem(LineProblem(line, bad.reason))

    def add_result(self, line: int, result: Result) -> None:
        match result.status:
            case "duplicate":
                self.duplicates += 1
            case "rejected":
                self.rejected += 1
                reason = "" if result.error is None else result.error.message
                self._add_problem(LineProblem(line, f"rejected: {reason}"))
            case _:
                self.stored += 1

    def _add_problem(self, problem: LineProblem) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class NumberedMessage(NamedTuple):
    """A message, and the number of its line."""

    line: int
    message: InBandMessage


SendQueue: TypeAlias = "asyncio.Queue[NumberedMessage | None]"


async def send_all(lines: AsyncIterable[tuple[int, bytes]], send: Send, tally: Tally) -> None:
    """Send the messages in the lines, and record the results in the tally. Raises what `send`
    raises, and Unavailable if a message may be retried: nothing is sent past it."""
    queues: list[SendQueue] = [asyncio.Queue(2 * MAX_BATCH) for _ in range(QUEUES)]
    async with asyncio.TaskGroup() as tasks:
        for queue in queues:
            tasks.create_task(_send_queue(queue, send, tally))
        async for number, line in lines:
            tally.lines += 1
            match parse(line):
                case BadLine() as bad:
                    tally.add_bad_line(number, bad)
                case message:
                    queue = queues[crc32(message.uid.encode()) % QUEUES]
                    await queue.put(NumberedMessage(number, message))
        for queue in queues:
            await queue.put(None)


async def _send_queue(queue: SendQueue, send: Send, tally: Tally) -> None:
    while (first := await queue.get()) is not None:
        batch, ended = _batch(first, queue)
        results = await send([numbered.message for numbered in batch])
        for numbered, result in zip(batch, results, strict=True):
            if result.error is not None and result.should_retry:
                # To go on without its user would lose messages of a stream that never ends.
                raise Unavailable(
                    f"line {numbered.line}: {result.error.message}; send all lines again: what is"
                    " stored is not stored twice"
                )
            tally.add_result(numbered.line, result)
        if ended:
            return


def _batch(first: NumberedMessage, queue: SendQueue) -> tuple[list[NumberedMessage], bool]:
    """The messages to send next, and whether the end of the queue is reached."""
    batch = [first]
    while len(batch) < MAX_BATCH and not queue.empty():
        numbered = queue.get_nowait()
        if numbered is None:
            return batch, True
        batch.append(numbered)
    return batch, False
