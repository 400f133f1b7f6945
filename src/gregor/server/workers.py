"""Several processes that serve on one listening socket, and their parent, who serves nobody.

The parent opens the store and the pub/sub once, so that what is wrong with them is said once, and
holds the socket, so that whoever connects while a worker is being replaced only waits a little.
All else is between the workers, the store and the pub/sub, as if they were on machines of their
own: one that is frozen or killed is nothing to the others.
"""

import asyncio
import signal
import socket
import sys
from asyncio import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import msgspec
import structlog
from msgspec import Struct
from pydantic import SecretStr

from gregor.config import Settings
from gregor.errors import SetupError
from gregor.server.app import Server
from gregor.server.serving import Process, announce, listen, told_by_signals
from gregor.server.siblings import Siblings
from gregor.storage.engine import is_shared

log = structlog.get_logger("gregor.server")

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 10.0
STABLE_SECONDS = 60.0
GRACE_SECONDS = 20.0  # a worker that works needs less, beyond what it takes to drain twice


class Orders(Struct, frozen=True):
    """What a worker reads on the first line of its stdin. Nothing follows; when that ends, the
    parent has ended. (Neither a command line nor an environment is a place for secrets.)"""

    number: int
    listening: int
    folder: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, number: int, listening: socket.socket, folder: str, settings: Settings) -> Self:
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in settings
        }
        return cls(number, listening.fileno(), folder, {**plain, "migrate": False})

    @classmethod
    def read(cls) -> Self:
        """What the parent says. Raises SetupError if there is none."""
        try:
            return msgspec.json.decode(sys.stdin.buffer.readline(), type=cls)
        except msgspec.DecodeError as error:
            raise SetupError("workers are started by `gregor serve --workers N`") from error


# A worker


async def work(orders: Orders) -> None:
    """Serve as the parent says, until it says so or is no more."""
    structlog.contextvars.bind_contextvars(worker=orders.number)
    settings = Settings(**orders.settings)
    siblings = Siblings(Path(orders.folder), orders.number, settings.workers)
    with socket.socket(fileno=orders.listening) as listening:
        async with Server(settings, siblings=siblings) as server:
            process = Process(server)
            with told_by_signals(process.tell):
                _leave_with_the_parent()
                log.info("working")
                await process.serve_on(listening)


def _leave_with_the_parent() -> None:
    """Take the end of the parent for a SIGTERM."""

    def leave() -> None:
        loop.remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, leave)


# Their parent


async def supervise(settings: Settings, command: Sequence[str]) -> None:
    """Keep so many workers, each started by the `command`, until SIGTERM or SIGINT; then have them
    leave, and return. Raises SetupError if they could not start."""
    check(settings)
    with (
        listen(*settings.address) as listening,
        TemporaryDirectory(prefix="gregor-") as folder,
    ):
        async with Server(settings):
            pass  # it could be opened, and its store is prepared
        parent = Parent(command, listening, settings.drain_seconds)
        with told_by_signals(parent.tell):
            announce(listening, settings)
            numbers = range(1, settings.workers + 1)
            await parent.keep([Orders.of(n, listening, folder, settings) for n in numbers])
    log.info("stopped")


def check(settings: Settings) -> None:
    """Raises SetupError if several processes cannot share what these settings name."""
    if not all(is_shared(url) for url in settings.stores.values()):
        raise SetupError(
            f"--workers {settings.workers} needs a store that they can share: "
            "--store postgresql://USER@HOST/DATABASE"
        )
    if settings.pubsub is None:
        raise SetupError(
            f"--workers {settings.workers} needs a pub/sub over which they tell each other what "
            "is new: --pubsub redis://HOST:PORT/DB or nats://HOST:PORT"
        )


class Parent:
    """Starts workers, and starts another where one ends before it was told to."""

    def __init__(
        self, command: Sequence[str], listening: socket.socket, drain_seconds: float
    ) -> None:
        self._command = command
        self._listening = listening
        self._drain_seconds = drain_seconds
        self._workers: dict[int, subprocess.Process] = {}
        self._told = asyncio.Event()

    def tell(self) -> None:
        """Have the workers leave; told again, kill them."""
        if self._told.is_set():
            self._send(signal.SIGKILL)
        self._told.set()

    async def keep(self, workers: Sequence[Orders]) -> None:
        """Returns when it was told to stop and all workers have left."""
        try:
            async with asyncio.TaskGroup() as tasks:
                stopping = tasks.create_task(self._stop_when_told())
                await asyncio.gather(*(tasks.create_task(self._keep(it)) for it in workers))
                stopping.cancel()
        finally:
            self._send(signal.SIGKILL)

    async def _keep(self, orders: Orders) -> None:
        """Have this worker, one after the other."""
        clock = asyncio.get_running_loop().time
        pause = FIRST_PAUSE_SECONDS
        while not self._told.is_set():
            began = clock()
            status = await self._run(orders)
            if self._told.is_set():
                return
            pause = FIRST_PAUSE_SECONDS if clock() - began > STABLE_SECONDS else pause
            log.error("a worker has ended", worker=orders.number, status=status, pause=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._told.wait()
            pause = min(2 * pause, LAST_PAUSE_SECONDS)

    async def _run(self, orders: Orders) -> int:
        """One worker, from its beginning to its end."""
        worker = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            pass_fds=[orders.listening],
            start_new_session=True,  # Ctrl-C is for the parent, who passes it on
        )
        self._workers[orders.number] = worker
        if self._told.is_set():
            worker.terminate()
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(orders) + b"\n")
        return await worker.wait()

    # The end

    async def _stop_when_told(self) -> None:
        await self._told.wait()
        log.info("stopping")
        self._listening.close()  # or it would take connections for which nobody is left
        self._send(signal.SIGTERM)
        await asyncio.sleep(2 * self._drain_seconds + GRACE_SECONDS)
        log.error("killed the workers that did not leave")
        self._send(signal.SIGKILL)

    def _send(self, name: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.send_signal(name)
