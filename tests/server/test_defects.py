"""Defects of the original Gregor's server (test_dNN_…), and the cases of its own server tests: each
test name begins with the original name."""

import asyncio

import pytest

from gregor import create
from gregor.clock import now
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.interfaces import Duplicate, Stored
from gregor.node.node import Node
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server.auth import Role
from gregor.server.service import Timeouts
from gregor.stores.memory import MemoryStateMachine
from tests.node.fakes import BACKEND, FailingPubSub, FakeListener, attached, sync_device
from tests.server.harness import (
    RawDevice,
    Served,
    creation,
    jwt_settings,
    serving,
    to,
    token,
    until,
)
from tests.server.test_slow_consumers import (
    FLOOD_MESSAGES,
    flood,
    receive_ids,
    slow_device,
)

# The defects


async def test_d18_stored_message_is_not_answered_with_error_if_publish_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The original server answered "publish channel full" for a message that it had stored and
    broadcast. The client retried, and got a duplicate key error on every retry."""
    listener = FakeListener()
    state_machine = MemoryStateMachine(now)
    async with (
        Node(state_machine, Broadcaster(), Publisher(FailingPubSub()), clock=now) as node,
        attached(node, "u", listener),
    ):
        (outcome,) = await node.inject(BACKEND, [create("u", "chat", msg_id="m")])
        assert isinstance(outcome, Stored)
        assert listener.ids == ["m"]
        (repeated,) = await node.inject(BACKEND, [create("u", "chat", msg_id="m")])
        assert isinstance(repeated, Duplicate)
        assert listener.ids == ["m"]
    # The node logs the failed publish with its traceback, which `_no_traceback` would not allow.
    assert {record.getMessage() for record in caplog.records if record.exc_info} == {
        "a consumer failed"
    }
    caplog.clear()


async def test_d19_node_finds_message_whose_publication_was_lost() -> None:
    """The original nodes notified each other once, within 200 ms, or never."""
    exchange, listener = Exchange(), FakeListener()
    state_machine = MemoryStateMachine(now)
    one, two = LosingPubSub(exchange), MemoryPubSub(exchange)
    await state_machine.consume_message(create("u", "chat", msg_id="known"))
    async with (
        Node(state_machine, Broadcaster(), Publisher(one), clock=now) as publisher,
        Node(
            state_machine, Broadcaster(), Publisher(two), clock=now, sweep_seconds=0.01
        ) as receiver,
        attached(receiver, "u", listener),
    ):
        await sync_device(receiver)
        await publisher.inject(BACKEND, [create("u", "chat", msg_id="lost")])
        await until(lambda: listener.ids == ["lost"])


async def test_d20_slow_device_delays_no_other_and_misses_nothing() -> None:
    """The original server sent to a user's devices one after the other, and waited up to 10 s for
    each."""
    async with (
        serving() as served,
        slow_device(served, "u") as slow,
        await served.synced("u", "d2") as fast,
    ):
        await flood(served, "u")
        fast_ids = await receive_ids(fast, FLOOD_MESSAGES)
        await served.post(to("u", msg_id="last"))
        assert (await fast.receive_type("messages"))["messages"][-1]["msg_id"] == "last"
        assert await served.metric("gregor_lagging_sessions ") == 1  # slow is still blocked
        assert await receive_ids(slow, FLOOD_MESSAGES + 1) == [*fast_ids, "last"]


async def test_d27_second_hello_cannot_change_user_of_connection() -> None:
    """After two authentications on one connection, the original server kept it registered under
    the first user, with the permissions of the second."""
    async with serving() as served, await served.synced("alice") as device:
        await device.send("hello", token="bob", device_id="d", protocol=2)
        assert (await device.receive())["code"] == "protocol"
        assert await device.wait_closed() == 4002
        await until(lambda: not served.server.node.device_count("alice"))
        assert not served.server.node.device_count("bob")


# The cases of the original tests


async def test_authentication_accepts_valid_and_rejects_invalid_token() -> None:
    async with serving(jwt_settings()) as served:
        await (await served.synced(token("alice"))).close()
        async with await RawDevice.connect(served.url) as device:
            await device.send("hello", token="bad", device_id="d", protocol=2)
            assert await device.wait_closed() == 4001


async def test_create_per_uid_server_counts_connected_devices() -> None:
    async with serving() as served:
        assert served.server.node.device_count("u") == 0
        async with await served.synced("u"):
            assert served.server.node.device_count("u") == 1


async def test_broadcast_delivers_out_of_band_messages_in_order() -> None:
    async with serving() as served, await served.synced("u") as device:
        await served.post({"uid": "u", "system": "s", "body": "once"})
        await served.post({"uid": "u", "system": "s", "body": "then"})
        assert [(await device.receive())["body"], (await device.receive())["body"]] == [
            "once",
            "then",
        ]


async def test_consume_stores_message() -> None:
    async with serving() as served, await served.synced("u") as device:
        ack = await device.consume(to("u"))
        assert ack["results"][0]["status"] == "stored"


async def test_impersonation_is_forbidden() -> None:
    async with serving() as served, await served.synced("u") as device:
        (result,) = (await device.consume(to("another")))["results"]
        assert result["error"]["code"] == "forbidden"
        await device.assert_usable()


async def test_super_user_can_write_to_all_users() -> None:
    async with serving(jwt_settings()) as served:
        for uid in ("alice", "bob"):
            answer = await served.post(to(uid), token("backend", Role.SERVICE))
            assert answer.json()["results"][0]["status"] == "stored"


async def test_blocked_user_delays_no_other_user() -> None:
    async with (
        serving() as served,
        slow_device(served, "blocked"),
        await served.synced("u") as device,
    ):
        await flood(served, "blocked")
        for number in range(2):
            await served.post({"uid": "u", "system": "s", "body": number})
            assert (await device.receive())["body"] == number
            assert await served.metric("gregor_lagging_sessions ") == 1  # still blocked


async def test_broadcast_timeout_disconnects_slow_device_only() -> None:
    async with (
        serving(timeouts=Timeouts(write=0.3)) as served,
        slow_device(served, "u"),
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        await receive_ids(fast, FLOOD_MESSAGES)
        await until(lambda: served.server.node.device_count("u") == 1)
        await served.post({"uid": "u", "system": "s", "body": 1})
        assert (await fast.receive())["body"] == 1
        assert served.server.node.device_count("u") == 1


async def wait_connected(served: Served, uid: str, number: int) -> None:
    """Wait until this number of the user's devices is connected."""
    await until(lambda: served.server.node.device_count(uid) == number)


async def test_close_one_leaves_no_connection() -> None:
    async with serving() as served:
        await (await served.synced("u")).close()
        await wait_connected(served, "u", 0)
        await served.post(to("u"))
        assert await served.metric("gregor_deliveries_total") == 0


async def test_close_connect_delivers_to_second_connection() -> None:
    async with serving() as served:
        await (await served.synced("u", "c1")).close()
        async with await served.synced("u", "c2") as second:
            await wait_connected(served, "u", 1)
            await served.post({"uid": "u", "system": "s", "body": 1})
            assert (await second.receive())["body"] == 1


async def test_close_connect_2_does_not_deliver_messages_from_between_connections() -> None:
    async with serving() as served:
        await (await served.synced("u", "c1")).close()
        await wait_connected(served, "u", 0)
        await served.post({"uid": "u", "system": "s", "body": "to no device"})
        async with await served.synced("u", "c2") as second:
            assert served.server.node.device_count("u") == 1
            await served.post({"uid": "u", "system": "s", "body": "to the second"})
            assert (await second.receive())["body"] == "to the second"


async def test_close_connect_3_delivers_to_second_connection_while_first_closes() -> None:
    async with serving() as served:
        first = await served.synced("u", "c1")
        closing = asyncio.create_task(first.close())
        async with await served.synced("u", "c2") as second:
            await closing
            await served.post({"uid": "u", "system": "s", "body": 1})
            assert (await second.receive())["body"] == 1
        await wait_connected(served, "u", 0)


async def test_consume_broadcast_flow_reaches_connected_and_later_devices() -> None:
    async with serving() as served:
        devices = [await served.synced("u", f"d{n}") for n in range(5)]
        (first,) = (await devices[0].consume(creation(msg_id="1")))["results"]
        for device in devices:
            (message,) = (await device.receive_type("messages"))["messages"]
            assert message["msg_id"] == "1"
        async with await served.device("u", "up to date", first["ctime"]) as up_to_date:
            assert "messages" not in await up_to_date.receive()
        await devices[1].consume(creation(msg_id="2"))
        async with await served.device("u", "behind", first["ctime"]) as behind:
            (message,) = (await behind.receive())["messages"]
            assert message["msg_id"] == "2"
        for device in devices:
            await device.close()


class LosingPubSub(MemoryPubSub):
    """A pub/sub whose payloads are lost."""

    async def publish(self, channel: str, payload: bytes) -> None:
        pass
