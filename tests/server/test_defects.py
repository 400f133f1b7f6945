"""What the original Gregor's server did wrong, and the cases of its own server tests by name."""

import asyncio
from time import monotonic

from gregor import create
from gregor.clock import now
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.interfaces import Duplicate, Stored
from gregor.node import Node
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server.auth import Role
from gregor.state_machines.memory import MemoryStateMachine
from tests.node.listening import Ear, Failing, tell
from tests.server.test_delivery import MANY, everything, flood, unread
from tests.server.world import (
    Device,
    Served,
    creation,
    jwt_settings,
    serving,
    to,
    token,
    until,
)

# The defects


async def test_d18_a_message_that_is_stored_is_never_answered_with_an_error() -> None:
    """Its server said "publish channel full" of a message that it had stored and broadcast, so
    that the client sent it again, and was told of a duplicate key for ever after."""
    ear = Ear()
    state_machine = MemoryStateMachine(now)
    async with (
        Node(state_machine, [Failing(), Broadcaster()], clock=now) as node,
        node.attach("u", ear),
    ):
        (outcome,) = await node.inject([create("u", "chat", msg_id="m")])
        assert isinstance(outcome, Stored)
        assert ear.ids == ["m"]
        (again,) = await node.inject([create("u", "chat", msg_id="m")])
        assert isinstance(again, Duplicate)
        assert ear.ids == ["m"]


async def test_d19_a_sibling_that_is_not_told_finds_out() -> None:
    """Its nodes told each other once, within 200 ms, or never."""
    exchange, ear = Exchange(), Ear()
    state_machine = MemoryStateMachine(now)
    one, two = Mute(exchange), MemoryPubSub(exchange)
    await state_machine.consume_message(create("u", "chat", msg_id="known"))
    async with (
        Node(
            state_machine,
            [Publisher(one, "one"), Broadcaster()],
            clock=now,
            pubsub=one,
            name="one",
        ) as sender,
        Node(
            state_machine,
            [Publisher(two, "two"), Broadcaster()],
            clock=now,
            pubsub=two,
            name="two",
            sweep_seconds=0.01,
        ) as sibling,
        sibling.attach("u", ear),
    ):
        await tell(sibling)
        await sender.inject([create("u", "chat", msg_id="lost")])
        await until(lambda: ear.ids == ["lost"])


async def test_d20_one_silent_device_delays_nobody_and_drops_nothing() -> None:
    """It told a user's devices one after the other, and waited up to 10 s for each."""
    async with (
        serving() as served,
        unread(served, "u") as silent,
        await served.synced("u", "d2") as other,
    ):
        await flood(served, "u")
        seen = await everything(other, MANY)
        started = monotonic()
        await served.post(to("u", msg_id="last"))
        assert (await other.heard("messages"))["messages"][-1]["msg_id"] == "last"
        assert monotonic() - started < 2
        assert await everything(silent, MANY + 1) == [*seen, "last"]


async def test_d27_nobody_changes_who_they_are_in_the_middle() -> None:
    """Two authentications on one connection left it registered under the first user, with the
    rights of the second."""
    async with serving() as served, await served.synced("alice") as device:
        await device.say("hello", token="bob", device_id="d", protocol=1)
        assert (await device.hear())["code"] == "protocol"
        assert await device.closed() == 4002
        await until(lambda: not served.server.node.connected("alice"))
        assert not served.server.node.connected("bob")


# The cases of its tests


async def test_authentication() -> None:
    async with serving(jwt_settings()) as served:
        await (await served.synced(token("alice"))).close()
        async with await Device.connected(served.url) as device:
            await device.say("hello", token="bad", device_id="d", protocol=1)
            assert await device.closed() == 4001


async def test_create_per_uid_server() -> None:
    async with serving() as served:
        assert served.server.node.connected("u") == 0
        async with await served.synced("u"):
            assert served.server.node.connected("u") == 1


async def test_broadcast() -> None:
    async with serving() as served, await served.synced("u") as device:
        await served.post({"uid": "u", "system": "s", "body": "once"})
        await served.post({"uid": "u", "system": "s", "body": "then"})
        assert [(await device.hear())["body"], (await device.hear())["body"]] == ["once", "then"]


async def test_consume() -> None:
    async with serving() as served, await served.synced("u") as device:
        ack = await device.consume(to("u"))
        assert ack["results"][0]["status"] == "stored"


async def test_impersonation() -> None:
    async with serving() as served, await served.synced("u") as device:
        (result,) = (await device.consume(to("another")))["results"]
        assert result["error"]["code"] == "forbidden"
        await device.works()


async def test_super_user() -> None:
    async with serving(jwt_settings()) as served:
        for uid in ("anyone", "another"):
            answer = await served.post(to(uid), token("backend", Role.SERVICE))
            assert answer.json()["results"][0]["status"] == "stored"


async def test_blocked_user() -> None:
    async with (
        serving() as served,
        unread(served, "blocked"),
        await served.synced("u") as device,
    ):
        await flood(served, "blocked")
        for number in range(2):
            started = monotonic()
            await served.post({"uid": "u", "system": "s", "body": number})
            assert (await device.hear())["body"] == number
            assert monotonic() - started < 2


async def test_broadcast_timeout() -> None:
    async with (
        serving(slowest_seconds=0.3) as served,
        unread(served, "u"),
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        await everything(fast, MANY)
        await until(lambda: served.server.node.connected("u") == 1)
        started = monotonic()
        await served.post({"uid": "u", "system": "s", "body": 1})
        assert (await fast.hear())["body"] == 1
        assert monotonic() - started < 2


async def gone(served: Served, uid: str) -> None:
    await until(lambda: not served.server.node.connected(uid))


async def test_close_one() -> None:
    async with serving() as served:
        await (await served.synced("u")).close()
        await gone(served, "u")
        await served.post(to("u"))
        assert await served.metric("gregor_deliveries_total") == 0


async def test_close_connect() -> None:
    async with serving() as served:
        await (await served.synced("u", "c1")).close()
        async with await served.synced("u", "c2") as second:
            await gone_but(served, "u", 1)
            await served.post({"uid": "u", "system": "s", "body": 1})
            assert (await second.hear())["body"] == 1


async def gone_but(served: Served, uid: str, number: int) -> None:
    await until(lambda: served.server.node.connected(uid) == number)


async def test_close_connect_2() -> None:
    async with serving() as served:
        await (await served.synced("u", "c1")).close()
        await gone(served, "u")
        await served.post({"uid": "u", "system": "s", "body": "to nobody"})
        async with await served.synced("u", "c2") as second:
            assert served.server.node.connected("u") == 1
            await served.post({"uid": "u", "system": "s", "body": "to the second"})
            assert (await second.hear())["body"] == "to the second"


async def test_close_connect_3() -> None:
    async with serving() as served:
        first = await served.synced("u", "c1")
        closing = asyncio.create_task(first.close())
        async with await served.synced("u", "c2") as second:
            await closing
            await served.post({"uid": "u", "system": "s", "body": 1})
            assert (await second.hear())["body"] == 1
        await gone(served, "u")


async def test_consume_broadcast_flow() -> None:
    async with serving() as served:
        devices = [await served.synced("u", f"d{n}") for n in range(5)]
        (first,) = (await devices[0].consume(creation(msg_id="1")))["results"]
        for device in devices:
            (message,) = (await device.heard("messages"))["messages"]
            assert message["msg_id"] == "1"
        async with await served.device("u", "late", first["ctime"]) as late:
            assert "messages" not in await late.hear()
        await devices[1].consume(creation(msg_id="2"))
        async with await served.device("u", "later", first["ctime"]) as later:
            (message,) = (await later.hear())["messages"]
            assert message["msg_id"] == "2"
        for device in devices:
            await device.close()


class Mute(MemoryPubSub):
    """One whose publications get lost."""

    async def publish(self, channel: str, payload: bytes) -> None:
        pass
