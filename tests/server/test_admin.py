"""What only operators are told: a server has an address for everybody, and one for them."""

import asyncio
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple
from urllib.parse import unquote

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gregor.config import Settings
from gregor.consumers.broadcaster import Broadcaster
from gregor.errors import SetupError
from gregor.node.node import Node
from gregor.server import Server
from gregor.server.process import listen, listening_for_admin
from gregor.server.readiness import FRESH_SECONDS, Readiness
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import virtual_time
from tests.client.harness import on_virtual_time
from tests.fleet.servers import Redis
from tests.server.harness import (
    SECRET,
    http_client,
    jwt_settings,
    listening,
    open_settings,
    to,
    token,
)
from tests.server.log_entries import next_log_entry
from tests.timeouts import TIMEOUT_SECONDS

PRIVATE = ("/metrics", "/openapi.json")
DISGUISED = ("/%6detrics", "/metrics/", "/openapi%2ejson", "/METRICS")
ENCODED = ("/%72eadyz", "/healt%68z", "/v1/%6cimits", "/v1/users/u/%73tate", "/v1/us%65rs/u/count")


class Addresses(NamedTuple):
    """A server, and clients of its two apps."""

    server: Server
    public: httpx.AsyncClient
    admin: httpx.AsyncClient


class StoreThatIsDown(MemoryStateMachine):
    """A store that is down, and counts how often it was asked for that."""

    checks = 0

    async def problems(self) -> list[str]:
        self.checks += 1
        await asyncio.sleep(FRESH_SECONDS / 2)
        return ["it is down"]


@asynccontextmanager
async def at_two_addresses(settings: Settings) -> AsyncIterator[Addresses]:
    server = Server.from_settings(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        ports = [
            await stack.enter_async_context(listening(app)) for app in (server.app, server.admin)
        ]
        clients = [await stack.enter_async_context(http_client(port)) for port in ports]
        yield Addresses(server, *clients)


@pytest.mark.parametrize("settings", [open_settings(), jwt_settings()], ids=["open", "jwt"])
async def test_public_app_says_no_more_than_whether_it_is_alive_and_ready(
    settings: Settings,
) -> None:
    async with at_two_addresses(settings) as at:
        for path in (*PRIVATE, *DISGUISED):
            assert (await at.public.get(path)).status_code == 404, path
        assert (await at.public.get("/healthz")).text == "alive\n"
        for query in ("", "?exclude=pubsub"):
            answer = await at.public.get(f"/readyz{query}")
            assert (answer.status_code, answer.text) == (200, "ready\n")
        assert (await at.public.get("/readyz?exclude=x")).status_code == 422
        at.server.service.readiness.stopping = True
        answer = await at.public.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "not ready\n")


async def test_loopback_admin_address_answers_to_names_of_this_machine() -> None:
    """A web page can give this machine a name of its own, and then read what it answers."""
    async with at_two_addresses(jwt_settings(allow_host=("gregor.test",))) as at:
        for path in (*PRIVATE, "/readyz", "/v1/limits", "/v1/connect", "/nowhere"):
            answer = await at.admin.get(path, headers={"Host": "page.example"})
            assert answer.status_code == 403, path
            assert "allow_host" in answer.text
        for name in ("gregor.test", "localhost:9912", "[::1]"):
            assert (await at.admin.get("/metrics", headers={"Host": name})).status_code == 200
        answer = await at.public.get("/healthz", headers={"Host": "page.example"})
        assert answer.status_code == 200


@pytest.mark.parametrize("server", [("192.0.2.1", 80), ("/run/gregor.sock", None), None])
async def test_admin_app_that_others_can_reach_answers_to_any_name(
    server: tuple[str, int | None] | None,
) -> None:
    async with Server.from_settings(jwt_settings()) as opened:

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await opened.admin({**scope, "server": server}, receive, send)

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://page.example") as http:
            assert (await http.get("/metrics")).status_code == 200


async def test_words_of_a_path_are_not_encoded() -> None:
    """A rule of a proxy that names one of them would not find it."""
    async with at_two_addresses(open_settings()) as at:
        for path in ENCODED:
            assert (await at.public.get(path)).status_code == 404, path
            assert (await at.public.get(unquote(path))).status_code == 200, path


@pytest.mark.parametrize("settings", [open_settings(), jwt_settings()], ids=["open", "jwt"])
async def test_admin_app_says_everything_and_serves_the_api(settings: Settings) -> None:
    async with at_two_addresses(settings) as at:
        for path in ("/", "/healthz", *PRIVATE):
            assert (await at.admin.get(path)).status_code == 200
        assert (await at.admin.get("/readyz")).json() == {"ready": True, "problems": []}
        at.server.service.readiness.stopping = True
        assert (await at.admin.get("/readyz")).json()["problems"] == ["it is stopping"]
        bearer = {"Authorization": f"Bearer {token('u')}"} if settings.jwt_secret else {}
        for client in (at.public, at.admin):
            answer = await client.post("/v1/messages", json=to("u"), headers=bearer)
            assert answer.json()["results"][0]["status"] == "stored"


@on_virtual_time
async def test_crowd_that_asks_whether_a_server_is_ready_asks_the_store_once() -> None:
    store = StoreThatIsDown(virtual_time.clock)
    node = Node(store, Broadcaster(), clock=virtual_time.clock)
    async with node:
        readiness = Readiness(node)
        for checks in (1, 2):
            await asyncio.gather(*(readiness.check_unless_fresh() for _ in range(50)))
            assert store.checks == checks
            await asyncio.sleep(FRESH_SECONDS)
        assert not readiness.ready


# The process


@asynccontextmanager
async def process(*arguments: str, secret: str = SECRET) -> AsyncIterator[Process]:
    """A process of `gregor serve`, with tokens if the arguments say so."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0"),
        *("--log-format", "json", "--drain-seconds", "0", "--lame-duck-seconds", "0", *arguments),
        env={"GREGOR_JWT_SECRET": secret, "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGTERM)
        await running.communicate()


async def urls(running: Process) -> tuple[str, str | None]:
    """The addresses of a process, as its log names them."""
    async with asyncio.timeout(60):
        entry = await next_log_entry(running, "serving")
    return entry["url"], entry.get("admin")


async def status(url: str) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS) as http:
        return (await http.get(url)).status_code


JWT = ("--auth", "jwt", "--store", "sqlite://")
OPEN = ("--auth", "open", "--store", "sqlite://")
ADMIN = ("--admin-listen", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("arguments", "public_status", "has_admin"),
    [
        (OPEN, 200, False),
        ((*OPEN, "--admin-listen", ""), 200, False),
        ((*OPEN, *ADMIN), 404, True),
        (JWT, 404, True),
        ((*JWT, *ADMIN), 404, True),
        ((*JWT, "--admin-listen", ""), 404, False),
    ],
)
async def test_metrics_are_where_the_settings_say(
    arguments: Iterable[str], public_status: int, has_admin: bool
) -> None:
    async with process(*arguments) as running:
        url, admin = await urls(running)
        assert (admin is not None) is has_admin
        assert await status(f"{url}/metrics") == public_status
        assert await status(f"{url}/readyz") == 200
        if admin is not None:
            assert admin.startswith("http://127.0.0.1:")
            assert await status(f"{admin}/metrics") == 200
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await running.wait() == 0


async def test_workers_share_the_admin_address(postgresql_url: str, redis_server: Redis) -> None:
    shared = ("--store", postgresql_url, "--pubsub", redis_server.url, "--workers", "2")
    async with process("--auth", "jwt", "--migrate", *shared, *ADMIN) as running:
        url, admin = await urls(running)
        for _ in range(2):
            await next_log_entry(running, "working")
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS) as http:
            page = (await http.get(f"{admin}/metrics")).text
        assert 'gregor_worker_up{worker="1"} 1.0' in page
        assert 'gregor_worker_up{worker="2"} 1.0' in page
        assert await status(f"{url}/metrics") == 404


def test_admin_address_that_is_taken_raises_setup_error_that_names_the_option() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        settings = jwt_settings(admin_listen=f"127.0.0.1:{port}")
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}.*--admin-listen"):
            listening_for_admin(settings).__enter__()


def test_two_servers_of_one_machine_need_no_admin_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with listening_for_admin(jwt_settings()) as one, listening_for_admin(jwt_settings()) as two:
        assert one is not None
        assert two is not None
        assert two.getsockname()[1] != 9912
        assert "--admin-listen" in caplog.text


def test_open_access_has_no_admin_address_that_others_reach() -> None:
    with pytest.raises(SetupError, match=r"loopback.*0\.0\.0\.0:1"):
        Server.from_settings(open_settings(admin_listen="0.0.0.0:1"))


@pytest.mark.parametrize("value", ["9912", "localhost", "127.0.0.1:x", ":"])
def test_admin_address_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        open_settings(admin_listen=value)
