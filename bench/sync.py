"""The time for a sync of one missed message: by the length of the history, and by what is live.

Every message of a history replaced one live item: by `msg_id`, by category or by key. The users are
measured alternately.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from msgspec import structs

from bench import servers
from bench.load import BenchFailed, LoadDevice
from bench.report import Figure, Wanted
from gregor.clock import now
from gregor.core.message import JSON, Dismissal, InBandMessage, Range, create, put
from gregor.interfaces import Stored
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

LIVE = 100
ROUNDS, WARM_UP, BATCH = 400, 50, 1_000


class Log(NamedTuple):
    """A user's log: its number of messages, and how many items of them are live."""

    messages: int
    live: int

    @property
    def uid(self) -> str:
        return f"user-{self.messages}-{self.live}"


BY_LENGTH = (Log(100, LIVE), Log(10_000, LIVE), Log(100_000, LIVE))
BY_LIVE = (Log(10_000, 10), Log(10_000, 10_000))
QUICK_BY_LENGTH = (Log(100, LIVE), Log(500, LIVE), Log(1_000, LIVE))
QUICK_BY_LIVE = (Log(1_000, 10), Log(1_000, 1_000))


async def measure(quick: bool) -> list[Figure]:
    by_length, by_live = (QUICK_BY_LENGTH, QUICK_BY_LIVE) if quick else (BY_LENGTH, BY_LIVE)
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "gregor.db")
        cursors = await _write(store, (*by_length, *by_live))
        async with servers.gregor(store) as server:
            seconds = await _measure(server, cursors, 10 if quick else ROUNDS)
    return [
        _figure(
            f"sync of one missed message, by the length of the history ({LIVE} live)",
            {log.messages: median(seconds[log]) for log in by_length},
        ),
        _figure(
            f"sync of one missed message, by what is live ({by_live[0].messages:,} messages)",
            {log.live: median(seconds[log]) for log in by_live},
        ),
    ]


def _figure(name: str, medians: dict[int, float]) -> Figure:
    return Figure(
        name=name,
        measured=", ".join(f"{size:,}: {m * 1e6:.0f} µs" for size, m in medians.items()),
        beside="ratio of the slowest to the fastest",
        ratio=max(medians.values()) / min(medians.values()),
        wanted=Wanted.BELOW,
        threshold=1.3,
    )


async def _measure(
    server: servers.ServerProcess, cursors: dict[Log, int], rounds: int
) -> dict[Log, list[float]]:
    seconds: dict[Log, list[float]] = {log: [] for log in cursors}
    devices = {log: await LoadDevice.connect(server.address, log.uid, "phone") for log in cursors}
    for number in range(WARM_UP + rounds):
        for log, device in devices.items():
            known = device.messages
            start = perf_counter()
            await device.sync(cursors[log])
            if number >= WARM_UP:
                seconds[log].append(perf_counter() - start)
            if device.messages != known + 1:
                raise BenchFailed("the sync did not contain exactly one message")
    return seconds


async def _write(store: Path, logs: tuple[Log, ...]) -> dict[Log, int]:
    """Write the users' logs. Returns for each the cursor of a device that has missed only the last
    message."""
    cursors: dict[Log, int] = {}
    async with (
        database_at(f"sqlite:///{store}", migrate) as database,
        SQLStateMachine(database, now) as state_machine,
    ):
        for log in logs:
            messages = list(_messages(log))
            for start in range(0, log.messages, BATCH):
                outcomes = await state_machine.consume_messages(messages[start : start + BATCH])
            match outcomes[-1]:
                case Stored(last):
                    cursors[log] = last.prev
    return cursors


def _messages(log: Log) -> Iterator[InBandMessage]:
    for number in range(log.messages):
        slot = number % log.live
        body: JSON = {"value": number, "by": "the settings page"}
        category, msg_id = f"settings.{slot}", f"{number:032x}"
        if slot % 3 == 0:
            yield put(log.uid, category, body, msg_id=msg_id)
        else:
            created = create(log.uid, category, body, msg_id=msg_id)
            previous = f"{number - log.live:032x}"
            yield structs.replace(created, dismissal=_dismissal(slot, category, previous))


def _dismissal(slot: int, category: str, previous: str) -> Dismissal:
    """That of the item before it in the slot."""
    return Dismissal(ranges=(Range(category),)) if slot % 3 == 1 else Dismissal((previous,))
