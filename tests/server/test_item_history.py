"""An item's history over HTTP: who is named as the author, and to whom."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gregor.server import Role
from tests.server.harness import Served, jwt_settings, serving, to, token
from tests.server.test_http import problem

pytestmark = pytest.mark.asyncio(loop_scope="module")


def path_of(uid: str, msg_id: str) -> str:
    return f"/v1/users/{quote(uid, safe='')}/items/{quote(msg_id, safe='')}/history"


def bearing(bearer: str | None) -> dict[str, str]:
    return {} if bearer is None else {"Authorization": f"Bearer {bearer}"}


async def ask(served: Served, uid: str, msg_id: str, bearer: str | None = None) -> httpx.Response:
    return await served.http.get(path_of(uid, msg_id), headers=bearing(bearer))


async def history(served: Served, uid: str, msg_id: str, bearer: str | None = None) -> Any:
    answer = await ask(served, uid, msg_id, bearer)
    assert answer.status_code == 200, answer.text
    return answer.json()


def authors(answer: Any) -> list[tuple[str, str | None]]:
    return [(event["what"], event["by"] and event["by"]["author"]) for event in answer["events"]]


async def test_history_says_who_made_and_who_ended_an_item(shared: Served, uid: str) -> None:
    (stored,) = (await shared.post(to(uid, "a", msg_id="i"))).json()["results"]
    async with await shared.synced(uid, "phone") as device:
        ack = await device.consume({"msg_id": "d", "dismissal": {"msg_ids": ["i"]}})
    assert await history(shared, uid, "i") == {
        "uid": uid,
        "msg_id": "i",
        "state": "dismissed",
        "events": [
            {
                "at": stored["ctime"],
                "what": "created",
                "by": {"msg_id": "i", "author": "service:"},
                "rule": None,
            },
            {
                "at": ack["results"][0]["ctime"],
                "what": "dismissed",
                "by": {"msg_id": "d", "author": "device:phone"},
                "rule": {"kind": "id", "msg_id": "i"},
            },
        ],
    }


async def test_unknown_item_of_unknown_user_has_no_events(shared: Served, uid: str) -> None:
    unknown = {"uid": uid, "msg_id": "i", "state": "unknown", "events": []}
    assert await history(shared, uid, "i") == unknown


@pytest.mark.parametrize("msg_id", ["a/b", "x/items/y", "é", "?", "%2F", "history"])
async def test_ids_are_opaque(shared: Served, uid: str, msg_id: str) -> None:
    user = f"{uid}/items/1"
    await shared.post(to(user, "a", msg_id=msg_id))
    assert (await history(shared, user, msg_id))["state"] == "visible"
    assert (await history(shared, uid, f"1/items/{msg_id}"))["state"] == "unknown"


async def test_bad_requests_are_refused(shared: Served, uid: str) -> None:
    long = await ask(shared, uid, "m" * 65)
    assert problem(long) == (422, "invalid", "msg_id")
    extra = await shared.http.get(path_of(uid, "i"), params={"x": "1"})
    assert problem(extra) == (422, "invalid", "x")
    for path in (f"/v1/users/{uid}/items/a/b/history", f"/v1/users/{uid}/items/i"):
        assert problem(await shared.http.get(path))[:2] == (404, "not-found")
    assert problem(await shared.http.post(path_of(uid, "i")))[:2] == (405, "method-not-allowed")


async def test_devices_ask_about_their_own_user_and_see_no_names_of_services() -> None:
    billing, alice = token("billing", Role.SERVICE), token("alice")
    async with serving(jwt_settings()) as served:
        await served.post(to("alice", "a", msg_id="i"), billing)
        await served.post({"uid": "alice", "msg_id": "d", "dismissal": {"msg_ids": ["i"]}}, alice)
        seen = await history(served, "alice", "i", billing)
        assert authors(seen) == [("created", "service:billing"), ("dismissed", "user:alice")]
        shown = await history(served, "alice", "i", alice)
        assert authors(shown) == [("created", "service"), ("dismissed", "user:alice")]
        await served.post(to("alice", "a", msg_id="scoped", device_id="laptop"), alice)
        scoped = await history(served, "alice", "scoped", alice)
        assert authors(scoped) == [("created", "device:laptop")]
        assert problem(await ask(served, "alice", "i", token("bob")))[:2] == (403, "forbidden")
        assert problem(await ask(served, "alice", "i"))[:2] == (401, "unauthenticated")


async def test_authors_are_in_no_frame_and_in_no_other_answer(shared: Served, uid: str) -> None:
    async with await shared.synced(uid, "phone") as device:
        await shared.post(to(uid, "a", msg_id="i"))
        assert "'author'" not in str(await device.receive())
    for resource in ("state", "messages"):
        assert '"author"' not in (await shared.http.get(f"/v1/users/{uid}/{resource}")).text
