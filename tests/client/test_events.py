"""A slow subscriber uses a bounded amount of memory, and gets a Missed event."""

from gregor.client import Missed, Online, Synced
from gregor.client.events import MAX_PENDING_EVENTS, Subscription
from tests.client.harness import on_virtual_time


@on_virtual_time
async def test_overflow_of_subscription_leaves_one_missed_event() -> None:
    events = Subscription()
    for _ in range(MAX_PENDING_EVENTS + 1):
        events.put([Online()])
    events.put([Synced()])
    assert events.take_pending() == [Missed(), Synced()]


@on_virtual_time
async def test_pending_events_can_be_read_after_close() -> None:
    async with Subscription() as events:
        events.put([Online()])
    assert [event async for event in events] == [Online()]
