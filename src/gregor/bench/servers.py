"""The servers that are measured: each a process of its own, as it would be in production."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError

PATIENCE_SECONDS = 20.0


class Address(NamedTuple):
    host: str
    port: int


class Server(NamedTuple):
    """A running server."""

    address: Address
    process: asyncio.subprocess.Process

    def rss(self) -> int:
        """Its resident memory, in bytes."""
        command = ["ps", "-o", "rss=", "-p", str(self.process.pid)]
        return int(subprocess.check_output(command)) * 1024

    def cpu_seconds(self) -> float | None:
        """The processor time that it has used, where the system tells."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return None
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    async def commits(self) -> tuple[int, int]:
        """How many messages it has committed, and in how many commits."""
        metrics = dict(
            line.rsplit(" ", 1) for line in (await self.get("/metrics")).decode().splitlines()
        )
        return (
            int(float(metrics["gregor_commit_messages_sum"])),
            int(float(metrics["gregor_commit_messages_count"])),
        )

    async def get(self, path: str) -> bytes:
        """What it answers over HTTP."""
        return await asyncio.to_thread(_read, self._url(path))

    async def post(self, path: str, body: bytes) -> bytes:
        """What it answers to this JSON."""
        return await asyncio.to_thread(_read, self._url(path), body)

    async def ready(self) -> bool:
        """Whether it says that it can do its work."""
        try:
            await self.get("/readyz")
        except HTTPError as refusal:
            refusal.close()
            return False
        return True

    def _url(self, path: str) -> str:
        return f"http://{self.address.host}:{self.address.port}{path}"


def _read(url: str, question: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, question, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
        body: bytes = answer.read()
        return body


@asynccontextmanager
async def gregor(store: Path) -> AsyncIterator[Server]:
    """Gregor, as `gregor serve` runs it, on an SQLite file."""
    async with _server("gregor", f"sqlite:///{store}") as server:
        yield server


@asynccontextmanager
async def node(store: str, pubsub: str) -> AsyncIterator[Server]:
    """One node of a fleet, on a store that is prepared."""
    async with _server("gregor", store, pubsub) as server:
        yield server


@asynccontextmanager
async def bare() -> AsyncIterator[Server]:
    """The same uvicorn, with nothing in it but an echo and a loop that sends."""
    async with _server("bare") as server:
        yield server


@asynccontextmanager
async def _server(*arguments: str) -> AsyncIterator[Server]:
    address = Address("127.0.0.1", _free_port())
    command = [sys.executable, "-m", "gregor.bench.target", str(address.port), *arguments]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _listening(address, process)
        yield Server(address, process)
    finally:
        process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _listening(address: Address, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection(*address)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
    raise RuntimeError("the server that was to be measured has ended")


def allow_many_connections() -> None:
    """As many open files as the system lets this process and its children have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
