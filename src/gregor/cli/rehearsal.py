"""Servers, a stream and a crowd of devices, played to the end and judged."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

from msgspec import Raw
from prometheus_client.parser import text_string_to_metric_families

from gregor.cli import output, stream
from gregor.cli.devices import Device, Difference, Score, Stage
from gregor.cli.lanes import Send, Tally, send_all
from gregor.cli.process import running_server
from gregor.cli.servers import Servers
from gregor.core.message import InBandMessage
from gregor.errors import SetupError
from gregor.protocol.frames import Result

DEVICES_PER_USER = 3
REPEATED = 0.05  # of the requests, as if their answer had been lost
REDRAW_SECONDS = 0.1

Tape: TypeAlias = Sequence[tuple[int, bytes]]


class Outcome(NamedTuple):
    """How it went. `duplicates` and `delivered` are what the server has counted."""

    devices: int
    users: int
    score: Score
    tally: Tally
    duplicates: int
    delivered: int

    @property
    def all_agree(self) -> bool:
        """A mismatch was mended on the way, but it is a defect all the same."""
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
            "resynced": self.score.resynced,
            "mismatches": self.score.mismatches,
            "agree": self.score.agreeing,
        }

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """The figures for people, with what each means."""
        words = {
            "devices": f"of {self.users:,} users, the busiest ones",
            "sent": f"{self.tally.lines:,} by a backend, {len(self.score.written):,} by devices",
            "acknowledged": "each of them durable before that",
            "duplicates": "sent again because an answer was lost, stored once",
            "delivered": "to devices that were online",
            "dropped_off": "times, by a network that broke, or an app that was closed",
            "resynced": "times, most of them when they came back",
            "mismatches": "of hashes after a sync",
            "agree": "with the server in the end, hash and items",
        }
        for name, figure in self.figures().items():
            if name != "rejected" or figure:
                shown = name.replace("_", " ").replace("resynced", "re-synced")
                yield shown, f"{figure:,}", words.get(name, "")

    def verdict(self) -> str:
        if self.all_agree:
            return f"All {self.devices:,} replicas agree with the server."
        if self.score.mismatches and self.score.agreeing == self.devices:
            return "All replicas agree in the end, but on the way a hash did not fit: a defect."
        apart = self.devices - self.score.agreeing
        return f"{apart:,} of {self.devices:,} replicas do not agree with the server."


async def rehearse(
    file: Path, devices: int, seconds: float, seed: int, store: str | None
) -> Outcome:
    """Play the stream to a server of its own and a crowd of devices, and compare them."""
    with TemporaryDirectory(prefix="gregor-demo-") as folder:
        async with running_server(store or f"sqlite:///{folder}/server.db") as url:
            return await perform(file, [url], devices, seconds, seed)


class Place(NamedTuple):
    """What a fleet consists of; whether a shard is added while it is at work."""

    nodes: int
    pubsub: str
    shards: int = 1
    add_shard: bool = False


async def rehearse_fleet(
    file: Path, devices: int, seconds: float, seed: int, place: Place
) -> Outcome:
    """The same with several nodes, over a PostgreSQL and a pub/sub of their own."""
    from gregor.testing.fleet import Fleet  # it needs wheels that a server does not

    shards = place.shards + place.add_shard
    async with Fleet(
        place.nodes, place.pubsub, shards=shards, unused=int(place.add_shard)
    ) as fleet:
        moving = fleet.level() if place.add_shard else None
        return await perform(file, fleet.urls, devices, seconds, seed, moving)


async def perform(
    file: Path,
    urls: Sequence[str],
    devices: int,
    seconds: float,
    seed: int,
    meanwhile: Coroutine[Any, Any, None] | None = None,
) -> Outcome:
    """Play the stream to these servers and a crowd of devices, and compare them."""
    tape = await taped(file)
    mind = Random(seed)
    users = busiest(tape, -(-devices // DEVICES_PER_USER))
    with TemporaryDirectory(prefix="gregor-demo-") as folder:
        async with Servers(urls, Random(mind.random())) as servers:
            stage = Stage(servers, Path(folder), devices)
            tally = await play(stage, tape, seconds, users, devices, mind, meanwhile)
            duplicates, delivered = counted(await servers.metrics())
    return Outcome(devices, len(users), stage.score, tally, duplicates, delivered)


async def taped(file: Path) -> Tape:
    """The lines of a stream, all of them. Raises SetupError if there are none."""
    with stream.opened(file) as source:
        tape = [numbered async for numbered in source.lines()]
    if not any(isinstance(stream.parse(line), InBandMessage) for _, line in tape):
        raise SetupError(f"{file} holds no messages")
    return tape


def busiest(tape: Tape, number: int) -> list[str]:
    """The users of whom the stream tells most."""
    messages = (stream.parse(line) for _, line in tape)
    received = Counter(m.uid for m in messages if isinstance(m, InBandMessage))
    return [uid for uid, _ in received.most_common(number)]


async def play(
    stage: Stage,
    tape: Tape,
    seconds: float,
    users: list[str],
    devices: int,
    mind: Random,
    meanwhile: Coroutine[Any, Any, None] | None = None,
) -> Tally:
    """Play it to the end, whatever happens `meanwhile`, and say what became of the stream; the
    rest is in the stage's score."""
    tally = Tally()
    crowd = [
        Device(number, users[number % len(users)], Random(mind.random()), stage)
        for number in range(devices)
    ]
    send = forgetful(stage.servers.send, Random(mind.random()))
    async with _drawn(stage, tally, len(tape), crowd), asyncio.TaskGroup() as tasks:
        for device in crowd:
            tasks.create_task(device.run())
        if meanwhile is not None:
            happening = tasks.create_task(meanwhile)
        await send_all(paced(tape, seconds), send, tally)
        if meanwhile is not None:
            await happening
        stage.over.set()
    return tally


async def paced(tape: Tape, seconds: float) -> AsyncIterator[tuple[int, bytes]]:
    """The lines, evenly over the time given."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for place, numbered in enumerate(tape):
        due = began + seconds * place / len(tape)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        yield numbered


def forgetful(send: Send, mind: Random) -> Send:
    """A sender that now and then does not hear the answer, and sends the same again."""

    async def send_perhaps_twice(messages: Sequence[InBandMessage | Raw]) -> Sequence[Result]:
        results = await send(messages)
        return await send(messages) if mind.random() < REPEATED else results

    return send_perhaps_twice


def counted(pages: Sequence[str]) -> tuple[int, int]:
    """How many duplicates the servers have seen, and how many messages they have delivered."""
    samples = Counter[tuple[str, str | None]]()
    for page in pages:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.labels.get("kind") != "out_of_band":
                    samples[sample.name, sample.labels.get("result")] += int(sample.value)
    duplicates = samples["gregor_messages_total", "duplicate"]
    return duplicates, samples["gregor_deliveries_total", None]


@asynccontextmanager
async def _drawn(
    stage: Stage, tally: Tally, lines: int, crowd: Sequence[Device]
) -> AsyncIterator[None]:
    """How it goes, on a terminal, while the block runs."""
    with output.progress() as progress:
        stream_ = progress.add_task("stream", total=lines, said="")
        online = progress.add_task("online", total=len(crowd), said="")
        agree = progress.add_task("agree", total=len(crowd), said="")

        def draw() -> None:
            score = stage.score
            there = sum(d.client is not None and d.client.online for d in crowd)
            said = f"{tally.done:,} of {lines:,} messages"
            progress.update(stream_, completed=tally.done, said=said)
            said = f"{there:,} of {len(crowd):,} devices; {score.dropped_off:,} drop-offs so far"
            progress.update(online, completed=there, said=said)
            said = f"{score.agreeing:,} of {len(crowd):,} replicas" if stage.over.is_set() else ""
            progress.update(agree, completed=score.agreeing, said=said)

        async def redraw() -> None:
            while True:
                draw()
                await asyncio.sleep(REDRAW_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            drawing = tasks.create_task(redraw())
            yield
            drawing.cancel()
        draw()
