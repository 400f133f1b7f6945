"""The conversation over a WebSocket: what a device may get wrong, and what it is told then."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from gregor.core.message import MAX_BODY, MAX_MESSAGE
from gregor.protocol.frames import MAX_FRAME
from tests.server.world import Device, Served, creation, serving, to, until, without_a_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: dict[str, Any] = {"type": "hello", "token": "u", "device_id": "d", "protocol": 1}

# What is wrong with one message of a consume: (the message, the code, the field that is named).
BAD_MESSAGES: dict[str, tuple[Any, str, str | None]] = {
    "not an object": (7, "invalid", None),
    "nothing in it": ({}, "invalid", None),
    "an empty dismissal": ({"dismissal": {}}, "invalid", None),
    "an unknown field": (creation(colour="red"), "invalid", "colour"),
    "an unknown field within": (
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
    "a category of 128 characters and 256 bytes": (creation("é" * 128), "invalid", "category"),
    "a device_id of 129 bytes": (creation(device_id="é" * 64 + "e"), "invalid", "device_id"),
    "a dismissed id too long": ({"dismissal": {"msg_ids": ["é" * 33]}}, "invalid", "msg_ids"),
    "a range's category too long": (
        {"dismissal": {"ranges": [{"category": "é" * 128}]}},
        "invalid",
        "category",
    ),
    "a body too large": (creation(body="x" * MAX_BODY), "too-large", "body"),
    "a message too large": (
        {"dismissal": {"msg_ids": ["x" * 64] * (MAX_MESSAGE // 67)}},
        "too-large",
        None,
    ),
    "a body too deep": (
        {"creation": {"category": "c", "body": json.loads("[" * 200 + "]" * 200)}},
        "invalid",
        "body",
    ),
    "a ctime of its own": (creation(ctime=5), "invalid", "ctime"),
    "a prev of its own": (creation(prev=5), "invalid", "ctime"),
    "an expiry before its beginning": (
        {"creation": {"category": "c", "body": 1, "dtime": {"offset": -1}}},
        "invalid",
        "dtime",
    ),
    "a time and an offset": (
        {"creation": {"category": "c", "body": 1, "dtime": {"offset": 1, "time": 1}}},
        "invalid",
        "creation.dtime",
    ),
    "a time that is none": (
        {"creation": {"category": "c", "body": 1, "dtime": {"time": "yesterday"}}},
        "invalid",
        "creation.dtime",
    ),
    "another user's uid": (to("somebody else"), "forbidden", "uid"),
    "out of band with a msg_id": (
        {"system": "s", "body": 1, "msg_id": "m"},
        "invalid",
        "msg_id",
    ),
    "out of band without a body": ({"system": "s"}, "invalid", "body"),
    "a body beside the creation": ({**creation(), "body": 1}, "invalid", "body"),
}


@pytest.mark.parametrize("wrong", BAD_MESSAGES)
async def test_a_bad_message_rejects_itself_and_not_its_neighbours(
    shared: Served, uid: str, wrong: str
) -> None:
    message, code, field = BAD_MESSAGES[wrong]
    async with await shared.synced("user") as device:
        ack = await device.consume(creation(msg_id=f"{hash(uid)} 1"), message, creation())
        first, bad, last = ack["results"]
        assert (first["status"], bad["status"], last["status"]) == ("stored", "rejected", "stored")
        assert (bad["error"]["code"], bad["error"].get("field")) == (code, field)
        assert bad["error"]["turn"] == "stop"
        await device.works()


ELSEWHERE = '{"type": "goaway", "reconnect_after_ms": 1}'

# Frames that are none: (the text, the code, the field that is named). The conversation goes on.
BAD_FRAMES: dict[str, tuple[str, str, str | None]] = {
    "malformed JSON": ('{"type": "consume", ', "malformed", None),
    "not an object": ("[1, 2]", "malformed", None),
    "empty": ("", "malformed", None),
    "no type": ('{"n": 1}', "malformed", "type"),
    "an unknown type": ('{"type": "shout"}', "malformed", "type"),
    "a frame of the other side": (ELSEWHERE, "malformed", "type"),
    "an unknown field": ('{"type": "verify", "cursor": 1, "x": 1}', "malformed", "x"),
    "a missing field": ('{"type": "verify"}', "malformed", "cursor"),
    "a wrong type": ('{"type": "verify", "cursor": "1"}', "malformed", "cursor"),
    "a negative cursor": ('{"type": "verify", "cursor": -1}', "malformed", "cursor"),
    "a cursor beyond all time": (f'{{"type": "verify", "cursor": {2**53}}}', "malformed", "cursor"),
    "no list": ('{"type": "consume", "n": 1, "messages": 1}', "malformed", "messages"),
    "nested beyond reading": ("[" * 100_000, "malformed", None),
}  # fmt: skip


@pytest.mark.parametrize("wrong", BAD_FRAMES)
async def test_a_bad_frame_is_named_and_the_conversation_goes_on(
    shared: Served, uid: str, wrong: str
) -> None:
    text, code, field = BAD_FRAMES[wrong]
    async with await shared.synced(uid) as device:
        await device.connection.send(text)
        error = await device.hear()
        assert (error["type"], error["code"], error["turn"]) == ("error", code, "stop")
        assert error.get("field") == field
        await device.works()


@pytest.mark.parametrize("number", [0, 501])
async def test_a_consume_takes_1_to_500_messages(shared: Served, uid: str, number: int) -> None:
    async with await shared.synced(uid) as device:
        error = await device.consume(*[creation()] * number)
        assert (error["type"], error["code"], error["n"]) == ("error", "too-large", 1)
        await device.works()
        ack = await device.consume(*[creation() for _ in range(500)])
        assert len(ack["results"]) == 500


async def test_a_range_may_look_back_where_an_expiry_may_not(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        back = {"category": "c", "end_time": {"offset": -5}}
        ack = await device.consume({"dismissal": {"ranges": [back]}})
        assert ack["results"][0]["status"] == "stored"


async def test_a_duplicate_is_a_success_and_other_contents_are_a_conflict(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as device:
        (first,) = (await device.consume(creation(msg_id="m", body={"a": 1, "b": 2})))["results"]
        again, other = (
            await device.consume(
                creation(msg_id="m", body={"b": 2, "a": 1}), creation(msg_id="m", body="else")
            )
        )["results"]
        assert again == {**first, "status": "duplicate"}
        assert (other["status"], other["error"]["code"]) == ("rejected", "conflict")
        await device.works()


async def test_the_welcome_says_who_one_is_and_what_is_taken(shared: Served, uid: str) -> None:
    async with await Device.connected(shared.url) as device:
        await device.say("hello", token=uid, device_id="d9", protocol=1)
        welcome = await device.hear()
        assert (welcome["uid"], welcome["device_id"]) == (uid, "d9")
        assert welcome["limits"] == {
            "messages": 500,
            "message_bytes": MAX_MESSAGE,
            "body_bytes": MAX_BODY,
            "frame_bytes": MAX_FRAME,
        }
        sync = await device.hear()
        assert (sync["mode"], sync["cursor"]) == ("snapshot", 0)


# First frames that end the conversation: (the frame, the error's code, the close code).
BAD_FIRST_FRAMES: dict[str, tuple[str | bytes, str, int]] = {
    "not a hello": ('{"type": "verify", "cursor": 0}', "protocol", 4002),
    "not JSON": ("hello", "protocol", 4002),
    "a hello with an unknown field": (json.dumps({**HELLO, "x": 1}), "protocol", 4002),
    "a hello without a token": (
        json.dumps({k: v for k, v in HELLO.items() if k != "token"}),
        "protocol",
        4002,
    ),
    "a hello of another protocol": (json.dumps({**HELLO, "protocol": 2}), "protocol", 4002),
    "an empty device_id": (json.dumps({**HELLO, "device_id": ""}), "protocol", 4002),
    "a device_id of 129 bytes": (json.dumps({**HELLO, "device_id": "é" * 65}), "protocol", 4002),
    "a device_id with NUL": (json.dumps({**HELLO, "device_id": "a\0"}), "protocol", 4002),
    "an empty token": (json.dumps({**HELLO, "token": ""}), "forbidden", 4003),
    "a uid of 129 bytes": (json.dumps({**HELLO, "token": "é" * 65}), "unauthenticated", 4001),
    "a uid with NUL": (json.dumps({**HELLO, "token": "a\0"}), "unauthenticated", 4001),
    "a binary frame": (json.dumps(HELLO).encode(), "protocol", 4002),
}


@pytest.mark.parametrize("wrong", BAD_FIRST_FRAMES)
async def test_a_conversation_begins_with_a_good_hello_or_ends(shared: Served, wrong: str) -> None:
    frame, code, close_code = BAD_FIRST_FRAMES[wrong]
    async with await Device.connected(shared.url) as device:
        await device.connection.send(frame)
        assert (await device.hear())["code"] == code
        assert await device.closed() == close_code
        assert device.connection.close_reason == code


async def test_a_hello_that_never_comes_is_not_waited_for(shared: Served) -> None:
    async with await Device.connected(shared.url) as device:
        assert (await device.hear())["code"] == "hello-timeout"
        assert await device.closed() == 4008


async def test_a_hello_in_time_stops_the_clock(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        other = await Device.connected(shared.url)
        assert await other.closed() == 4008  # by then ours would be over, too
        await device.works()


async def test_a_binary_frame_ends_the_conversation(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.connection.send(b"{}")
        assert (await device.hear())["code"] == "protocol"
        assert await device.closed() == 4002


async def test_a_second_hello_ends_the_conversation(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.say("hello", token="another", device_id="d", protocol=1)
        assert (await device.hear())["code"] == "protocol"
        assert await device.closed() == 4002


async def test_a_frame_above_one_mebibyte_closes_the_connection(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        with suppress(ConnectionClosed):  # perhaps before all of it is sent
            await device.connection.send("x" * (MAX_FRAME + 1))
        assert await device.closed() == 1009


async def test_a_frame_of_one_mebibyte_is_taken(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        text = json.dumps({"type": "consume", "n": 7, "messages": [creation()]})
        await device.connection.send(text.ljust(MAX_FRAME))
        assert (await device.heard("ack"))["n"] == 7


async def test_text_that_is_not_unicode_closes_the_connection(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        await device.connection.send(b'"\xff"', text=True)
        assert await device.closed() == 1007


async def test_a_device_hears_its_own_message_and_everyone_elses(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        (result,) = (await one.consume(creation(body={"n": 1})))["results"]
        frame = await two.heard("messages")
        assert (frame["prev"], frame["cursor"]) == (0, result["ctime"])
        (message,) = frame["messages"]
        assert (message["msg_id"], message["creation"]["body"]) == (result["msg_id"], {"n": 1})


async def test_a_creation_for_another_device_never_leaves_the_node(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        mine = {**creation(device_id="d2"), "dismissal": {"msg_ids": ["x"]}}
        await two.consume(mine)
        (message,) = (await one.heard("messages"))["messages"]
        assert "creation" not in message
        assert message["dismissal"] == {"msg_ids": ["x"]}


async def test_what_concerns_no_device_here_leaves_no_gap(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        await two.consume(creation(device_id="d2"))
        (result,) = (await two.consume(creation()))["results"]
        frame = await one.heard("messages")
        assert (frame["prev"], frame["cursor"]) == (0, result["ctime"])
        assert [message["msg_id"] for message in frame["messages"]] == [result["msg_id"]]


async def test_a_reconnect_from_the_cursor_brings_what_was_missed(shared: Served, uid: str) -> None:
    async with await shared.synced(uid) as device:
        (first,) = (await device.consume(creation(msg_id="first")))["results"]
    await shared.post(to(uid, msg_id="second"))
    async with await shared.device(uid, cursor=first["ctime"]) as device:
        sync = await device.hear()
        assert sync["mode"] == "changes"
        assert [message["msg_id"] for message in sync["messages"]] == ["second"]


async def test_a_cursor_ahead_of_the_users_clock_gets_a_snapshot(shared: Served, uid: str) -> None:
    await shared.post(to(uid, msg_id="m"))
    async with await shared.device(uid, cursor=2**53 - 1) as device:
        sync = await device.hear()
        assert sync["mode"] == "snapshot"
        assert [item["msg_id"] for item in sync["items"]] == ["m"]


async def test_verify_from_zero_is_a_snapshot_and_is_counted(shared: Served, uid: str) -> None:
    before = await shared.metric("gregor_hash_mismatches_total")
    await shared.post(to(uid))
    async with await shared.synced(uid) as device:
        await device.say("verify", cursor=0)
        assert (await device.hear())["mode"] == "snapshot"
        assert await shared.metric("gregor_hash_mismatches_total") == before + 1


async def test_a_long_sync_comes_in_pages(shared: Served, uid: str) -> None:
    for _ in range(3):
        await shared.post({"messages": [to(uid, body="x" * 100) for _ in range(500)]})
    async with await shared.device(uid) as device:
        pages = [await device.hear()]
        while pages[-1].get("more"):
            pages.append(await device.hear())
        assert len(pages) == 3
        assert sum(len(page["items"]) for page in pages) == 1500
        assert len({(page["cursor"], page["hash"], page["as_of"]) for page in pages}) == 1


async def test_out_of_band_messages_pass_by_and_are_nowhere_afterwards(
    shared: Served, uid: str
) -> None:
    async with await shared.synced(uid) as one, await shared.synced(uid, "d2") as two:
        ack = await one.consume({"system": "chat.typing", "body": {"who": "me"}})
        assert [result["status"] for result in ack["results"]] == ["passed"]
        expected = {"type": "out_of_band", "system": "chat.typing", "body": {"who": "me"}}
        assert await two.hear() == expected
        assert await one.hear() == expected
    async with await shared.device(uid) as late:
        assert (await late.hear()).get("items", []) == []


async def test_a_connection_that_breaks_off_leaves_nothing_behind(shared: Served, uid: str) -> None:
    device = await shared.synced(uid)
    device.connection.transport.abort()
    await device.connection.wait_closed()
    async with await shared.synced(uid, "d2") as other:
        await other.works()  # ours is still told, or not any more: nobody minds


async def test_a_device_is_told_of_a_store_that_fails_and_may_send_again() -> None:
    async with serving() as served, await served.synced("u") as device:
        async with without_a_store(served):
            error = await device.consume(creation(msg_id="m"))
            assert (error["type"], error["code"]) == ("error", "unavailable")
            assert (error["n"], error["turn"]) == (1, "retry")
        (result,) = (await device.consume(creation(msg_id="m")))["results"]
        assert result["status"] == "stored"


async def test_a_device_that_cannot_be_synced_is_sent_away_to_come_back() -> None:
    async with serving() as served, await served.synced("u") as device:
        async with without_a_store(served):
            await device.say("verify", cursor=0)
            assert (await device.hear())["code"] == "unavailable"
            assert await device.closed() == 1013
        async with await served.synced("u") as device:
            await device.works()


async def test_a_stopping_server_answers_503_to_a_device_that_comes() -> None:
    async with serving() as served:
        await served.server.drain()
        with pytest.raises(Exception, match="HTTP 503") as refused:
            await Device.connected(served.url)
        assert refused.value.response.headers["Retry-After"] == "1"  # type: ignore[attr-defined]


async def test_a_stopping_server_says_goaway_and_closes() -> None:
    async with (
        serving() as served,
        await served.synced("u") as device,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(served.server.drain())
        assert await device.hear() == {"type": "goaway", "reconnect_after_ms": 1000}
        assert await device.closed() == 1012


async def test_what_is_under_way_when_the_server_stops_is_still_acknowledged() -> None:
    async with serving() as served, await served.synced("u") as device:
        await device.say("consume", n=1, messages=[creation() for _ in range(500)])
        await until(lambda: served.server.service.busy)
        await served.server.drain()
        assert len((await device.heard("ack"))["results"]) == 500
        assert (await device.heard("goaway"))["type"] == "goaway"
