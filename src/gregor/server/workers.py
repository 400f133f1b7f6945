"""Several worker processes that share their listening sockets, and the supervisor, their parent.

The supervisor serves no requests. It opens the store and the pub/sub once, so that their problems
are reported once. It owns the listening sockets, so that clients that connect while a worker is
restarted only wait a little. Apart from that, the workers share only the store and the pub/sub,
like nodes on different machines: a worker that is frozen or killed does not affect the others.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
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
from gregor.server.composition import tls_of
from gregor.server.descriptors import raise_limit
from gregor.server.process import (
    Process,
    announce,
    app_of,
    listen,
    listening_for_admin,
    on_reload_signal,
    on_stop_signals,
)
from gregor.server.worker_metrics import WorkerMetrics
from gregor.stores.sql.store_url import is_shared

log = logging.getLogger("gregor.server")

RESTART_BACKOFF = Backoff(0.1, 10.0)
STABLE_SECONDS = 60.0
# A healthy worker needs less, in addition to the lame-duck time and twice the drain time.
STOP_TIMEOUT_SECONDS = 20.0
MAX_SOCKET_FOLDER = 96  # bytes; the path of a socket has 104 on macOS, and 108 on Linux


class WorkerConfig(Struct, frozen=True):
    """The first line of a worker's stdin. Nothing follows it; the end of stdin means that the
    supervisor has ended. (Stdin, because other processes can read command lines and environments,
    and the settings contain secrets.)"""

    number: int
    listener: int  # a file descriptor, as the next one
    admin: int | None
    folder: str  # for the sockets of WorkerMetrics
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        number: int,
        listener: socket.socket,
        admin: socket.socket | None,
        folder: str,
        settings: Settings,
    ) -> Self:
        plain = {name: _plain(value) for name, value in settings}
        descriptors = listener.fileno(), None if admin is None else admin.fileno()
        return cls(number, *descriptors, folder, {**plain, "migrate": False})

    @property
    def descriptors(self) -> list[int]:
        """Those that a worker inherits."""
        return [self.listener, *([] if self.admin is None else [self.admin])]

    @classmethod
    def read(cls) -> Self:
        """Read it from stdin. Raises SetupError if no supervisor has written it."""
        try:
            return msgspec.json.decode(sys.stdin.buffer.readline(), type=cls)
        except msgspec.DecodeError as error:
            raise SetupError("workers are started by `gregor serve --workers N`") from error


def _plain(value: Any) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case _:
            return value


# A worker


async def work(config: WorkerConfig) -> None:
    """Serve with this configuration until SIGTERM, or until the supervisor ends."""
    settings = Settings(**config.settings)
    tls = tls_of(settings)
    worker_metrics = WorkerMetrics(Path(config.folder), config.number, settings.workers)
    with ExitStack() as sockets:
        listener, *admin = [
            sockets.enter_context(socket.socket(fileno=descriptor))
            for descriptor in config.descriptors
        ]
        async with Server.from_settings(settings, worker_metrics=worker_metrics) as server:
            process = Process(server, app_of(server, settings), tls)
            with (
                on_stop_signals(process.request_stop),
                on_reload_signal(None if tls is None else tls.reload),
            ):
                _stop_with_supervisor()
                log.info(LogEvent("working"))
                await process.serve_on(listener, *admin)


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
    tls = tls_of(settings)
    raise_limit()  # workers inherit it
    with (
        listen(*settings.address) as listener,
        listening_for_admin(settings) as admin,
        private_folder() as folder,
    ):
        async with Server.from_settings(settings) as server:
            # Errors of the settings and of the machine are found once, and the store is prepared.
            server.service.descriptors.check()
        stop_seconds = settings.lame_duck + 2 * settings.drain_seconds + STOP_TIMEOUT_SECONDS
        listeners = [listener, *([] if admin is None else [admin])]
        supervisor = Supervisor(command, listeners, stop_seconds)
        with (
            on_stop_signals(supervisor.request_stop),
            on_reload_signal(None if tls is None else supervisor.reload),
        ):
            announce(listener, admin, settings)
            numbers = range(1, settings.workers + 1)
            await supervisor.run(
                [WorkerConfig.of(n, listener, admin, folder, settings) for n in numbers]
            )
    log.info(LogEvent("stopped"))


def private_folder(parents: Iterable[str] | None = None) -> TemporaryDirectory[str]:
    """A folder for the sockets of WorkerMetrics, in the first of these parents that allows it.
    Raises SetupError if none does."""
    tried = list(_parents_of_sockets() if parents is None else parents)
    for parent in tried:
        with suppress(OSError):
            folder = TemporaryDirectory(prefix="gregor-", dir=parent)
            if len(os.fsencode(folder.name)) <= MAX_SOCKET_FOLDER:
                return folder
            folder.cleanup()
    raise SetupError(
        "--workers needs a folder in which it can create sockets, and cannot do so in "
        f"{', '.join(tried)}; set TMPDIR to a folder that is writable and has a short path"
    )


def _parents_of_sockets() -> Iterator[str]:
    for variable in ("TMPDIR", "XDG_RUNTIME_DIR"):
        if folder := os.environ.get(variable):
            yield folder
    yield from ("/tmp", "/var/tmp", "/dev/shm")


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
    """Starts workers, and restarts each that ends before a stop was requested. Kills those that
    have not ended `stop_seconds` after that."""

    def __init__(
        self, command: Sequence[str], listeners: Sequence[socket.socket], stop_seconds: float
    ) -> None:
        self._command = command
        self._listeners = listeners
        self._stop_seconds = stop_seconds
        self._workers: dict[int, subprocess.Process] = {}
        self._stop_requested = asyncio.Event()

    def request_stop(self) -> None:
        """Stop the workers gracefully. A second request kills them."""
        if self._stop_requested.is_set():
            self._signal_workers(signal.SIGKILL)
        self._stop_requested.set()

    def reload(self) -> None:
        """Have the workers read the certificate again."""
        self._signal_workers(signal.SIGHUP)

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
            pass_fds=config.descriptors,
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
        for listener in self._listeners:  # otherwise they accept what no worker serves
            listener.close()
        self._signal_workers(signal.SIGTERM)
        await asyncio.sleep(self._stop_seconds)
        log.error(LogEvent("killing the workers that did not stop in time"))
        self._signal_workers(signal.SIGKILL)

    def _signal_workers(self, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.send_signal(number)
