"""The time for a sync of one missed message, with histories of different lengths.

Each of the three users has 100 live items. Every message of a history replaced one of them, half of
them by `msg_id` and half by category. The users are measured alternately.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from bench import servers
from bench.load import BenchFailed, LoadDevice
from bench.report import Figure, Wanted
from gregor.clock import now
from gregor.core.message import Creation, Dismissal, InBandMessage, Range, raw
from gregor.interfaces import Stored
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

HISTORIES, LIVE, ROUNDS, WARM_UP, BATCH = (100, 10_000, 100_000), 100, 400, 50, 1_000


async def measure(quick: bool) -> list[Figure]:
    histories = (100, 500, 1_000) if quick else HISTORIES
    rounds = 10 if quick else ROUNDS
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "gregor.db")
        cursors = await _write(store, histories)
        async with servers.gregor(store) as server:
            seconds = await _measure(server, cursors, rounds)
    medians = {history: median(seconds[history]) for history in histories}
    shortest, longest = min(medians.values()), max(medians.values())
    described = ", ".join(f"{h:,}: {m * 1e6:.0f} µs" for h, m in medians.items())
    return [
        Figure(
            name="sync of one missed message, by the length of the history (100 live)",
            measured=described,
            beside="ratio of the slowest to the fastest",
            ratio=longest / shortest,
            wanted=Wanted.BELOW,
            threshold=1.3,
        )
    ]


async def _measure(
    server: servers.ServerProcess, cursors: dict[int, int], rounds: int
) -> dict[int, list[float]]:
    seconds: dict[int, list[float]] = {history: [] for history in cursors}
    devices = {
        history: await LoadDevice.connect(server.address, _uid(history), "phone")
        for history in cursors
    }
    for number in range(WARM_UP + rounds):
        for history, device in devices.items():
            known = device.messages
            start = perf_counter()
            await device.sync(cursors[history])
            if number >= WARM_UP:
                seconds[history].append(perf_counter() - start)
            if device.messages != known + 1:
                raise BenchFailed("the sync did not contain exactly one message")
    return seconds


async def _write(store: Path, histories: tuple[int, ...]) -> dict[int, int]:
    """Write the users' histories. Returns, by length, the cursor of a device that has missed only
    the last message."""
    cursors: dict[int, int] = {}
    async with (
        database_at(f"sqlite:///{store}", migrate) as database,
        SQLStateMachine(database, now) as state_machine,
    ):
        for history in histories:
            messages = list(_history(_uid(history), history))
            for start in range(0, history, BATCH):
                outcomes = await state_machine.consume_messages(messages[start : start + BATCH])
            match outcomes[-1]:
                case Stored(last):
                    cursors[history] = last.prev
    return cursors


def _history(uid: str, messages: int) -> Iterator[InBandMessage]:
    for number in range(messages):
        slot = number % LIVE
        creation = Creation(f"settings.{slot}", raw({"value": number, "by": "the settings page"}))
        yield InBandMessage(
            uid, _msg_id(number), creation=creation, dismissal=_dismissal_of_previous(number, slot)
        )


def _dismissal_of_previous(number: int, slot: int) -> Dismissal:
    if slot % 2 and number >= LIVE:
        return Dismissal(msg_ids=(_msg_id(number - LIVE),))
    return Dismissal(ranges=(Range(f"settings.{slot}", skip_msg_ids=(_msg_id(number),)),))


def _msg_id(number: int) -> str:
    return f"{number:032x}"


def _uid(history: int) -> str:
    return f"user-{history}"
