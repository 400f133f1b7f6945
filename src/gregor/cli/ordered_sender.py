"""Sends many messages to a server: in order for each user, concurrently for different users.

The messages of one user go through one queue, and each queue has one request in flight. A request
that is not answered is retried; storing a message is idempotent, so no message is stored twice.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias
from zlib import crc32

from msgspec import Raw

from gregor.cli.stream import BadLine, parse
from gregor.core.message import MAX_BATCH, InBandMessage
from gregor.errors import Unavailable
from gregor.protocol.frames import Result

QUEUES = 4
MAX_BATCH_BYTES = 4 * 1024 * 1024  # exceeded by at most one message
RETRY_TIMEOUT_SECONDS = 60.0
MIN_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0
MAX_PROBLEMS = 1_000

Send: TypeAlias = Callable[[Sequence[InBandMessage | Raw]], Awaitable[Sequence[Result]]]


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
    """A message, the number of its line, and the size of that line in bytes."""

    line: int
    message: InBandMessage
    size: int


SendQueue: TypeAlias = "asyncio.Queue[NumberedMessage | None]"


async def send_all(lines: AsyncIterable[tuple[int, bytes]], send: Send, tally: Tally) -> None:
    """Send the messages in the lines, and record the results in the tally. Raises what `send`
    raises; Unavailable only after RETRY_TIMEOUT_SECONDS of retries."""
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
                    await queue.put(NumberedMessage(number, message, len(line)))
        for queue in queues:
            await queue.put(None)


async def _send_queue(queue: SendQueue, send: Send, tally: Tally) -> None:
    while (first := await queue.get()) is not None:
        batch, ended = _batch(first, queue)
        results = await send_with_retries(send, [numbered.message for numbered in batch])
        for numbered, result in zip(batch, results, strict=True):
            tally.add_result(numbered.line, result)
        if ended:
            return


def _batch(first: NumberedMessage, queue: SendQueue) -> tuple[list[NumberedMessage], bool]:
    """The messages for the next request, and whether the end of the queue is reached."""
    batch, size = [first], first.size
    while len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES and not queue.empty():
        numbered = queue.get_nowait()
        if numbered is None:
            return batch, True
        batch.append(numbered)
        size += numbered.size
    return batch, False


async def send_with_retries(
    send: Send, messages: Sequence[InBandMessage | Raw]
) -> Sequence[Result]:
    """Send, and retry with backoff until the server answers, for up to RETRY_TIMEOUT_SECONDS."""
    clock = asyncio.get_running_loop().time
    deadline, backoff = clock() + RETRY_TIMEOUT_SECONDS, MIN_BACKOFF_SECONDS
    while True:
        try:
            results = await send(messages)
            if not any(result.should_retry for result in results) or clock() + backoff > deadline:
                return results
        except Unavailable:
            if clock() + backoff > deadline:
                raise
        await asyncio.sleep(backoff)
        backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)
