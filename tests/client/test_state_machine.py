"""DeviceStateMachine: a client as the StateMachine of its user."""

import pytest

from gregor.client import DeviceStateMachine
from gregor.core.instant import TimeOrOffset
from gregor.core.message import create, out_of_band
from gregor.errors import Forbidden, HistoryForgotten, InvalidMessage
from gregor.interfaces import StateMachine
from tests.client.harness import categories, client_harness, on_virtual_time


@on_virtual_time
async def test_consumed_messages_are_visible_in_state() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        machine = DeviceStateMachine(laptop)
        assert isinstance(machine, StateMachine)
        message = create("alice", "mail")
        assert await machine.consume_message(message) == message
        assert await machine.consume_message(message) == message
        await machine.consume_message(out_of_band("alice", "typing"))
        assert categories(await machine.state("alice")) == ["mail"]
        assert categories(await machine.state("alice", "laptop")) == ["mail"]
        past = TimeOrOffset(time=laptop.replica.known_since)
        assert categories(await machine.state("alice", at=past)) == []


@on_virtual_time
async def test_other_users_devices_and_history_are_refused() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        machine = DeviceStateMachine(laptop)
        with pytest.raises(Forbidden):
            await machine.state("bob")
        with pytest.raises(Forbidden):
            await machine.state("alice", "phone")
        with pytest.raises(Forbidden):
            await machine.consume_message(create("bob", "mail"))
        with pytest.raises(InvalidMessage):
            await machine.consume_message(create("alice", "mail").stamp(5, 0))
        with pytest.raises(HistoryForgotten):
            await machine.in_band_messages_since("alice", None, TimeOrOffset(time=0))
