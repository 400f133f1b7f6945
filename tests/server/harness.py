"""The test harness: a Gregor server on a loopback socket, and devices that connect to it."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, Self, TypeAlias

import httpx
from pydantic import SecretStr
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gregor.clock import now
from gregor.config import Auth, Settings
from gregor.core.instant import SECOND
from gregor.limits import SETTINGS
from gregor.server.app import Server
from gregor.server.auth import Identity, Role, make_token
from gregor.server.open_connections import OpenConnections
from gregor.server.peer_errors import PeerErrors
from gregor.server.process import GuardedServer, config, listen
from gregor.server.tls import TLS
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.state_machine import SQLStateMachine
from tests.timeouts import TIMEOUT_SECONDS

JSON: TypeAlias = dict[str, Any]

IN_A_FLEET = {"migrate": True, "lame_duck_seconds": 0, "drain_seconds": 0}
NO_RATES = dict.fromkeys((name for name in SETTINGS if name.endswith("_per_second")), 0)
SECRET = "a secret that is long enough for HS256"


class InProcess(GuardedServer):
    """uvicorn without signal handling. It stops as soon as `stop_requested` is set, instead of at
    its next tick."""

    def __init__(
        self,
        app: ASGIApp,
        lifespan: str = "off",
        connections: OpenConnections | None = None,
        errors: PeerErrors | None = None,
        tls: TLS | None = None,
    ) -> None:
        settings = config(app)
        settings.lifespan = "on" if lifespan == "on" else "off"
        super().__init__(settings, connections or OpenConnections(), errors or PeerErrors(), tls)
        self.stop_requested = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.stop_requested.wait()


class Served(NamedTuple):
    """A running server, an HTTP client for it, and the URL of its WebSocket endpoint."""

    server: Server
    http: httpx.AsyncClient
    url: str

    async def device(self, uid: str, device_id: str = "d1", cursor: int = 0) -> "RawDevice":
        """A device that has received its welcome, but not yet its first sync."""
        device = await RawDevice.connect(self.url)
        await device.send("hello", token=uid, device_id=device_id, cursor=cursor, protocol=2)
        assert (await device.receive())["type"] == "welcome"
        return device

    async def synced(self, uid: str, device_id: str = "d1", cursor: int = 0) -> "RawDevice":
        """A device that has received its first sync."""
        device = await self.device(uid, device_id, cursor)
        assert (await device.receive())["type"] == "sync"
        return device

    async def post(self, body: Any, token: str | None = None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self.http.post("/v1/messages", json=body, headers=headers)

    async def metric(self, name: str) -> float:
        """The value of a sample, such as `gregor_messages_total{kind="in_band",…}`."""
        page = (await self.http.get("/metrics")).text
        values = [line.rpartition(" ")[2] for line in page.splitlines() if line.startswith(name)]
        return float(values[0]) if values else 0.0


@asynccontextmanager
async def listening(app: ASGIApp, lifespan: str = "off", **options: Any) -> AsyncIterator[int]:
    """Serve the app on an ephemeral loopback port, and yield the port. The options are those of
    InProcess."""
    with listen("127.0.0.1", 0) as sock:
        process = InProcess(app, lifespan, **options)
        task = asyncio.create_task(process.serve([sock]))
        try:
            yield sock.getsockname()[1]
        finally:
            process.stop_requested.set()
            await task


@asynccontextmanager
async def serving(settings: Settings | None = None, **options: Any) -> AsyncIterator[Served]:
    """A running server; the `options` are those of Server.from_settings."""
    async with running(Server.from_settings(settings or open_settings(), **options)) as served:
        yield served


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Served]:
    """Open the server, and serve everything at one address, as `gregor serve` does by default."""
    parts: dict[str, Any] = {
        "connections": server.service.open_connections,
        "errors": server.service.peer_errors,
    }
    async with server, listening(server.admin, **parts) as port, http_client(port) as http:
        yield Served(server, http, f"ws://127.0.0.1:{port}/v1/connect")


def http_client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_SECONDS)


def open_settings(**options: Any) -> Settings:
    return Settings(**{"store": "sqlite://", "drain_seconds": 0, **NO_RATES, **options})


def shared_settings(store: str | tuple[str, ...], **options: Any) -> Settings:
    """For one of several servers on one store. The first server migrates the store."""
    return Settings(store=store, **{**IN_A_FLEET, **NO_RATES, **options})


def jwt_settings(**options: Any) -> Settings:
    return open_settings(auth=Auth.JWT, jwt_secret=SecretStr(SECRET), **options)


def token(uid: str, role: Role = Role.DEVICE, seconds: float | None = None) -> str:
    """A token that expires after this time, or never."""
    expires_at = None if seconds is None else now() + round(seconds * SECOND)
    return make_token(SECRET, Identity(uid, role, expires_at))


class RawDevice:
    """A WebSocket client whose frames are dicts, so that they can also be invalid."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._n = 0
        self._buffered: deque[JSON] = deque()  # received while `consume` waited for its ack

    @classmethod
    async def connect(cls, url: str, sock: socket.socket | None = None) -> Self:
        return cls(
            await connect(
                url,
                compression=None,
                max_size=None,
                proxy=None,
                max_queue=4,
                sock=sock,
                open_timeout=TIMEOUT_SECONDS,
                close_timeout=1,
            )
        )

    async def send(self, type_: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": type_, **fields}))

    async def receive(self) -> JSON:
        """The next frame."""
        return self._buffered.popleft() if self._buffered else await self._receive_from_socket()

    async def _receive_from_socket(self) -> JSON:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            frame: JSON = json.loads(await self.connection.recv())
        return frame

    async def receive_type(self, type_: str) -> JSON:
        """The next frame of this type. Frames before it are dropped."""
        while (frame := await self.receive())["type"] != type_:
            pass
        return frame

    async def consume(self, *messages: JSON) -> JSON:
        """Send messages, and return the ack or error that answers them."""
        self._n += 1
        await self.send("consume", n=self._n, messages=messages)
        while (frame := await self._receive_from_socket()).get("n") != self._n:
            self._buffered.append(frame)
        return frame

    async def wait_closed(self) -> int:
        """Wait until the node closes the connection, and return the close code."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed:
            code = self.connection.close_code
            assert code is not None
            return code

    async def wait_ended(self) -> None:
        """Wait until the connection has ended, with or without a close code."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.connection.wait_closed()

    async def assert_usable(self) -> None:
        """Assert that the node still stores a valid message of this device."""
        ack = await self.consume(creation("usable"))
        assert [result["status"] for result in ack["results"]] == ["stored"]

    async def close(self) -> None:
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true. It is polled, for conditions without an event."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def creation(category: str = "chat", body: Any = 1, **fields: Any) -> JSON:
    return {**fields, "creation": {"category": category, "body": body}}


def to(uid: str, category: str = "chat", body: Any = 1, **fields: Any) -> JSON:
    """A creation with a uid, as a backend sends it."""
    return creation(category, body, uid=uid, **fields)


def small_buffer_socket(port: int) -> socket.socket:
    """A connected socket whose receive buffer is small, so that it fills up unless it is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def store_failure(served: Served) -> AsyncIterator[None]:
    """While the block runs, statements fail, because a table has another name."""
    database = sql_machine(served).database
    await database.write(_rename("users", "renamed_users"))
    try:
        yield
    finally:
        await database.write(_rename("renamed_users", "users"))


def sql_machine(served: Served) -> SQLStateMachine:
    machine = served.server.node.state_machine
    assert isinstance(machine, SQLStateMachine)
    return machine


def _rename(old: str, new: str) -> Callable[[DatabaseConnection], None]:
    def work(connection: DatabaseConnection) -> None:
        connection.execute_sql(f"ALTER TABLE {old} RENAME TO {new}")

    return work
