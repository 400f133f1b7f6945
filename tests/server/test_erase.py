"""Erasing a user over the API, and what devices and tokens of before are answered."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest

from gregor.clock import now
from gregor.core.instant import SECOND, Time
from gregor.interfaces import Erasure, Slot
from gregor.server import Identity, Role
from gregor.server.auth import make_token
from tests.server.harness import (
    SECRET,
    RawDevice,
    Served,
    creation,
    jwt_settings,
    open_settings,
    serving,
    sql_machine,
    to,
    token,
)
from tests.server.test_authenticator import TOKEN, SessionDatabase
from tests.server.test_http import problem
from tests.server.test_sse import events, stream_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def erase(served: Served, uid: str, bearer: str | None = None) -> Time:
    """Erase a user, and return the epoch."""
    answer = await served.http.delete(path_of(uid), headers=bearing(bearer))
    assert answer.status_code == 200
    assert answer.json() == {"uid": uid, "epoch": answer.json()["epoch"], "pending": []}
    epoch: Time = answer.json()["epoch"]
    return epoch


def path_of(uid: str) -> str:
    return f"/v1/users/{quote(uid, safe='')}"


def bearing(bearer: str | None) -> dict[str, str]:
    return {} if bearer is None else {"Authorization": f"Bearer {bearer}"}


async def hello(served: Served, bearer: str, **fields: Any) -> RawDevice:
    device = await RawDevice.connect(served.url)
    await device.send("hello", token=bearer, device_id="d1", protocol=2, **fields)
    return device


async def contents(served: Served, uid: str) -> list[Any]:
    state = await served.http.get(f"{path_of(uid)}/state")
    return [item["body"] for item in state.json()["items"]]


# DELETE


async def test_erased_user_has_nothing_and_begins_again(shared: Served, uid: str) -> None:
    await shared.post(to(uid, body="before", msg_id="m"))
    before = (await shared.http.get(f"{path_of(uid)}/state")).json()
    epoch = await erase(shared, uid)
    after = (await shared.http.get(f"{path_of(uid)}/state")).json()
    assert (before["epoch"], after["epoch"]) == (0, epoch)
    assert epoch > before["cursor"]
    assert after["items"] == []
    again = await shared.post(to(uid, body="after", msg_id="m"))
    assert again.json()["results"][0]["status"] == "stored"
    assert await contents(shared, uid) == ["after"]


async def test_unknown_user_is_erased_too_and_so_is_one_twice(shared: Served, uid: str) -> None:
    first = await erase(shared, uid)
    assert await erase(shared, uid) > first


@pytest.mark.parametrize("odd", ["a/b", "a/state", "%", "ü", "v1/users/x", "a b", "a?b#c"])
async def test_any_uid_can_be_erased_and_it_alone(shared: Served, odd: str) -> None:
    await shared.post({"uids": [odd, "a", "x"], "message": creation(msg_id="m")})
    await erase(shared, odd)
    assert await contents(shared, odd) == []
    assert await contents(shared, "a") == await contents(shared, "x") == [1]
    for other in ("a", "x"):
        await erase(shared, other)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("a/b", 404, "not-found"),
        ("a/", 404, "not-found"),
        ("a/state", 405, "method-not-allowed"),
        ("a/events", 405, "method-not-allowed"),
        ("", 422, "invalid"),
        ("%00", 422, "invalid"),
        ("..%2f..", 200, None),
        ("x" * 129, 422, "invalid"),
        ("a?force=1", 422, "invalid"),
    ],
)
async def test_address_that_is_no_user_erases_nobody(
    shared: Served, path: str, status: int, code: str | None
) -> None:
    await shared.post(to("a", msg_id="m"))
    answer = await shared.http.delete(f"/v1/users/{path}")
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    assert await contents(shared, "a") == [1]


async def test_device_may_not_erase_its_user(uid: str) -> None:
    async with serving(jwt_settings()) as served:
        for bearer in (token("alice"), token("bob")):
            answer = await served.http.delete(path_of("alice"), headers=bearing(bearer))
            assert problem(answer)[:2] == (403, "forbidden")
        assert problem(await served.http.delete(path_of("alice")))[:2] == (401, "unauthenticated")
        await erase(served, "alice", token("backend", Role.SERVICE))


async def test_erased_users_are_counted() -> None:
    async with serving() as served:
        assert await served.metric("gregor_users_erased_total") == 0
        await erase(served, "u")
        await served.server.erase("u")
        assert await served.metric("gregor_users_erased_total") == 2


async def test_server_that_is_stopping_erases_nobody() -> None:
    async with serving() as served:
        await served.post(to("u"))
        served.server.service.draining = True
        answer = await served.http.delete(path_of("u"))
        assert problem(answer)[:2] == (503, "unavailable")
        assert await contents(served, "u") == [1]


# Devices that are connected, and that come back


async def test_connected_devices_are_told_and_closed(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device, events(shared, uid) as stream:
        assert (await stream.next()).name == "sync"
        epoch = await erase(shared, uid)
        assert await device.receive() == {"type": "erased", "epoch": epoch, "uid": uid}
        assert await device.wait_closed() == 4010
        (told,) = await stream.rest()
        assert (told.name, told.data) == ("erased", {"type": "erased", "epoch": epoch, "uid": uid})
        assert told.id is None
        assert told.retry is not None


async def test_device_that_comes_back_is_told_in_place_of_a_welcome(
    shared: Served, uid: str
) -> None:
    epoch = await erase(shared, uid)
    async with await hello(shared, uid, epoch=epoch - 1, cursor=epoch - 1) as device:
        assert await device.receive() == {"type": "erased", "epoch": epoch, "uid": uid}
        assert await device.wait_closed() == 4010
    async with stream_of(shared, uid, epoch=0) as stream:
        assert [event.name for event in await stream.rest()] == ["erased"]


@pytest.mark.parametrize("behind", [None, 0])
async def test_device_that_knows_the_epoch_or_none_is_welcome(
    shared: Served, uid: str, behind: int | None
) -> None:
    epoch = await erase(shared, uid)
    known: dict[str, Any] = {} if behind is None else {"epoch": epoch - behind}
    async with await hello(shared, uid, **known) as device:
        assert (await device.receive())["epoch"] == epoch
    async with stream_of(shared, uid, **known) as stream:
        assert (await stream.next()).data["epoch"] == epoch


async def test_device_of_a_later_epoch_gets_a_snapshot_and_takes_the_epoch(
    shared: Served, uid: str
) -> None:
    await shared.post(to(uid))
    later = now()
    async with await hello(shared, uid, epoch=later, cursor=later) as device:
        assert (await device.receive())["epoch"] == 0
        assert (await device.receive())["mode"] == "snapshot"
        await device.assert_usable()


@pytest.mark.parametrize("bad", ["x", "-1", "", "1.5", "9" * 17, str(2**53)])
async def test_epoch_of_events_that_is_no_ctime_is_refused_by_name(
    shared: Served, uid: str, bad: str
) -> None:
    answer = await shared.http.get(f"{path_of(uid)}/events", params={"epoch": bad})
    assert problem(answer) == (422, "invalid", "epoch")


# Writes


async def write(
    served: Served, body: Any, *epochs: str, bearer: str | None = None
) -> httpx.Response:
    headers = [*bearing(bearer).items(), *(("Gregor-Epoch", epoch) for epoch in epochs)]
    return await served.http.post("/v1/messages", json=body, headers=headers)


@pytest.mark.parametrize("with_token", [False, True])
async def test_write_of_an_earlier_epoch_is_410_and_stores_nothing(
    shared: Served, uid: str, with_token: bool
) -> None:
    epoch = await erase(shared, uid)
    bearer = uid if with_token else None
    answer = await write(shared, to(uid), "0", bearer=bearer)
    assert problem(answer)[:2] == (410, "erased")
    assert (answer.json()["epoch"], answer.json()["action"]) == (epoch, "stop")
    batch = await write(shared, {"messages": [to(uid), to(uid)]}, str(epoch - 1), bearer=bearer)
    if with_token:
        assert (batch.status_code, batch.json()["epoch"]) == (410, epoch)
    else:
        errors = [result["error"] for result in batch.json()["results"]]
        assert [(error["code"], error["epoch"]) for error in errors] == [("erased", epoch)] * 2
    assert await contents(shared, uid) == []


async def test_write_of_the_epoch_or_of_none_is_stored(shared: Served, uid: str) -> None:
    epoch = await erase(shared, uid)
    assert (await write(shared, to(uid), str(epoch), bearer=uid)).status_code == 200
    assert (await write(shared, to(uid), bearer=uid)).status_code == 200
    page = (await shared.http.get(f"{path_of(uid)}/messages")).json()
    assert (len(page["messages"]), page["epoch"]) == (2, epoch)


async def test_write_of_a_later_epoch_is_to_resync(shared: Served, uid: str) -> None:
    answer = await write(shared, to(uid), "1", bearer=uid)
    assert problem(answer)[:2] == (409, "resync")
    assert answer.json()["action"] == "resync"
    assert await contents(shared, uid) == []


@pytest.mark.parametrize("bad", [["x"], ["-1"], [""], ["1.5"], ["9" * 17], ["²"], ["0", "0"]])
async def test_header_that_is_no_ctime_is_400_by_name(
    shared: Served, uid: str, bad: list[str]
) -> None:
    headers = [(b"Gregor-Epoch", value.encode()) for value in bad]
    answer = await shared.http.post("/v1/messages", json=to(uid), headers=headers)
    assert problem(answer) == (400, "malformed", "Gregor-Epoch")
    assert await contents(shared, uid) == []


# Tokens


@asynccontextmanager
async def erased_alice() -> AsyncIterator[tuple[Served, Erasure]]:
    """A server with signed tokens, and the last erase of alice."""
    async with serving(jwt_settings()) as served:
        await erase(served, "alice", token("backend", Role.SERVICE))
        yield served, await served.server.node.state_machine.erasure("alice")


RESOURCES = ["state", "count", "messages", "events"]


@pytest.mark.parametrize("seconds", [-1000, 0, 1])
async def test_device_token_holds_from_the_second_after_the_erase(seconds: int) -> None:
    async with erased_alice() as (served, erasure):
        issued_at = erasure.erased_at + seconds * SECOND
        bearer = make_token(SECRET, Identity("alice", Role.DEVICE, issued_at=issued_at))
        holds = seconds == 1
        for resource in RESOURCES[:3]:
            path = f"/v1/users/alice/{resource}"
            answer = await served.http.get(path, headers=bearing(bearer))
            assert answer.status_code == (200 if holds else 401), resource
        assert (await served.post(to("alice"), bearer)).status_code == (200 if holds else 401)
        async with await hello(served, bearer) as device:
            frame = await device.receive()
            assert frame["type"] == ("welcome" if holds else "error")
            if not holds:
                assert (frame["code"], frame["action"]) == ("unauthenticated", "reauthenticate")
                assert await device.wait_closed() == 4001
        async with served.http.stream(
            "GET", "/v1/users/alice/events", headers=bearing(bearer)
        ) as stream:
            assert stream.status_code == (200 if holds else 401)


async def test_tokens_without_a_time_of_others_and_of_services_hold_as_before() -> None:
    def untimed(uid: str, role: str) -> str:
        return jwt.encode({"sub": uid, "role": role}, SECRET, algorithm="HS256")

    async def status(served: Served, uid: str, bearer: str) -> int:
        answer = await served.http.get(f"/v1/users/{uid}/state", headers=bearing(bearer))
        return answer.status_code

    async with erased_alice() as (served, _):
        assert await status(served, "alice", untimed("alice", "device")) == 401
        assert await status(served, "bob", untimed("bob", "device")) == 200
        assert await status(served, "alice", untimed("backend", "service")) == 200
        service = bearing(untimed("backend", "service"))
        url = "/v1/users/alice/events"
        async with served.http.stream("GET", url, headers=service) as stream:
            assert stream.status_code == 200


async def test_device_with_an_old_token_still_hears_that_its_user_was_erased() -> None:
    """It may never get another token; but it has to wipe what it holds."""
    async with erased_alice() as (served, erasure):
        old = make_token(SECRET, Identity("alice", Role.DEVICE, issued_at=0))
        async with await hello(served, old, epoch=0) as device:
            told = {"type": "erased", "epoch": erasure.epoch, "uid": "alice"}
            assert await device.receive() == told
        answer = await write(served, to("alice"), "0", bearer=old)
        assert (answer.status_code, answer.json()["epoch"]) == (410, erasure.epoch)
        headers = bearing(old)
        url = "/v1/users/alice/events?epoch=0"
        async with served.http.stream("GET", url, headers=headers) as stream:
            text = "".join([chunk async for chunk in stream.aiter_text()])
        assert "event: erased" in text


async def test_identity_of_an_authenticator_that_says_no_time_ends_with_an_erase() -> None:
    sessions = SessionDatabase()
    async with serving(open_settings(), authenticator=sessions) as served:
        path = "/v1/users/alice/state"
        assert (await served.http.get(path, headers=bearing(TOKEN))).status_code == 200
        await served.server.erase("alice")
        assert (await served.http.get(path, headers=bearing(TOKEN))).status_code == 401
        sessions.sessions[TOKEN] = Identity("alice", Role.DEVICE, issued_at=now() + SECOND)
        assert (await served.http.get(path, headers=bearing(TOKEN))).status_code == 200


# Erases and messages at the same time


async def test_erase_and_messages_under_way_are_before_or_after_each_other(
    shared: Served, uid: str
) -> None:
    """What is there afterwards is what has a ctime after the epoch, whole."""
    async with asyncio.TaskGroup() as tasks:
        posts = [
            tasks.create_task(shared.post({"messages": [to(uid, body=n) for n in range(5)]}))
            for _ in range(10)
        ]
        erasing = tasks.create_task(erase(shared, uid))
    epoch = erasing.result()
    results = [result for post in posts for result in post.result().json()["results"]]
    assert {result["status"] for result in results} == {"stored"}
    later = sorted(result["msg_id"] for result in results if result["ctime"] > epoch)
    page = (await shared.http.get(f"{path_of(uid)}/state")).json()
    assert sorted(item["msg_id"] for item in page["items"]) == later


async def test_write_with_a_token_that_an_erase_ends_meanwhile_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even by a device that says no epoch: after the erase its token would not hold."""
    async with serving(jwt_settings()) as served:
        machine = sql_machine(served)
        store = machine.store

        async def erase_and_store(slots: Sequence[Slot]) -> None:
            await machine.erase("alice")
            await store(slots)

        monkeypatch.setattr(machine, "store", erase_and_store)
        assert (await served.post(to("alice"), token("alice"))).status_code == 410
        backend = token("backend", Role.SERVICE)
        assert (await served.post(to("alice"), backend)).status_code == 200


async def test_full_outbox_of_an_offline_device_does_not_bring_the_user_back(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as device:
        await shared.server.node.state_machine.erase(uid)  # its node has not heard of it
        messages = [creation(msg_id=f"m{n}") for n in range(100)]
        await device.connection.send(json.dumps({"type": "consume", "n": 1, "messages": messages}))
        assert (await device.receive())["type"] == "erased"
        assert await device.wait_closed() == 4010
    assert await contents(shared, uid) == []
