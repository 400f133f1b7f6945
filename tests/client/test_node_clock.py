"""The law of clocks: a device's clock, however wrong and whatever happens to it, changes neither
facts nor hash; and it changes what is visible only near a start or an expiry, within the error."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.client import Client, Created, Dismissed, MemoryStore
from gregor.client.events import Subscription
from gregor.client.node_clock import JUMP, ClockReading, NodeClock
from gregor.core.instant import MAX_TIME, SECOND, Time
from gregor.core.message import MsgID, create
from gregor.testing import virtual_time
from tests.client.harness import ClientHarness, categories, client_harness, on_virtual_time

HOUR = 3600 * SECOND
NOTICE_SECONDS = 21  # a check of the clock, and then one without a connection


class Wait(NamedTuple):
    seconds: int


class SetWallClock(NamedTuple):
    """A person, or a time server, moves the wall clock by this."""

    seconds: int


class Suspend(NamedTuple):
    """Time passes, for the wall clock too; the monotonic clock stands still."""

    seconds: int


class LoseNetwork(NamedTuple):
    pass


class FindNetwork(NamedTuple):
    pass


class Restart(NamedTuple):
    """The app ends, and starts again with its store."""


class Inject(NamedTuple):
    """A backend creates an item that lives so long, and one that begins then."""

    seconds: int


class Write(NamedTuple):
    """The device creates an item that begins after this, and lives as long."""

    seconds: int


Step: TypeAlias = (
    Wait | SetWallClock | Suspend | LoseNetwork | FindNetwork | Restart | Inject | Write
)

moves = st.one_of(
    st.integers(-10, 10), st.integers(-100_000, 100_000), st.integers(-(10**9), 10**8)
)
durations = st.one_of(st.integers(1, 100), st.integers(1, 100_000))
steps = st.one_of(
    st.builds(Wait, durations),
    st.builds(SetWallClock, moves),
    st.builds(Suspend, durations),
    st.builds(Inject, durations),
    st.builds(Write, durations),
    st.builds(LoseNetwork),
    st.builds(FindNetwork),
    st.builds(Restart),
)


class World:
    """A node, a device, and their clocks. `error` is by how much the device may be wrong: what has
    happened to its clocks since a node has told it the time."""

    def __init__(self, skew: int) -> None:
        self.suspended = 0
        self.skew = skew * SECOND
        self.error = abs(self.skew)
        self.store = MemoryStore()
        self.shown: set[MsgID] = set()

    def node_clock(self) -> Time:
        return virtual_time.clock() + self.suspended

    def wall_clock(self) -> Time:
        return self.node_clock() + self.skew

    async def run(self, script: Sequence[Step]) -> None:
        async with client_harness(clock=self.node_clock) as harness:
            remaining = [*script, FindNetwork(), Wait(NOTICE_SECONDS)]
            while remaining:
                await self._run_app(harness, remaining)

    async def _run_app(self, harness: ClientHarness, remaining: list[Step]) -> None:
        async with harness.device(store=self.store, clock=self.wall_clock) as device:
            events = device.events()
            self.shown = {item.msg_id for item in device.state()}
            while remaining:
                step = remaining.pop(0)
                await self._carry_out(step, harness, device)
                await self._check(harness, device, events)
                if isinstance(step, Restart):
                    return

    async def _carry_out(self, step: Step, harness: ClientHarness, device: Client) -> None:
        match step:
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case SetWallClock(seconds):
                self.skew += seconds * SECOND
                self.error += abs(seconds) * SECOND
            case Suspend(seconds):
                self.suspended += seconds * SECOND
                self.error += seconds * SECOND
            case LoseNetwork():
                harness.server.reachable = False
                harness.server.cut_all()
            case FindNetwork():
                harness.server.reachable = True
                device.reconnect()
                await asyncio.sleep(NOTICE_SECONDS)
            case Inject(seconds):
                await harness.inject(create("alice", "mail", expires=f"{seconds}s"))
                await harness.inject(create("alice", "mail", starts=f"{seconds}s"))
                await asyncio.sleep(0.1)
            case Write(seconds):
                await device.create("note", starts=f"{seconds}s", expires=f"{2 * seconds}s")

    async def _check(self, harness: ClientHarness, device: Client, events: Subscription) -> None:
        shown = {item.msg_id for item in device.state()}
        self._replay(events)
        assert shown == self.shown, "state and events disagree"
        if harness.server.reachable:
            await asyncio.sleep(NOTICE_SECONDS)
            assert device.status.synced
            self.error = SECOND
            shown = {item.msg_id for item in device.state()}
            self._replay(events)
        sync = await harness.machine.sync("alice", "laptop", 0)
        if device.status.synced:
            assert device.replica.hash_matches(sync.as_of, sync.hash)
            near = self._close_to_an_edge(harness)
            assert shown - near == {item.msg_id for item in await harness.state()} - near
        assert device.mismatches == 0

    def _close_to_an_edge(self, harness: ClientHarness) -> set[MsgID]:
        now = self.node_clock()
        log = harness.machine.log("alice")
        edges = [(m.msg_id, at) for m in log for at in (m.starts_at, m.expires_at)]
        return {id_ for id_, at in edges if at and abs(at - now) <= self.error}

    def _replay(self, events: Subscription) -> None:
        for event in events.take_pending():
            match event:
                case Created(item):
                    self.shown.add(item.msg_id)
                case Dismissed(item):
                    self.shown.remove(item.msg_id)


@settings(max_examples=100)
@given(skew=moves, script=st.lists(steps, max_size=8))
def test_clock_of_a_device_changes_only_what_is_visible_near_a_start_or_an_expiry(
    skew: int, script: list[Step]
) -> None:
    virtual_time.run(World(skew).run(script))


readings = st.builds(ClockReading, st.integers(0, MAX_TIME), st.integers(0, 10**15))
times = st.integers(0, MAX_TIME)


@given(readings, readings, times, times, st.integers(0, 10**9))
def test_estimate_is_within_what_a_node_has_told(
    first: ClockReading, second: ClockReading, before: Time, told: Time, waited: int
) -> None:
    clock = NodeClock(before, first).told(told, second, waited)
    assert told <= clock.now(second) <= told + waited
    assert clock.unexplained == 0
    assert NodeClock(before, first).told(told, second, None).now(second) >= told


@given(readings, times, st.integers(0, 10**12), st.integers(-(10**15), 10**15))
def test_wall_clock_alone_does_not_move_the_estimate(
    first: ClockReading, time: Time, elapsed: int, jump: int
) -> None:
    reading = ClockReading(first.wall + elapsed + jump, first.monotonic + elapsed)
    clock = NodeClock(time, first).checked(reading)
    assert clock.now(reading) == min(time + elapsed, MAX_TIME)
    assert clock.unexplained == (jump if jump >= JUMP else 0)


@on_virtual_time
async def test_wall_clock_set_forward_does_not_end_an_item() -> None:
    """The state was empty, and the events said nothing for an hour."""
    skew = 0
    async with (
        client_harness() as harness,
        harness.device(clock=lambda: virtual_time.clock() + skew) as laptop,
    ):
        await laptop.create("meeting", expires="1h")
        await laptop.flush()
        await asyncio.sleep(1)
        skew = 8 * HOUR
        for _ in range(60):
            assert categories(laptop.state()) == ["meeting"]
            await asyncio.sleep(1)
        await asyncio.sleep(3600)
        assert categories(laptop.state()) == []


@on_virtual_time
async def test_suspend_without_a_network_ends_items_within_half_a_minute() -> None:
    suspended = 0
    async with (
        client_harness() as harness,
        harness.device(clock=lambda: virtual_time.clock() + suspended) as laptop,
    ):
        await laptop.create("meeting", expires="1h")
        await laptop.flush()
        await asyncio.sleep(1)
        harness.server.reachable = False
        harness.server.cut_all()
        suspended = 8 * HOUR
        await asyncio.sleep(30)
        assert categories(laptop.state()) == []


@pytest.mark.parametrize("hours", [3, -3, 200_000, -200_000])
def test_device_whose_clock_is_wrong_shows_an_item_exactly_while_it_lives(hours: int) -> None:
    def wrong_clock() -> Time:
        return virtual_time.clock() + hours * HOUR

    @on_virtual_time
    async def run_test() -> None:
        store = MemoryStore()
        async with client_harness() as harness:
            await harness.inject(create("alice", "meeting", expires="1h"))
            async with harness.device(clock=wrong_clock, store=store) as laptop:
                await laptop.wait_synced()
                await asyncio.sleep(1800)
                assert categories(laptop.state()) == ["meeting"]
            harness.server.reachable = False
            async with harness.device(clock=wrong_clock, store=store) as laptop:
                assert categories(laptop.state()) == ["meeting"]  # it has kept the offset
                await asyncio.sleep(1805)
                assert categories(laptop.state()) == []

    run_test()
