"""Requests and answers: what a backend may get wrong, and what it is told then."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gregor.clock import now
from gregor.core.instant import SECOND
from gregor.core.message import MAX_BODY
from gregor.core.state import hash_of
from gregor.server.http import MAX_REQUEST, MAX_USERS
from tests.server.test_websocket import BAD_MESSAGES
from tests.server.world import JSON, Served, creation, serving, to, without_a_store

pytestmark = pytest.mark.asyncio(loop_scope="module")


def problem(response: httpx.Response) -> tuple[int, str, str | None]:
    """The status, the code and the field of a problem document."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == response.status_code
    assert document["type"] == f"urn:gregor:error:{document['code']}"
    assert document["title"]
    assert document["detail"]
    return response.status_code, document["code"], document.get("field")


async def state(served: Served, uid: str, **query: Any) -> JSON:
    response = await served.http.get(f"/v1/users/{quote(uid, safe='')}/state", params=query)
    assert response.status_code == 200, response.text
    answer: JSON = response.json()
    return answer


# Putting messages in


async def test_one_message_is_stored_and_named(shared: Served, uid: str) -> None:
    response = await shared.post(to(uid, "chat", {"n": 1}, msg_id="m"))
    assert response.status_code == 200
    (result,) = response.json()["results"]
    assert (result["status"], result["uid"], result["msg_id"]) == ("stored", uid, "m")
    (item,) = (await state(shared, uid))["items"]
    assert item == {
        "msg_id": "m",
        "ctime": result["ctime"],
        "category": "chat",
        "body": {"n": 1},
    }


async def test_a_message_without_an_id_is_given_one(shared: Served, uid: str) -> None:
    (result,) = (await shared.post(to(uid))).json()["results"]
    assert len(result["msg_id"]) == 32
    int(result["msg_id"], 16)


async def test_a_duplicate_is_a_success_and_other_contents_are_a_conflict(
    shared: Served, uid: str
) -> None:
    (first,) = (await shared.post(to(uid, msg_id="m"))).json()["results"]
    (again,) = (await shared.post(to(uid, msg_id="m"))).json()["results"]
    (other,) = (await shared.post(to(uid, body=2, msg_id="m"))).json()["results"]
    assert again == {**first, "status": "duplicate"}
    assert (other["status"], other["error"]["code"]) == ("rejected", "conflict")


async def test_an_out_of_band_message_is_passed(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        response = await shared.post({"uid": uid, "system": "chat.typing", "body": [1]})
        assert response.json()["results"] == [{"status": "passed", "uid": uid}]
        assert (await device.heard("out_of_band"))["body"] == [1]


async def test_times_may_be_written_for_people(shared: Served, uid: str) -> None:
    message = to(uid, msg_id="m")
    message["creation"]["dtime"] = {"offset": "1h30m"}
    (result,) = (await shared.post(message)).json()["results"]
    (item,) = (await state(shared, uid))["items"]
    assert item["expires_at"] == result["ctime"] + 5400 * SECOND


@pytest.mark.parametrize("wrong", sorted(BAD_MESSAGES.keys() - {"another user's uid"}))
async def test_a_bad_message_alone_is_a_problem_that_names_the_field(
    shared: Served, uid: str, wrong: str
) -> None:
    message, code, field = BAD_MESSAGES[wrong]
    if isinstance(message, dict):
        message = {"uid": "anyone", **message}
    response = await shared.post(message)
    if wrong == "not an object":
        assert problem(response) == (400, "malformed", None)
    else:
        assert problem(response) == (413 if code == "too-large" else 422, code, field)


@pytest.mark.parametrize("wrong", sorted(BAD_MESSAGES.keys() - {"another user's uid"}))
async def test_a_bad_message_in_a_batch_rejects_itself_and_not_its_neighbours(
    shared: Served, uid: str, wrong: str
) -> None:
    message, code, field = BAD_MESSAGES[wrong]
    if isinstance(message, dict):
        message = {"uid": "anyone", **message}
    response = await shared.post({"messages": [to("anyone"), message, to("anyone")]})
    assert response.status_code == 200
    first, bad, last = response.json()["results"]
    assert (first["status"], bad["status"], last["status"]) == ("stored", "rejected", "stored")
    assert (bad["error"]["code"], bad["error"].get("field")) == (code, field)


async def test_a_message_needs_a_uid_that_is_one(shared: Served) -> None:
    assert problem(await shared.post(creation())) == (422, "invalid", "uid")
    assert problem(await shared.post(to(""))) == (422, "invalid", "uid")
    assert problem(await shared.post(to("é" * 65))) == (422, "invalid", "uid")
    assert problem(await shared.post(to("a\0b"))) == (422, "invalid", "uid")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"messages": 1}'],
)
async def test_what_is_not_json_is_malformed(shared: Served, body: bytes) -> None:
    response = await shared.http.post("/v1/messages", content=body)
    assert problem(response)[:2] == (400, "malformed")
    assert (await shared.post(to("u"))).status_code == 200


@pytest.mark.parametrize("where", ["body", "msg_id", "uid"])
async def test_text_in_a_message_that_is_not_unicode_is_refused(
    shared: Served, uid: str, where: str
) -> None:
    fields = {"uid": uid, "body": "b", "msg_id": "m", where: "X"}
    text = json.dumps(to(**fields)).encode().replace(b"X", b"\xff")
    response = await shared.http.post("/v1/messages", content=text)
    assert problem(response)[:2] == (422, "invalid")
    assert (await state(shared, uid))["items"] == []


async def test_unknown_fields_beside_a_batch_are_refused(shared: Served, uid: str) -> None:
    response = await shared.post({"messages": [to(uid)], "colour": "red"})
    assert problem(response) == (400, "malformed", "colour")
    assert (await state(shared, uid))["items"] == []


@pytest.mark.parametrize("number", [0, 501])
async def test_a_batch_holds_1_to_500_messages(shared: Served, uid: str, number: int) -> None:
    response = await shared.post({"messages": [to(uid)] * number})
    assert problem(response) == (413, "too-large", "messages")
    assert (await state(shared, uid))["items"] == []
    response = await shared.post({"messages": [to(uid) for _ in range(500)]})
    assert {result["status"] for result in response.json()["results"]} == {"stored"}


async def test_one_message_reaches_ten_thousand_users_under_one_id(shared: Served) -> None:
    uids = [f"many {n}" for n in range(MAX_USERS)]
    message = creation("news", "hello", msg_id="news1")
    response = await shared.post({"uids": uids, "message": message})
    results = response.json()["results"]
    assert [result["uid"] for result in results] == uids
    assert {(result["status"], result["msg_id"]) for result in results} == {("stored", "news1")}
    again = await shared.post({"uids": uids[:2], "message": message})
    assert {result["status"] for result in again.json()["results"]} == {"duplicate"}
    (item,) = (await state(shared, uids[-1]))["items"]
    assert item["body"] == "hello"


@pytest.mark.parametrize("number", [0, MAX_USERS + 1])
async def test_one_message_reaches_no_more_than_ten_thousand(shared: Served, number: int) -> None:
    response = await shared.post(
        {"uids": [f"too {n}" for n in range(number)], "message": creation()}
    )
    assert problem(response) == (413, "too-large", "uids")


async def test_the_uid_belongs_into_uids_where_there_are_several(shared: Served, uid: str) -> None:
    response = await shared.post({"uids": [uid], "message": to("another")})
    assert problem(response) == (422, "invalid", "message.uid")
    response = await shared.post({"uids": [uid, "é" * 65], "message": creation()})
    assert problem(response) == (422, "invalid", "uid")
    assert (await state(shared, uid))["items"] == []


async def test_out_of_band_to_many(shared: Served, uid: str) -> None:
    async with await shared.synced(f"{uid} 2") as device:
        uids = [f"{uid} {n}" for n in range(3)]
        response = await shared.post({"uids": uids, "message": {"system": "s", "body": 1}})
        assert [result["status"] for result in response.json()["results"]] == ["passed"] * 3
        assert (await device.heard("out_of_band"))["system"] == "s"


async def test_a_request_over_the_limit_is_refused(shared: Served, uid: str) -> None:
    response = await shared.http.post("/v1/messages", content=b" " * (MAX_REQUEST + 1))
    assert problem(response) == (413, "too-large", None)
    assert (await shared.post(to(uid))).status_code == 200


async def test_a_large_batch_below_the_limit_is_taken(shared: Served, uid: str) -> None:
    messages = [to(uid, body="x" * (MAX_BODY - 100)) for _ in range(100)]
    response = await shared.post({"messages": messages})
    assert {result["status"] for result in response.json()["results"]} == {"stored"}


async def test_who_hangs_up_while_sending_leaves_no_trace(shared: Served, uid: str) -> None:
    url = shared.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await shared.post(to(uid))).status_code == 200


async def test_a_store_that_fails_is_503_and_may_be_asked_again() -> None:
    async with serving() as served:
        async with without_a_store(served):
            response = await served.post(to("u", msg_id="m"))
            assert problem(response) == (503, "unavailable", None)
            assert response.headers["Retry-After"] == "1"
            assert response.json()["turn"] == "retry"
        assert (await served.post(to("u", msg_id="m"))).json()["results"][0]["status"] == "stored"


async def test_a_stopping_server_takes_nothing_and_still_answers_questions() -> None:
    async with serving() as served:
        await served.server.drain()
        assert problem(await served.post(to("u"))) == (503, "unavailable", None)
        events = await served.http.get("/v1/users/u/events")
        assert problem(events) == (503, "unavailable", None)
        assert (await state(served, "u"))["items"] == []


# Asking


async def test_an_unknown_user_has_an_empty_state(shared: Served) -> None:
    answer = await state(shared, "nobody")
    assert (answer["items"], answer["hash"]) == ([], hash_of([]))


async def test_a_state_is_of_a_device_of_a_time_and_of_a_prefix(shared: Served, uid: str) -> None:
    messages = [
        to(uid, "chat.a", msg_id="1"),
        to(uid, "chat.b", msg_id="2", device_id="d1"),
        to(uid, "mail", msg_id="3"),
    ]
    results = (await shared.post({"messages": messages})).json()["results"]
    first, second, third = (result["ctime"] for result in results)

    async def shown(**query: Any) -> list[str]:
        return [item["msg_id"] for item in (await state(shared, uid, **query))["items"]]

    assert await shown() == ["1", "2", "3"]
    assert await shown(device_id="d2") == ["1", "3"]
    assert await shown(prefix="chat.") == ["1", "2"]
    assert await shown(prefix="%") == []
    assert await shown(at=second) == ["1", "2"]
    assert await shown(at="-1h") == []
    assert await shown(at="P1D") == ["1", "2", "3"]
    assert await shown(at="2001-01-01T00:00:00Z") == []
    answer = await state(shared, uid, prefix="mail")
    assert answer["hash"] == hash_of([(third, "3")])
    assert first < second < third <= answer["as_of"] <= now()


async def test_counts_are_per_prefix(shared: Served, uid: str) -> None:
    await shared.post({"messages": [to(uid, "chat.a"), to(uid, "chat.b"), to(uid, "mail")]})
    query = {"prefix": ["chat.", "", "nothing"]}
    response = await shared.http.get(f"/v1/users/{uid}/count", params=query)
    assert response.json()["counts"] == {"chat.": 2, "": 3, "nothing": 0}
    assert (await shared.http.get(f"/v1/users/{uid}/count")).json()["counts"] == {"": 3}


async def test_messages_since_begin_at_the_instant_and_end_at_the_cursor(
    shared: Served, uid: str
) -> None:
    results = (await shared.post({"messages": [to(uid, msg_id=str(n)) for n in range(3)]})).json()
    ctimes = [result["ctime"] for result in results["results"]]

    async def since(**query: Any) -> tuple[list[str], int]:
        response = await shared.http.get(f"/v1/users/{uid}/messages", params=query)
        answer = response.json()
        return [message["msg_id"] for message in answer["messages"]], answer["cursor"]

    assert await since() == (["0", "1", "2"], ctimes[2])
    assert await since(since=ctimes[1]) == (["1", "2"], ctimes[2])
    assert await since(since=ctimes[2] + 1) == ([], ctimes[2])
    assert await since(since="-1h") == (["0", "1", "2"], ctimes[2])
    assert await since(since="P1D") == ([], ctimes[2])


@pytest.mark.parametrize("name", ["state?at", "messages?since"])
@pytest.mark.parametrize("time", ["", "yesterday", "²", "1h 30m", "2026-01-01T00:00:00", "9" * 40])
async def test_a_time_that_is_none_is_named(shared: Served, name: str, time: str) -> None:
    what, _, parameter = name.partition("?")
    response = await shared.http.get(f"/v1/users/u/{what}", params={parameter: time})
    assert problem(response) == (422, "invalid", parameter)


@pytest.mark.parametrize("what", ["state", "count", "messages", "events"])
async def test_an_unknown_parameter_is_refused_by_name(shared: Served, what: str) -> None:
    response = await shared.http.get(f"/v1/users/u/{what}", params={"colour": "red"})
    assert problem(response) == (422, "invalid", "colour")


@pytest.mark.parametrize("what", ["state", "count", "messages", "events"])
@pytest.mark.parametrize("device_id", ["", "é" * 65, "a\0"])
async def test_a_device_that_cannot_be_is_refused(
    shared: Served, what: str, device_id: str
) -> None:
    response = await shared.http.get(f"/v1/users/u/{what}", params={"device_id": device_id})
    assert problem(response) == (422, "invalid", "device_id")


@pytest.mark.parametrize("cursor", ["-1", "²", "1.5", "x", str(2**53), "9" * 5000])
async def test_a_cursor_that_is_none_is_refused(shared: Served, cursor: str) -> None:
    response = await shared.http.get("/v1/users/u/events", params={"cursor": cursor})
    assert problem(response) == (422, "invalid", "cursor")
    headers = {b"Last-Event-ID": cursor.encode()}
    response = await shared.http.get("/v1/users/u/events", headers=headers)
    assert problem(response) == (422, "invalid", "cursor")


# Addresses


@pytest.mark.parametrize(
    "strange",
    [
        "a/b",
        "a/state",
        "/",
        "ü",
        "日本",
        "a b",
        "100%",
        "%2F",
        "?",
        "#",
        "a\nb",
        "a+b",
        "..",
        "a;b",
    ],
)
async def test_a_uid_is_opaque_also_in_an_address(shared: Served, strange: str) -> None:
    (result,) = (await shared.post(to(strange, msg_id="m"))).json()["results"]
    assert result["uid"] == strange
    path = quote(strange, safe="").replace(".", "%2E")
    url = str(shared.http.base_url).rstrip("/")
    for what in ("state", "count", "messages"):
        # Clients like to tidy addresses up; a bare connection does not.
        raw = httpx.URL(url).copy_with(raw_path=f"/v1/users/{path}/{what}".encode())
        answer = (await shared.http.get(raw)).json()
        if what == "count":
            assert answer["counts"] == {"": 1}
        else:
            (entry,) = answer["items" if what == "state" else "messages"]
            assert entry["msg_id"] == "m"


@pytest.mark.parametrize("strange", ["", "%00", "a%00b", quote("é" * 65), "x" * 129])
@pytest.mark.parametrize("what", ["state", "count", "messages", "events"])
async def test_a_uid_that_cannot_be_is_refused(shared: Served, strange: str, what: str) -> None:
    response = await shared.http.get(f"/v1/users/{strange}/{what}")
    assert problem(response) == (422, "invalid", "uid")


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/message", "/v1/users/u", "/v2/messages", "/v1/messages/"]
)
async def test_where_nothing_is_the_answer_says_so(shared: Served, path: str) -> None:
    assert problem(await shared.http.get(path)) == (404, "not-found", None)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/messages", {"POST"}),
        ("DELETE", "/v1/users/u/state", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_told_the_right_one(
    shared: Served, method: str, path: str, allowed: set[str]
) -> None:
    response = await shared.http.request(method, path)
    assert problem(response) == (405, "method-not-allowed", None)
    assert set(response.headers["Allow"].split(", ")) == allowed


async def test_the_front_page_says_where_things_are(shared: Served) -> None:
    assert "/v1/messages" in (await shared.http.get("/")).text
