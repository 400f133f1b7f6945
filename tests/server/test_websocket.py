"""The conversation over a WebSocket: valid and invalid frames, and the answers to them."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gregor.core.message import MAX_BODY, MAX_MESSAGE
from gregor.protocol.frames import MAX_FRAME
from tests.protocol.bad_entries import NOT_JSON
from tests.server.harness import (
    JSON,
    RawDevice,
    Served,
    creation,
    serving,
    store_failure,
    to,
    until,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: dict[str, Any] = {"type": "hello", "token": "u", "device_id": "d", "protocol": 2}

KEY, KEYS = "creation.key", "dismissal.keys[0].key"


def starting(starts: Any, **fields: Any) -> JSON:
    """A creation with a start."""
    return {"creation": {"category": "c", "body": 1, "starts": starts, **fields}}


# Invalid messages in a consume: (message, error code, error field).
BAD_MESSAGES: dict[str, tuple[Any, str, str | None]] = {
    "not an object": (7, "invalid", None),
    "an empty message": ({}, "invalid", None),
    "an empty dismissal": ({"dismissal": {}}, "invalid", None),
    "an unknown field": (creation(colour="red"), "invalid", "colour"),
    "an unknown field of the creation": (
        {"creation": {"category": "c", "body": 1, "colour": "red"}},
        "invalid",
        "creation.colour",
    ),
    "no body": ({"creation": {"category": "c"}}, "invalid", "creation.body"),
    "a number for a category": (creation(category=5), "invalid", "creation.category"),  # type: ignore[arg-type]
    "a number for an id": (creation(msg_id=5), "invalid", "msg_id"),
    "an empty id": (creation(msg_id=""), "invalid", "msg_id"),
    "an id of 65 characters": (creation(msg_id="x" * 65), "invalid", "msg_id"),
    "an id of 33 characters and 66 bytes": (creation(msg_id="é" * 33), "invalid", "msg_id"),
    "an id with NUL in it": (creation(msg_id="a\0b"), "invalid", "msg_id"),
    "an empty category": (creation(""), "invalid", "creation.category"),
    "a category of 128 characters and 256 bytes": (
        creation("é" * 128),
        "invalid",
        "creation.category",
    ),
    "a device_id of 129 bytes": (creation(device_id="é" * 64 + "e"), "invalid", "device_id"),
    "a dismissed id of 66 bytes": (
        {"dismissal": {"msg_ids": ["é" * 33]}},
        "invalid",
        "dismissal.msg_ids",
    ),
    "a range's category of 256 bytes": (
        {"dismissal": {"ranges": [{"category": "é" * 128}]}},
        "invalid",
        "dismissal.ranges[0].category",
    ),
    "a body above the size limit": (
        creation(body="x" * MAX_BODY),
        "too-large",
        "creation.body",
    ),
    "a message above the size limit": (
        {"dismissal": {"msg_ids": ["x" * 64] * (MAX_MESSAGE // 67)}},
        "too-large",
        None,
    ),
    "a body nested too deeply": (
        {"creation": {"category": "c", "body": json.loads("[" * 200 + "]" * 200)}},
        "invalid",
        "creation.body",
    ),
    "a ctime set by the sender": (creation(ctime=5), "invalid", "ctime"),
    "a prev set by the sender": (creation(prev=5), "invalid", "ctime"),
    "an empty key": ({"creation": {"category": "c", "body": 1, "key": ""}}, "invalid", KEY),
    "a key of 128 characters and 256 bytes": (
        {"creation": {"category": "c", "body": 1, "key": "é" * 128}},
        "invalid",
        KEY,
    ),
    "a number for a key": ({"creation": {"category": "c", "body": 1, "key": 5}}, "invalid", KEY),
    "a start before 2001": (starting({"time": 1_700_000_000}), "invalid", "creation.starts"),
    "a start before the ctime": (starting({"offset": -1}), "invalid", "creation.starts"),
    "a number for a start": (starting(1_700_000_000_000_000), "invalid", "creation.starts"),
    "a start at the expiry, both offsets": (
        starting({"offset": "1h"}, expires={"offset": "1h"}),
        "invalid",
        "creation.starts",
    ),
    "a start after the expiry, both times": (
        starting({"time": 4_000_000_000_000_001}, expires={"time": 4_000_000_000_000_000}),
        "invalid",
        "creation.starts",
    ),
    "a start after the expiry, as only the ctime shows": (
        starting({"time": 4_000_000_000_000_000}, expires={"offset": "1h"}),
        "invalid",
        "creation.starts",
    ),
    "an empty dismissed key": ({"dismissal": {"keys": [{"key": ""}]}}, "invalid", KEYS),
    "a dismissed key of 256 bytes": (
        {"dismissal": {"keys": [{"key": "é" * 128}]}},
        "invalid",
        KEYS,
    ),
    "a text for a dismissed key": (
        {"dismissal": {"keys": ["theme"]}},
        "invalid",
        "dismissal.keys[0]",
    ),
    "an end of a key before 2001": (
        {"dismissal": {"keys": [{"key": "a"}, {"key": "b", "end_time": {"time": 1_700_000_000}}]}},
        "invalid",
        "dismissal.keys[1].end_time",
    ),
    "no keys": ({"dismissal": {"keys": []}}, "invalid", None),
    "a number for scheduled": (
        {"dismissal": {"ranges": [{"category": "c", "scheduled": 1}]}},
        "invalid",
        "dismissal.ranges[0].scheduled",
    ),
    "an expiry before the ctime": (
        {"creation": {"category": "c", "body": 1, "expires": {"offset": -1}}},
        "invalid",
        "creation.expires",
    ),
    "a time and an offset": (
        {"creation": {"category": "c", "body": 1, "expires": {"offset": 1, "time": 1}}},
        "invalid",
        "creation.expires.time",
    ),
    "an invalid time": (
        {"creation": {"category": "c", "body": 1, "expires": {"time": "yesterday"}}},
        "invalid",
        "creation.expires.time",
    ),
    "another user's uid": (to("another user"), "forbidden", "uid"),
    "an out-of-band message with a msg_id": (
        {"system": "s", "body": 1, "msg_id": "m"},
        "invalid",
        "msg_id",
    ),
    "an out-of-band message without a body": ({"system": "s"}, "invalid", "body"),
    "a creation and a body": ({**creation(), "body": 1}, "invalid", "body"),
}


@pytest.mark.parametrize("defect", BAD_MESSAGES)
async def test_invalid_message_is_rejected_and_others_are_stored(
    shared: Served, uid: str, defect: str
) -> None:
    message, code, field = BAD_MESSAGES[defect]
    async with await shared.synced("user") as device:
        ack = await device.consume(creation(msg_id=f"{hash(uid)} 1"), message, creation())
        first, bad, last = ack["results"]
        assert (first["status"], bad["status"], last["status"]) == ("stored", "rejected", "stored")
        assert (bad["error"]["code"], bad["error"].get("field")) == (code, field)
        assert bad["error"]["action"] == "stop"
        await device.assert_usable()


GOAWAY = '{"type": "goaway", "reconnect_after_ms": 1}'

# Malformed frames: (text, error code, error field). The conversation continues after them.
BAD_FRAMES: dict[str, tuple[str, str, str | None]] = {
    "malformed JSON": ('{"type": "consume", ', "malformed", None),
    "not an object": ("[1, 2]", "malformed", None),
    "empty": ("", "malformed", None),
    "no type": ('{"n": 1}', "malformed", "type"),
    "an unknown type": ('{"type": "shout"}', "malformed", "type"),
    "a frame that only nodes send": (GOAWAY, "malformed", "type"),
    "an unknown field": ('{"type": "verify", "cursor": 1, "x": 1}', "malformed", "x"),
    "a missing field": ('{"type": "verify"}', "malformed", "cursor"),
    "a wrong type": ('{"type": "verify", "cursor": "1"}', "malformed", "cursor"),
    "a negative cursor": ('{"type": "verify", "cursor": -1}', "malformed", "cursor"),
    "a cursor above the limit": (f'{{"type": "verify", "cursor": {2**53}}}', "malformed", "cursor"),
    "messages that are not a list": (
        '{"type": "consume", "n": 1, "messages": 1}', "malformed", "messages",
    ),
    "nested too deeply": ("[" * 100_000, "malformed", None),
}  # fmt: skip


@pytest.mark.parametrize("defect", BAD_FRAMES)
async def test_malformed_frame_gets_error_and_conversation_continues(
    shared: Served, uid: str, defect: str
) -> None:
    text, code, field = BAD_FRAMES[defect]
    async with await shared.synced(uid) as device:
        await device.connection.send(text)
        error = await device.receive()
        assert (error["type"], error["code"], error["action"]) == ("error", code, "stop")
        assert error.get("field") == field
        await device.assert_usable()


@pytest.mark.parametrize("number", [0, 501])
async def test_consume_accepts_only_1_to_500_messages(
    shared: Served, uid: str, number: int
) -> None:
    async with await shared.synced(uid) as device:
        error = await device.consume(*[creation()] * number)
        assert (error["type"], error["code"], error["n"]) == ("error", "too-large", 1)
        await device.assert_usable()
        ack = await device.consume(*[creation() for _ in range(500)])
        assert len(ack["results"]) == 500


@pytest.mark.parametrize("defect", [name for name in NOT_JSON if "UTF-8" not in name])
async def test_one_bad_message_of_a_consume_is_rejected_alone(
    shared: Served, uid: str, defect: str
) -> None:
    bad = f'{{"creation":{{"category":"c","body":{NOT_JSON[defect].decode()}}}}}'
    good = json.dumps(creation())
    async with await shared.synced(uid) as device:
        frame = f'{{"type":"consume","n":7,"messages":[{good},{bad},{good}]}}'
        await device.connection.send(frame)
        ack = await device.receive_type("ack")
        assert ack["n"] == 7
        assert [r["status"] for r in ack["results"]] == ["stored", "rejected", "stored"]
        await device.assert_usable()


async def test_range_may_end_before_the_ctime(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        range_ = {"category": "c", "end_time": {"offset": -5}}
        ack = await device.consume({"dismissal": {"ranges": [range_]}})
        assert ack["results"][0]["status"] == "stored"


async def test_repeated_message_is_duplicate_and_other_contents_are_conflict(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as device:
        (first,) = (await device.consume(creation(msg_id="m", body={"a": 1, "b": 2})))["results"]
        repeated, other = (
            await device.consume(
                creation(msg_id="m", body={"b": 2, "a": 1}), creation(msg_id="m", body="else")
            )
        )["results"]
        assert first.pop("dismissed") == 0
        assert repeated == {**first, "status": "duplicate"}
        assert (other["status"], other["error"]["code"]) == ("rejected", "conflict")
        await device.assert_usable()


async def test_welcome_contains_uid_device_id_and_limits(shared: Served, uid: str) -> None:
    async with await RawDevice.connect(shared.url) as device:
        await device.send("hello", token=uid, device_id="d9", protocol=2)
        welcome = await device.receive()
        assert (welcome["uid"], welcome["device_id"]) == (uid, "d9")
        limits = (await shared.http.get("/v1/limits")).json()
        assert welcome["limits"] == limits
        assert limits["message_bytes"] == MAX_MESSAGE
        assert limits["body_bytes"] == MAX_BODY
        assert limits["frame_bytes"] == MAX_FRAME
        assert (limits["messages"], limits["ids_days"]) == (500, 400)
        sync = await device.receive()
        assert (sync["mode"], sync["cursor"]) == ("snapshot", 0)


# First frames that close the conversation: (frame, error code, close code).
BAD_FIRST_FRAMES: dict[str, tuple[str | bytes, str, int]] = {
    "not a hello": ('{"type": "verify", "cursor": 0}', "protocol", 4002),
    "not JSON": ("hello", "protocol", 4002),
    "a hello with an unknown field": (json.dumps({**HELLO, "x": 1}), "protocol", 4002),
    "a hello without a token": (
        json.dumps({k: v for k, v in HELLO.items() if k != "token"}),
        "protocol",
        4002,
    ),
    "a hello of another protocol": (json.dumps({**HELLO, "protocol": 1}), "protocol", 4002),
    "an empty device_id": (json.dumps({**HELLO, "device_id": ""}), "protocol", 4002),
    "a device_id of 129 bytes": (json.dumps({**HELLO, "device_id": "é" * 65}), "protocol", 4002),
    "a device_id with NUL": (json.dumps({**HELLO, "device_id": "a\0"}), "protocol", 4002),
    "an empty token": (json.dumps({**HELLO, "token": ""}), "forbidden", 4003),
    "a uid of 129 bytes": (json.dumps({**HELLO, "token": "é" * 65}), "unauthenticated", 4001),
    "a uid with NUL": (json.dumps({**HELLO, "token": "a\0"}), "unauthenticated", 4001),
    "a binary frame": (json.dumps(HELLO).encode(), "protocol", 4002),
}


@pytest.mark.parametrize("defect", BAD_FIRST_FRAMES)
async def test_invalid_first_frame_closes_conversation(shared: Served, defect: str) -> None:
    frame, code, close_code = BAD_FIRST_FRAMES[defect]
    async with await RawDevice.connect(shared.url) as device:
        await device.connection.send(frame)
        assert (await device.receive())["code"] == code
        assert await device.wait_closed() == close_code
        assert device.connection.close_reason == code


async def test_connection_without_hello_is_closed_after_timeout(shared: Served) -> None:
    async with await RawDevice.connect(shared.url) as device:
        assert (await device.receive())["code"] == "hello-timeout"
        assert await device.wait_closed() == 4008


async def test_hello_timeout_does_not_close_connection_that_sent_hello(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as device:
        other = await RawDevice.connect(shared.url)
        assert await other.wait_closed() == 4008  # the time-out of `device` is earlier
        await device.assert_usable()


async def test_binary_frame_closes_conversation(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.connection.send(b"{}")
        assert (await device.receive())["code"] == "protocol"
        assert await device.wait_closed() == 4002


async def test_second_hello_closes_conversation(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.send("hello", token="another", device_id="d", protocol=2)
        assert (await device.receive())["code"] == "protocol"
        assert await device.wait_closed() == 4002


async def test_frame_above_size_limit_closes_connection(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        with suppress(ConnectionClosed):  # the server may close before it has received everything
            await device.connection.send("x" * (MAX_FRAME + 1))
        assert await device.wait_closed() == 1009


async def test_frame_of_size_limit_is_accepted(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        text = json.dumps({"type": "consume", "n": 7, "messages": [creation()]})
        await device.connection.send(text.ljust(MAX_FRAME))
        assert (await device.receive_type("ack"))["n"] == 7


async def test_text_frame_with_invalid_utf8_closes_connection(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.connection.send(b'"\xff"', text=True)
        assert await device.wait_closed() == 1007


async def test_message_of_one_device_reaches_other_device(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        (result,) = (await one.consume(creation(body={"n": 1})))["results"]
        frame = await two.receive_type("messages")
        assert (frame["prev"], frame["cursor"]) == (0, result["ctime"])
        (message,) = frame["messages"]
        assert (message["msg_id"], message["creation"]["body"]) == (result["msg_id"], {"n": 1})


async def test_creation_scoped_to_another_device_is_not_sent(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        scoped = {**creation(device_id="d2"), "dismissal": {"msg_ids": ["x"]}}
        await two.consume(scoped)
        (message,) = (await one.receive_type("messages"))["messages"]
        assert "creation" not in message
        assert message["dismissal"] == {"msg_ids": ["x"]}


async def test_message_scoped_to_another_device_leaves_no_gap(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        await two.consume(creation(device_id="d2"))
        (result,) = (await two.consume(creation()))["results"]
        frame = await one.receive_type("messages")
        assert (frame["prev"], frame["cursor"]) == (0, result["ctime"])
        assert [message["msg_id"] for message in frame["messages"]] == [result["msg_id"]]


async def test_reconnect_with_cursor_syncs_missed_messages(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        (first,) = (await device.consume(creation(msg_id="first")))["results"]
    await shared.post(to(uid, msg_id="second"))
    async with await shared.device(uid, cursor=first["ctime"]) as device:
        sync = await device.receive()
        assert sync["mode"] == "changes"
        assert [message["msg_id"] for message in sync["messages"]] == ["second"]


async def test_cursor_ahead_of_users_clock_gets_snapshot(shared: Served, uid: str) -> None:
    await shared.post(to(uid, msg_id="m"))
    async with await shared.device(uid, cursor=2**53 - 1) as device:
        sync = await device.receive()
        assert sync["mode"] == "snapshot"
        assert [item["msg_id"] for item in sync["items"]] == ["m"]


async def test_verify_with_cursor_0_gets_snapshot_and_counts_hash_mismatch(
    shared: Served, uid: str
) -> None:
    before = await shared.metric("gregor_hash_mismatches_total")
    await shared.post(to(uid))
    async with await shared.synced(uid) as device:
        await device.send("verify", cursor=0)
        assert (await device.receive())["mode"] == "snapshot"
        assert await shared.metric("gregor_hash_mismatches_total") == before + 1


async def test_long_sync_is_sent_in_pages(shared: Served, uid: str) -> None:
    for _ in range(3):
        await shared.post({"messages": [to(uid, body="x" * 100) for _ in range(500)]})
    async with await shared.device(uid) as device:
        pages = [await device.receive()]
        while pages[-1].get("more"):
            pages.append(await device.receive())
        assert len(pages) == 3
        assert sum(len(page["items"]) for page in pages) == 1500
        assert len({(page["cursor"], page["hash"], page["as_of"]) for page in pages}) == 1


async def test_out_of_band_message_is_relayed_to_all_devices_and_not_stored(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        ack = await one.consume({"system": "chat.typing", "body": {"who": "me"}})
        assert [result["status"] for result in ack["results"]] == ["relayed"]
        expected = {"type": "out_of_band", "system": "chat.typing", "body": {"who": "me"}}
        assert await two.receive() == expected
        assert await one.receive() == expected
    async with await shared.device(uid) as later:
        assert (await later.receive()).get("items", []) == []


async def test_aborted_connection_does_not_affect_other_devices(shared: Served, uid: str) -> None:
    device = await shared.synced(uid)
    device.connection.transport.abort()
    await device.connection.wait_closed()
    async with await shared.synced(uid, "d2") as other:
        await other.assert_usable()  # the node may or may not still send to `device`


async def test_store_failure_gets_error_and_retry_is_stored() -> None:
    async with serving() as served, await served.synced("u") as device:
        async with store_failure(served):
            error = await device.consume(creation(msg_id="m"))
            assert (error["type"], error["code"]) == ("error", "unavailable")
            assert (error["n"], error["action"]) == (1, "retry")
        (result,) = (await device.consume(creation(msg_id="m")))["results"]
        assert result["status"] == "stored"


async def test_store_failure_during_sync_closes_connection_and_device_can_reconnect() -> None:
    async with serving() as served, await served.synced("u") as device:
        async with store_failure(served):
            await device.send("verify", cursor=0)
            assert (await device.receive())["code"] == "unavailable"
            assert await device.wait_closed() == 1013
        async with await served.synced("u") as device:
            await device.assert_usable()


async def test_draining_server_answers_503_to_new_connection() -> None:
    async with serving() as served:
        await served.server.drain()
        with pytest.raises(Exception, match="HTTP 503") as refused:
            await RawDevice.connect(served.url)
        assert refused.value.response.headers["Retry-After"] == "1"  # type: ignore[attr-defined]


async def test_draining_server_sends_goaway_and_closes() -> None:
    async with (
        serving() as served,
        await served.synced("u") as device,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(served.server.drain())
        assert await device.receive() == {"type": "goaway", "reconnect_after_ms": 500}
        assert await device.wait_closed() == 1012


async def test_consume_in_flight_is_acknowledged_before_goaway() -> None:
    async with serving() as served, await served.synced("u") as device:
        await device.send("consume", n=1, messages=[creation() for _ in range(500)])
        await until(lambda: served.server.service.busy)
        await served.server.drain()
        assert len((await device.receive_type("ack"))["results"]) == 500
        assert (await device.receive_type("goaway"))["type"] == "goaway"
