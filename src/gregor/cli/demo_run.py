"""Runs the demo: servers, a stream and many devices, and the comparison at the end."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from gregor.cli import output, stream
from gregor.cli.demo_devices import Demo, DemoDevice, Difference, Score
from gregor.cli.demo_servers import Servers
from gregor.cli.ordered_sender import Send, Tally, send_all
from gregor.cli.server_process import running_server
from gregor.core.message import InBandMessage
from gregor.errors import SetupError
from gregor.protocol.frames import Result

DEVICES_PER_USER = 3
LOST_RESPONSE_RATIO = 0.05  # of the requests; they are sent a second time
REDRAW_SECONDS = 0.1

Stream: TypeAlias = Sequence[tuple[int, bytes]]


class DemoResult(NamedTuple):
    """The result of a demo. `duplicates` and `delivered` are counters of the servers."""

    devices: int
    users: int
    score: Score
    tally: Tally
    duplicates: int
    delivered: int

    @property
    def all_agree(self) -> bool:
        """Whether all replicas agree, and no hash differed after any sync: a mismatch is a bug even
        if a later sync repaired it."""
        return self.score.agreeing == self.devices and not self.score.mismatches

    @property
    def differences(self) -> list[Difference]:
        return self.score.differences

    def figures(self) -> dict[str, int]:
        return {
            "devices": self.devices,
            "sent": self.tally.lines + len(self.score.written),
            "acknowledged": self.tally.stored + self.tally.duplicates + self.score.acknowledged,
            "rejected": self.tally.rejected + self.tally.bad + self.score.rejected,
            "duplicates": self.duplicates,
            "delivered": self.delivered,
            "dropped_off": self.score.dropped_off,
            "began_offline": self.score.began_offline,
            "resynced": self.score.resynced,
            "erased": self.score.erased,
            "mismatches": self.score.mismatches,
            "agree": self.score.agreeing,
        }

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """Name, figure and explanation, for people."""
        explanations = {
            "devices": f"of the {self.users:,} busiest users",
            "sent": f"{self.tally.lines:,} by a backend, {len(self.score.written):,} by devices",
            "acknowledged": "each after it was durable",
            "duplicates": "retried because a response was lost, stored once",
            "delivered": "to devices that were online",
            "dropped_off": "times: the network broke, or the app was closed",
            "began_offline": "times: a snoozed item, on a device without a network",
            "resynced": "times, mostly after a reconnect",
            "erased": "times: the user was erased, and a device wiped itself and began again",
            "mismatches": "of hashes after a sync",
            "agree": "with the server at the end, hash and items",
        }
        for name, figure in self.figures().items():
            if name not in ("rejected", "erased") or figure:
                yield name.replace("_", " "), f"{figure:,}", explanations.get(name, "")

    def verdict(self) -> str:
        if self.all_agree:
            return f"All {self.devices:,} replicas agree with the server."
        if self.score.mismatches and self.score.agreeing == self.devices:
            return "All replicas agree at the end, but a hash differed after a sync: a bug."
        different = self.devices - self.score.agreeing
        return f"{different:,} of {self.devices:,} replicas do not agree with the server."


async def run_demo(
    file: Path, device_count: int, seconds: float, seed: int, store: str | None
) -> DemoResult:
    """Start a server, and run the demo on it."""
    with TemporaryDirectory(prefix="gregor-demo-") as folder:
        async with running_server(store or f"sqlite:///{folder}/server.db") as url:
            return await run_on_servers(file, [url], device_count, seconds, seed)


async def run_on_servers(
    file: Path,
    urls: Sequence[str],
    device_count: int,
    seconds: float,
    seed: int,
    background: Coroutine[Any, Any, None] | None = None,
) -> DemoResult:
    """Play the stream to these servers and devices, and compare all replicas at the end."""
    lines = await read_stream(file)
    rng = Random(seed)
    users = busiest(lines, -(-device_count // DEVICES_PER_USER))
    with TemporaryDirectory(prefix="gregor-demo-") as folder:
        async with Servers(urls, Random(rng.random())) as servers:
            demo = Demo(servers, Path(folder), device_count)
            tally = await run_stream(demo, lines, seconds, users, device_count, rng, background)
            duplicates, delivered = read_counters(await servers.metrics())
    return DemoResult(device_count, len(users), demo.score, tally, duplicates, delivered)


async def read_stream(file: Path) -> Stream:
    """Read all lines of a stream. Raises SetupError if it contains no messages."""
    with stream.open_stream(file) as source:
        lines = [numbered async for numbered in source.lines()]
    if not any(isinstance(stream.parse(line), InBandMessage) for _, line in lines):
        raise SetupError(f"{file} contains no messages")
    return lines


def busiest(lines: Stream, user_count: int) -> list[str]:
    """The users with the most messages in the stream."""
    messages = (stream.parse(line) for _, line in lines)
    received = Counter(m.uid for m in messages if isinstance(m, InBandMessage))
    return [uid for uid, _ in received.most_common(user_count)]


async def run_stream(
    demo: Demo,
    lines: Stream,
    seconds: float,
    users: list[str],
    device_count: int,
    rng: Random,
    background: Coroutine[Any, Any, None] | None = None,
) -> Tally:
    """Send the stream while the devices and `background` run; wait until all of them end.
    Returns the tally of the stream; the results of the devices are in the demo's score."""
    tally = Tally()
    devices = [
        DemoDevice(
            number,
            users[number % len(users)],
            Random(rng.random()),
            demo,
            snoozes=number < len(users),
        )
        for number in range(device_count)
    ]
    send = with_lost_responses(demo.servers.send, Random(rng.random()))
    async with _show_progress(demo, tally, len(lines), devices), asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.run())
        if background is not None:
            background_task = tasks.create_task(background)
        await send_all(paced(lines, seconds), send, tally)
        if background is not None:
            await background_task
        demo.over.set()
    return tally


async def paced(lines: Stream, seconds: float) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the lines evenly over this many seconds."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    for index, numbered_line in enumerate(lines):
        due = started_at + seconds * index / len(lines)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        yield numbered_line


def with_lost_responses(send: Send, rng: Random) -> Send:
    """A `send` that sometimes acts as if the response was lost: it sends the same again."""

    async def send_once_or_twice(messages: Sequence[InBandMessage]) -> Sequence[Result]:
        results = await send(messages)
        return await send(messages) if rng.random() < LOST_RESPONSE_RATIO else results

    return send_once_or_twice


def read_counters(pages: Sequence[str]) -> tuple[int, int]:
    """The duplicates and the deliveries of all servers, from their pages of metrics."""
    samples = Counter[tuple[str, str | None]]()
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.labels.get("kind") != "out_of_band":
                    samples[sample.name, sample.labels.get("result")] += int(sample.value)
    duplicates = samples["gregor_messages_total", "duplicate"]
    return duplicates, samples["gregor_deliveries_total", None]


@asynccontextmanager
async def _show_progress(
    demo: Demo, tally: Tally, line_count: int, devices: Sequence[DemoDevice]
) -> AsyncIterator[None]:
    """Show progress bars on a terminal while the block runs."""
    with output.progress() as progress:
        stream_bar = progress.add_task("stream", total=line_count, status="")
        online_bar = progress.add_task("online", total=len(devices), status="")
        agree_bar = progress.add_task("agree", total=len(devices), status="")

        def draw() -> None:
            score = demo.score
            online = sum(d.client is not None and d.client.online for d in devices)
            status = f"{tally.done:,} of {line_count:,} messages"
            progress.update(stream_bar, completed=tally.done, status=status)
            status = f"{online:,} of {len(devices):,} devices; {score.dropped_off:,} drop-offs"
            progress.update(online_bar, completed=online, status=status)
            compared = f"{score.agreeing:,} of {len(devices):,} replicas"
            status = compared if demo.over.is_set() else ""
            progress.update(agree_bar, completed=score.agreeing, status=status)

        async def redraw() -> None:
            while True:
                draw()
                await asyncio.sleep(REDRAW_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            redrawing = tasks.create_task(redraw())
            yield
            redrawing.cancel()
        draw()
