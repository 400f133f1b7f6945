"""A state machine of record in memory: the rules of `core` and a log, nothing else.

For tests, simulations and models. It is the reference for every other state machine.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence

from gregor.core.facts import Facts, is_dismissed_by
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item
from gregor.core.state_page import PageStart, StatePage, StateQuery, page_of
from gregor.core.sync import (
    MAX_BYTES_READ,
    After,
    Changes,
    Page,
    PageLimits,
    Recipient,
    Reduced,
    Since,
    Snapshot,
    Start,
    Sync,
    UserTime,
    first_page,
    knowledge_in,
    max_changes,
    reductions,
    require_continued,
    snapshot_of,
    what_is_left,
)
from gregor.core.visibility import At, Now, has_begun, has_expired
from gregor.errors import Conflict, InvalidMessage
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
        for slot in slots:  # only now: what the outcomes say is as of the end of the batch
            user = self._users[slot.message.uid]
            slot.outcome = user.judged(slot.outcome, now)

    async def state_page(
        self,
        uid: UID,
        query: StateQuery,
        at: TimeOrOffset | None = None,
        start: PageStart | None = None,
    ) -> StatePage:
        now, user = self._clock(), self._user(uid)
        if start is not None:
            state = user.facts.state_at(query.device_id, start.as_of, start.known)
            return page_of(state, query, start, start.hash, start.known)
        when = Now(now) if at is None else At(at.after(now))
        return user.state_page(query, when)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        now = self._clock()
        return what_is_left(self._user(uid).since(device_id, Since(since.after(now)), now))

    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        user = self._user(uid)
        require_continued(start, user.time)
        return first_page(user.since(device_id, start, self._clock()), user.time.clock, limits)

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

    async def count_by_segment(
        self, uid: UID, device_id: DeviceID | None, prefix: Category
    ) -> Counts:
        now = self._clock()
        visible = self._user(uid).facts.visible(device_id, now)
        return Counts.of_segments(((item.category, 1) for item in visible), prefix, now)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        return {uid: self._user(uid).time.clock for uid in uids}

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        return ()  # none is kept

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
        self.time = UserTime(0)
        self.log: list[InBandMessage] = []
        self._by_msg_id: dict[MsgID, InBandMessage] = {}

    def consume(self, message: InBandMessage, now: Time) -> StoreOutcome:
        known = self._by_msg_id.get(message.msg_id)
        if known is not None:
            if known.same_contents(message):
                return Duplicate(known)
            return Rejected(message, Conflict("this msg_id is known with other contents"))
        clock = self.time.clock
        if message.stamped:
            return self._replay(message)
        try:
            stored = message.stamp_new(max(now, clock + 1), clock)
        except InvalidMessage as error:
            return Rejected(message, error)
        self._add(stored)
        self.time = self.time._replace(clock=stored.ctime)
        return Stored(stored)

    def _replay(self, message: InBandMessage) -> StoreOutcome:
        clock, ctime = self.time.clock, message.ctime
        if ctime > clock:
            stored = message.stamp(ctime, clock)
            self.time = self.time._replace(clock=ctime)
        else:
            index = bisect_left(self.log, ctime, key=_ctime)
            if index < len(self.log) and self.log[index].ctime == ctime:
                return Rejected(message, Conflict("another message of this user has this ctime"))
            stored = message.stamp(ctime, self.log[index - 1].ctime if index else 0)
            self._follow(index, stored)
            self.time = UserTime(clock + 1, mark=clock + 1)
        self._add(stored)
        return Stored(stored)

    def _follow(self, index: int, predecessor: InBandMessage) -> None:
        """The message at this place of the log, if there is one, comes after a new one."""
        for message in self.log[index : index + 1]:
            successor = message.stamp(message.ctime, predecessor.ctime)
            self.log[index] = self._by_msg_id[successor.msg_id] = successor

    def _add(self, message: InBandMessage) -> None:
        insort(self.log, message, key=_ctime)
        self._by_msg_id[message.msg_id] = message
        self.facts = self.facts.replay(message)

    def state_page(self, query: StateQuery, when: Now | At) -> StatePage:
        device_id, cursor = query.device_id, self.time.clock
        match when:
            case Now(time):
                state = self.facts.state(device_id, time)
            case At(time):
                state, cursor = self.facts.state_at(device_id, time), min(time, cursor)
        return page_of(state, query, None, self.facts.hash_at(device_id, when), cursor)

    def judged(self, outcome: StoreOutcome | None, now: Time) -> StoreOutcome | None:
        """The outcome, with what has come of the message by now."""
        match outcome:
            case Stored(message):
                dead, expired, scheduled = self._fate_of(message, now)
                replaced = self.facts.predecessor(message)
                return Stored(
                    message,
                    dead,
                    expired,
                    self._dismissed_by(message),
                    scheduled,
                    None if replaced is None else replaced.msg_id,
                )
            case Duplicate(message):
                return Duplicate(message, *self._fate_of(message, now))
            case _:
                return outcome

    def _fate_of(self, message: InBandMessage, now: Time) -> tuple[bool, bool, bool]:
        """Whether the item of a stored message is dead, has expired, and is yet to begin."""
        dead = message.creation is not None and message.msg_id in self.facts.dismissed
        scheduled = not has_begun(message.starts_at, now)
        return dead, has_expired(message.expires_at, now), scheduled

    def _dismissed_by(self, message: InBandMessage) -> int:
        """How many items, live before it, died of the dismissal of this message."""
        if message.dismissal is None:
            return 0
        died = (d.item for d in self.facts.dismissed.values() if d.dismissed_at == message.ctime)
        lived = (i for i in died if i.ctime < message.ctime and not i.expired(message.ctime))
        return sum(is_dismissed_by(item, message) for item in lived)

    def since(self, device_id: DeviceID | None, start: Start, now: Time) -> Iterator[Reduced]:
        log = self.log[bisect_left(self.log, start.first, key=_ctime) :]
        recipient = Recipient(device_id, start.known, now)
        return reductions(log, recipient, knowledge_in(self.facts))

    def sync(self, device_id: DeviceID | None, cursor: Time, now: Time) -> Sync:
        content = self._content(device_id, cursor, now)
        return Sync(content, self.time.clock, now, self.facts.hash(device_id, now))

    def _content(self, device_id: DeviceID | None, cursor: Time, now: Time) -> Changes | Snapshot:
        whole = snapshot_of(self.facts, device_id, now)
        missing = len(self.log) - bisect_right(self.log, cursor, key=_ctime)
        continues = cursor > 0 and self.time.continues(cursor)
        if continues and missing <= max_changes(len(whole)):
            return Changes(what_is_left(self.since(device_id, After(cursor), now)))
        return Snapshot.of([item.ctime for item in whole.items], self.items)

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
