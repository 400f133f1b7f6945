"""Notifications of backends: two items in one request and one transaction, stored once.

Each test runs with both producers.
"""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from gregor.core.message import create
from gregor.errors import Conflict, InvalidMessage
from tests.client.test_producer import FakeServer, producer_for, result
from tests.server.harness import Served, serving

both_producers = pytest.mark.parametrize("kind", ["Producer", "AsyncProducer"])
BODY = {"title": "Ann liked your photo"}


async def items(served: Served, device_id: str = "phone") -> dict[str, Any]:
    """What the device sees, by msg_id."""
    answer = await served.http.get("/v1/users/alice/state", params={"device_id": device_id})
    return {item["msg_id"]: item for item in answer.json()["items"]}


@both_producers
async def test_notification_is_one_request_with_two_messages(kind: str) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        outcome = await producer.notify(
            "alice", "likes", BODY, key="photo7", msg_id="m1", starts="1h", expires="1d"
        )
    assert outcome.msg_id == "m1"
    (request,) = server.bodies()
    times = {"starts": {"offset": 3_600_000_000}, "expires": {"offset": 86_400_000_000}}
    assert request["messages"] == [
        {
            "uid": "alice",
            "msg_id": "m1",
            "creation": {"category": "inbox.likes", "body": BODY, "key": "photo7", **times},
        },
        {
            "uid": "alice",
            "msg_id": "unread:m1",
            "creation": {"category": "unread.likes", "body": None, "key": "unread:photo7", **times},
        },
    ]


@both_producers
async def test_notification_that_is_sent_again_stores_nothing(kind: str) -> None:
    async with serving() as served, producer_for(kind, str(served.http.base_url)) as producer:
        options = {"msg_id": "m1", "expires": timedelta(days=1), "device_id": "phone"}
        first = await producer.notify("alice", "likes", BODY, **options)
        await producer.dismiss_key("alice", "unread:m1")
        second = await producer.notify("alice", "likes", BODY, **options)
        assert (first.status, second.status) == ("stored", "duplicate")
        assert second.ctime == first.ctime
        assert list(await items(served)) == ["m1"]
        assert await items(served, "laptop") == {}


@both_producers
async def test_item_and_marker_are_stored_together(kind: str) -> None:
    """Nothing is stored between them, so no device is told of one alone for long."""
    async with serving() as served, producer_for(kind, str(served.http.base_url)) as producer:
        await producer.notify("alice", "likes", BODY, msg_id="m1", expires="1d")
        stored = await items(served)
        item, marker = stored["m1"], stored["unread:m1"]
        assert marker["ctime"] == item["ctime"] + 1
        assert marker["expires_at"] == item["expires_at"] + 1
        await producer.notify("alice", "likes", BODY, key="m1", msg_id="m2", starts="1h")
        assert await items(served) == {}
        later = await producer.state("alice", at="2h")
        assert [each.msg_id for each in later.items] == ["m2", "unread:m2"]


@both_producers
async def test_result_is_that_of_the_item(kind: str) -> None:
    async with serving() as served, producer_for(kind, str(served.http.base_url)) as producer:
        await producer.notify("alice", "likes", BODY, key="photo7", msg_id="m1")
        outcome = await producer.notify("alice", "likes", BODY, key="photo7", msg_id="m2")
        assert (outcome.replaced, outcome.visible) == ("m1", True)
        assert (await producer.count("alice", "unread.")).counts == {"unread.": 1}


@both_producers
async def test_error_of_the_item_is_raised(kind: str) -> None:
    async with serving() as served, producer_for(kind, str(served.http.base_url)) as producer:
        await producer.send_one(create("alice", "other", msg_id="m1"))
        with pytest.raises(Conflict):
            await producer.notify("alice", "likes", BODY, msg_id="m1")


@both_producers
async def test_request_is_retried_until_both_are_stored(kind: str) -> None:
    unavailable = {"code": "unavailable", "message": "later", "action": "retry"}
    half = [result("alice", "m1"), {"uid": "alice", "status": "rejected", "error": unavailable}]
    server = FakeServer(httpx.Response(200, json={"results": half}))
    async with server.producer(kind) as producer:
        assert (await producer.notify("alice", "likes", BODY, msg_id="m1")).status == "stored"
    assert len(server.requests) == 2


@both_producers
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"key": "x" * 249}, "key"),
        ({"msg_id": "x" * 58}, "msg_id"),
        ({"topic": "likes."}, "topic"),
        ({"body": {"url": "javascript:alert(1)"}}, "body.url"),
        ({"body": None}, "body"),
        ({"starts": 7}, "starts"),
        ({"starts": "2h", "expires": "1h"}, "starts"),
    ],
)
async def test_wrong_argument_is_refused_and_nothing_is_sent(
    kind: str, arguments: dict[str, Any], field: str
) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        given = {"uid": "alice", "topic": "likes", "body": BODY, **arguments}
        with pytest.raises(InvalidMessage) as raised:
            await producer.notify(**given)
    assert raised.value.field == field
    assert server.requests == []
