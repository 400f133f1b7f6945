"""Several worker processes that serve on one listening socket, and the supervisor, their parent.

The supervisor serves no requests. It opens the store and the pub/sub once, so that their problems
are reported once. It owns the listening socket, so that clients that connect while a worker is
restarted only wait a little. Apart from that, the workers share only the store and the pub/sub,
like nodes on different machines: a worker that is frozen or killed does not affect the others.
"""

import asyncio
import logging
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
from msgspec import Struct
from pydantic import SecretStr

from gregor.backoff import Backoff, Outage
from gregor.config import Settings
from gregor.errors import SetupError
from gregor.log_event import LogEvent
from gregor.pubsub.server_url import URL_FORMS
from gregor.server.app import Server
from gregor.server.process import Process, announce, listen, on_stop_signals
from gregor.server.worker_metrics import WorkerMetrics
from gregor.stores.sql.store_url import is_shared

log = logging.getLogger("gregor.server")

RESTART_BACKOFF = Backoff(0.1, 10.0)
STABLE_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 20.0  # a healthy worker needs less, in addition to twice the drain time


class WorkerConfig(Struct, frozen=True):
    """The first line of a worker's stdin. Nothing follows it; the end of stdin means that the
    supervisor has ended. (Stdin, because other processes can read command lines and environments,
    and the settings contain secrets.)"""

    number: int
    listener: int  # a file descriptor
    folder: str  # for the sockets of WorkerMetrics
    settings: dict[str, Any]

    @classmethod
    def of(cls, number: int, listener: socket.socket, folder: str, settings: Settings) -> Self:
        plain = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in settings
        }
        return cls(number, listener.fileno(), folder, {**plain, "migrate": False})

    @classmethod
    def read(cls) -> Self:
        """Read it from stdin. Raises SetupError if no supervisor has written it."""
        try:
            return msgspec.json.decode(sys.stdin.buffer.readline(), type=cls)
        except msgspec.DecodeError as error:
            raise SetupError("workers are started by `gregor serve --workers N`") from error


# A worker


async def work(config: WorkerConfig) -> None:
    """Serve with this configuration until SIGTERM, or until the supervisor ends."""
    settings = Settings(**config.settings)
    worker_metrics = WorkerMetrics(Path(config.folder), config.number, settings.workers)
    with socket.socket(fileno=config.listener) as listener:
        async with Server.from_settings(settings, worker_metrics=worker_metrics) as server:
            process = Process(server, settings.keep_alive_seconds)
            with on_stop_signals(process.request_stop):
                _stop_with_supervisor()
                log.info(LogEvent("working"))
                await process.serve_on(listener)


def _stop_with_supervisor() -> None:
    """Treat the end of the supervisor as a SIGTERM."""

    def stop() -> None:
        loop.remove_reader(sys.stdin)
        signal.raise_signal(signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, stop)


# The supervisor


async def supervise(settings: Settings, command: Sequence[str]) -> None:
    """Run `settings.workers` workers, each started with the `command`, until SIGTERM or SIGINT;
    then stop them gracefully, and return. A worker that ends before is restarted. Raises SetupError
    if the settings do not allow workers, or if the store or the pub/sub cannot be used."""
    check(settings)
    with (
        listen(*settings.address) as listener,
        TemporaryDirectory(prefix="gregor-") as folder,
    ):
        async with Server.from_settings(settings):
            pass  # finds errors of the settings once, and prepares the store
        supervisor = Supervisor(command, listener, settings.drain_seconds)
        with on_stop_signals(supervisor.request_stop):
            announce(listener, settings)
            numbers = range(1, settings.workers + 1)
            await supervisor.run([WorkerConfig.of(n, listener, folder, settings) for n in numbers])
    log.info(LogEvent("stopped"))


def check(settings: Settings) -> None:
    """Raises SetupError if several processes cannot share the store and pub/sub of these
    settings."""
    if not all(is_shared(url) for url in settings.stores.values()):
        raise SetupError(
            f"--workers {settings.workers} needs a store that processes can share: "
            "--store postgresql://USER@HOST/DATABASE"
        )
    if settings.pubsub is None:
        raise SetupError(
            f"--workers {settings.workers} needs a pub/sub to carry messages between the workers: "
            f"--pubsub {URL_FORMS}"
        )


class Supervisor:
    """Starts workers, and restarts each that ends before a stop was requested."""

    def __init__(
        self, command: Sequence[str], listener: socket.socket, drain_seconds: float
    ) -> None:
        self._command = command
        self._listener = listener
        self._drain_seconds = drain_seconds
        self._workers: dict[int, subprocess.Process] = {}
        self._stop_requested = asyncio.Event()

    def request_stop(self) -> None:
        """Stop the workers gracefully. A second request kills them."""
        if self._stop_requested.is_set():
            self._signal_workers(signal.SIGKILL)
        self._stop_requested.set()

    async def run(self, workers: Sequence[WorkerConfig]) -> None:
        """Run the workers until a stop is requested and all of them have ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                stop = tasks.create_task(self._stop_on_request())
                await asyncio.gather(
                    *(tasks.create_task(self._keep_running(config)) for config in workers)
                )
                stop.cancel()
        finally:
            self._signal_workers(signal.SIGKILL)

    async def _keep_running(self, config: WorkerConfig) -> None:
        """Start this worker, and restart it with backoff when it ends."""
        clock = asyncio.get_running_loop().time
        outage = Outage(RESTART_BACKOFF)
        while not self._stop_requested.is_set():
            started = clock()
            status = await self._run_once(config)
            if self._stop_requested.is_set():
                return
            if clock() - started > STABLE_SECONDS:
                outage.end()
            delay = outage.delay(clock(), 1.0)  # no jitter: the workers are few
            log.error(LogEvent("worker ended", worker=config.number, status=status, delay=delay))
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop_requested.wait()

    async def _run_once(self, config: WorkerConfig) -> int:
        """Run one process of this worker, and return its exit status."""
        worker = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            pass_fds=[config.listener],
            start_new_session=True,  # Ctrl-C signals only the supervisor, which stops the workers
        )
        self._workers[config.number] = worker
        if self._stop_requested.is_set():
            worker.terminate()
        assert worker.stdin is not None
        worker.stdin.write(msgspec.json.encode(config) + b"\n")
        return await worker.wait()

    async def _stop_on_request(self) -> None:
        await self._stop_requested.wait()
        log.info(LogEvent("stopping"))
        self._listener.close()  # otherwise it accepts connections that no worker serves
        self._signal_workers(signal.SIGTERM)
        await asyncio.sleep(2 * self._drain_seconds + STOP_TIMEOUT_SECONDS)
        log.error(LogEvent("killing the workers that did not stop in time"))
        self._signal_workers(signal.SIGKILL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.send_signal(number)
