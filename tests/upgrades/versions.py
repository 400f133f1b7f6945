"""The code of earlier versions, and nodes that run it.

The versions are in an archive of their Python files (`python -m tests.upgrades` packs it), so that
a test needs neither the history of Git nor a package registry. Their dependencies are those of the
present version.
"""

import asyncio
import os
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from tests.fleet.fleet import WITHOUT_LIMITS, Fleet, NodeProcess
from tests.fleet.servers import START_TIMEOUT_SECONDS

ROOT = Path(__file__).parents[2]
ARCHIVE = Path(__file__).with_name("earlier_versions.tar.xz")

COMMITS = {"0008": "037bf71"}
"""The last commit of each schema before the present one that this code serves."""

PRESENT = "present"
DRAIN_SECONDS = "0.3"


def http_client(url: str) -> httpx.AsyncClient:
    """A client of a server, which waits as long as a busy machine needs."""
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=START_TIMEOUT_SECONDS)


class Versions:
    """The versions, unpacked into a folder, by the revision of their schema."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")

    def environment(self, version: str) -> Mapping[str, str]:
        """The environment of a process that runs this version."""
        code = ROOT / "src" if version == PRESENT else self._folder / version
        own = {"PYTHONPATH": str(code), "GREGOR_DRAIN_SECONDS": DRAIN_SECONDS}
        return os.environ | WITHOUT_LIMITS | own

    async def run(self, version: str, *arguments: str) -> tuple[int, str]:
        """Run a command of this version; its exit status and its output."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gregor.cli", *arguments),
            cwd=self._folder,
            env=self.environment(version),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


class VersionedNode(NodeProcess):
    """A node that can be restarted with another version."""

    def __init__(
        self, versions: Versions, version: str, stores: Sequence[str], pubsub: str
    ) -> None:
        super().__init__(stores, pubsub)
        self._versions = versions
        self._environment = versions.environment(version)

    async def restart(self, version: str) -> None:
        """As a deploy does: stop gracefully, start, and wait until it is ready."""
        await self.stop()
        self._environment = self._versions.environment(version)
        await self.start()

    async def problems(self) -> str:
        """The body of its readiness."""
        async with http_client(self.url) as http:
            return (await http.get("/readyz")).text


class RollingFleet(Fleet):
    """A Fleet whose databases and nodes are those of an earlier version at first."""

    nodes: Sequence[VersionedNode]

    def __init__(self, versions: Versions, version: str, *, shards: int = 1) -> None:
        super().__init__(2, "redis", shards=shards)
        self._versions = versions
        self._version = version

    async def migrate(self, version: str, *options: str) -> tuple[int, str]:
        """Run `gregor migrate` of this version; its exit status and its output."""
        stores = [argument for store in self.stores for argument in ("--store", store)]
        return await self._versions.run(version, "migrate", *stores, *options)

    async def roll(self, version: str) -> None:
        """Restart the nodes, one after the other, with this version."""
        for node in self.nodes:
            await node.restart(version)

    async def new_database(self) -> str:
        url = await self.postgresql.create_database()
        if self._shards == 1:
            await self._versions.run(self._version, "migrate", "--store", url)
        return url

    async def _establish(self) -> None:
        self.stores = [f"{name}={url}" for name, url in self.shards.items()]
        await self.migrate(self._version)

    def _node(self, pubsub: str, ahead: float) -> VersionedNode:
        return VersionedNode(self._versions, self._version, self.stores, pubsub)


class SingleServer(VersionedNode):
    """A server that runs this version on a file."""

    def __init__(self, versions: Versions, version: str, store: str) -> None:
        super().__init__(versions, version, [store], "")

    def _command(self) -> list[str]:
        options = ["--listen", f"127.0.0.1:{self.port}", "--store", *self.stores]
        return [sys.executable, "-m", "gregor.cli", "serve", *options]
