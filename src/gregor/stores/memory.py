"""A state machine of record in memory: the rules of `core` and a log, nothing else.

For tests, simulations and models. It is the reference for every other state machine.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gregor.core.facts import Facts
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item, State
from gregor.core.sync import (
    MAX_BYTES_READ,
    Changes,
    Snapshot,
    Sync,
    fate_in,
    groups,
    left_of,
    max_changes,
    since,
)
from gregor.errors import Conflict
from gregor.interfaces import Duplicate, Rejected, Slot, StateMachineOfRecord, Stored, StoreOutcome


class MemoryStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord that is as durable as this object."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        self._clock = clock
        self._users: dict[UID, _UserLog] = {}

    async def store(self, slots: Sequence[Slot]) -> None:
        now = self._clock()
        for slot in slots:
            user = self._users.setdefault(slot.message.uid, _UserLog())
            slot.outcome = user.consume(slot.message, now)

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

    async def items(self, uid: UID, ctimes: Sequence[Time]) -> Sequence[Item]:
        return self._user(uid).items(ctimes)

    async def count(
        self, uid: UID, device_id: DeviceID | None, prefixes: Sequence[Category]
    ) -> Counts:
        now = self._clock()
        visible = self._user(uid).facts.visible(device_id, now)
        return Counts.of(((item.category, 1) for item in visible), prefixes, now)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        return {uid: self._user(uid).ctime for uid in uids}

    async def problems(self) -> Sequence[str]:
        return ()

    def log(self, uid: UID) -> tuple[InBandMessage, ...]:
        """All messages that were ever stored for the user, in order and in full."""
        return tuple(self._user(uid).log)

    def _user(self, uid: UID) -> "_UserLog":
        return self._users.get(uid) or _UserLog()


class _UserLog:
    """One user's log, and the facts and the clock that follow from it."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.ctime: Time = 0
        self.log: list[InBandMessage] = []
        self._by_msg_id: dict[MsgID, InBandMessage] = {}

    def consume(self, message: InBandMessage, now: Time) -> StoreOutcome:
        known = self._by_msg_id.get(message.msg_id)
        if known is not None:
            if known.same_contents(message):
                return Duplicate(known)
            return Rejected(message, Conflict("this msg_id is known with other contents"))
        if message.stamped:
            return self._replay(message)
        stored = message.stamp(max(now, self.ctime + 1), self.ctime)
        self._add(stored)
        return Stored(stored)

    def _replay(self, message: InBandMessage) -> StoreOutcome:
        index = bisect_left(self.log, message.ctime, key=_ctime)
        if index < len(self.log) and self.log[index].ctime == message.ctime:
            return Rejected(message, Conflict("another message of this user has this ctime"))
        stored = message.stamp(message.ctime, self.log[index - 1].ctime if index else 0)
        if index < len(self.log):
            successor = self.log[index].stamp(self.log[index].ctime, stored.ctime)
            self.log[index] = self._by_msg_id[successor.msg_id] = successor
        self._add(stored)
        return Stored(stored)

    def _add(self, message: InBandMessage) -> None:
        insort(self.log, message, key=_ctime)
        self._by_msg_id[message.msg_id] = message
        self.facts = self.facts.replay(message)
        self.ctime = max(self.ctime, message.ctime)

    def since(self, device_id: DeviceID | None, start: Time, now: Time) -> list[InBandMessage]:
        log = self.log[bisect_left(self.log, start, key=_ctime) :]
        return list(since(log, device_id, start, now, partial(fate_in, self.facts)))

    def sync(self, device_id: DeviceID | None, cursor: Time, now: Time) -> Sync:
        state = self.facts.state(device_id, now)
        return Sync(self._content(device_id, cursor, now, state), self.ctime, now, state.hash())

    def _content(
        self, device_id: DeviceID | None, cursor: Time, now: Time, state: State
    ) -> Changes | Snapshot:
        pruned = self.facts.prune(self.ctime)
        first, *others = [*groups([item.ctime for item in state]), ()]
        items = self.items(first)
        unread = tuple(group for group in (left_of(first, items), *others) if group)
        snapshot = Snapshot(tuple(items), tuple(pruned.tombstones.items()), pruned.ranges, unread)
        if not 0 < cursor <= self.ctime:
            return snapshot
        missing = len(self.log) - bisect_right(self.log, cursor, key=_ctime)
        if missing > max_changes(len(state)):
            return snapshot
        return Changes(tuple(self.since(device_id, cursor + 1, now)))

    def items(self, ctimes: Sequence[Time]) -> list[Item]:
        items: list[Item] = []
        size = 0
        for ctime in ctimes:
            index = bisect_left(self.log, ctime, key=_ctime)
            for item in map(Item.of, self.log[index : index + 1]):
                if item is not None and item.ctime == ctime:
                    items.append(item)
                    size += len(bytes(item.raw_body))
            if size >= MAX_BYTES_READ:
                break
        return items


def _ctime(message: InBandMessage) -> Time:
    return message.ctime
