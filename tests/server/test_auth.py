"""Authentication: signed tokens, their roles and expiry, and auth `open` on loopback only."""

from time import time
from typing import Any

import httpx
import jwt
import pytest
from pydantic import SecretStr

from gregor.clock import now
from gregor.config import Auth
from gregor.core.instant import SECOND
from gregor.errors import SetupError, Unauthenticated
from gregor.interfaces import HOLDS_FOREVER
from gregor.server.app import Server
from gregor.server.auth import (
    ALGORITHM,
    LEEWAY,
    Identity,
    JWTAuthenticator,
    OpenAuthenticator,
    Role,
    make_token,
)
from tests.server.harness import (
    SECRET,
    RawDevice,
    Served,
    creation,
    jwt_settings,
    open_settings,
    serving,
    to,
    token,
)
from tests.server.test_http import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEEWAY_SECONDS = LEEWAY // SECOND
SOON = 4 - LEEWAY_SECONDS  # enough to connect on a busy machine
RESOURCES = ["state", "count", "messages", "events"]


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


def signed_json(claims: str) -> str:
    """A token whose claims are this text, whatever it is."""
    return jwt.api_jws.encode(claims.encode(), SECRET, algorithm="HS256", headers={"typ": "JWT"})


BAD_TOKENS = {
    "empty": "",
    "not a JWT": "alice",
    "another secret": signed({"sub": "alice"}, "another secret of sufficient length"),
    "another algorithm": signed({"sub": "alice"}, SECRET * 2, "HS512"),
    "no signature": jwt.encode({"sub": "alice"}, "", algorithm="none"),
    "no sub": signed({"role": "device"}),
    "empty sub": signed({"sub": ""}),
    "sub is a number": signed({"sub": 5}),
    "sub is too long for a uid": signed({"sub": "é" * 65}),
    "unknown role": signed({"sub": "alice", "role": "god"}),
    "role is a list": signed({"sub": "alice", "role": ["service"]}),
    "expired": signed({"sub": "alice", "exp": 1}),
    "exp is text": signed({"sub": "alice", "exp": str(2**31)}),
    "exp is not a number": signed({"sub": "alice", "exp": float("nan")}),
    "iat is true": signed({"sub": "alice", "iat": True}),
    "nbf is an object": signed_json('{"sub": "alice", "nbf": {}}'),
    "exp is null": signed_json('{"sub": "alice", "exp": null}'),
    "claims are a list": signed_json('["alice"]'),
    "claims are nested too deeply": signed_json("[" * 3_000 + "]" * 3_000),
    "another audience": signed({"sub": "alice", "aud": "other.example"}),
}  # fmt: skip


@pytest.mark.parametrize("defect", BAD_TOKENS)
async def test_invalid_token_is_rejected_on_every_endpoint(jwt_server: Served, defect: str) -> None:
    bad = BAD_TOKENS[defect]
    headers = {"Authorization": f"Bearer {bad}".strip()}
    answers = [await jwt_server.http.post("/v1/messages", json=to("alice"), headers=headers)]
    for resource in RESOURCES:
        path = f"/v1/users/alice/{resource}"
        answers.append(await jwt_server.http.get(path, headers=headers))
    for answer in answers:
        assert problem(answer) == (401, "unauthenticated", None)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    async with await RawDevice.connect(jwt_server.url) as device:
        await device.send("hello", token=bad, device_id="d", protocol=2)
        error = await device.receive()
        assert (error["code"], error["action"]) == ("unauthenticated", "reauthenticate")
        assert await device.wait_closed() == 4001


async def test_http_request_without_token_is_rejected(jwt_server: Served) -> None:
    assert problem(await jwt_server.post(to("alice"))) == (401, "unauthenticated", None)
    for resource in RESOURCES:
        answer = await jwt_server.http.get(f"/v1/users/alice/{resource}")
        assert problem(answer) == (401, "unauthenticated", None)
    basic = {"Authorization": f"Basic {token('alice')}"}
    answer = await jwt_server.http.get("/v1/users/alice/state", headers=basic)
    assert problem(answer) == (401, "unauthenticated", None)


async def test_public_and_admin_endpoints_need_no_token(jwt_server: Served) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert (await jwt_server.http.get(path)).status_code == 200


async def test_device_token_can_read_and_write_own_user(jwt_server: Served) -> None:
    alices = {"Authorization": f"Bearer {token('alice')}"}
    assert (await jwt_server.post(to("alice"), token("alice"))).status_code == 200
    for resource in RESOURCES[:-1]:
        answer = await jwt_server.http.get(f"/v1/users/alice/{resource}", headers=alices)
        assert answer.status_code == 200
    async with jwt_server.http.stream("GET", "/v1/users/alice/events", headers=alices) as answer:
        assert answer.status_code == 200
    async with await jwt_server.synced(token("alice")) as device:
        await device.assert_usable()


async def test_device_token_cannot_read_or_write_another_user(jwt_server: Served) -> None:
    alices = {"Authorization": f"Bearer {token('alice')}"}
    assert problem(await jwt_server.post(to("bob"), token("alice"))) == (403, "forbidden", "uid")
    to_many = {"uids": ["alice", "bob"], "message": creation()}
    stored, rejected = (await jwt_server.post(to_many, token("alice"))).json()["results"]
    assert (stored["status"], rejected["status"]) == ("stored", "rejected")
    assert (rejected["error"]["code"], rejected["error"]["field"]) == ("forbidden", "uids[1]")
    for resource in RESOURCES:
        answer = await jwt_server.http.get(f"/v1/users/bob/{resource}", headers=alices)
        assert problem(answer) == (403, "forbidden", "uid")
    batch = {"messages": [to("alice"), to("bob"), {"uid": "bob", "system": "s", "body": 1}]}
    results = (await jwt_server.post(batch, token("alice"))).json()["results"]
    assert [result["status"] for result in results] == ["stored", "rejected", "rejected"]
    assert [result["error"]["code"] for result in results[1:]] == ["forbidden"] * 2
    async with await jwt_server.synced(token("alice")) as device:
        ack = await device.consume(to("bob"), to("alice"))
        assert [result["status"] for result in ack["results"]] == ["rejected", "stored"]
    bobs = {"Authorization": f"Bearer {token('bob')}"}
    answer = await jwt_server.http.get("/v1/users/bob/state", headers=bobs)
    assert answer.json()["items"] == []


async def test_service_token_can_read_and_write_all_users(jwt_server: Served) -> None:
    service = token("backend", Role.SERVICE)
    headers = {"Authorization": f"Bearer {service}"}
    to_many = {"uids": ["carol", "dave"], "message": creation()}
    assert (await jwt_server.post(to_many, service)).status_code == 200
    for uid in ("carol", "dave"):
        answer = await jwt_server.http.get(f"/v1/users/{uid}/count", headers=headers)
        assert answer.json()["counts"] == {"": 1}
    async with jwt_server.http.stream("GET", "/v1/users/carol/events", headers=headers) as answer:
        assert answer.status_code == 200


async def test_service_token_cannot_connect_as_device(jwt_server: Served) -> None:
    async with await RawDevice.connect(jwt_server.url) as device:
        service = token("backend", Role.SERVICE)
        await device.send("hello", token=service, device_id="d", protocol=2)
        assert (await device.receive())["code"] == "forbidden"
        assert await device.wait_closed() == 4003


async def test_token_without_role_is_a_device_token(jwt_server: Served) -> None:
    async with await jwt_server.synced(signed({"sub": "alice"})) as device:
        await device.assert_usable()
    assert problem(await jwt_server.post(to("bob"), signed({"sub": "alice"})))[0] == 403


CLAIMS_WITHIN_LEEWAY = {"iat": 20, "nbf": 20, "exp": -20}
CLAIMS_BEYOND_LEEWAY = {"iat": 60, "nbf": 60, "exp": -60}


@pytest.mark.parametrize("claim", CLAIMS_WITHIN_LEEWAY)
async def test_clock_of_the_issuer_may_differ_by_half_a_minute(
    jwt_server: Served, claim: str
) -> None:
    good = signed({"sub": "alice", claim: time() + CLAIMS_WITHIN_LEEWAY[claim]})
    assert (await jwt_server.post(to("alice"), good)).status_code == 200
    async with await jwt_server.synced(good) as device:
        await device.assert_usable()


@pytest.mark.parametrize("claim", CLAIMS_BEYOND_LEEWAY)
async def test_token_that_is_not_valid_yet_is_to_be_retried_and_an_expired_one_replaced(
    jwt_server: Served, claim: str
) -> None:
    bad = signed({"sub": "alice", claim: time() + CLAIMS_BEYOND_LEEWAY[claim]})
    code, action = (
        ("unauthenticated", "reauthenticate") if claim == "exp" else ("not-yet-valid", "retry")
    )
    assert problem(await jwt_server.post(to("alice"), bad)) == (401, code, None)
    async with await RawDevice.connect(jwt_server.url) as device:
        await device.send("hello", token=bad, device_id="d", protocol=2)
        error = await device.receive()
        assert (error["code"], error["action"]) == (code, action)
        assert await device.wait_closed() == 4001


async def test_connection_closes_when_its_token_expires(jwt_server: Served) -> None:
    async with await jwt_server.synced(token("alice", seconds=SOON)) as device:
        await device.assert_usable()
        error = await device.receive_type("error")
        assert (error["code"], error["action"]) == ("unauthenticated", "reauthenticate")
        assert await device.wait_closed() == 4001


async def test_event_stream_ends_when_its_token_expires(jwt_server: Served) -> None:
    headers = {"Authorization": f"Bearer {token('alice', seconds=SOON)}"}
    async with jwt_server.http.stream("GET", "/v1/users/alice/events", headers=headers) as answer:
        lines = [line async for line in answer.aiter_lines()]
    events = [line for line in lines if line.startswith("event: ")]
    assert events == ["event: welcome", "event: sync", "event: error"]
    assert "unauthenticated" in lines[-2]


async def test_short_or_missing_secret_raises_setup_error() -> None:
    for secret in (None, SecretStr(""), SecretStr("x" * 31)):
        settings = open_settings(auth=Auth.JWT, jwt_secret=secret)
        with pytest.raises(SetupError, match="openssl rand -hex 32"):
            Server.from_settings(settings)
    with pytest.raises(SetupError):
        make_token("short", Identity("alice", Role.DEVICE))


async def test_made_token_identifies_the_same_identity() -> None:
    identity = Identity("alice", Role.SERVICE, 4_000_000_000_000_000, 1_700_000_000_000_000)
    assert await JWTAuthenticator(SECRET).identify(make_token(SECRET, identity)) == identity


async def test_token_that_is_remembered_expires_all_the_same() -> None:
    """What a token says is verified once; whether it holds now, each time."""
    time = now()
    authenticator = JWTAuthenticator(SECRET, lambda: time)
    made = make_token(SECRET, Identity("alice", Role.DEVICE, expires_at=time + SECOND))
    assert await authenticator.identify(made) == await authenticator.identify(made)
    time += LEEWAY + 2 * SECOND
    with pytest.raises(Unauthenticated, match="expired"):
        await authenticator.identify(made)


async def test_made_token_says_when_it_was_made_and_has_an_id_of_its_own() -> None:
    before = now() // SECOND * SECOND
    tokens = [make_token(SECRET, Identity("alice", Role.DEVICE)) for _ in range(2)]
    claims = [jwt.decode(made, SECRET, algorithms=[ALGORITHM]) for made in tokens]
    assert len({claim["jti"] for claim in claims}) == 2
    for made in tokens:
        issued_at = (await JWTAuthenticator(SECRET).identify(made)).issued_at
        assert issued_at is not None
        assert before <= issued_at <= now()


async def test_open_auth_uses_token_as_uid_and_no_token_as_service() -> None:
    authenticator = OpenAuthenticator()
    alice = Identity("alice", Role.DEVICE, issued_at=HOLDS_FOREVER)
    assert await authenticator.identify("alice") == alice
    assert await authenticator.identify(None) == Identity("", Role.SERVICE)
    with pytest.raises(Unauthenticated):
        (await authenticator.identify("a\0b")).validated()


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "example.com:1"])
async def test_open_auth_on_address_that_is_not_loopback_raises_setup_error(address: str) -> None:
    with pytest.raises(SetupError, match="loopback"):
        Server.from_settings(open_settings(listen=address))
    Server.from_settings(jwt_settings(listen=address))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("192.0.2.1", 403),
        ("[2001:db8::1]", 403),
        ("127.0.0.1", 200),
        ("[::1]", 200),
        ("localhost", 200),
        ("host", 403),  # a test client gives any name: it must be one of `allow_host`
    ],
)
async def test_mounted_app_with_open_auth_answers_on_loopback_only(host: str, status: int) -> None:
    async with serving() as served:
        asgi = httpx.ASGITransport(served.server.app)
        async with httpx.AsyncClient(transport=asgi, base_url=f"http://{host}") as http:
            answer = await http.get("/v1/users/u/state")
            assert answer.status_code == status
