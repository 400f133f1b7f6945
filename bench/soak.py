"""Ten minutes of 50 abusers of all kinds and 200 honest devices, on the default settings.

    make soak

Every ack of an honest device comes within a second, the memory of the server stays what it is, and
its log has no traceback. As in `fairness`, the abusers have what the others leave of the processor.
The folder of temporary files says on which disk the store is (`TMPDIR`). What an ack waits for a
disk, or a machine, or this process, that stands still is in it: how long they did is reported
beside it, and how often the server's commits took long, its event loop was late, and a transaction
was logged that took a second.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench import servers
from bench.abusers import KINDS
from bench.fairness import abuser
from bench.load import BenchFailed, LoadDevice, chat_message
from bench.machine import Machine, watched
from bench.report import Figure, Wanted
from bench.servers import ServerProcess
from gregor.server.auth import Identity, Role, make_token
from gregor.server.event_loop_lag import watch_event_loop

SECONDS, QUICK_SECONDS = 600.0, 30.0
ABUSERS, QUICK_ABUSERS = 50, 5
DEVICES = 200
MEAN_PAUSE_SECONDS = 5.0  # between two messages of a device
SAMPLE_SECONDS = 1.0
LATENESS_SAMPLE_SECONDS = 0.01
ALLOWED_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0  # then the connection counts as lost
ALLOWED_GROWTH = 1.25  # of the memory, from the second tenth of the time to the last one


class Soak:
    """What is seen while it runs."""

    def __init__(self) -> None:
        self.waits: list[tuple[float, float]] = []  # for acks, in seconds, and when they began
        self.began = 0.0
        self.lost = 0  # connections of honest devices, which they made again
        self.memory: list[int] = []
        self.late = 0.0  # how late this process was at worst, in seconds: its acks are, too

    def begin(self) -> None:
        """Forget what was seen before."""
        self.waits.clear()
        self.late, self.began = 0.0, asyncio.get_running_loop().time()

    async def use(self, server: ServerProcess, uid: str, token: str) -> None:
        """An honest device, which writes now and then, and comes back when it is disconnected."""
        while True:
            try:
                device = await LoadDevice.connect(server.address, uid, "phone", token)
                await self._write(device)
            except (OSError, BenchFailed):
                self.lost += 1
                await asyncio.sleep(random.random())

    async def _write(self, device: LoadDevice) -> None:
        clock = asyncio.get_running_loop().time
        n = 0
        while True:
            await asyncio.sleep(random.expovariate(1 / MEAN_PAUSE_SECONDS))
            n += 1
            begin = clock()
            try:
                async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                    await device.consume(n, [chat_message(secrets.token_hex(16), 1)])
            finally:  # one that did not come counts with its wait
                self.waits.append((clock() - begin, begin))

    async def watch_memory(self, server: ServerProcess) -> None:
        while True:
            self.memory.append(await asyncio.to_thread(server.rss))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def watch_itself(self) -> None:
        await watch_event_loop(self._late, LATENESS_SAMPLE_SECONDS)

    def _late(self, seconds: float) -> None:
        self.late = max(self.late, seconds)

    def figures(
        self, log: str, alone: float, machine: Machine, metrics: Mapping[str, float]
    ) -> list[Figure]:
        tenth = max(1, len(self.memory) // 10)
        first = median(self.memory[tenth : 2 * tenth])
        last = median(self.memory[-tenth:])
        waits = sorted(wait for wait, _ in self.waits)
        worst_began = max(self.waits)[1] - self.began
        late = sum(wait >= ALLOWED_SECONDS for wait in waits)
        return [
            Figure(
                name=f"{len(waits):,} acks of {DEVICES} honest devices",
                measured=f"{late} late, worst {waits[-1] * 1e3:.0f} ms (after {worst_began:.0f} s),"
                f" p99 {waits[len(waits) * 99 // 100] * 1e3:.0f} ms,"
                f" p50 {median(waits) * 1e3:.0f} ms",
                beside=f"p50 without abusers {alone * 1e3:.1f} ms",
                ratio=waits[-1] / ALLOWED_SECONDS,
                wanted=Wanted.BELOW,
                threshold=1,
            ),
            machine.figure(),
            Figure(name="this bench itself", measured=f"{self.late * 1e3:.0f} ms late at worst"),
            _commits(metrics),
            _event_loop(metrics, log),
            Figure(
                name="connections of honest devices that were lost",
                measured=str(self.lost),
                ratio=self.lost,
                wanted=Wanted.BELOW,
                threshold=1,
            ),
            Figure(
                name="memory of the server",
                measured=f"{last / 2**20:.0f} MiB at the end",
                beside=f"{first / 2**20:.0f} MiB after a tenth of the time",
                ratio=last / first,
                wanted=Wanted.BELOW,
                threshold=ALLOWED_GROWTH,
            ),
            Figure(
                name="tracebacks in the log",
                measured=str(log.count("Traceback")),
                beside=f"{len(log):,} bytes of log",
                ratio=log.count("Traceback"),
                wanted=Wanted.BELOW,
                threshold=1,
            ),
        ]


def _commits(metrics: Mapping[str, float]) -> Figure:
    name = "gregor_commit_seconds"
    return Figure(
        name=f"{metrics[f'{name}_count']:,.0f} commits of the server",
        measured=f"{_above(metrics, name, '0.5')} took more than 0.5 s,"
        f" {_above(metrics, name, '1.0')} of them more than 1 s",
        beside=f"{_mean(metrics, name) * 1e3:.0f} ms on average",
    )


def _event_loop(metrics: Mapping[str, float], log: str) -> Figure:
    name = "gregor_event_loop_lag_seconds"
    transactions = [line for line in log.splitlines() if "a transaction took long" in line]
    return Figure(
        name="the event loop of the server",
        measured=f"{_above(metrics, name, '0.2')} samples more than 0.2 s late,"
        f" {_above(metrics, name, '0.5')} of them more than 0.5 s",
        beside=f"{_mean(metrics, name) * 1e3:.0f} ms on average;"
        f" {len(transactions)} transactions took long {' '.join(transactions[:1])}",
    )


def _above(metrics: Mapping[str, float], name: str, bound: str) -> int:
    """How many of a histogram are above one of its bounds."""
    return int(metrics[f"{name}_count"] - metrics[f'{name}_bucket{{le="{bound}"}}'])


def _mean(metrics: Mapping[str, float], name: str) -> float:
    return metrics[f"{name}_sum"] / metrics[f"{name}_count"]


async def measure(quick: bool) -> list[Figure]:
    seconds, abusers = (QUICK_SECONDS, QUICK_ABUSERS) if quick else (SECONDS, ABUSERS)
    secret = secrets.token_hex(32)
    soak = Soak()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="gregor-bench-")))
        server, operators = await stack.enter_async_context(_server(folder, secret))
        await stack.enter_async_context(_honest_devices(soak, server, secret))
        await asyncio.sleep(seconds / 20)
        alone = median(wait for wait, _ in soak.waits)
        async with _crowd(abusers, server, secret) as crowd, watched(folder) as machine:
            soak.begin()
            await asyncio.gather(*(abuse() for abuse in crowd))
            soak.memory.clear()  # what it takes to hold the crowd is no growth
            await asyncio.sleep(seconds)
        metrics = await operators.metrics()
        return soak.figures((folder / "log").read_text(), alone, machine, metrics)


@asynccontextmanager
async def _crowd(
    number: int, server: ServerProcess, secret: str
) -> AsyncIterator[list[Callable[[], Awaitable[None]]]]:
    """What has so many abusers of all kinds begin, who are at work until the block ends. Their
    processes are started before: to start one stops this one, which times the acks."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(abuser(kind, server, secret, f"abuser-{n}"))
            for n, kind in enumerate(islice(cycle(KINDS), number))
        ]


@asynccontextmanager
async def _server(folder: Path, secret: str) -> AsyncIterator[tuple[ServerProcess, ServerProcess]]:
    """A server, and what it is for operators."""
    admin = servers.free_address()
    store = f"sqlite:///{folder / 'gregor.db'}"
    with (folder / "log").open("wb") as log:
        serve = servers.gregor_serve_on(
            *(store, "--auth", "jwt", "--admin-listen", f"{admin.host}:{admin.port}"),
            log=log.fileno(),
            GREGOR_JWT_SECRET=secret,
        )
        async with serve as server:
            yield server, server._replace(address=admin)


@asynccontextmanager
async def _honest_devices(soak: Soak, server: ServerProcess, secret: str) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        watching = (soak.watch_memory(server), soak.watch_itself())
        tasks = [group.create_task(each) for each in watching]
        for number in range(DEVICES):
            uid = f"honest-{number}"
            token = make_token(secret, Identity(uid, Role.DEVICE))
            tasks.append(group.create_task(soak.use(server, uid, token)))
        yield
        for task in tasks:
            task.cancel()
