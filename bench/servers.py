"""The servers that the bench measures, each in its own process, as in production."""

import asyncio
import os
import resource
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

from gregor.cli.server_process import WITHOUT_LIMITS
from tests.ports import free_port

START_TIMEOUT_SECONDS = 20.0


class Address(NamedTuple):
    host: str
    port: int


class ServerProcess(NamedTuple):
    """A running server."""

    address: Address
    process: asyncio.subprocess.Process

    def rss(self) -> int:
        """The resident memory, in bytes."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.check_output(command)) * 1024

    def cpu_seconds(self) -> float | None:
        """The processor time so far, in seconds; None if the system does not provide it."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def commits(self) -> tuple[int, int]:
        """The number of committed messages, and the number of commits."""
        metrics = await self.metrics()
        return (
            int(metrics["gregor_commit_messages_sum"]),
            int(metrics["gregor_commit_messages_count"]),
        )

    async def metrics(self) -> dict[str, float]:
        """The metrics, by their names with labels."""
        lines = (await self.get("/metrics")).decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    async def get(self, path: str) -> bytes:
        """GET a path; the body of the response."""
        return await asyncio.to_thread(_read, self._url(path))

    async def post(self, path: str, body: bytes) -> bytes:
        """POST a JSON body; the body of the response."""
        return await asyncio.to_thread(_read, self._url(path), body)

    async def ready(self) -> bool:
        """Whether the server reports that it is ready."""
        try:
            await self.get("/readyz")
        except HTTPError as refusal:
            refusal.close()
            return False
        return True

    def _url(self, path: str) -> str:
        return f"http://{self.address.host}:{self.address.port}{path}"


def _read(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_TIMEOUT_SECONDS) as response:
        content: bytes = response.read()
        return content


@asynccontextmanager
async def gregor(store: Path) -> AsyncIterator[ServerProcess]:
    """A server like that of `gregor serve`, on an SQLite file."""
    async with _server("gregor", f"sqlite:///{store}") as server:
        yield server


@asynccontextmanager
async def node(store: str, pubsub: str) -> AsyncIterator[ServerProcess]:
    """One node of a fleet, on a store that has the current schema."""
    async with _server("gregor", store, pubsub) as server:
        yield server


@asynccontextmanager
async def bare() -> AsyncIterator[ServerProcess]:
    """The same uvicorn with BareApp: an echo, and a loop that sends to all."""
    async with _server("bare") as server:
        yield server


@asynccontextmanager
async def gregor_serve(store: Path, *options: str) -> AsyncIterator[ServerProcess]:
    """The command `gregor serve`, on an SQLite file."""
    async with gregor_serve_on(f"sqlite:///{store}", *WITHOUT_LIMITS, *options) as server:
        yield server


@asynccontextmanager
async def gregor_serve_on(
    store: str, *options: str, log: int = subprocess.DEVNULL, **environment: str
) -> AsyncIterator[ServerProcess]:
    """The same on any store, with these variables in its environment. It logs to `log`."""
    address = free_address()
    listen = f"{address.host}:{address.port}"
    serve = ("-m", "gregor.cli", "serve", "--listen", listen, "--store", store)
    command = (sys.executable, *serve, *options)
    async with started(address, command, stderr=log, **environment) as server:
        yield server


@asynccontextmanager
async def bare_starlette() -> AsyncIterator[ServerProcess]:
    """An app of one route, which answers that it is ready."""
    address = free_address()
    async with started(
        address, (sys.executable, "-c", BARE_STARLETTE, str(address.port))
    ) as server:
        yield server


BARE_STARLETTE = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

app = Starlette(routes=[Route("/readyz", lambda request: PlainTextResponse("ready"))])
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


@asynccontextmanager
async def _server(*arguments: str) -> AsyncIterator[ServerProcess]:
    address = free_address()
    command = (sys.executable, "-m", "bench.target", str(address.port), *arguments)
    async with started(address, command) as server:
        yield server


@asynccontextmanager
async def started(
    address: Address, command: Sequence[str], stderr: int | None = None, **environment: str
) -> AsyncIterator[ServerProcess]:
    """A process, once it accepts connections at the address."""
    process = await asyncio.create_subprocess_exec(
        *command, stderr=stderr, env={**os.environ, **environment}
    )
    try:
        await _wait_until_listening(address, process)
        yield ServerProcess(address, process)
    finally:
        process.terminate()
        await process.wait()


def free_address() -> Address:
    return Address("127.0.0.1", free_port())


async def _wait_until_listening(address: Address, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(*address)
            except OSError:
                await asyncio.sleep(0.005)
            else:
                writer.close()
                return
    raise RuntimeError("the server to be measured ended during its start")


def raise_open_file_limit() -> None:
    """Raise the limit of open files, of this process and its children, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
