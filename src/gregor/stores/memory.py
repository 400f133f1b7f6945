"""A state machine of record in memory: the rules of `core` and a log, nothing else.

For tests, simulations and models. It is the reference for every other state machine.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs
from msgspec.json import encode

from gregor.core.deployment import Deployment
from gregor.core.export import (
    ExportedMessage,
    ExportedPruned,
    ExportedTombstone,
    ExportedUser,
    ExportPage,
    ExportPlace,
    ImportPart,
    Record,
    Taken,
    Verdict,
    accepted,
)
from gregor.core.facts import Facts, is_dismissed_by
from gregor.core.history import (
    Cutoff,
    past_messages,
    require_remembered,
    stored_too_late,
    wrong_epoch,
)
from gregor.core.holdings import Holdings, refusal
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.item_history import Author, Authored, ItemHistory, Trace, history_of
from gregor.core.message import UID, Category, DeviceID, Digest, InBandMessage, MsgID, dismiss
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
from gregor.errors import Conflict, Erased, InvalidMessage, LimitExceeded
from gregor.interfaces import (
    NEVER_ERASED,
    Duplicate,
    EraseResult,
    Erasure,
    PruneStep,
    Rejected,
    Slot,
    StateMachineOfRecord,
    Stored,
    StoreOutcome,
)
from gregor.limits import NO_LIMITS, Limits
from gregor.stores.new_deployment import new_deployment

STEP_USERS = 100
"""How many users one step of a prune looks at."""


class MemoryStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord that is as durable as this object. New messages that would give a user
    more than the `limits` allow are rejected."""

    def __init__(self, clock: Callable[[], Time], limits: Limits = NO_LIMITS) -> None:
        self._clock = clock
        self._limits = limits
        self._users: dict[UID, _UserLog] = {}
        self._deployment = new_deployment()

    async def deployment(self) -> Deployment | None:
        return self._deployment

    async def store(self, slots: Sequence[Slot]) -> None:
        now = self._clock()
        for slot in slots:
            user = self._users.setdefault(slot.message.uid, _UserLog())
            slot.outcome = user.consume(slot, now, self._limits)
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
            require_remembered(start, user.time)
            state = user.facts.state_at(query.device_id, start.as_of, start.known)
            empty = StatePage((), start.as_of, start.hash, start.known, epoch=user.erasure.epoch)
            return page_of(state, query, start, empty)
        if at is None:
            return user.state_page(query, Now(now))
        when = At(at.after(now))
        require_remembered(when, user.time)
        return user.state_page(query, when)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        now, user = self._clock(), self._user(uid)
        start = Since(since.after(now))
        require_remembered(start, user.time)
        return what_is_left(user.since(device_id, start, now))

    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        user = self._user(uid)
        require_remembered(start, user.time)
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

    async def erasure(self, uid: UID) -> Erasure:
        return self._user(uid).erasure

    async def erase(self, uid: UID) -> EraseResult:
        user = self._users[uid] = self._user(uid).erased(self._clock())
        return EraseResult(user.erasure)

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        floor = min(cutoff.floor, self._clock())
        uids = sorted(uid for uid in self._users if uid > after)[:STEP_USERS]
        steps = [self._users[uid].prune(Cutoff(floor, cutoff.ids)) for uid in uids]
        return PruneStep(
            uids[-1] if len(uids) == STEP_USERS else None,
            sum(step.users for step in steps),
            sum(step.contents for step in steps),
            sum(step.ids for step in steps),
        )

    async def item_history(self, uid: UID, msg_id: MsgID) -> ItemHistory:
        return history_of(uid, msg_id, self._user(uid).trace(msg_id), self._clock())

    async def users_after(self, uid: UID, limit: int) -> Sequence[UID]:
        known = (known for known, user in self._users.items() if user.time.clock)
        return sorted(known for known in known if known > uid)[:limit]

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        return self._user(uid).export(uid)

    async def import_parts(self, parts: Sequence[ImportPart]) -> Sequence[Sequence[Verdict]]:
        return [self._import(part) for part in parts]

    def _import(self, part: ImportPart) -> Sequence[Verdict]:
        user = self._user(part.user.uid)
        if part.user.epoch > user.erasure.epoch:
            user = user.erased_by(Erasure(part.user.epoch, part.user.erased_at))
        self._users[part.user.uid] = user
        return user.take(part)

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        return ()  # none is kept

    async def problems(self) -> Sequence[str]:
        return ()

    def log(self, uid: UID) -> tuple[InBandMessage, ...]:
        """All messages of the user whose contents are not forgotten, in order and in full."""
        return tuple(self._user(uid).log)

    def pruned(self, uid: UID) -> Mapping[MsgID, Time]:
        """The ctimes of the messages whose contents are forgotten."""
        return {msg_id: pruned.ctime for msg_id, pruned in self._user(uid).pruned.items()}

    def _user(self, uid: UID) -> "_UserLog":
        return self._users.get(uid) or _UserLog()


class _PrunedID(NamedTuple):
    """What is kept of a message without its contents."""

    ctime: Time
    digest: Digest


class _UserLog:
    """One user's log since the last erase, and the facts and the clock that follow from it."""

    def __init__(self, erasure: Erasure = NEVER_ERASED) -> None:
        self.erasure = erasure
        self.facts = Facts()
        self.time = UserTime(erasure.epoch, floor=erasure.epoch)
        self.log: list[InBandMessage] = []
        self._by_msg_id: dict[MsgID, InBandMessage] = {}
        self.pruned: dict[MsgID, _PrunedID] = {}
        self._authors: dict[MsgID, Author] = {}

    def consume(self, slot: Slot, now: Time, limits: Limits = NO_LIMITS) -> StoreOutcome:
        outcome = self._consume(slot, now, limits)
        if isinstance(outcome, Stored) and slot.author is not None:
            self._authors[outcome.message.msg_id] = slot.author
        return outcome

    def _consume(self, slot: Slot, now: Time, limits: Limits) -> StoreOutcome:
        message, epoch = slot.message, self.erasure.epoch
        if slot.epoch is not None and slot.epoch != epoch:
            return Rejected(message, wrong_epoch(slot.epoch, epoch))
        if message.msg_id in self._by_msg_id or message.msg_id in self.pruned:
            return self._resolve_known_id(message)
        if message.stamped:
            return self._replay(message)
        exceeded = None if limits is NO_LIMITS else self._exceeded_by(message, now, limits)
        return self._store(message, now) if exceeded is None else Rejected(message, exceeded)

    def _exceeded_by(
        self, message: InBandMessage, now: Time, limits: Limits
    ) -> LimitExceeded | None:
        """Why the user may not have what the message adds to what it leaves, if so."""
        stored = message.stamp(self.time.next_ctime(now), self.time.clock)
        had = _holdings(self.facts, self._by_msg_id, now)
        known = {**self._by_msg_id, message.msg_id: stored}
        has = _holdings(self.facts.replay(stored), known, now)
        return refusal(had, has.minus(had), limits)

    def _resolve_known_id(self, message: InBandMessage) -> StoreOutcome:
        known, pruned = self._by_msg_id.get(message.msg_id), self.pruned.get(message.msg_id)
        if known is not None and known.same_contents(message):
            return Duplicate(known)
        if pruned is not None and pruned.digest == message.contents_digest():
            return Duplicate(message.stamp(pruned.ctime, 0))
        return Rejected(message, Conflict("this msg_id is known with other contents"))

    def _store(self, message: InBandMessage, now: Time) -> StoreOutcome:
        try:
            stored = message.stamp_new(self.time.next_ctime(now), self.time.clock)
        except InvalidMessage as error:
            return Rejected(message, error.as_value())
        self._add(stored)
        self.time = self.time._replace(clock=stored.ctime)
        return Stored(stored)

    def _replay(self, message: InBandMessage) -> StoreOutcome:
        clock, ctime = self.time.clock, message.ctime
        if ctime <= self.time.floor:
            return Rejected(message, stored_too_late(self.time.floor))
        if ctime <= clock:
            return self._replay_late(message)
        stored = message.stamp(ctime, clock)
        self.time = self.time._replace(clock=ctime)
        self._add(stored)
        return Stored(stored)

    def _replay_late(self, message: InBandMessage) -> StoreOutcome:
        """Store a replay between its neighbours in the log. No cursor could hear of it, so the
        clock moves on, and is marked."""
        clock, ctime = self.time.clock, message.ctime
        index = bisect_left(self.log, ctime, key=_ctime)
        if index < len(self.log) and self.log[index].ctime == ctime:
            return Rejected(message, Conflict("another message of this user has this ctime"))
        stored = message.stamp(ctime, self.log[index - 1].ctime if index else 0)
        self._follow(index, stored)
        self.time = self.time._replace(clock=clock + 1, mark=clock + 1)
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
        hash_ = self.facts.hash_at(device_id, when)
        empty = StatePage((), state.as_of, hash_, cursor, epoch=self.erasure.epoch)
        return page_of(state, query, None, empty)

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
        forgotten = message.msg_id in self.pruned
        dead = message.creation is not None and (
            forgotten or message.msg_id in self.facts.dismissed
        )
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
        hash_ = self.facts.hash(device_id, now)
        return Sync(content, self.time.clock, now, hash_, *self.erasure)

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

    def trace(self, msg_id: MsgID) -> Trace:
        """What there is of this id."""
        message, pruned = self._by_msg_id.get(msg_id), self.pruned.get(msg_id)
        dismissed = self.facts.dismissed.get(msg_id)
        if dismissed is not None:
            died_at: Time | None = dismissed.dismissed_at
        else:
            died_at = self.facts.tombstones.get(msg_id)
        return Trace(
            None if message is None else self._authored(message),
            None if pruned is None else pruned.ctime,
            died_at,
            None if died_at is None else self._message_at(died_at),
        )

    def _message_at(self, ctime: Time) -> Authored | None:
        index = bisect_left(self.log, ctime, key=_ctime)
        for message in self.log[index : index + 1]:
            if message.ctime == ctime:
                return self._authored(message)
        return None

    def _authored(self, message: InBandMessage) -> Authored:
        return Authored(message, self._authors.get(message.msg_id))

    # Forgetting

    def erased(self, now: Time) -> "_UserLog":
        """The user's next life."""
        return _UserLog(Erasure(self.time.next_ctime(now), now))

    def prune(self, cutoff: Cutoff) -> PruneStep:
        past = past_messages(self.log, self.facts, cutoff.floor)
        users = int(bool(past) and self.time.floor < cutoff.floor)
        if past:
            self.time = self.time._replace(floor=max(self.time.floor, cutoff.floor))
            self._forget_contents(past, cutoff.floor)
        return PruneStep(None, users, len(past), self._forget_ids(cutoff.ids))

    def _forget_contents(self, past: Mapping[MsgID, InBandMessage], floor: Time) -> None:
        self.facts = self.facts.forgetting(past.keys(), floor)
        self.log = [message for message in self.log if message.msg_id not in past]
        for msg_id, message in past.items():
            del self._by_msg_id[msg_id]
            self._authors.pop(msg_id, None)
            self.pruned[msg_id] = _PrunedID(message.ctime, message.contents_digest())

    def _forget_ids(self, end: Time) -> int:
        """Forget the ids up to this time. Returns how many."""
        tombstones = self.facts.tombstones.items()
        dismissed = [i for i, at in tombstones if at <= end and i not in self._by_msg_id]
        pruned = [msg_id for msg_id, id_ in self.pruned.items() if id_.ctime <= end]
        self.facts = self.facts.without_tombstones_of(dismissed)
        for msg_id in pruned:
            del self.pruned[msg_id]
        return len(dismissed) + len(pruned)

    # Exporting and importing

    def export(self, uid: UID) -> ExportPage:
        """Everything, in the order of the parts of an export."""
        time = self.time
        user = ExportedUser(uid, time.clock, time.mark, self.erasure.epoch, time.floor)
        user = structs.replace(user, erased_at=self.erasure.erased_at)
        records: list[Record] = [
            *(ExportedTombstone(uid, *death) for death in sorted(self._early_deaths())),
            *(ExportedTombstone(uid, *death) for death in self._deaths_up_to(time.floor)),
            *(ExportedMessage.of(m, self._authors.get(m.msg_id)) for m in self.log),
            *(ExportedPruned(uid, id_, *kept) for id_, kept in sorted(self.pruned.items())),
        ]
        return ExportPage(user, tuple(records))

    def _early_deaths(self) -> Iterator[tuple[MsgID, Time]]:
        """The ids that were dismissed and have not arrived."""
        tombstones = self.facts.tombstones.items()
        return ((id_, at) for id_, at in tombstones if id_ not in self._by_msg_id)

    def _deaths_up_to(self, floor: Time) -> Iterator[tuple[MsgID, Time]]:
        """The deaths of stored items of which the messages may be forgotten."""
        for message in self.log:
            died_at = self.facts.death_of(message.msg_id)
            if died_at is not None and died_at <= floor:
                yield message.msg_id, died_at

    def erased_by(self, erasure: Erasure) -> "_UserLog":
        """The user without what is not after this epoch."""
        epoch, time = erasure.epoch, self.time
        later = _UserLog(erasure)
        for msg_id, at in (*self._early_deaths(), *self._deaths_up_to(time.clock)):
            if at > epoch:
                later._bury(msg_id, at)
        for message in self.log:
            if message.ctime > epoch:
                later._add(message)
        later.pruned = {id_: kept for id_, kept in self.pruned.items() if kept.ctime > epoch}
        later._authors = dict(self._authors)
        mark = time.mark if time.mark > epoch else 0
        later.time = UserTime(max(time.clock, epoch), mark, max(time.floor, epoch))
        return later

    def take(self, part: ImportPart) -> list[Verdict]:
        """Take these lines, and return what has come of each."""
        floor = self.time.floor
        verdicts = [self._take(record) for record in part.records]
        if part.ends and part.user.ctime:
            taken = part.accepted + accepted(part.records, verdicts)
            self._finish(part.user, taken, has_later_floor=floor > part.user.floor)
        return verdicts

    def _take(self, record: Record) -> Verdict:
        epoch = self.erasure.epoch
        if record.time <= epoch:
            return Erased(f"the user was erased at {epoch}, after this", epoch=epoch)
        match record:
            case ExportedTombstone():
                return self._take_death(record)
            case ExportedMessage():
                return self._take_message(record.message, record.author)
            case ExportedPruned():
                return self._take_pruned(record)

    def _take_death(self, record: ExportedTombstone) -> Verdict:
        if record.msg_id in self.pruned:
            return Taken.KNOWN
        was_live = record.msg_id in self.facts.items
        self._bury(record.msg_id, record.at)
        if was_live:  # no cursor could hear of it
            clock = self.time.clock + 1
            self.time = self.time._replace(clock=clock, mark=clock)
        return Taken.STORED

    def _bury(self, msg_id: MsgID, at: Time) -> None:
        """Let the item be dead from this time on, whether it has arrived or not."""
        self.facts = self.facts.replay(dismiss("-", msg_id).stamp(at, 0))

    def _take_message(self, message: InBandMessage, author: Author | None) -> Verdict:
        known = self._kept(message.msg_id)
        if known is not None:
            return _found(known, message.ctime, message.contents_digest())
        time = self.time
        if message.ctime <= min(time.floor, time.clock):
            return stored_too_late(time.floor)
        if message.ctime > time.clock:
            clock = 0 if time.clock == self.erasure.epoch else time.clock
            self._add(message.stamp(message.ctime, max(message.prev, clock)))
            self.time = time._replace(clock=message.ctime)
        else:
            outcome = self._replay_late(message)
            if isinstance(outcome, Rejected):
                return outcome.error
        if author is not None:
            self._authors[message.msg_id] = author
        return Taken.STORED

    def _take_pruned(self, record: ExportedPruned) -> Verdict:
        known = self._kept(record.msg_id)
        if known is not None:
            return _found(known, record.ctime, record.digest)
        self.pruned[record.msg_id] = _PrunedID(record.ctime, record.digest)
        return Taken.STORED

    def _kept(self, msg_id: MsgID) -> "_PrunedID | None":
        """What would be kept of the message with this id, if there is one."""
        message = self._by_msg_id.get(msg_id)
        if message is None:
            return self.pruned.get(msg_id)
        return _PrunedID(message.ctime, message.contents_digest())

    def _finish(self, user: ExportedUser, taken: int, *, has_later_floor: bool) -> None:
        """All lines of the user are in: the clock, the mark and the floor become those of the
        file, if these are later."""
        ctimes = [m.ctime for m in self.log] + [kept.ctime for kept in self.pruned.values()]
        stored = sum(ctime <= user.ctime for ctime in ctimes)
        clock, mark = max(self.time.clock, user.ctime), max(self.time.mark, user.mark)
        if (stored > taken or has_later_floor) and mark <= user.ctime:
            # A cursor of the store that wrote the file cannot hear of these.
            clock = mark = clock + 1
        self.time = UserTime(clock, mark, max(self.time.floor, user.floor))


def _holdings(facts: Facts, known: Mapping[MsgID, InBandMessage], now: Time) -> Holdings:
    """What a user has of whom these messages are known."""
    live = [item for item in facts.items.values() if not item.expired(now)]
    return Holdings(
        len(live),
        sum(len(encode(known[item.msg_id])) for item in live),
        sum(not has_begun(item.starts_at, now) for item in live),
        sum(msg_id not in known for msg_id in facts.tombstones),
    )


def _found(known: _PrunedID, ctime: Time, digest: Digest) -> Verdict:
    """The store has a message with this id."""
    if known.digest != digest:
        return Conflict("this msg_id is known with other contents", field="msg_id")
    return Taken.KNOWN if known.ctime == ctime else Taken.KNOWN_AT_ANOTHER_TIME


def _ctime(message: InBandMessage) -> Time:
    return message.ctime
