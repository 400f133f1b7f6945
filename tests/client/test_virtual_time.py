"""The loop in which hours pass at once."""

import asyncio
from time import perf_counter

import pytest

from gregor.testing import virtual_time


def test_a_day_takes_no_time() -> None:
    async def day() -> int:
        start = virtual_time.clock()
        await asyncio.sleep(86_400)
        return virtual_time.clock() - start

    start = perf_counter()
    assert virtual_time.run(day()) == 86_400_000_000
    assert perf_counter() - start < 1


def test_what_is_ready_comes_before_what_is_later() -> None:
    async def race() -> list[str]:
        order: list[str] = []
        asyncio.get_running_loop().call_later(1, order.append, "later")
        asyncio.get_running_loop().call_soon(order.append, "ready")
        await asyncio.sleep(2)
        return order

    assert virtual_time.run(race()) == ["ready", "later"]


def test_waiting_for_nothing_is_an_error_and_not_a_wait() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_time.Deadlock):
        virtual_time.run(wait())
