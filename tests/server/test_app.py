"""Server as an ordinary ASGI app: standalone, and mounted in other apps."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from gregor import InBandMessage, create
from gregor.clock import now
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.errors import Conflict, InvalidMessage, Unavailable
from gregor.node.node import Node
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server import Metrics, Server
from gregor.server.auth import OpenAuthenticator
from gregor.stores.memory import MemoryStateMachine
from tests.server.harness import (
    RawDevice,
    Served,
    http_client,
    listening,
    open_settings,
    running,
    serving,
    to,
)


def starlette(gregor: Server) -> ASGIApp:
    return Starlette(routes=[Mount("/a/gregor", gregor.app)], lifespan=gregor.lifespan)


def fastapi(gregor: Server) -> ASGIApp:
    app = FastAPI(lifespan=gregor.lifespan)
    app.mount("/a/gregor", gregor.app)
    return app


@pytest.mark.parametrize("host", [starlette, fastapi])
async def test_mounted_app_serves_websocket_http_and_events(
    host: Callable[[Server], ASGIApp],
) -> None:
    gregor = Server.from_settings(open_settings())
    async with listening(host(gregor), lifespan="on") as port, http_client(port) as http:
        url = f"ws://127.0.0.1:{port}/a/gregor/v1/connect"
        async with await RawDevice.connect(url) as device:
            await device.send("hello", token="alice/ä", device_id="phone", protocol=2)
            await device.receive_type("sync")
            stored = await gregor.inject(create("alice/ä", "chat", {"n": 1}, msg_id="m"))
            (message,) = (await device.receive_type("messages"))["messages"]
            assert isinstance(stored, InBandMessage)
            assert (message["msg_id"], message["ctime"]) == ("m", stored.ctime)
            await device.assert_usable()
        user = "/a/gregor/v1/users/alice%2F%C3%A4"
        assert (await http.get(f"{user}/count")).json()["counts"] == {"": 2}
        posted = await http.post("/a/gregor/v1/messages", json=to("alice/ä"))
        assert posted.json()["results"][0]["status"] == "stored"
        async with http.stream("GET", f"{user}/events") as events:
            lines = events.aiter_lines()
            assert (await anext(lines)).startswith("retry: ")
            assert await anext(lines) == "event: welcome"
        assert (await http.get("/a/gregor/readyz")).text == "ready\n"
        assert (await http.get("/a/gregor/metrics")).status_code == 404
        unknown = await http.get("/a/gregor/nowhere")
        assert unknown.json()["code"] == "not-found"


async def test_servers_of_given_parts_share_store_and_pubsub() -> None:
    store, exchange = MemoryStateMachine(now), Exchange()
    async with (
        server_on(store, exchange) as one,
        server_on(store, exchange) as two,
        await two.synced("alice") as device,
    ):
        await one.server.inject(create("alice", "chat", msg_id="m"))
        (message,) = (await device.receive_type("messages"))["messages"]
        assert message["msg_id"] == "m"
        assert (await two.http.get("/readyz")).json() == {"ready": True, "problems": []}
        assert await one.metric("gregor_pubsub_up ") == await two.metric("gregor_users ") == 1
        assert await one.metric('gregor_messages_total{kind="in_band",result="stored"}') == 1


@asynccontextmanager
async def server_on(store: MemoryStateMachine, exchange: Exchange) -> AsyncIterator[Served]:
    """A server whose parts are made and opened here, as a host does."""
    metrics, publisher = Metrics(), Publisher(MemoryPubSub(exchange))
    node = Node(store, Broadcaster(), publisher, clock=now, observer=metrics, sweep_seconds=1000)
    server = Server(node, authenticator=OpenAuthenticator(), metrics=metrics, drain_seconds=0)
    async with node, running(server) as served:
        yield served


async def test_inject_into_server_that_is_not_open_raises_unavailable() -> None:
    gregor = Server.from_settings(open_settings())
    with pytest.raises(Unavailable):
        await gregor.inject(create("u", "c"))


async def test_inject_returns_stored_message_and_raises_error_of_rejected_message() -> None:
    async with serving() as served:
        message = create("u", "c", msg_id="m")
        stored = await served.server.inject(message)
        assert await served.server.inject(message) == stored
        with pytest.raises(Conflict):
            await served.server.inject(create("u", "c", 2, msg_id="m"))
        with pytest.raises(InvalidMessage):
            create("", "c")


async def test_closed_server_answers_503_and_does_not_hang() -> None:
    server = Server.from_settings(open_settings())
    async with server:
        await server.inject(create("u", "c"))
    with pytest.raises(Unavailable):
        await server.inject(create("u", "c"))
    async with listening(server.app) as port, http_client(port) as http:
        assert (await http.post("/v1/messages", json=to("u"))).status_code == 503
        assert (await http.get("/v1/users/u/state")).status_code == 503
        assert (await http.get("/readyz")).status_code == 503


async def test_opening_server_twice_raises() -> None:
    server = Server.from_settings(open_settings())
    async with server:
        pass
    with pytest.raises(RuntimeError, match="once"):
        await server.__aenter__()
