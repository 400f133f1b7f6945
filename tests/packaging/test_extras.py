"""Each extra, installed alone from a wheel into a new environment, does what it promises."""

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fleet.servers import NATS, Redis

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAX_BASE_PACKAGES = 16
MAX_BASE_BYTES = 30_000_000  # without bytecode and pip


class Installation:
    """An environment with the wheel, its extra, and nothing else. pip stays outside of it."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        venv.create(folder)
        self.folder = folder
        self.extra = extra
        self.scripts = folder / "bin"
        # Without the hashes: pip would want one of everything, also of the wheel.
        locked = (ROOT / "requirements.lock").read_text()
        constraints = folder / "constraints.txt"
        constraints.write_text(re.sub(r" \\\n    --hash=\S+", "", locked))
        self._pip("install", "--no-compile", "--constraint", str(constraints), f"{wheel}{extra}")

    def _pip(self, *arguments: str) -> str:
        pip = (sys.executable, "-m", "pip", "--python", str(self.scripts / "python"))
        return _output((*pip, *arguments, "--disable-pip-version-check", "-q"))

    def packages(self) -> list[str]:
        return self._pip("list", "--format", "freeze").split()

    def bytes(self) -> int:
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())

    def run(self, program: str, *arguments: str) -> str:
        """What the Python program prints."""
        return _output((str(self.scripts / "python"), "-c", program, *arguments), self.folder)

    def gregor(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command `gregor`."""
        return _process((str(self.scripts / "gregor"), *arguments), self.folder)

    @contextmanager
    def running(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the command `gregor` until the block ends."""
        process = subprocess.Popen(
            (str(self.scripts / "gregor"), *arguments),
            cwd=self.folder,
            env=_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()


def _process(
    command: tuple[str, ...], folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )


def _environment() -> dict[str, str]:
    """Without what would change the installation or the settings."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("GREGOR_")
    }


def _output(command: tuple[str, ...], folder: Path | None = None) -> str:
    done = _process(command, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("pip", "wheel", "--no-deps", "-q", "--disable-pip-version-check", "-w", str(folder))
    _output((sys.executable, "-m", *build, str(ROOT)))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def installation(request: pytest.FixtureRequest, tmp_path: Path, wheel: Path) -> Installation:
    """The installation of the extra that the test names: `[server]`, or nothing for the base."""
    return Installation(tmp_path / "venv", wheel, request.param)


def installing(extra: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("installation", [extra], indirect=True, ids=[extra or "base"])


def needs(extra: str, purpose: str) -> str:
    """The error without this extra."""
    return f"{purpose} needs the extra `{extra}`: pip install 'gregor-sync[{extra}]'"


NAME_MISSING = """
from importlib import import_module
from sys import argv

from gregor.errors import SetupError

for module in argv[1:]:
    try:
        import_module(module)
    except SetupError as error:
        print(error)
"""

DEVICE_AND_PRODUCER = """
import asyncio

import gregor
from gregor.client import Client, Producer, SQLiteStore

def device():
    store = SQLiteStore("device.db")
    return Client("http://127.0.0.1:9", "token", device_id="laptop", store=store)

async def main():
    async with device() as client:
        await client.create("notes", "written offline")
    async with device() as client:
        print(gregor.__version__, client.count("notes"), client.unsent_count)

asyncio.run(main())
try:
    with Producer("http://127.0.0.1:9", max_attempts=1) as producer:
        producer.create("alice", "notes")
except gregor.GregorError as error:
    print(error.code)
"""


@installing("")
def test_base_is_a_device_and_a_producer(installation: Installation) -> None:
    version, *counts, problem = installation.run(DEVICE_AND_PRODUCER).split()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert (counts, problem) == (["1", "1"], "unavailable")
    assert len(installation.packages()) <= MAX_BASE_PACKAGES
    assert installation.bytes() <= MAX_BASE_BYTES

    server, testing = "gregor.server", "gregor.testing.conformance"
    assert installation.run(NAME_MISSING, server, "gregor.config", testing).splitlines() == [
        needs("server", "a server"),
        needs("server", "a server"),
        needs("testing", "gregor.testing"),
    ]
    command = installation.gregor("--version")
    assert command.returncode == 1
    assert command.stderr == f"gregor: {needs('cli', 'the command line')}\n"


SERVER = """
import asyncio

import httpx
from gregor.config import Auth, Settings
from gregor.server import Server
from gregor.server.process import Process, listen

SECRET = "not a secret, but at least 32 bytes long"

async def main():
    settings = Settings(store="sqlite:///gregor.db", auth=Auth.JWT, jwt_secret=SECRET)
    with listen("127.0.0.1", 0) as listener:
        async with Server.from_settings(settings) as server, asyncio.TaskGroup() as tasks:
            process = Process(server)
            tasks.create_task(process.serve_on(listener))
            async with httpx.AsyncClient(timeout=60) as http:
                address = "http://%s:%d" % listener.getsockname()
                print((await http.get(address + "/readyz")).status_code)
            process.request_stop()

asyncio.run(main())
for given in {"store": "postgresql://x/x"}, {"pubsub": "redis://x"}, {"pubsub": "nats://x"}:
    try:
        Server.from_settings(Settings(**{"store": "sqlite://", **given}))
    except Exception as error:
        print(error)
"""


@installing("[server]")
def test_extra_server_is_a_server_on_sqlite(installation: Installation) -> None:
    assert installation.run(SERVER).splitlines() == [
        "200",
        needs("postgresql", "PostgreSQL"),
        needs("redis", "Redis"),
        needs("nats", "NATS"),
    ]


POSTGRESQL = """
import asyncio
from sys import argv

from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at

async def main():
    async with database_at(argv[1]) as database:
        print(await database.read(lambda connection: connection.execute_sql("SELECT 1")))
    try:
        async with database_at(argv[1], migrate):
            pass
    except Exception as error:
        print(error)

asyncio.run(main())
"""


@installing("[postgresql]")
def test_extra_postgresql_is_the_driver(installation: Installation, postgresql_url: str) -> None:
    answer, problem = installation.run(POSTGRESQL, postgresql_url).splitlines()
    assert answer == "[(1,)]"
    assert problem.endswith(needs("server", "a server"))  # it has the migrations


PUBSUB = """
import asyncio
from sys import argv

from gregor.pubsub.interface import Received
from gregor.pubsub.remote import pubsub_at

async def main():
    async with asyncio.timeout(60), pubsub_at(argv[1]) as pubsub:
        await pubsub.subscribe("channel")
        await pubsub.publish("channel", b"hello")
        async for event in pubsub.received():
            if isinstance(event, Received):
                print(event.payload.decode())
                return

asyncio.run(main())
"""


@installing("[redis]")
def test_extra_redis_is_a_pubsub(installation: Installation, redis_server: Redis) -> None:
    assert installation.run(PUBSUB, redis_server.url) == "hello\n"


@installing("[nats]")
def test_extra_nats_is_a_pubsub(installation: Installation, nats_server: NATS) -> None:
    assert installation.run(PUBSUB, nats_server.url) == "hello\n"


@installing("[cli]")
def test_extra_cli_is_the_commands_of_a_client(installation: Installation) -> None:
    assert installation.gregor("--version").stdout.startswith("gregor ")
    count = installation.gregor("count", "alice", "--url", "http://127.0.0.1:9")
    assert (count.returncode, len(count.stderr.splitlines())) == (1, 1)
    for command in (("serve",), ("demo",), ("token", "alice")):
        done = installation.gregor(*command)
        assert (done.returncode, done.stderr) == (1, f"gregor: {needs('server', 'a server')}\n")


CONFORMANCE = """
import pytest
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import oracle, strategies, transport, virtual_time
from gregor.testing.conformance import StateMachineConformance
from gregor.testing.pubsub_conformance import PubSubConformance
from contextlib import asynccontextmanager

@asynccontextmanager
async def memory(clock):
    yield MemoryStateMachine(clock)

class TestMemory(StateMachineConformance):
    @pytest.fixture
    def open_machine(self):
        return memory
"""


@installing("[testing]")
def test_extra_testing_is_the_conformance_suite(installation: Installation) -> None:
    (installation.folder / "test_memory.py").write_text(CONFORMANCE)
    tests = ("-m", "pytest", "-q", "-o", "asyncio_mode=auto", "-k", "duplicate or unknown_user")
    python = str(installation.scripts / "python")
    result = _output((python, *tests, "test_memory.py"), installation.folder)
    assert re.search(r"\d passed", result)


@installing("[all]")
def test_extra_all_runs_the_demo(installation: Installation) -> None:
    demo = installation.gregor("demo", "--devices", "20", "--seconds", "1", "--json")
    assert (demo.returncode, demo.stderr) == (0, "")


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
INSTALLED_LINES = re.findall(r"pip install 'gregor-sync(\[.*?\])' +#", OPERATIONS)


@pytest.mark.parametrize("installation", INSTALLED_LINES, ids=INSTALLED_LINES, indirect=True)
def test_line_of_the_operations_page_installs_a_server(
    installation: Installation, postgresql_url: str, redis_server: Redis
) -> None:
    fleet = ("--store", postgresql_url, "--pubsub", redis_server.url, "--migrate")
    options = fleet if "postgresql" in installation.extra else ()
    serve = ("serve", "--listen", "127.0.0.1:0", "--log-format", "json", *options)
    with installation.running(*serve) as server:
        assert server.stderr is not None
        first = json.loads(server.stderr.readline())
        assert first["event"] == "serving", first
        assert installation.gregor("count", "alice", "--url", first["url"]).stdout == "0\n"


def test_operations_page_has_a_line_for_one_process_and_one_for_a_fleet() -> None:
    assert len(INSTALLED_LINES) == 2
