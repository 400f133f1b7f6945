"""A server and the browser: CORS, WebSockets of pages that are refused, and headers of answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.typing import Origin

from gregor.config import load
from gregor.server import Server
from tests.server.harness import (
    RawDevice,
    Served,
    http_client,
    jwt_settings,
    listening,
    open_settings,
    serving,
    store_failure,
    to,
    token,
)
from tests.server.test_sse import EventReader
from tests.timeouts import TIMEOUT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

APP = "https://app.example.com"
EVIL = "https://evil.example"
ALLOW = (APP, "https://*.example.org")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def allowing() -> AsyncIterator[Served]:
    """A server with tokens, which allows pages of other origins than its own."""
    async with serving(jwt_settings(allow_origin=ALLOW)) as served:
        yield served


def own(served: Served) -> str:
    return str(served.http.base_url)


def device_headers(uid: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(uid)}", **more}


async def preflight(
    served: Served,
    origin: str,
    method: str = "POST",
    headers: str = "authorization,content-type",
    path: str = "/v1/messages",
) -> httpx.Response:
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return await served.http.options(path, headers={"Origin": origin, **asked})


# Which pages: origins x requests

ORIGINS = [
    (APP, True),
    ("https://a.b.example.org", True),
    ("https://example.org", False),
    ("http://app.example.com", False),
    (f"{APP}:8443", False),
    (EVIL, False),
    ("http://localhost:3000", False),
    ("null", False),
    ("http://[", False),
]


@pytest.mark.parametrize(("origin", "allowed"), ORIGINS)
async def test_preflight_says_what_a_page_may_send(
    allowing: Served, origin: str, allowed: bool
) -> None:
    answer = await preflight(allowing, origin)
    assert answer.status_code == (200 if allowed else 400)
    assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
    assert "Origin" in answer.headers["vary"]
    if allowed:
        named = set(answer.headers["access-control-allow-headers"].split(", "))
        assert named >= {"Authorization", "Content-Type", "Gregor-Epoch", "Last-Event-ID"}
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
        assert int(answer.headers["access-control-max-age"]) >= 600
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("method", "headers", "path", "status"),
    [
        ("POST", "authorization,content-type,gregor-epoch", "/v1/messages", 200),
        ("GET", "authorization,last-event-id", "/v1/users/u/events", 200),
        ("GET", "authorization", "/v1/users/u/state", 200),
        ("DELETE", "authorization", "/v1/users/u", 200),
        ("PUT", "authorization", "/v1/messages", 400),
        ("POST", "x-other", "/v1/messages", 400),
    ],
)
async def test_preflight_of_each_request_of_a_client(
    allowing: Served, method: str, headers: str, path: str, status: int
) -> None:
    assert (await preflight(allowing, APP, method, headers, path)).status_code == status


async def test_page_may_use_a_server_in_a_private_network(allowing: Served) -> None:
    asked = {
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Private-Network": "true",
    }
    answer = await allowing.http.options("/v1/messages", headers={"Origin": APP, **asked})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-private-network"] == "true"


REQUESTS = [
    ("GET", "/v1/users/{uid}/state", 200),
    ("GET", "/v1/users/{uid}/events", 200),
    ("HEAD", "/v1/users/{uid}/events", 200),
    ("GET", "/v1/users/{uid}/events?cursor=x", 422),
    ("GET", "/v1/users/another/state", 403),
    ("POST", "/v1/messages", 200),
    ("DELETE", "/v1/users/{uid}", 403),
    ("GET", "/v1/nowhere", 404),
    ("GET", "/v1/messages", 405),
    ("OPTIONS", "/v1/messages", 405),
    ("GET", "/v1/connect", 404),
]


@asynccontextmanager
async def asking(
    served: Served, method: str, path: str, uid: str, **headers: str
) -> AsyncIterator[httpx.Response]:
    content = json.dumps(to(uid)) if method == "POST" else None
    url = path.replace("{uid}", uid)
    headers = device_headers(uid, **headers)
    async with served.http.stream(method, url, headers=headers, content=content) as answer:
        yield answer


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
@pytest.mark.parametrize(("origin", "allowed"), [*ORIGINS, (None, False)])
async def test_only_a_page_of_an_allowed_origin_may_read_an_answer(
    allowing: Served, origin: str | None, allowed: bool, method: str, path: str, status: int
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    async with asking(allowing, method, path, "alice", **headers) as answer:
        assert answer.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert answer.headers["vary"] == "Origin"
        if allowed:
            exposed = answer.headers["access-control-expose-headers"]
            assert exposed == "Retry-After, WWW-Authenticate"


@pytest.mark.parametrize(("origin", "allowed"), [*ORIGINS, (None, True), ("own", True)])
async def test_only_a_page_of_an_allowed_origin_may_connect_a_device(
    allowing: Served, origin: str | None, allowed: bool
) -> None:
    origin = own(allowing) if origin == "own" else origin
    async with page(allowing.url, origin) as device:
        if allowed:
            await device.send("hello", token=token("alice"), device_id="d", protocol=2)
            assert (await device.receive())["type"] == "welcome"
        else:
            await assert_refused(device)


@asynccontextmanager
async def page(url: str, origin: str | None) -> AsyncIterator[RawDevice]:
    connecting = connect(
        url,
        origin=None if origin is None else Origin(origin),
        proxy=None,
        open_timeout=TIMEOUT_SECONDS,
    )
    async with connecting as connection:
        yield RawDevice(connection)


async def assert_refused(device: RawDevice) -> None:
    error = await device.receive()
    assert (error["type"], error["code"], error["action"]) == ("error", "forbidden", "stop")
    with pytest.raises(ConnectionClosedError) as closed:
        await device.receive()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4003, error["message"])
    assert "allow_origin" in error["message"]


async def test_page_that_leaves_at_once_is_no_error(allowing: Served) -> None:
    url = allowing.http.base_url
    for _ in range(10):
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            f"GET /v1/connect HTTP/1.1\r\nHost: localhost\r\nOrigin: {EVIL}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        writer.transport.abort()
    assert (await allowing.http.get("/healthz")).status_code == 200


async def test_without_the_setting_only_pages_of_the_server_connect(jwt_server: Served) -> None:
    async with page(jwt_server.url, own(jwt_server)) as device:
        await device.send("hello", token=token("alice"), device_id="d", protocol=2)
        assert (await device.receive())["type"] == "welcome"
    async with page(jwt_server.url, APP) as device:
        await assert_refused(device)
    assert (await preflight(jwt_server, APP)).status_code == 400


# Without authentication


LOCAL_ORIGINS = [
    ("http://localhost:3000", True),
    ("http://127.0.0.1", True),
    ("http://[::1]:5", True),
    (APP, True),
    (EVIL, False),
    ("null", False),
    ("file://", False),
    ("http://[", False),
    ("http://127.0.0.1.evil.example", False),
]


@pytest.mark.parametrize(("origin", "allowed"), LOCAL_ORIGINS)
async def test_without_authentication_requests_of_other_pages_are_refused(
    origin: str, allowed: bool
) -> None:
    """A browser sends a POST of any page to this machine, and only keeps the answer from it."""
    async with serving(open_settings(allow_origin=(APP,))) as served:
        plain = {"Origin": origin, "Content-Type": "text/plain"}
        answer = await served.http.post("/v1/messages", content=json.dumps(to("u")), headers=plain)
        assert answer.status_code == (200 if allowed else 403)
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert (await preflight(served, origin)).status_code == (200 if allowed else 400)
        async with page(served.url, origin) as device:
            if allowed:
                await device.send("hello", token="u", device_id="d", protocol=2)
                assert (await device.receive())["type"] == "welcome"
            else:
                await assert_refused(device)


async def test_without_authentication_a_name_of_this_machine_is_not_its_own_origin() -> None:
    """Any page can give a name of its own to 127.0.0.1, and is then of the same origin."""
    async with serving() as served:
        rebound = {"Origin": "http://evil.example", "Host": "evil.example"}
        assert (await served.http.post("/v1/messages", headers=rebound)).status_code == 403


# What every answer says


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
async def test_no_answer_is_kept_or_guessed_at(
    allowing: Served, method: str, path: str, status: int
) -> None:
    async with asking(allowing, method, path, "alice") as answer:
        assert answer.status_code == status
        assert_is_not_kept(answer)


def assert_is_not_kept(answer: httpx.Response) -> None:
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_no_error_is_kept(allowing: Served) -> None:
    headers = device_headers("alice")
    assert_is_not_kept(await allowing.http.get("/v1/users/alice/state"))  # 401
    large = b"[" * 9_000_000
    answer = await allowing.http.post("/v1/messages", content=large, headers=headers)
    assert answer.status_code == 413
    assert_is_not_kept(answer)
    async with store_failure(allowing):
        answer = await allowing.http.get("/v1/users/alice/state", headers=headers)
    assert answer.status_code == 503
    assert_is_not_kept(answer)


async def test_answer_to_a_websocket_that_is_not_accepted_is_not_kept() -> None:
    async with serving() as served:
        served.server.service.draining = True
        url = served.url.replace("ws:", "http:")
        upgrade = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Version": "13",
        }
        answer = await served.http.get(url, headers=upgrade)
        assert answer.status_code == 503
        assert_is_not_kept(answer)


# Settings


@pytest.mark.parametrize("given", [" ".join(ALLOW), f"  {ALLOW[0]}\n{ALLOW[1]}\n"])
async def test_variable_holds_several_origins(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("GREGOR_ALLOW_ORIGIN", given)
    assert load().allow_origin == ALLOW


@pytest.mark.parametrize("given", [json.dumps(ALLOW), json.dumps(" ".join(ALLOW))])
async def test_file_holds_several_origins(tmp_path: Path, given: str) -> None:
    file = tmp_path / "gregor.toml"
    file.write_text(f"allow_origin = {given}")
    assert load(file).allow_origin == ALLOW


async def test_mounted_server_takes_the_setting() -> None:
    gregor = Server.from_settings(open_settings(allow_origin=(APP,)))
    app = Starlette(routes=[Mount("/gregor", gregor.app)], lifespan=gregor.lifespan)
    async with listening(app, lifespan="on") as port, http_client(port) as http:
        answer = await http.get("/gregor/v1/users/u/state", headers={"Origin": APP})
        assert answer.headers["access-control-allow-origin"] == APP
        async with page(f"ws://127.0.0.1:{port}/gregor/v1/connect", EVIL) as device:
            await assert_refused(device)


# A device without WebSockets


async def test_device_can_do_over_http_what_it_does_over_a_websocket(
    allowing: Served, uid: str
) -> None:
    """With the token of a device, from a page: read, write, follow, resume, and say which it is."""
    headers = device_headers(uid, Origin=APP)
    messages: list[dict[str, Any]] = [
        to(uid, "chat", msg_id="m1"),
        to(uid, "chat", msg_id="m2", device_id="browser"),
        {"uid": uid, "msg_id": "m3", "dismissal": {"msg_ids": ["m1"]}},
        {"uid": uid, "system": "chat.typing", "body": 1},
        {"uid": "another", "msg_id": "m4", "creation": {"category": "chat", "body": 1}},
    ]
    async with following(allowing, uid, headers) as events:
        epoch = (await events.next()).data["epoch"]
        assert (await events.next()).name == "sync"
        answer = await allowing.http.post(
            "/v1/messages?device_id=browser",
            json={"messages": messages},
            headers={**headers, "Gregor-Epoch": str(epoch)},
        )
        statuses = [result["status"] for result in answer.json()["results"]]
        assert statuses == ["stored", "stored", "stored", "relayed", "rejected"]
        seen = [await events.next(), await events.next()]
        assert {event.name for event in seen} == {"messages", "out_of_band"}
        (cursor,) = (event.id for event in seen if event.name == "messages")
    state = await allowing.http.get(f"/v1/users/{uid}/state?device_id=browser", headers=headers)
    assert [item["msg_id"] for item in state.json()["items"]] == ["m2"]
    history = await allowing.http.get(f"/v1/users/{uid}/items/m1/history", headers=headers)
    authors = [event["by"]["author"] for event in history.json()["events"]]
    assert authors == ["device:browser", "device:browser"]
    await allowing.http.post("/v1/messages", json=to(uid, msg_id="m5"), headers=headers)
    async with following(allowing, uid, headers, last=cursor, epoch=epoch) as events:
        assert (await events.next()).name == "welcome"
        sync = await events.next()
        assert sync.data["mode"] == "changes"
        assert [message["msg_id"] for message in sync.data["messages"]] == ["m5"]


@asynccontextmanager
async def following(
    served: Served, uid: str, headers: dict[str, str], last: str | None = None, **query: Any
) -> AsyncIterator[EventReader]:
    if last is not None:
        headers = {**headers, "Last-Event-ID": last}
    url, query = f"/v1/users/{uid}/events", {"device_id": "browser", **query}
    async with served.http.stream("GET", url, headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == APP
        async with asyncio.timeout(TIMEOUT_SECONDS):
            yield EventReader(response.aiter_lines())


@pytest.mark.parametrize("device_id", ["", "..", "x" * 129])
async def test_device_that_says_no_valid_id_is_refused(allowing: Served, device_id: str) -> None:
    answer = await allowing.http.post(
        "/v1/messages",
        params={"device_id": device_id},
        json=to("alice"),
        headers=device_headers("alice"),
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "device_id")


async def test_service_may_not_say_that_it_is_a_device(shared: Served) -> None:
    answer = await shared.http.post("/v1/messages?device_id=d", json=to("alice"))
    assert (answer.status_code, answer.json()["field"]) == (422, "device_id")
