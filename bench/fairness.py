"""How long another user waits for an ack beside each kind of abuser; baseline: the same user alone,
in the same run.

    make bench-fairness

The server is `gregor serve --auth jwt`, on an SQLite file, or on PostgreSQL with
`GREGOR_BENCH_STORE=postgresql`. The abusers of `abusers` run in processes of their own, which have
what the others leave of the processor: they would be on other machines, and what they take from it
is not what is measured.
"""

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from bench import servers
from bench.abusers import DEVICE_TOKEN, KINDS, OWN_UID, SERVICE_TOKEN, UID
from bench.load import BenchFailed, LoadDevice, chat_message
from bench.report import Figure, Wanted
from bench.servers import ServerProcess
from gregor.server.auth import Identity, Role, make_token
from tests.fleet.servers import PostgreSQL
from tests.fleet.templates import migrated

STORE = "GREGOR_BENCH_STORE"

SECONDS, QUICK_SECONDS = 3.0, 0.3
PAUSE_SECONDS = 0.01  # from an ack to the next message
LONGEST_WAIT_SECONDS = 30.0
ALLOWED_RATIO, ALLOWED_SECONDS = 5, 0.025  # of the p99 alone; whichever is more


async def measure(quick: bool) -> list[Figure]:
    seconds = QUICK_SECONDS if quick else SECONDS
    chosen = os.environ.get("GREGOR_BENCH_ABUSERS")
    figures = []
    for kind in KINDS:
        if chosen is None or kind in chosen.split(";"):
            figures.append(await _beside(kind, seconds))
            print(kind, figures[-1].measured, figures[-1].beside, file=sys.stderr)
    return figures


async def _beside(kind: str, seconds: float) -> Figure:
    secret = secrets.token_hex(32)
    async with _server(secret) as server:
        user = await LoadDevice.connect(
            server.address, "honest", "phone", make_token(secret, Identity("honest", Role.DEVICE))
        )
        await _acks(user, seconds / 5)  # as a warm-up
        alone = await _acks(user, seconds)
        memory = server.rss()
        async with abuser(kind, server, secret) as abuse:
            await abuse()
            beside = await _acks(user, seconds)
            memory = server.rss() - memory
    allowed = max(ALLOWED_RATIO * _p99(alone), ALLOWED_SECONDS)
    return Figure(
        name=f"ack beside {kind}",
        measured=f"p50 {median(beside) * 1e3:.1f}, p99 {_p99(beside) * 1e3:.1f} ms"
        f"; worst {max(beside) * 1e3:.0f} ms; {memory / 2**20:+.0f} MiB",
        beside=f"p50 {median(alone) * 1e3:.1f}, p99 {_p99(alone) * 1e3:.1f} ms",
        ratio=_p99(beside) / allowed,
        wanted=Wanted.BELOW,
        threshold=1,
    )


async def _acks(user: LoadDevice, seconds: float) -> list[float]:
    """The times from a message to its ack. One that has none in time counts with its wait."""
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    end = clock() + seconds
    while len(times) < 2 or clock() < end:
        begin = clock()
        await _consume(user, len(times) + 1)
        times.append(clock() - begin)
        await asyncio.sleep(PAUSE_SECONDS)
    return times


async def _consume(user: LoadDevice, n: int) -> None:
    """Send a message until it is stored. One that never is counts with the longest wait."""
    message = chat_message(secrets.token_hex(16), 1)
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_WAIT_SECONDS):
            while True:
                with suppress(BenchFailed):  # refused, although it is not the abuser
                    await user.consume(n, [message])
                    return
                await asyncio.sleep(PAUSE_SECONDS)


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100, method="inclusive")[98]


@asynccontextmanager
async def _server(secret: str) -> AsyncIterator[ServerProcess]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="gregor-bench-"))
        store = f"sqlite:///{Path(folder, 'gregor.db')}"
        if os.environ.get(STORE) == "postgresql":
            postgresql = await stack.enter_async_context(PostgreSQL())
            store = await migrated(postgresql)
        serve = servers.gregor_serve_on(store, "--auth", "jwt", GREGOR_JWT_SECRET=secret)
        yield await stack.enter_async_context(serve)


@asynccontextmanager
async def abuser(
    kind: str, server: ServerProcess, secret: str, uid: str = UID
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A process for an abuser of this kind, as this user. It yields what has it begin: when that
    returns, it is at work, until the block ends."""
    identity: Mapping[str, str] = {
        OWN_UID: uid,
        DEVICE_TOKEN: make_token(secret, Identity(uid, Role.DEVICE)),
        SERVICE_TOKEN: make_token(secret, Identity("backend", Role.SERVICE)),
    }
    host, port = server.address
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.abuse", kind, host, str(port)),
        env={**os.environ, **identity},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    told, said = process.stdin, process.stdout
    assert told is not None
    assert said is not None

    async def begin() -> None:
        told.write(b"begin\n")
        await said.readline()

    try:
        await said.readline()
        yield begin
        if process.returncode is not None:
            raise BenchFailed(f"the abuser `{kind}` has ended by itself")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
