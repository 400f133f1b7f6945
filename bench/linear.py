"""The cost of one request for one, two and four times as much in it, and of one frame for a device
on which 1,000, 5,000 and 20,000 items are live.

In the process of the benchmark, on an SQLite file. All other users wait for the thread of the store
while it works on one request. Processor time is measured, because the machine is noisy."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import NamedTuple, TypeAlias

from bench.report import Figure, Wanted
from gregor.client import Client
from gregor.client.connection import Transport
from gregor.clock import now
from gregor.core.message import Dismissal, InBandMessage, Range, create, put
from gregor.core.state import Item
from gregor.core.sync import Snapshot
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

ROUNDS = 7
DEEP = "a." * 120  # how all categories begin
LIVE_ON_DEVICE = (1_000, 5_000, 20_000)

Operation: TypeAlias = Callable[[SQLStateMachine, str, int], Awaitable[object]]


class Case(NamedTuple):
    """An operation in three sizes, for a user with so many live items."""

    name: str
    sizes: Sequence[int]
    live: Callable[[int], int]
    operation: Operation


def _puts(machine: SQLStateMachine, uid: str, size: int) -> Awaitable[object]:
    return machine.consume_messages([put(uid, "badge", n) for n in range(size)])


def _ranges(machine: SQLStateMachine, uid: str, size: int) -> Awaitable[object]:
    ranges = tuple(Range(f"z{n}") for n in range(size))
    return machine.consume_messages([InBandMessage(uid, "d", dismissal=Dismissal((), ranges))])


def _prefixes(machine: SQLStateMachine, uid: str, size: int) -> Awaitable[object]:
    """That match all items, and begin with each other."""
    ranges = tuple(
        Range(DEEP[:n], prefix=True, skip_msg_ids=("other",)) for n in range(1, size + 1)
    )
    return machine.consume_messages([InBandMessage(uid, "d", dismissal=Dismissal((), ranges))])


def _count(machine: SQLStateMachine, uid: str, size: int) -> Awaitable[object]:
    return machine.count(uid, None, ["a", "b"])


def _snapshot(machine: SQLStateMachine, uid: str, size: int) -> Awaitable[object]:
    return machine.sync(uid, "phone", 0)


CASES = (
    Case("puts of one key in a request", (125, 250, 500), lambda _: 0, _puts),
    Case("ranges in a message, 200 live items", (2_000, 4_000, 8_000), lambda _: 200, _ranges),
    Case("prefixes of all of 200 live items", (60, 120, 240), lambda _: 200, _prefixes),
    Case("live items, a count of two prefixes", (1_000, 2_000, 4_000), lambda n: n, _count),
    Case("live items, the first part of a snapshot", (1_000, 2_000, 4_000), lambda n: n, _snapshot),
)


async def measure(quick: bool) -> list[Figure]:
    rounds, part = (1, 25) if quick else (ROUNDS, 1)
    figures = [await _linear(case, rounds, part) for case in CASES]
    return [*figures, await _flat([live // part for live in LIVE_ON_DEVICE], rounds)]


async def _linear(case: Case, rounds: int, part: int) -> Figure:
    sizes = [size // part for size in case.sizes]
    times = [await _seconds(case, size, rounds) for size in sizes]
    return Figure(
        name=f"{_list(sizes)} {case.name}",
        measured=f"{times[-1] * 1e3:.1f} ms",
        beside=", ".join(f"{seconds * 1e3:.1f} ms" for seconds in times[:-1]),
        ratio=times[-1] / times[0] / (sizes[-1] / sizes[0]),
        wanted=Wanted.BELOW,
        threshold=1.5,
    )


async def _seconds(case: Case, size: int, rounds: int) -> float:
    """The least processor time of the operation, each time for another user."""
    seconds = []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        url = f"sqlite:///{Path(directory, 'gregor.db')}"
        async with database_at(url, migrate) as database, SQLStateMachine(database, now) as machine:
            for number in range(rounds):
                uid = f"user-{number}"
                live = [create(uid, DEEP + str(n % 10), "x" * 100) for n in range(case.live(size))]
                await machine.consume_messages(live)
                begin = process_time()
                await case.operation(machine, uid, size)
                seconds.append(process_time() - begin)
    return min(seconds)


async def _flat(sizes: Sequence[int], rounds: int) -> Figure:
    times = [await _frame_seconds(live, rounds) for live in sizes]
    return Figure(
        name=f"one frame with a replacement, on a device with {_list(sizes)} live items",
        measured=f"{times[-1] * 1e3:.2f} ms",
        beside=", ".join(f"{seconds * 1e3:.2f} ms" for seconds in times[:-1]),
        ratio=times[-1] / times[0],
        wanted=Wanted.BELOW,
        threshold=2,
    )


async def _frame_seconds(live: int, rounds: int) -> float:
    """The least processor time in which a client saves, shows and reports a frame."""
    created = (create("u", f"a.{n}", n).stamp(n, n - 1) for n in range(1, live + 1))
    snapshot = Snapshot(tuple(item for m in created if (item := Item.of(m)) is not None))
    seconds = []
    client = Client("", "token", device_id="phone", connect=_unreachable)
    async with client, client.events():
        await client.change(lambda replica, _: replica.apply_snapshot(snapshot, live))
        for ctime in range(live + 1, live + 1 + 20 * rounds):
            message = put("u", f"a.{ctime % live}", ctime).stamp(ctime, ctime - 1)
            begin = process_time()
            await _receive(client, message)
            seconds.append(process_time() - begin)
    return min(seconds)


async def _receive(client: Client, message: InBandMessage) -> None:
    await client.change(lambda replica, _: replica.apply([message], message.ctime), [message])


async def _unreachable() -> Transport:
    raise OSError("the benchmark has no server")


def _list(sizes: Sequence[int]) -> str:
    *others, last = [f"{size:,}" for size in sizes]
    return f"{', '.join(others)} and {last}"
