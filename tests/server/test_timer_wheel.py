"""The timer wheel, on virtual time."""

import asyncio

from gregor.server.timer_wheel import SLOTS, TimerWheel
from tests.client.harness import on_virtual_time


class Member:
    """A member that records when it is called."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(asyncio.get_running_loop().time())


@on_virtual_time
async def test_member_is_called_once_in_each_period() -> None:
    wheel, member = TimerWheel(10), Member()
    await asyncio.sleep(3)
    wheel.join(member)
    await asyncio.sleep(35)
    assert [round(time, 3) for time in member.times] == [13, 23, 33]


@on_virtual_time
async def test_members_are_called_at_the_part_of_the_period_at_which_they_have_joined() -> None:
    wheel, members = TimerWheel(10), [Member() for _ in range(5)]
    begin = asyncio.get_running_loop().time()
    for number, member in enumerate(members):
        await asyncio.sleep(begin + 2 * number - asyncio.get_running_loop().time())
        wheel.join(member)
    await asyncio.sleep(12)
    for number, member in enumerate(members):
        assert 2 * number + 10 - 10 / SLOTS <= member.times[0] - begin <= 2 * number + 10


@on_virtual_time
async def test_member_that_has_left_is_not_called_and_an_empty_wheel_has_no_timer() -> None:
    wheel, stays, leaves = TimerWheel(10), Member(), Member()
    wheel.join(stays)
    slot = wheel.join(leaves)
    await asyncio.sleep(11)
    slot.discard(leaves)
    await asyncio.sleep(10)
    assert (len(stays.times), len(leaves.times)) == (2, 1)
    slot.discard(stays)
    await asyncio.sleep(1)
    assert not wheel.turns


@on_virtual_time
async def test_member_may_leave_when_it_is_called() -> None:
    wheel, other = TimerWheel(10), Member()

    class Leaving(Member):
        def tick(self) -> None:
            super().tick()
            slot.discard(self)

    member = Leaving()
    slot = wheel.join(member)
    wheel.join(other)
    await asyncio.sleep(25)
    assert (len(member.times), len(other.times)) == (1, 2)
