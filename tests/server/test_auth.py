"""Who may do what: signed tokens, their roles, their end; and open doors on loopback only."""

from typing import Any

import httpx
import jwt
import pytest
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from gregor.config import Auth
from gregor.errors import SetupError, Unauthenticated
from gregor.server.app import LoopbackOnly, Server
from gregor.server.auth import (
    Identity,
    JWTAuthenticator,
    OpenAuthenticator,
    Role,
    make_token,
)
from tests.server.test_http import problem
from tests.server.world import (
    SECRET,
    Device,
    Served,
    creation,
    jwt_settings,
    open_settings,
    serving,
    to,
    token,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

READS = ["state", "count", "messages", "events"]


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


BAD_TOKENS = {
    "nothing": "",
    "no token at all": "alice",
    "another secret": signed({"sub": "alice"}, "another secret of sufficient length"),
    "another algorithm": signed({"sub": "alice"}, SECRET * 2, "HS512"),
    "no signature": jwt.encode({"sub": "alice"}, "", algorithm="none"),
    "no sub": signed({"role": "device"}),
    "an empty sub": signed({"sub": ""}),
    "a sub that is a number": signed({"sub": 5}),
    "a sub that is no uid": signed({"sub": "é" * 65}),
    "a role that does not exist": signed({"sub": "alice", "role": "god"}),
    "a role that is a list": signed({"sub": "alice", "role": ["service"]}),
    "an end that has passed": signed({"sub": "alice", "exp": 1}),
    "a beginning that has not come": signed({"sub": "alice", "nbf": 2**40}),
    "for another audience": signed({"sub": "alice", "aud": "elsewhere"}),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD_TOKENS)
async def test_a_token_that_does_not_hold_opens_nothing(guarded: Served, wrong: str) -> None:
    bad = BAD_TOKENS[wrong]
    headers = {"Authorization": f"Bearer {bad}".strip()}
    answers = [await guarded.http.post("/v1/messages", json=to("alice"), headers=headers)]
    answers += [await guarded.http.get(f"/v1/users/alice/{r}", headers=headers) for r in READS]
    for answer in answers:
        assert problem(answer) == (401, "unauthenticated", None)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    async with await Device.connected(guarded.url) as device:
        await device.say("hello", token=bad, device_id="d", protocol=1)
        error = await device.hear()
        assert (error["code"], error["turn"]) == ("unauthenticated", "re-authenticate")
        assert await device.closed() == 4001


async def test_without_a_token_http_is_closed(guarded: Served) -> None:
    assert problem(await guarded.post(to("alice"))) == (401, "unauthenticated", None)
    for read in READS:
        answer = await guarded.http.get(f"/v1/users/alice/{read}")
        assert problem(answer) == (401, "unauthenticated", None)
    basic = {"Authorization": f"Basic {token('alice')}"}
    answer = await guarded.http.get("/v1/users/alice/state", headers=basic)
    assert problem(answer) == (401, "unauthenticated", None)


async def test_what_everybody_may_see_needs_no_token(guarded: Served) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert (await guarded.http.get(path)).status_code == 200


async def test_a_device_reads_and_writes_its_own_user(guarded: Served) -> None:
    mine = {"Authorization": f"Bearer {token('alice')}"}
    assert (await guarded.post(to("alice"), token("alice"))).status_code == 200
    for read in READS[:-1]:
        answer = await guarded.http.get(f"/v1/users/alice/{read}", headers=mine)
        assert answer.status_code == 200
    async with guarded.http.stream("GET", "/v1/users/alice/events", headers=mine) as answer:
        assert answer.status_code == 200
    async with await guarded.synced(token("alice")) as device:
        await device.works()


async def test_a_device_neither_reads_nor_writes_another_user(guarded: Served) -> None:
    mine = {"Authorization": f"Bearer {token('alice')}"}
    assert problem(await guarded.post(to("bob"), token("alice"))) == (403, "forbidden", "uid")
    to_many = {"uids": ["alice", "bob"], "message": creation()}
    assert problem(await guarded.post(to_many, token("alice"))) == (403, "forbidden", "uid")
    for read in READS:
        answer = await guarded.http.get(f"/v1/users/bob/{read}", headers=mine)
        assert problem(answer) == (403, "forbidden", "uid")
    batch = {"messages": [to("alice"), to("bob"), {"uid": "bob", "system": "s", "body": 1}]}
    results = (await guarded.post(batch, token("alice"))).json()["results"]
    assert [result["status"] for result in results] == ["stored", "rejected", "rejected"]
    assert [result["error"]["code"] for result in results[1:]] == ["forbidden"] * 2
    async with await guarded.synced(token("alice")) as device:
        ack = await device.consume(to("bob"), to("alice"))
        assert [result["status"] for result in ack["results"]] == ["rejected", "stored"]
    bobs = {"Authorization": f"Bearer {token('bob')}"}
    answer = await guarded.http.get("/v1/users/bob/state", headers=bobs)
    assert answer.json()["items"] == []


async def test_a_service_reads_and_writes_for_anyone(guarded: Served) -> None:
    service = token("backend", Role.SERVICE)
    headers = {"Authorization": f"Bearer {service}"}
    many = {"uids": ["carol", "dave"], "message": creation()}
    assert (await guarded.post(many, service)).status_code == 200
    for uid in ("carol", "dave"):
        answer = await guarded.http.get(f"/v1/users/{uid}/count", headers=headers)
        assert answer.json()["counts"] == {"": 1}
    async with guarded.http.stream("GET", "/v1/users/carol/events", headers=headers) as answer:
        assert answer.status_code == 200


async def test_a_service_is_not_a_device(guarded: Served) -> None:
    async with await Device.connected(guarded.url) as device:
        hello = token("backend", Role.SERVICE)
        await device.say("hello", token=hello, device_id="d", protocol=1)
        assert (await device.hear())["code"] == "forbidden"
        assert await device.closed() == 4003


async def test_the_role_is_device_unless_it_is_said(guarded: Served) -> None:
    async with await guarded.synced(signed({"sub": "alice"})) as device:
        await device.works()
    assert problem(await guarded.post(to("bob"), signed({"sub": "alice"})))[0] == 403


async def test_a_connection_ends_with_its_token(guarded: Served) -> None:
    async with await guarded.synced(token("alice", seconds=1.5)) as device:
        await device.works()
        error = await device.heard("error")
        assert (error["code"], error["turn"]) == ("unauthenticated", "re-authenticate")
        assert await device.closed() == 4001


async def test_a_stream_of_events_ends_with_its_token(guarded: Served) -> None:
    headers = {"Authorization": f"Bearer {token('alice', seconds=1.5)}"}
    async with guarded.http.stream("GET", "/v1/users/alice/events", headers=headers) as answer:
        lines = [line async for line in answer.aiter_lines()]
    events = [line for line in lines if line.startswith("event: ")]
    assert events == ["event: sync", "event: error"]
    assert "unauthenticated" in lines[-2]


async def test_a_secret_that_is_short_or_missing_is_refused() -> None:
    for secret in (None, SecretStr(""), SecretStr("x" * 31)):
        settings = open_settings(auth=Auth.JWT, jwt_secret=secret)
        with pytest.raises(SetupError, match="openssl rand -hex 32"):
            Server(settings)
    with pytest.raises(SetupError):
        make_token("short", Identity("alice", Role.DEVICE))


async def test_a_token_says_what_it_was_made_to_say() -> None:
    identity = Identity("alice", Role.SERVICE, 4_000_000_000_000_000)
    assert JWTAuthenticator(SECRET).identify(make_token(SECRET, identity)) == identity


async def test_open_means_that_the_token_is_the_uid() -> None:
    doors = OpenAuthenticator()
    assert doors.identify("alice") == Identity("alice", Role.DEVICE)
    assert doors.identify(None) == Identity("", Role.SERVICE)
    with pytest.raises(Unauthenticated):
        doors.identify("a\0b")


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "example.com:1"])
async def test_open_is_refused_on_anything_but_loopback(address: str) -> None:
    with pytest.raises(SetupError, match="loopback"):
        Server(open_settings(listen=address))
    Server(jwt_settings(listen=address))


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.0.2.1", 403), ("[2001:db8::1]", 403), ("127.0.0.1", 200), ("[::1]", 200), ("host", 200)],
)
async def test_open_answers_loopback_only_also_where_it_is_mounted(host: str, status: int) -> None:
    async with serving() as served:
        assert isinstance(served.server.app, LoopbackOnly)
        asgi = httpx.ASGITransport(served.server.app)
        async with httpx.AsyncClient(transport=asgi, base_url=f"http://{host}") as http:
            answer = await http.get("/v1/users/u/state")
            assert answer.status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://elsewhere.example", 403),
        ("null", 403),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1", 200),
    ],
)
async def test_open_answers_no_page_from_elsewhere(origin: str, status: int) -> None:
    """A browser on this machine reaches loopback for whatever page it has loaded."""
    async with serving() as served:
        answer = await served.http.get("/v1/users/u/state", headers={"Origin": origin})
        assert answer.status_code == status
        connecting = connect(served.url, origin=Origin(origin), proxy=None)
        if status == 200:
            async with connecting:
                return
        with pytest.raises(InvalidStatus) as refused:
            await connecting
        assert refused.value.response.status_code == status
