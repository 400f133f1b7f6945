"""A slow listener costs a bounded amount of memory, and is told that it missed something."""

from gregor.client import Missed, Online, Synced
from gregor.client.events import MOST_WAITING, Subscription
from tests.client.world import in_no_time


@in_no_time
async def test_a_listener_that_takes_nothing_gets_one_missed_event() -> None:
    events = Subscription()
    for _ in range(MOST_WAITING + 1):
        events.tell([Online()])
    events.tell([Synced()])
    assert events.waiting() == [Missed(), Synced()]


@in_no_time
async def test_what_waits_can_be_taken_after_the_end() -> None:
    async with Subscription() as events:
        events.tell([Online()])
    assert [event async for event in events] == [Online()]
