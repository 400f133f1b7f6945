"""A device whose node refuses what it sends for a while sends it all, in order."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from msgspec import structs

from gregor.core.message import InBandMessage
from gregor.errors import LimitExceeded
from gregor.limits import NO_LIMITS
from gregor.testing import virtual_time
from tests.client.harness import client_harness, on_virtual_time


def stored_notes(log: tuple[InBandMessage, ...]) -> list[str]:
    return [message.msg_id for message in log]


@on_virtual_time
async def test_outbox_is_sent_in_order_at_the_pace_that_the_node_allows() -> None:
    limits = structs.replace(NO_LIMITS, messages_per_second=1)
    async with client_harness(limits=limits) as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            written = [await laptop.create("note", n, msg_id=f"m{n:02}") for n in range(40)]
            harness.server.reachable = True
            start = virtual_time.clock()
            await laptop.flush()
            assert virtual_time.clock() - start > 25_000_000  # ten at once, and one a second
            assert stored_notes(harness.machine.log("alice")) == written
            assert laptop.status.last_error is None


@on_virtual_time
async def test_device_that_is_refused_comes_back_after_what_the_node_asks_for() -> None:
    limits = structs.replace(NO_LIMITS, connections=1)
    async with client_harness(limits=limits) as harness, AsyncExitStack() as first:
        laptop = await first.enter_async_context(harness.device())
        await laptop.wait_synced()
        async with harness.device("phone") as phone:
            await asyncio.sleep(1)
            error = phone.status.last_error
            assert error is not None
            assert (error.limit, error.maximum) == ("connections", 1)
            assert error.retry_after_ms is not None
            assert phone.status.retry_at is not None
            assert (
                phone.status.retry_at > virtual_time.clock() + (error.retry_after_ms - 1500) * 1000
            )
            await first.aclose()
            await phone.wait_synced()


@on_virtual_time
async def test_out_of_band_message_that_is_refused_is_not_sent_again() -> None:
    limits = structs.replace(NO_LIMITS, messages_per_second=1)
    async with client_harness(limits=limits) as harness, harness.device() as laptop:
        await laptop.wait_synced()
        for _ in range(10):
            await laptop.out_of_band("typing", 1)
        with pytest.raises(LimitExceeded) as raised:
            await laptop.out_of_band("typing", 1)
        assert raised.value.limit == "messages_per_second"
        assert raised.value.retry_after_ms is not None
        await laptop.create("note")
        await laptop.flush()
