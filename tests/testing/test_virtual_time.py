"""The event loop on virtual time."""

import asyncio
import selectors
from typing import Any

import pytest

from gregor.testing import virtual_time


def test_sleeping_a_day_advances_the_clock_and_makes_no_system_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeouts: set[float | None] = set()
    select = selectors.SelectSelector.select

    def recording_select(self: Any, timeout: float | None = None) -> Any:
        timeouts.add(timeout)
        return select(self, timeout)

    async def day() -> int:
        start = virtual_time.clock()
        await asyncio.sleep(86_400)
        return virtual_time.clock() - start

    monkeypatch.setattr(selectors.SelectSelector, "select", recording_select)
    assert virtual_time.run(day()) == 86_400_000_000
    assert timeouts == set()


def test_ready_callbacks_run_before_timers() -> None:
    async def race() -> list[str]:
        order: list[str] = []
        asyncio.get_running_loop().call_later(1, order.append, "later")
        asyncio.get_running_loop().call_soon(order.append, "ready")
        await asyncio.sleep(2)
        return order

    assert virtual_time.run(race()) == ["ready", "later"]


def test_waiting_without_a_timer_raises_deadlock() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_time.Deadlock):
        virtual_time.run(wait())
