"""A user's whole life on shards, against the reference machine, which has none: stored, pruned,
erased and moved, in any order."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from typing import NamedTuple, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core.buckets import Move, bucket_of
from gregor.core.history import DAY, Cutoff, Retention
from gregor.core.instant import SECOND, Time
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, dismiss_key, put
from gregor.interfaces import Rejected, StateMachineOfRecord
from gregor.shards.rebalance import Rebalancer
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock
from gregor.testing.strategies import of_user
from tests.shards.harness import ShardHarness

START = 20_000 * DAY
IDS = "1234567"
_numbers = count()


class Sent(NamedTuple):
    message: InBandMessage


class Replay(NamedTuple):
    """The message came some days ago."""

    message: InBandMessage
    age: int


class Erase(NamedTuple):
    pass


class Prune(NamedTuple):
    """Contents and ids that are so many days old are forgotten."""

    contents: int
    ids: int


class MoveTo(NamedTuple):
    shard: str


class DeleteOldCopies(NamedTuple):
    pass


class Waited(NamedTuple):
    days: int


Event: TypeAlias = Sent | Replay | Erase | Prune | MoveTo | DeleteOldCopies | Waited


@st.composite
def messages(draw: st.DrawFn) -> InBandMessage:
    device_id = draw(st.sampled_from([None, None, "d1"]))
    msg_id, other = draw(st.sampled_from(IDS)), draw(st.sampled_from(IDS))
    category, key = draw(st.sampled_from(["mail", "chat"])), draw(st.sampled_from(["k", "l"]))
    match draw(st.integers(0, 7)):
        case 0:
            return dismiss("ann", other, msg_id=msg_id)
        case 1:
            return dismiss_category("ann", category, msg_id=msg_id, device_id=device_id)
        case 2:
            return dismiss_key("ann", key, msg_id=msg_id)
        case 3:
            return put("ann", key, msg_id=msg_id, device_id=device_id)
        case 4:
            return create("ann", category, msg_id=msg_id, expires=f"{draw(st.integers(1, 4))}d")
        case 5:
            return create("ann", category, msg_id=msg_id, starts=f"{draw(st.integers(1, 4))}d")
        case _:
            return create("ann", category, msg_id=msg_id, device_id=device_id)


days = st.integers(0, 6)
events = st.one_of(
    messages().map(Sent),
    messages().map(Sent),
    messages().map(Sent),
    st.builds(Replay, messages(), days),
    st.builds(Prune, days, st.integers(0, 12)),
    st.builds(Prune, days, st.just(0)),
    st.sampled_from("abc").map(MoveTo),
    st.sampled_from("abc").map(MoveTo),
    st.builds(Waited, st.integers(1, 4)),
    st.just(DeleteOldCopies()),
    st.just(Erase()),
)


class Life:
    """The same events on shards and on the reference machine."""

    def __init__(
        self, harness: ShardHarness, machine: ShardedStateMachine, clock: ManualClock
    ) -> None:
        self._machines: Sequence[StateMachineOfRecord] = (machine, MemoryStateMachine(clock))
        self._clock = clock
        self._databases = harness.databases
        self._ids: Time = 0  # the ids up to then are forgotten, of the users before as well

    def begin(self) -> None:
        self._uid = f"ann{next(_numbers)}"
        self._cursors = [0]

    async def take_place(self, event: Event) -> None:
        self._clock.now += SECOND
        match event:
            case Sent(message):
                await self._consume(message)
            case Replay(message, age):
                await self._consume(message.stamp(self._clock.now - age * DAY - 1, 0))
            case Erase():
                await self._both(lambda machine: machine.erase(self._uid))
            case Prune(contents, ids):
                self._ids = max(self._ids, self._clock.now - ids * DAY) if ids else self._ids
                await self._prune(Cutoff(self._clock.now - contents * DAY, self._ids))
            case MoveTo(shard):
                await self._rebalancer().move([Move(bucket_of(self._uid), "", shard)])
            case DeleteOldCopies():
                findings, _ = await self._rebalancer().verify(prune=True)
                assert findings == []
            case Waited(days):
                self._clock.now += days * DAY
        await self._require_same()

    def _rebalancer(self) -> Rebalancer:
        kept = Retention(1, self._clock.now - self._ids if self._ids else 0)
        return Rebalancer(self._databases, clock=self._clock, retention=kept)

    async def _consume(self, message: InBandMessage) -> None:
        (message,) = of_user(self._uid, [message])
        await self._both(lambda machine: outcome_of(machine, message))

    async def _both(self, call: Callable[[StateMachineOfRecord], Awaitable[object]]) -> None:
        on_shards, expected = [await call(machine) for machine in self._machines]
        assert on_shards == expected

    async def _prune(self, cutoff: Cutoff) -> None:
        for machine in self._machines:
            after: str | None = ""
            while after is not None:
                after = (await machine.prune(cutoff, after)).last

    async def _require_same(self) -> None:
        uid = self._uid
        await self._both(lambda machine: machine.ctime(uid))
        await self._both(lambda machine: machine.erasure(uid))
        self._cursors.append(await self._machines[0].ctime(uid))
        for device_id in (None, "d1", "d2"):
            await self._both(lambda machine: machine.state(uid, device_id))  # noqa: B023
            for cursor in self._cursors[:1] + self._cursors[-4:]:
                await self._both(lambda machine: machine.sync(uid, device_id, cursor))  # noqa: B023
        assert list(await self._machines[0].check_hashes([uid])) == []


async def outcome_of(machine: StateMachineOfRecord, message: InBandMessage) -> object:
    """The outcome, or the kind of error."""
    (outcome,) = await machine.consume_messages([message])
    return type(outcome.error) if isinstance(outcome, Rejected) else outcome


@pytest.fixture
async def life(harness: ShardHarness) -> AsyncIterator[Life]:
    clock = ManualClock(START)
    async with harness.machine(clock) as machine:
        yield Life(harness, machine, clock)


@settings(max_examples=40)
@given(st.lists(events, min_size=2, max_size=14))
async def test_law_user_who_moves_lives_as_one_who_stays(life: Life, history: list[Event]) -> None:
    life.begin()
    for event in history:
        await life.take_place(event)
