"""A served Gregor on a loopback socket, and devices that talk to it: what these tests share."""

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, Self, TypeAlias

import httpx
import uvicorn
from pydantic import SecretStr
from sqlalchemy import Connection
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gregor.clock import now
from gregor.config import Auth, Settings
from gregor.core.instant import SECOND
from gregor.server.app import Server
from gregor.server.auth import Identity, Role, make_token
from gregor.server.serving import config, listen

JSON: TypeAlias = dict[str, Any]

PATIENCE = 10.0
SECRET = "a secret that is quite long enough to sign"


class InProcess(uvicorn.Server):
    """uvicorn without its signals, which stops when it is told and not at its next tick."""

    def __init__(self, app: ASGIApp, lifespan: str = "off") -> None:
        settings = config(app)
        settings.lifespan = "on" if lifespan == "on" else "off"
        super().__init__(settings)
        self.leaving = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        await self.leaving.wait()


class Served(NamedTuple):
    """A server that answers: its address over HTTP and WebSocket, and itself."""

    server: Server
    http: httpx.AsyncClient
    url: str

    async def device(self, uid: str, device_id: str = "d1", cursor: int = 0) -> "Device":
        """A device that has said hello; its first sync is still to be received."""
        device = await Device.connected(self.url)
        await device.say("hello", token=uid, device_id=device_id, cursor=cursor, protocol=1)
        assert (await device.hear())["type"] == "welcome"
        return device

    async def synced(self, uid: str, device_id: str = "d1", cursor: int = 0) -> "Device":
        """A device that knows everything."""
        device = await self.device(uid, device_id, cursor)
        assert (await device.hear())["type"] == "sync"
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
async def listening(app: ASGIApp, lifespan: str = "off") -> AsyncIterator[int]:
    """The app on an ephemeral loopback port, which is given."""
    with listen("127.0.0.1", 0) as sock:
        process = InProcess(app, lifespan)
        running = asyncio.create_task(process.serve([sock]))
        try:
            yield sock.getsockname()[1]
        finally:
            process.leaving.set()
            await running


@asynccontextmanager
async def serving(settings: Settings | None = None, **times: Any) -> AsyncIterator[Served]:
    """A server that devices and backends can reach."""
    server = Server(settings or open_settings(), **times)
    async with server, listening(server.app) as port, http_client(port) as http:
        yield Served(server, http, f"ws://127.0.0.1:{port}/v1/connect")


def http_client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)


def open_settings(**given: Any) -> Settings:
    return Settings(store="sqlite://", drain_seconds=0, **given)


def shared_settings(store: str | tuple[str, ...], **given: Any) -> Settings:
    """For one of several servers on a store, which the first of them prepares."""
    return Settings(store=store, **{"migrate": True, "drain_seconds": 0, **given})


def jwt_settings(**given: Any) -> Settings:
    return open_settings(auth=Auth.JWT, jwt_secret=SecretStr(SECRET), **given)


def token(uid: str, role: Role = Role.DEVICE, seconds: float | None = None) -> str:
    """A token that holds for so many seconds from now, or for ever."""
    expires_at = None if seconds is None else now() + round(seconds * SECOND)
    return make_token(SECRET, Identity(uid, role, expires_at))


class Device:
    """A WebSocket and the frames on it, as dicts, however wrong."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._n = 0
        self._aside: deque[JSON] = deque()  # what came before an ack that was waited for

    @classmethod
    async def connected(cls, url: str, sock: socket.socket | None = None) -> Self:
        return cls(
            await connect(
                url,
                compression=None,
                max_size=None,
                proxy=None,
                max_queue=4,
                sock=sock,
                close_timeout=1,
            )
        )

    async def say(self, type_: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": type_, **fields}))

    async def hear(self) -> JSON:
        """The next frame."""
        return self._aside.popleft() if self._aside else await self._receive()

    async def _receive(self) -> JSON:
        async with asyncio.timeout(PATIENCE):
            frame: JSON = json.loads(await self.connection.recv())
        return frame

    async def heard(self, type_: str) -> JSON:
        """The next frame of this type; what comes before it is not looked at."""
        while (frame := await self.hear())["type"] != type_:
            pass
        return frame

    async def consume(self, *messages: JSON) -> JSON:
        """Send messages; the ack (or the error) that answers them."""
        self._n += 1
        await self.say("consume", n=self._n, messages=messages)
        while (frame := await self._receive()).get("n") != self._n:
            self._aside.append(frame)
        return frame

    async def closed(self) -> int:
        """The code with which the node closes, once it has."""
        try:
            while True:
                await self.hear()
        except ConnectionClosed:
            code = self.connection.close_code
            assert code is not None
            return code

    async def works(self) -> None:
        """A good message is taken, as if nothing had happened before."""
        ack = await self.consume(creation("works"))
        assert [result["status"] for result in ack["results"]] == ["stored"]

    async def close(self) -> None:
        await self.connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def until(holds: Callable[[], bool]) -> None:
    """Let the others work until this is so. For what nobody announces."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def creation(category: str = "chat", body: Any = 1, **fields: Any) -> JSON:
    return {**fields, "creation": {"category": category, "body": body}}


def to(uid: str, category: str = "chat", body: Any = 1, **fields: Any) -> JSON:
    """The same, with a uid, as a backend sends it."""
    return creation(category, body, uid=uid, **fields)


def narrow_socket(port: int) -> socket.socket:
    """A connected socket that takes in little before somebody reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


@asynccontextmanager
async def without_a_store(served: Served) -> AsyncIterator[None]:
    """While the block runs, the database cannot answer: a table of it is out of reach."""

    await served.server.databases[None].write(_rename("users", "elsewhere"))
    try:
        yield
    finally:
        await served.server.databases[None].write(_rename("elsewhere", "users"))


def _rename(old: str, new: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")

    return work
