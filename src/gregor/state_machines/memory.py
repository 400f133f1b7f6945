"""A state machine of record in memory: the rules of `core` and a log, nothing else.

For tests, simulations and models. Its answers are the yardstick for every other state machine.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage, MsgID
from gregor.core.state import (
    Changes,
    Facts,
    Known,
    Snapshot,
    State,
    Sync,
    most_changes,
    since,
)
from gregor.errors import Conflict
from gregor.interfaces import Duplicate, Outcome, Rejected, StateMachineOfRecord, Stored


class MemoryStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord whose durability is that of this object."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        self._clock = clock
        self._users: dict[UID, _User] = {}

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        now = self._clock()
        return [
            self._users.setdefault(message.uid, _User()).consume(message, now)
            for message in messages
        ]

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        now = self._clock()
        facts = self._user(uid).facts
        if at is None:
            return facts.state(device_id, now)
        return facts.state_at(device_id, at.after(now))

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> list[InBandMessage]:
        now = self._clock()
        return self._user(uid).since(device_id, since.after(now), now)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        return self._user(uid).sync(device_id, cursor, self._clock())

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        return {uid: self._user(uid).ctime for uid in uids}

    async def troubles(self) -> Sequence[str]:
        return ()

    def log(self, uid: UID) -> tuple[InBandMessage, ...]:
        """All that was ever stored for the user, in order and in full."""
        return tuple(self._user(uid).log)

    def _user(self, uid: UID) -> "_User":
        return self._users.get(uid) or _User()


class _User:
    """One user's log and what follows from it."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.ctime: Time = 0
        self.log: list[InBandMessage] = []
        self._by_id: dict[MsgID, InBandMessage] = {}

    def consume(self, message: InBandMessage, now: Time) -> Outcome:
        known = self._by_id.get(message.msg_id)
        if known is not None:
            if known.same_contents(message):
                return Duplicate(known)
            return Rejected(message, Conflict("this msg_id is known with other contents"))
        if message.stamped:
            return self._replay(message)
        stored = message.stamp(max(now, self.ctime + 1), self.ctime)
        self._remember(stored)
        return Stored(stored)

    def _replay(self, message: InBandMessage) -> Outcome:
        place = bisect_left(self.log, message.ctime, key=_ctime)
        if place < len(self.log) and self.log[place].ctime == message.ctime:
            return Rejected(message, Conflict("another message of this user has this ctime"))
        stored = message.stamp(message.ctime, self.log[place - 1].ctime if place else 0)
        if place < len(self.log):
            follower = self.log[place].stamp(self.log[place].ctime, stored.ctime)
            self.log[place] = self._by_id[follower.msg_id] = follower
        self._remember(stored)
        return Stored(stored)

    def _remember(self, message: InBandMessage) -> None:
        insort(self.log, message, key=_ctime)
        self._by_id[message.msg_id] = message
        self.facts = self.facts.replay(message)
        self.ctime = max(self.ctime, message.ctime)

    def since(self, device_id: DeviceID | None, start: Time, now: Time) -> list[InBandMessage]:
        log = self.log[bisect_left(self.log, start, key=_ctime) :]
        return list(since(log, device_id, start, partial(self._known, now)))

    def sync(self, device_id: DeviceID | None, cursor: Time, now: Time) -> Sync:
        state = self.facts.state(device_id, now)
        return Sync(self._content(device_id, cursor, now, state), self.ctime, now, state.hash())

    def _content(
        self, device_id: DeviceID | None, cursor: Time, now: Time, state: State
    ) -> Changes | Snapshot:
        tombstones = self.facts.forget(self.ctime)
        snapshot = Snapshot(state.items, tuple(tombstones.ids.items()), tombstones.ranges)
        if not 0 < cursor <= self.ctime:
            return snapshot
        missed = len(self.log) - bisect_right(self.log, cursor, key=_ctime)
        if missed > most_changes(len(state)):
            return snapshot
        return Changes(tuple(self.since(device_id, cursor + 1, now)))

    def _known(self, now: Time, msg_id: MsgID) -> Known | None:
        item = self.facts.find(msg_id)
        if item is None:
            return None
        alive = msg_id in self.facts.items and not item.expired(now)
        return Known(item.ctime, item.device_id, alive)


def _ctime(message: InBandMessage) -> Time:
    return message.ctime
