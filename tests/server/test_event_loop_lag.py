"""What stops the event loop is seen in its lag."""

import asyncio

import pytest

from gregor.server.event_loop_lag import watch_event_loop
from tests.client.harness import on_virtual_time
from tests.server.harness import serving, until


@on_virtual_time
async def test_lag_is_how_late_the_loop_was() -> None:
    loop = asyncio.get_running_loop()
    time, stops = loop.time, [0.0]
    lags: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: time() + sum(stops))
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch_event_loop(lags.append, 1.0))
            await asyncio.sleep(2.5)
            stops.append(3.0)  # it was due in half a second
            await asyncio.sleep(2.0)
            watching.cancel()
    assert lags == pytest.approx([0.0, 0.0, 2.5, 0.0])


async def test_server_observes_it() -> None:
    async with serving() as served:
        page = served.server.metrics.page
        await until(lambda: b"gregor_event_loop_lag_seconds_count 0.0" not in page())
