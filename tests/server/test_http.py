"""The HTTP API: valid and invalid requests, and the answers to them."""

import asyncio
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gregor.clock import now
from gregor.core.instant import SECOND
from gregor.core.message import MAX_BODY
from gregor.core.state_hash import hash_of
from gregor.protocol.requests import MAX_REQUEST, MAX_USERS
from tests.protocol.bad_entries import NOT_JSON
from tests.server.harness import JSON, Served, creation, serving, store_failure, to
from tests.server.test_websocket import BAD_MESSAGES

RESOURCES = ("state", "count", "messages", "events")

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


# Inject


async def test_posted_message_is_stored_with_its_id(shared: Served, uid: str) -> None:
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


async def test_message_without_id_gets_random_id(shared: Served, uid: str) -> None:
    (result,) = (await shared.post(to(uid))).json()["results"]
    assert len(result["msg_id"]) == 32
    int(result["msg_id"], 16)


async def test_repeated_message_is_duplicate_and_other_contents_are_conflict(
    shared: Served, uid: str
) -> None:
    (first,) = (await shared.post(to(uid, msg_id="m"))).json()["results"]
    (repeated,) = (await shared.post(to(uid, msg_id="m"))).json()["results"]
    assert first.pop("dismissed") == 0
    assert repeated == {**first, "status": "duplicate"}
    assert problem(await shared.post(to(uid, body=2, msg_id="m"))) == (409, "conflict", "msg_id")
    (other,) = (await shared.post({"messages": [to(uid, body=2, msg_id="m")]})).json()["results"]
    assert (other["status"], other["error"]["code"]) == ("rejected", "conflict")


async def test_out_of_band_message_is_relayed_to_device(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        response = await shared.post({"uid": uid, "system": "chat.typing", "body": [1]})
        assert response.json()["results"] == [{"status": "relayed", "uid": uid}]
        assert (await device.receive_type("out_of_band"))["body"] == [1]


async def test_offset_in_human_readable_form_is_accepted(shared: Served, uid: str) -> None:
    message = to(uid, msg_id="m")
    message["creation"]["expires"] = {"offset": "1h30m"}
    (result,) = (await shared.post(message)).json()["results"]
    (item,) = (await state(shared, uid))["items"]
    assert item["expires_at"] == result["ctime"] + 5400 * SECOND


@pytest.mark.parametrize("defect", sorted(BAD_MESSAGES.keys() - {"another user's uid"}))
async def test_invalid_single_message_is_problem_that_names_field(
    shared: Served, uid: str, defect: str
) -> None:
    message, code, field = BAD_MESSAGES[defect]
    if isinstance(message, dict):
        message = {"uid": "any user", **message}
    response = await shared.post(message)
    if defect == "not an object":
        assert problem(response) == (400, "malformed", None)
    else:
        assert problem(response) == (413 if code == "too-large" else 422, code, field)


@pytest.mark.parametrize("defect", sorted(BAD_MESSAGES.keys() - {"another user's uid"}))
async def test_invalid_message_in_batch_is_rejected_and_others_are_stored(
    shared: Served, uid: str, defect: str
) -> None:
    message, code, field = BAD_MESSAGES[defect]
    if isinstance(message, dict):
        message = {"uid": "any user", **message}
    response = await shared.post({"messages": [to("any user"), message, to("any user")]})
    assert response.status_code == 200
    first, bad, last = response.json()["results"]
    assert (first["status"], bad["status"], last["status"]) == ("stored", "rejected", "stored")
    assert (bad["error"]["code"], bad["error"].get("field")) == (code, field)


async def test_message_with_missing_or_invalid_uid_is_rejected(shared: Served) -> None:
    assert problem(await shared.post(creation())) == (422, "invalid", "uid")
    assert problem(await shared.post(to(""))) == (422, "invalid", "uid")
    assert problem(await shared.post(to("é" * 65))) == (422, "invalid", "uid")
    assert problem(await shared.post(to("a\0b"))) == (422, "invalid", "uid")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"messages": 1}'],
)
async def test_body_that_is_not_json_object_is_malformed(shared: Served, body: bytes) -> None:
    response = await shared.http.post("/v1/messages", content=body)
    assert problem(response)[:2] == (400, "malformed")
    assert (await shared.post(to("u"))).status_code == 200


@pytest.mark.parametrize("field", ["body", "msg_id", "uid"])
async def test_message_with_invalid_utf8_is_rejected(shared: Served, uid: str, field: str) -> None:
    fields = {"uid": uid, "body": "b", "msg_id": "m", field: "X"}
    text = json.dumps(to(**fields)).encode().replace(b"X", b"\xff")
    response = await shared.http.post("/v1/messages", content=text)
    assert problem(response)[:2] == (422, "invalid")
    assert (await state(shared, uid))["items"] == []


async def test_batch_with_unknown_field_is_rejected(shared: Served, uid: str) -> None:
    response = await shared.post({"messages": [to(uid)], "colour": "red"})
    assert problem(response) == (400, "malformed", "colour")
    assert (await state(shared, uid))["items"] == []


@pytest.mark.parametrize("number", [0, 501])
async def test_batch_accepts_only_1_to_500_messages(shared: Served, uid: str, number: int) -> None:
    response = await shared.post({"messages": [to(uid)] * number})
    assert problem(response) == (413, "too-large", "messages")
    assert (await state(shared, uid))["items"] == []
    response = await shared.post({"messages": [to(uid) for _ in range(500)]})
    assert {result["status"] for result in response.json()["results"]} == {"stored"}


async def test_user_who_is_named_many_times_costs_once(shared: Served) -> None:
    message = creation("news", "hello", msg_id="named")
    response = await shared.post(
        {"uids": ["named twice", "other", "named twice"], "message": message}
    )
    first, other, again = response.json()["results"]
    assert first == again
    assert (first["uid"], other["uid"]) == ("named twice", "other")
    assert {result["status"] for result in (first, other)} == {"stored"}


async def test_message_to_ten_thousand_users_is_stored_for_each_with_same_id(
    shared: Served,
) -> None:
    uids = [f"user {n}" for n in range(MAX_USERS)]
    message = creation("news", "hello", msg_id="news1")
    response = await shared.post({"uids": uids, "message": message})
    results = response.json()["results"]
    assert [result["uid"] for result in results] == uids
    assert {(result["status"], result["msg_id"]) for result in results} == {("stored", "news1")}
    repeated = await shared.post({"uids": uids[:2], "message": message})
    assert {result["status"] for result in repeated.json()["results"]} == {"duplicate"}
    (item,) = (await state(shared, uids[-1]))["items"]
    assert item["body"] == "hello"


@pytest.mark.parametrize("number", [0, MAX_USERS + 1])
async def test_message_to_no_or_too_many_users_is_rejected(shared: Served, number: int) -> None:
    response = await shared.post(
        {"uids": [f"too {n}" for n in range(number)], "message": creation()}
    )
    assert problem(response) == (413, "too-large", "uids")


async def test_message_to_many_users_may_not_name_another_user(shared: Served, uid: str) -> None:
    response = await shared.post({"uids": [uid], "message": to("another")})
    assert problem(response) == (422, "invalid", "message.uid")
    response = await shared.post({"uids": [uid, f"{uid} 2"], "message": to(uid)})
    assert [result["status"] for result in response.json()["results"]] == ["stored"] * 2


async def test_invalid_message_to_many_users_is_problem(shared: Served, uid: str) -> None:
    response = await shared.post({"uids": [uid], "message": {"creation": {"category": "c"}}})
    assert problem(response) == (422, "invalid", "creation.body")


async def test_one_bad_uid_of_ten_thousand_is_rejected_alone(shared: Served) -> None:
    uids = [f"one bad {n}" for n in range(MAX_USERS - 1)]
    response = await shared.post({"uids": [*uids, "é" * 100], "message": creation()})
    *results, bad = response.json()["results"]
    assert {result["status"] for result in results} == {"stored"}
    assert (bad["status"], bad["error"]["code"]) == ("rejected", "invalid")
    assert bad["error"]["field"] == f"uids[{MAX_USERS - 1}]"


@pytest.mark.parametrize("defect", NOT_JSON)
async def test_one_bad_message_of_many_is_rejected_alone(
    shared: Served, uid: str, defect: str
) -> None:
    bad = b'{"uid":"x","creation":{"category":"c","body":' + NOT_JSON[defect] + b"}}"
    messages = [json.dumps(to(uid)).encode() for _ in range(499)]
    body = b'{"messages":[' + b",".join([*messages[:250], bad, *messages[250:]]) + b"]}"
    results = (await shared.http.post("/v1/messages", content=body)).json()["results"]
    assert [n for n, result in enumerate(results) if result["status"] != "stored"] == [250]
    assert results[250]["error"]["code"] == "invalid"
    assert problem(await shared.http.post("/v1/messages", content=bad))[:2] == (422, "invalid")


@pytest.mark.parametrize("offset", ["9" * 400 + "s", "P" + "9" * 400 + "D", "9" * 5000, "-P9" * 9])
async def test_absurd_duration_is_rejected_alone(shared: Served, uid: str, offset: str) -> None:
    message = to(uid)
    message["creation"]["expires"] = {"offset": offset}
    assert problem(await shared.post(message)) == (422, "invalid", "creation.expires.offset")
    stored, rejected = (await shared.post({"messages": [to(uid), message]})).json()["results"]
    assert (stored["status"], rejected["error"]["code"]) == ("stored", "invalid")
    response = await shared.http.get(f"/v1/users/{uid}/state", params={"at": offset})
    assert problem(response) == (422, "invalid", "at")


async def test_out_of_band_message_to_many_users_is_relayed_to_each(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(f"{uid} 2") as device:
        uids = [f"{uid} {n}" for n in range(3)]
        response = await shared.post({"uids": uids, "message": {"system": "s", "body": 1}})
        assert [result["status"] for result in response.json()["results"]] == ["relayed"] * 3
        assert (await device.receive_type("out_of_band"))["system"] == "s"


async def test_request_above_size_limit_is_rejected(shared: Served, uid: str) -> None:
    response = await shared.http.post("/v1/messages", content=b" " * (MAX_REQUEST + 1))
    assert problem(response) == (413, "too-large", None)
    assert (await shared.post(to(uid))).status_code == 200


async def test_large_batch_below_size_limit_is_stored(shared: Served, uid: str) -> None:
    messages = [to(uid, body="x" * (MAX_BODY - 100)) for _ in range(100)]
    response = await shared.post({"messages": messages})
    assert {result["status"] for result in response.json()["results"]} == {"stored"}


async def test_client_disconnect_during_request_does_not_affect_server(
    shared: Served, uid: str
) -> None:
    url = shared.http.base_url
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await shared.post(to(uid))).status_code == 200


async def test_store_failure_answers_503_and_retry_succeeds() -> None:
    async with serving() as served:
        async with store_failure(served):
            response = await served.post(to("u", msg_id="m"))
            assert problem(response) == (503, "unavailable", None)
            assert response.headers["Retry-After"] == "1"
            assert response.json()["action"] == "retry"
        assert (await served.post(to("u", msg_id="m"))).json()["results"][0]["status"] == "stored"


async def test_drained_server_rejects_messages_and_still_answers_reads() -> None:
    async with serving() as served:
        await served.server.drain()
        assert problem(await served.post(to("u"))) == (503, "unavailable", None)
        assert (await state(served, "u"))["items"] == []


# Read


async def test_unknown_user_has_empty_state(shared: Served) -> None:
    answer = await state(shared, "unknown user")
    assert (answer["items"], answer["hash"]) == ([], hash_of([]))


async def test_state_is_filtered_by_device_time_and_prefix(shared: Served, uid: str) -> None:
    messages = [
        to(uid, "chat.a", msg_id="1"),
        to(uid, "chat.b", msg_id="2", device_id="d1"),
        to(uid, "mail", msg_id="3"),
    ]
    results = (await shared.post({"messages": messages})).json()["results"]
    first, second, third = (result["ctime"] for result in results)

    async def item_ids(**query: Any) -> list[str]:
        return [item["msg_id"] for item in (await state(shared, uid, **query))["items"]]

    assert await item_ids() == ["1", "2", "3"]
    assert await item_ids(device_id="d2") == ["1", "3"]
    assert await item_ids(prefix="chat.") == ["1", "2"]
    assert await item_ids(prefix="%") == []
    assert await item_ids(at=second) == ["1", "2"]
    assert await item_ids(at="-1h") == []
    assert await item_ids(at="P1D") == ["1", "2", "3"]
    assert await item_ids(at="2001-01-01T00:00:00Z") == []
    answer = await state(shared, uid, prefix="mail", device_id="d2")
    assert answer["hash"] == hash_of([(first, "1"), (third, "3")])
    assert first < second < third <= answer["as_of"] <= now()


async def test_count_is_returned_for_each_prefix(shared: Served, uid: str) -> None:
    await shared.post({"messages": [to(uid, "chat.a"), to(uid, "chat.b"), to(uid, "mail")]})
    query = {"prefix": ["chat.", "", "nothing"]}
    response = await shared.http.get(f"/v1/users/{uid}/count", params=query)
    assert response.json()["counts"] == {"chat.": 2, "": 3, "nothing": 0}
    assert (await shared.http.get(f"/v1/users/{uid}/count")).json()["counts"] == {"": 3}


async def test_count_by_segment_counts_categories_below_one_prefix(
    shared: Served, uid: str
) -> None:
    likes = [to(uid, f"inbox.likes.{n}") for n in range(5)]
    await shared.post({"messages": [*likes, to(uid, "inbox.news"), to(uid, "mail")]})
    query = {"by": "segment", "prefix": "inbox."}
    response = await shared.http.get(f"/v1/users/{uid}/count", params=query)
    assert response.json()["counts"] == {"inbox.likes": 5, "inbox.news": 1}


@pytest.mark.parametrize(
    ("query", "field"),
    [("by=other", "by"), ("by=", "by"), ("by=segment&prefix=a&prefix=b", "prefix")],
)
async def test_count_by_anything_but_the_segments_of_one_prefix_is_refused(
    shared: Served, query: str, field: str
) -> None:
    response = await shared.http.get(f"/v1/users/u/count?{query}")
    assert (response.status_code, response.json()["field"]) == (422, field)


async def test_messages_since_start_at_given_time_and_end_at_cursor(
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


async def test_poller_goes_on_after_the_cursor_of_its_last_answer(shared: Served, uid: str) -> None:
    """The poll with our own cursor: also what is dismissed of the item at that very cursor."""
    await shared.post(to(uid, msg_id="a"))
    await shared.post(to(uid, msg_id="b"))

    async def get(resource: str, **query: Any) -> Any:
        return (await shared.http.get(f"/v1/users/{uid}/{resource}", params=query)).json()

    state = await get("state")
    assert [item["msg_id"] for item in state["items"]] == ["a", "b"]
    assert (await get("messages", after=state["cursor"])) == {
        "messages": [],
        "cursor": state["cursor"],
        "more": False,
        "epoch": 0,
    }
    await shared.post({"uid": uid, "dismissal": {"msg_ids": ["b", "unknown"]}})
    for query in ({"after": state["cursor"]}, {"since": state["cursor"]}):
        (*_, message) = (await get("messages", **query))["messages"]
        assert message["dismissal"] == {"msg_ids": ["b"]}
    past = await get("state", at=state["cursor"] - 1)
    assert past["cursor"] == state["cursor"] - 1
    assert [item["msg_id"] for item in past["items"]] == ["a"]


async def test_messages_come_in_pages(shared: Served, uid: str) -> None:
    await shared.post({"messages": [to(uid, msg_id=f"{n:03}") for n in range(300)]})
    await shared.post({"messages": [to(uid, msg_id=f"{n:03}") for n in range(300, 600)]})
    path, read, start = f"/v1/users/{uid}/messages", [], {"since": 0}
    sizes = []
    while True:
        page = (await shared.http.get(path, params={**start, "limit": 250})).json()
        read += [message["msg_id"] for message in page["messages"]]
        sizes.append(len(page["messages"]))
        if not page["more"]:
            break
        start = {"after": page["cursor"]}
    assert (sizes, read) == ([250, 250, 100], [f"{n:03}" for n in range(600)])
    assert len((await shared.http.get(path)).json()["messages"]) == 500


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "1", "since": "0"}, "after"),
        ({"after": "-1"}, "after"),
        ({"after": "yesterday"}, "after"),
        ({"after": ""}, "after"),
        ({"limit": "0"}, "limit"),
        ({"limit": "501"}, "limit"),
        ({"limit": "x"}, "limit"),
    ],
)
async def test_invalid_start_or_limit_is_rejected_and_named(
    shared: Served, query: dict[str, str], field: str
) -> None:
    response = await shared.http.get("/v1/users/u/messages", params=query)
    assert problem(response) == (422, "invalid", field)


async def test_cursor_ahead_of_the_users_clock_must_resync(shared: Served, uid: str) -> None:
    (result,) = (await shared.post(to(uid))).json()["results"]
    path = f"/v1/users/{uid}/messages"
    response = await shared.http.get(path, params={"after": result["ctime"] + 1})
    assert problem(response) == (409, "resync", None)
    assert response.json()["action"] == "resync"
    assert (await shared.http.get(path, params={"after": result["ctime"]})).status_code == 200


async def test_result_says_what_came_of_the_message(shared: Served, uid: str) -> None:
    async def post(body: Any) -> Any:
        (result,) = (await shared.post(body)).json()["results"]
        return {k: v for k, v in result.items() if k not in ("uid", "msg_id", "ctime")}

    stored, duplicate = {"status": "stored"}, {"status": "duplicate"}
    expires = {"category": "c", "body": 1, "expires": {"time": 4_000_000_000_000_000}}
    ended = {"uid": uid, "dismissal": {"msg_ids": ["x", "later", "unknown"]}}
    assert await post(to(uid, msg_id="x")) == {**stored, "visible": True, "dismissed": 0}
    assert await post({"uid": uid, "msg_id": "y", "creation": expires}) == {
        **stored,
        "visible": True,
        "expires_at": 4_000_000_000_000_000,
        "dismissed": 0,
    }
    assert await post(ended) == {**stored, "visible": False, "dismissed": 1}
    assert await post(ended) == {**stored, "visible": False, "dismissed": 0}
    assert await post(to(uid, msg_id="x")) == {**duplicate, "visible": False}
    assert await post(to(uid, msg_id="later")) == {**stored, "visible": False, "dismissed": 0}
    assert await post({"uid": uid, "msg_id": "y", "creation": expires}) == {
        **duplicate,
        "visible": True,
        "expires_at": 4_000_000_000_000_000,
    }


async def test_result_says_when_an_item_begins_and_whose_place_it_takes(
    shared: Served, uid: str
) -> None:
    async def post(body: Any) -> Any:
        (result,) = (await shared.post(body)).json()["results"]
        return {k: v for k, v in result.items() if k not in ("uid", "ctime", "status")}

    begins, ends = 4_000_000_000_000_000, 4_000_000_000_000_009
    later = {"starts": {"time": begins}, "expires": {"time": ends}}
    first = to(uid, msg_id="a")
    first["creation"] |= {"key": "k"}
    second = to(uid, msg_id="b")
    second["creation"] |= {"key": "k", **later}
    assert await post(first) == {"msg_id": "a", "visible": True, "dismissed": 0}
    fate = {"msg_id": "b", "visible": False, "starts_at": begins, "expires_at": ends}
    assert await post(second) == {**fate, "dismissed": 0, "replaced": "a"}
    assert await post(second) == fate
    (item,) = (await state(shared, uid, at=begins))["items"]
    assert (item["key"], item["starts_at"], item["expires_at"]) == ("k", begins, ends)
    assert (await state(shared, uid))["items"] == []
    assert (await state(shared, uid, at=ends))["items"] == []
    dismissal = {"ranges": [{"category": "chat", "scheduled": True}]}
    assert (await post({"uid": uid, "dismissal": dismissal}))["dismissed"] == 1


async def test_key_that_is_dismissed_up_to_an_end_ahead_can_be_put_again(
    shared: Served, uid: str
) -> None:
    ahead = {"keys": [{"key": "k", "end_time": {"time": 4_000_000_000_000_000}}]}
    value = to(uid)
    value["creation"]["key"] = "k"
    for message in (value, {"uid": uid, "dismissal": ahead}):
        assert (await shared.post(message)).status_code == 200
    assert (await state(shared, uid))["items"] == []
    await shared.post(value)
    assert len((await state(shared, uid))["items"]) == 1


@pytest.mark.parametrize("name", ["state?at", "messages?since"])
@pytest.mark.parametrize("time", ["", "yesterday", "²", "1h 30m", "2026-01-01T00:00:00", "9" * 40])
async def test_invalid_time_is_rejected_and_parameter_named(
    shared: Served, name: str, time: str
) -> None:
    resource, _, parameter = name.partition("?")
    response = await shared.http.get(f"/v1/users/u/{resource}", params={parameter: time})
    assert problem(response) == (422, "invalid", parameter)


@pytest.mark.parametrize("resource", ["state", "count", "messages", "events"])
async def test_unknown_parameter_is_rejected_and_named(shared: Served, resource: str) -> None:
    response = await shared.http.get(f"/v1/users/u/{resource}", params={"colour": "red"})
    assert problem(response) == (422, "invalid", "colour")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/users/u/state?at=-1h&at=0s", "at"),
        ("/v1/users/u/messages?since=0&since=1", "since"),
        ("/v1/users/u/events?cursor=0&cursor=1", "cursor"),
        *((f"/v1/users/u/{name}?device_id=a&device_id=b", "device_id") for name in RESOURCES),
        *((f"/v1/users/u/{name}?device_id=%ff", "device_id") for name in RESOURCES),
        ("/v1/users/u/count?prefix=a&prefix=%C3", "prefix"),
        ("/readyz?excluded=pubsub", "excluded"),
    ],
)
async def test_parameter_that_is_repeated_or_not_utf8_or_unknown_is_rejected_and_named(
    shared: Served, path: str, field: str
) -> None:
    response = await shared.http.get(path)
    assert problem(response) == (422, "invalid", field)


async def test_unknown_parameter_of_post_is_rejected(shared: Served, uid: str) -> None:
    response = await shared.http.post(f"/v1/messages?uid={uid}", json=to(uid))
    assert problem(response) == (422, "invalid", "uid")


async def test_state_of_several_prefixes_is_that_of_all(shared: Served, uid: str) -> None:
    await shared.post({"messages": [to(uid, name) for name in ("a.1", "b.1", "a.2", "c.1")]})
    answer = await state(shared, uid, prefix=["b", "a", "a.1"])
    assert [item["category"] for item in answer["items"]] == ["a.1", "b.1", "a.2"]
    assert answer["hash"] == (await state(shared, uid))["hash"]


@pytest.mark.parametrize("resource", ["state", "count", "messages", "events"])
@pytest.mark.parametrize("device_id", ["", "é" * 65, "a\0"])
async def test_invalid_device_id_is_rejected(shared: Served, resource: str, device_id: str) -> None:
    response = await shared.http.get(f"/v1/users/u/{resource}", params={"device_id": device_id})
    assert problem(response) == (422, "invalid", "device_id")


@pytest.mark.parametrize("cursor", ["-1", "²", "1.5", "x", str(2**53), "9" * 5000])
async def test_invalid_cursor_is_rejected(shared: Served, cursor: str) -> None:
    response = await shared.http.get("/v1/users/u/events", params={"cursor": cursor})
    assert problem(response) == (422, "invalid", "cursor")
    headers = {"Last-Event-ID": "0"}
    url = "/v1/users/u/events"
    response = await shared.http.get(url, params={"cursor": cursor}, headers=headers)
    assert problem(response) == (422, "invalid", "cursor")


# URLs


@pytest.mark.parametrize(
    "special_uid",
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
        "a;b",
    ],
)
async def test_uid_with_special_characters_works_in_url(shared: Served, special_uid: str) -> None:
    (result,) = (await shared.post(to(special_uid, msg_id="m"))).json()["results"]
    assert result["uid"] == special_uid
    quoted = quote(special_uid, safe="").replace(".", "%2E")
    url = str(shared.http.base_url).rstrip("/")
    for resource in ("state", "count", "messages"):
        # A raw path, because httpx normalizes URLs.
        raw = httpx.URL(url).copy_with(raw_path=f"/v1/users/{quoted}/{resource}".encode())
        answer = (await shared.http.get(raw)).json()
        if resource == "count":
            assert answer["counts"] == {"": 1}
        else:
            (entry,) = answer["items" if resource == "state" else "messages"]
            assert entry["msg_id"] == "m"


@pytest.mark.parametrize(
    "invalid_uid", ["", "%00", "a%00b", quote("é" * 65), "x" * 129, "%ff", "a%C3", "%ed%a0%80"]
)
@pytest.mark.parametrize("resource", ["state", "count", "messages", "events"])
async def test_invalid_uid_in_url_is_rejected(
    shared: Served, invalid_uid: str, resource: str
) -> None:
    response = await shared.http.get(f"/v1/users/{invalid_uid}/{resource}")
    assert problem(response) == (422, "invalid", "uid")


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/message", "/v1/users/u/", "/v2/messages", "/v1/messages/"]
)
async def test_unknown_path_answers_404(shared: Served, path: str) -> None:
    assert problem(await shared.http.get(path)) == (404, "not-found", None)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/messages", {"POST"}),
        ("GET", "/v1/users/u", {"DELETE"}),
        ("DELETE", "/v1/users/u/state", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET", "HEAD"}),
    ],
)
async def test_unsupported_method_answers_405_with_allowed_methods(
    shared: Served, method: str, path: str, allowed: set[str]
) -> None:
    response = await shared.http.request(method, path)
    assert problem(response) == (405, "method-not-allowed", None)
    assert set(response.headers["Allow"].split(", ")) == allowed


async def test_front_page_lists_endpoints(shared: Served) -> None:
    assert "/v1/messages" in (await shared.http.get("/")).text


@pytest.mark.parametrize("seconds", [1, 1_767_225_600, 1_767_225_600_000])
async def test_query_for_seconds_or_milliseconds_is_refused_with_a_hint(
    shared: Served, seconds: int
) -> None:
    for path in (f"u/state?at={seconds}", f"u/messages?since={seconds}"):
        answer = await shared.http.get(f"/v1/users/{path}")
        assert answer.status_code == 422
        assert "microseconds" in answer.json()["detail"]
    assert (await shared.http.get("/v1/users/u/messages?since=0")).status_code == 200


async def test_dots_are_no_ids_in_any_place_of_a_request(shared: Served) -> None:
    for fields in ({"uid": ".."}, {"uid": "u", "msg_id": "."}, {"uid": "u", "device_id": ".."}):
        message = {**fields, "creation": {"category": "c", "body": 1}}
        answer = await shared.http.post("/v1/messages", json=message)
        assert (answer.status_code, answer.json()["field"]) == (422, list(fields)[-1])
    message = {"msg_id": "m", "creation": {"category": "c", "body": 1}}
    answer = await shared.http.post("/v1/messages", json={"uids": ["a", ".."], "message": message})
    assert [result["status"] for result in answer.json()["results"]] == ["stored", "rejected"]
