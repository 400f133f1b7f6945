"""A device's replica: the facts received from the server, and the outbox of unsent messages.

    shown = facts + outbox applied on top          visible = shown − hidden − awaited − expired

A replica is an immutable value, like its facts: each operation returns a new replica, and gets the
time as an argument.

A node tells a replica in order, and never sends a creation that is dead when it is stored. So the
facts are the items without a known death, and nothing else: no tombstone, no dead item. What a
replica holds is proportional to what is live and what is unsent, whatever has passed.

A written message means what it means when it is written: its offsets become instants, and what it
dismisses is what the person has seen. It stays in the outbox until the node acknowledges it, and
then, with the ctime that it was given, until the cursor reaches that ctime. Only messages received
from the node become facts: the node does not send the dismissal of an item that a replica at this
cursor cannot have, so a message that became a fact in another way might never be dismissed here.

An erase of the user, of which `epoch` is the ctime, leaves nothing of all this. What is written on
a device belongs to the life of the user that the device knows of, and goes with it: so no outbox
can bring an erased user back. A new life begins when the application asks for it.

An unsent message is shown as if the node stored it now: its ctime is later than all known ones, and
known dismissals do not apply to it. Once the node has sent the message back (it is echoed), it is
shown from the facts alone.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice, takewhile
from typing import Any, Self, TypeVar

from immutables import Map
from msgspec import Struct, structs

from gregor.client.events import Created, Dismissed, Event, Why, WriteRejected
from gregor.client.outbox import Outbox, OutboxEntry
from gregor.client.snooze import snoozed
from gregor.client.writing import (
    UNKNOWN_UID,
    Clause,
    alone,
    clauses,
    compares_time,
    has_offset_ends,
    naming_also,
    repeats_item,
    with_ends,
    with_instants,
)
from gregor.core.admission import EARLIEST_TIME
from gregor.core.facts import (
    DismissedKey,
    DismissedRange,
    Facts,
    dismissed_keys,
    dismissed_ranges,
    is_dismissed_by,
)
from gregor.core.instant import MAX_TIME, SECOND, Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage, Key, MsgID
from gregor.core.range_deaths import range_deaths
from gregor.core.state import Item, State
from gregor.core.sync import EXPIRY_GRACE, Snapshot
from gregor.core.visibility import Now, has_begun, is_live, is_visible
from gregor.errors import (
    Conflict,
    Erased,
    HistoryForgotten,
    InvalidMessage,
    SetupError,
    TooLarge,
)
from gregor.protocol.frames import MAX_FRAME, Problem, Result, encoded_size

T = TypeVar("T")

MAX_REJECTED = 1_000
MAX_AWAITED = 1_000


class RejectedEntry(Struct, frozen=True):
    """A message that the node rejected, its position among the rejected ones, and the error."""

    number: int
    message: InBandMessage
    error: Problem


class Replica(Struct, frozen=True):
    """One device's replica of its user's state, with the outbox of the device.

    `awaited` are hidden ids whose items have not arrived, each with its number in the order of
    hiding. `uid` is None until a node has reported it, and so is `epoch`, the ctime of the user's
    last erase (0: never); `erased` says that the device was wiped for it, and takes no writes until
    a new life begins. The facts are complete from `known_since` on: since then, no item has been
    forgotten. `clock_offset` is by how much the node's clock is
    ahead of this device's, in microseconds, to about a second. `shown`, and `latest_ctime` in it,
    are derived from the other fields; `overlaid` are the ids of the items that the outbox may have
    changed there. With `old_stamps`, unsent messages have ctimes in `shown` that may have passed: a
    state gives them those of what is stored next. `changed` are the ids for which the last
    operation may have changed anything: its store and its events look at these alone, so that an
    operation costs what it changes, not what there is.
    """

    device_id: DeviceID
    uid: UID | None = None
    epoch: Time | None = None
    erased: bool = False
    cursor: Time = 0
    known_since: Time = 0
    facts: Facts = Facts()
    outbox: Outbox = Outbox()
    hidden: Map[MsgID, bool] = Map()
    awaited: Map[MsgID, int] = Map()
    rejected: Map[MsgID, RejectedEntry] = Map()
    last_number: int = 0
    clock_offset: int = 0
    shown: Facts = Facts()
    latest_ctime: Time = 0
    overlaid: Map[MsgID, bool] = Map()
    old_stamps: bool = False
    changed: frozenset[MsgID] = frozenset()

    # Changes made on this device

    def write(self, message: InBandMessage, now: Time) -> Self:
        """Put a message into the outbox. Its offsets become instants, and where a range or key ends
        at one of these, it takes this device's own items up to then by id. Idempotent: as long as
        the outbox has the message, or the device its item. Raises Conflict if the outbox has this
        msg_id with other contents, InvalidMessage if its item would not begin before it expires,
        and Erased if the user was erased."""
        self._require_life()
        known = self.outbox.get(message.msg_id)
        if known is not None and not known.is_given_again(message):
            raise Conflict("this msg_id is in the outbox with other contents")
        if known is not None or self._has_item_of(message):
            return self
        return self._written(self._as_meant(message, now), now)

    def write_all(self, messages: Iterable[InBandMessage], now: Time) -> Self:
        """Put several messages into the outbox, in order, as `write` does."""
        replica, changed = self, frozenset[MsgID]()
        for message in messages:
            replica = replica.write(message, now)
            changed |= replica.changed
        return replica._with(changed=changed)

    def _has_item_of(self, message: InBandMessage) -> bool:
        item = self.shown.items.get(message.msg_id)
        return item is not None and repeats_item(item, message)

    def _as_meant(self, message: InBandMessage, now: Time) -> InBandMessage:
        meant = with_instants(message, now)
        if not has_offset_ends(message):
            return meant
        return naming_also(meant, self._meant_beyond_instants(message, meant, now))

    def _meant_beyond_instants(
        self, message: InBandMessage, meant: InBandMessage, now: Time
    ) -> Iterator[MsgID]:
        """The ids of items that were here at the instants at which a dismissal ends, though their
        ctimes are later."""
        for given, clause in zip(clauses(message), clauses(meant), strict=True):
            if clause.end_time is not None and clause.end_time != given.end_time:
                end = clause.end_time.after(0)
                matched = self._matched(meant, clause)
                yield from (i.msg_id for i in matched if self._was_here(clause, end, now, i))

    def _was_here(self, clause: Clause, end: Time, now: Time, item: Item) -> bool:
        """Whether an item beyond the end was here at that time: it was written here, and the node
        stores it later; or it is here now, told by a node whose clock is ahead."""
        entry = self.outbox.get(item.msg_id)
        is_own = entry is not None and entry.written <= end
        is_ahead = item.msg_id in self.facts.items and item.ctime > end >= now
        return (is_own or is_ahead) and (
            not compares_time(clause) or has_begun(item.starts_at, end)
        )

    def _matched(self, message: InBandMessage, clause: Clause) -> list[Item]:
        """The items that a clause of the message would reach if it had no end, in order."""
        endless = alone(message, clause)
        found = map(self.shown.items.get, self.shown.reached_by(endless))
        matched = (item for item in found if item is not None and is_dismissed_by(item, endless))
        return sorted(matched, key=Item.order)

    def _written(self, message: InBandMessage, now: Time) -> Self:
        _require_sendable(message)
        number = self.last_number + 1
        is_known = message.msg_id in self.facts.items
        entry = OutboxEntry(number, now, message, echoed=is_known)
        if is_known:  # the node has stored this message or another with this id: the facts decide
            changed = frozenset([message.msg_id])
            outbox = self.outbox.set(entry)
            return self._with(outbox=outbox, last_number=number, changed=changed)
        return self._with_unsent(entry)

    def _with_unsent(self, entry: OutboxEntry) -> Self:
        # An end may lie between an old stamp and the one that is right now; and so may a start.
        depends = entry.has_ends or (entry.has_ranges and self._begins_after(self.cursor))
        before = self.derived() if self.old_stamps and depends else self
        reached = before.shown.reached_by(before._as_stored_next(entry))
        changed = before.changed if before is not self else frozenset[MsgID]()
        return before._with(
            outbox=before.outbox.set(entry),
            last_number=entry.number,
            changed=changed.union(reached),
        )._show_next(entry)

    def dismiss_seen(self, message: InBandMessage, now: Time) -> Self:
        """Write the dismissal of categories or keys without an end. It takes what the person has
        seen on this device: what the node has told it, and by id what the device shows beyond that.
        What has arrived elsewhere meanwhile stays. Idempotent, as `write` is."""
        known = self.outbox.get(message.msg_id)
        if known is not None and known.is_given_again_without_ends(message):
            return self
        ended = with_ends(message, TimeOrOffset(time=self.cursor or EARLIEST_TIME))
        return self.write(naming_also(ended, self._seen_beyond_cursor(message, now)), now)

    def _seen_beyond_cursor(self, message: InBandMessage, now: Time) -> Iterator[MsgID]:
        """The ids of items that the device shows, and that no end at the cursor reaches."""
        for clause in clauses(message):
            for item in self._matched(message, clause):
                if self._is_beyond_cursor(clause, item) and self._is_seen(clause, item, now):
                    yield item.msg_id

    def _is_beyond_cursor(self, clause: Clause, item: Item) -> bool:
        """Whether the node has not told of the item, or it has begun since."""
        is_told = item.msg_id in self.facts.items
        return not is_told or (compares_time(clause) and item.time > self.cursor)

    def _is_seen(self, clause: Clause, item: Item, now: Time) -> bool:
        """Whether the item is visible; a key, and a range with `scheduled`, take what has not
        begun, too."""
        has_begun_or_is_meant = not compares_time(clause) or has_begun(item.starts_at, now)
        return self._is_live_here(item, now) and has_begun_or_is_meant

    def snoozed(self, msg_id: MsgID, until: TimeOrOffset, now: Time) -> InBandMessage:
        """The message that makes an item begin again at a time; an offset counts from now. Raises
        InvalidMessage if the item is not shown, or if the time is not between now and its
        expiry."""
        self._require_life()
        item = self.visible_among([msg_id], now).get(msg_id)
        if item is None:
            raise InvalidMessage(f"no item {msg_id!r} is shown on this device", field="msg_id")
        return snoozed(self.uid or UNKNOWN_UID, item, until, now)

    def hide(self, msg_id: MsgID) -> Self:
        """Hide this item on this device. Idempotent. The id of an item that has not arrived is
        kept until the item comes; of more than 1,000 such ids, the oldest are forgotten."""
        self._require_life()
        if self._has_come(msg_id):
            return self._with(hidden=self.hidden.set(msg_id, True), changed=frozenset([msg_id]))
        if msg_id in self.awaited:
            return self
        number = self.last_number + 1
        awaited = self.awaited.set(msg_id, number)
        surplus = sorted(awaited, key=awaited.__getitem__)[:-MAX_AWAITED]
        return self._with(
            awaited=_without(awaited, surplus),
            last_number=number,
            changed=frozenset([msg_id, *surplus]),
        )

    def _has_come(self, msg_id: MsgID) -> bool:
        """Whether the item exists here. `shown` does not decide: a dismissal in the outbox may
        still be rejected."""
        return msg_id in self.facts.items or msg_id in self.outbox

    def discard(self, msg_ids: Iterable[MsgID]) -> Self:
        """Forget rejected messages. Idempotent."""
        discarded = frozenset(msg_ids)
        return self._with(rejected=_without(self.rejected, discarded), changed=discarded)

    def with_clock_offset(self, offset: int) -> Self:
        """Keep the offset of the node's clock, if it differs by a second or more."""
        if abs(offset - self.clock_offset) < SECOND:
            return self
        return self._with(clock_offset=offset)

    # The life of the user

    def wiped(self, epoch: Time | None) -> Self:
        """Nothing of the user is left, who was erased at the ctime `epoch`; None: nobody has said
        when, and the next welcome does. Idempotent: an erase that the device was wiped for changes
        nothing, also if a new life has begun."""
        if self.epoch == epoch if epoch is not None else self.erased:
            return self
        return type(self)(
            self.device_id,
            self.uid,
            epoch,
            erased=True,
            clock_offset=self.clock_offset,
            changed=self.recorded_ids(),
        )

    def in_new_life(self) -> Self:
        """After an erase, take writes again."""
        return self._with(erased=False, changed=frozenset()) if self.erased else self

    def erasure(self) -> Erased | None:
        """The error of all writes while the user is erased."""
        if not self.erased:
            return None
        return Erased(
            "the user was erased, and nothing of it is left on this device; `reconnect` begins a"
            " new life",
            epoch=self.epoch or 0,
        )

    def _require_life(self) -> None:
        erasure = self.erasure()
        if erasure is not None:
            raise erasure

    def recorded_ids(self) -> frozenset[MsgID]:
        """All ids of which a store has records."""
        named = (self.facts.items, self.outbox, self.hidden, self.awaited, self.rejected)
        return frozenset(chain.from_iterable(named))

    # Changes received from the node

    def welcomed(self, uid: UID, epoch: Time) -> Self:
        """A node has reported the user and the epoch, of which a device that has never had a
        welcome does not know. An earlier one is that of a restored backup: it comes with the
        snapshot that replaces the facts."""
        owned = self.owned_by(uid).in_new_life()
        return owned._with(epoch=epoch) if self.epoch is None else owned

    def owned_by(self, uid: UID) -> Self:
        """Set the user of this replica. Raises SetupError if it belongs to another user."""
        if self.uid not in (None, uid):
            raise SetupError(
                f"this store belongs to the user {self.uid!r}, not to {uid!r};"
                " use one store per user"
            )
        return self._with(uid=uid, changed=frozenset())

    def apply(self, messages: Iterable[InBandMessage], cursor: Time) -> Self:
        """Replay messages that continue the facts, which are then complete up to `cursor`.
        Idempotent: messages up to the present cursor are ignored."""
        # Dead items are forgotten, so a repeated creation must not bring its item back.
        new = [message for message in messages if message.ctime > self.cursor]
        cursor = max(cursor, self.cursor)
        facts, changed = self.facts, set[MsgID]()
        for message in new:
            changed.update(facts.reached_by(message))
            facts = facts.replay(message)
        outbox, echoed = _echoed(self.outbox, (message.msg_id for message in new))
        applied = self._with(
            facts=facts,
            cursor=cursor,
            known_since=cursor if facts.dismissed else self.known_since,
            outbox=outbox,
        )
        forgotten, ids = applied._without_expired(cursor)
        return forgotten._updated(self, chain(changed, ids), echoed)

    def apply_snapshot(self, snapshot: Snapshot, cursor: Time, epoch: Time | None = None) -> Self:
        """Replace the facts by a snapshot, which was read at this epoch (None: the one that is
        known). The outbox stays, and so do the hidden ids of the items that still exist."""
        outbox, _ = _echoed(self.outbox, (item.msg_id for item in snapshot.items))
        replaced = self._with(
            epoch=self.epoch if epoch is None else epoch,
            facts=snapshot.facts(),
            cursor=cursor,
            known_since=cursor,
            outbox=outbox,
        )
        forgotten, _ = replaced._without_expired(cursor)
        return forgotten.derived(chain(self.facts.items, replaced.facts.items))

    def apply_results(self, results: Sequence[tuple[InBandMessage, Result]]) -> Self:
        """Apply the node's results for messages of the outbox: stored ones get their ctime, and
        leave the outbox if they change nothing on this device; rejected ones move from the outbox
        to `rejected`."""
        outbox, rejected, number = self.outbox, self.rejected, self.last_number
        for message, result in results:
            entry = outbox.get(message.msg_id)
            if entry is None:
                continue
            if result.error is not None:
                number += 1
                outbox = outbox.without(message.msg_id)
                rejected = rejected.set(
                    message.msg_id, RejectedEntry(number, message, result.error)
                )
            else:
                stamped = entry.message.stamp(result.ctime or self.cursor, 0)
                entry = structs.replace(entry, message=stamped, dead=_is_dead_when_stored(result))
                outbox = (
                    outbox.set(entry)
                    if self._will_be_told_of(entry, result)
                    else outbox.without(message.msg_id)
                )
        surplus = [entry.message.msg_id for entry in _in_order(rejected)[:-MAX_REJECTED]]
        rejected = _without(rejected, surplus)
        settled = self._with(outbox=outbox, rejected=rejected, last_number=number)
        return settled._updated(self, surplus, [message.msg_id for message, _ in results])

    def _will_be_told_of(self, entry: OutboxEntry, result: Result) -> bool:
        """Whether a frame will bring what an acknowledged message changes on this device."""
        if entry.dead and entry.message.dismissal is None and result.replaced is None:
            return False
        return entry.acknowledged_part(self.device_id) is not None

    def hash_matches(self, as_of: Time, hash_: str) -> bool:
        """Whether the facts have this hash at `as_of`. A node tells a device only what it sees."""
        return self.facts.items.hash(as_of) == hash_

    def synced(self, as_of: Time) -> Self:
        """A sync is complete, which the node read at the instant `as_of`. What was created and
        dismissed since the cursor before it was never sent."""
        forgotten, ids = self._with(known_since=self.cursor)._without_expired(as_of)
        return forgotten._updated(self, ids)

    def _without_expired(self, told: Time) -> tuple[Self, list[MsgID]]:
        """Without what is dead, with its tombstones, and without the items that expired
        EXPIRY_GRACE or more before an instant that a node told; and the ids of those."""
        expired = list(self.facts.items.expired(after=-1, until=told - EXPIRY_GRACE))
        ids = [item.msg_id for item in expired]
        forgotten = self._with(
            facts=Facts.of_live(self.facts.items.without_all(ids)),
            known_since=max([self.known_since, *(item.expires_at or 0 for item in expired)]),
        )
        return forgotten, ids

    # Queries

    def unsent(self) -> list[InBandMessage]:
        """The messages of the outbox that are not acknowledged, in the order of writing."""
        return [entry.message for entry in self.outbox.in_waiting_order()]

    def unsent_before(self, time: Time) -> int:
        """How many messages that are not acknowledged were written before this time."""
        waiting = self.outbox.in_waiting_order()
        return sum(1 for _ in takewhile(lambda entry: entry.written < time, waiting))

    def window(self, max_messages: int, max_bytes: int) -> list[InBandMessage]:
        """The unsent messages to send next, with the uid set: at least one, if there are any,
        and otherwise up to these limits."""
        unsent = [e.message for e in islice(self.outbox.in_waiting_order(), max_messages)]
        totals = accumulate(encoded_size(message) for message in unsent)
        fitting = sum(1 for _ in takewhile(lambda total: total <= max_bytes, totals))
        return [
            structs.replace(message, uid=self.uid or message.uid)
            for message in unsent[: max(1, fitting)]
        ]

    def rejected_entries(self) -> list[RejectedEntry]:
        """The rejected messages, in the order of rejection."""
        return _in_order(self.rejected)

    def visible_among(self, msg_ids: Iterable[MsgID], now: Time) -> dict[MsgID, Item]:
        """Those of the items with these ids that are visible on this device now."""
        found = ((msg_id, self.shown.items.get(msg_id)) for msg_id in msg_ids)
        when = Now(now)
        return {
            msg_id: item
            for msg_id, item in found
            if item is not None
            and not self._is_hidden(item)
            and is_visible(item, None, self.device_id, when)
        }

    def next_change(self, after: Time) -> Time | None:
        """When the next item begins or expires, later than this time; None if none does."""
        items = self.shown.items
        changes = items.next_start(after), items.next_expiry(after)
        return min((change for change in changes if change is not None), default=None)

    def changed_by_time(self, before: Time, now: Time) -> Iterator[MsgID]:
        """The ids of the items that begin or expire between these times. If the clock was set back,
        they are as they were before that."""
        items, between = self.shown.items, sorted((before, now))
        yield from (item.msg_id for item in items.started(*between))
        yield from (item.msg_id for item in items.expired(*between))

    def with_key(self, key: Key, now: Time) -> Item | None:
        """The item with this key that is visible on this device: of two, its own first."""
        with_key = [item.msg_id for item in self.shown.items.of_key(key)]
        visible = self.visible_among(with_key, now).values()
        return max(visible, key=lambda item: item.device_id is not None, default=None)

    def live_with_key(self, key: Key, now: Time) -> list[Item]:
        """The items with this key that are visible on this device, or will be when they begin."""
        return [item for item in self.shown.items.of_key(key) if self._is_live_here(item, now)]

    def visible(self, now: Time) -> dict[MsgID, Item]:
        """The items visible on this device now."""
        visible = self.shown.visible(self.device_id, now)
        shown = {item.msg_id: item for item in visible if not self._is_hidden(item)}
        return shown | self._stamped_as_stored_next(shown) if self.old_stamps else shown

    def state(self, now: Time) -> State:
        return State.of(self.visible(now).values(), now)

    def state_at(self, at: Time) -> State:
        """The state that the device showed, or will show, at a stated time, without the items that
        are hidden now. Raises HistoryForgotten for a time before `known_since`."""
        if at < self.known_since:
            raise HistoryForgotten(
                f"this device knows its history from {self.known_since} on, not at {at};"
                " ask the server"
            )
        shown = self.derived().shown if self.old_stamps else self.shown
        state = shown.state_at(self.device_id, at)
        return State.of((item for item in state if not self._is_hidden(item)), at)

    def _is_live_here(self, item: Item, now: Time) -> bool:
        """Whether the item is live on this device, begun or not, and not hidden."""
        return is_live(item, None, self.device_id, Now(now)) and not self._is_hidden(item)

    def _is_hidden(self, item: Item) -> bool:
        return item.msg_id in self.hidden or item.msg_id in self.awaited

    # Derived fields

    def derived(self, changed: Iterable[MsgID] = ()) -> Self:
        """This replica with its derived fields computed from the facts, cursor and outbox.
        `changed` are the ids for which these may have changed."""
        outbox = self.outbox.without_all(self.outbox.reached(self.cursor))
        derived = self._with(
            outbox=outbox,
            shown=self.facts,
            latest_ctime=self.cursor,
            overlaid=Map(),
            old_stamps=False,
        )
        for entry in outbox.acknowledged_entries():
            part = entry.acknowledged_part(self.device_id)
            if part is not None:
                derived = derived._show(part)
        derived = derived._with(shown=derived.shown.without_tombstones())
        for entry in outbox.in_waiting_order():
            if entry.shown:
                derived = derived._show_next(entry)
        all_changed = frozenset(chain(changed, self.outbox, self.overlaid, derived.overlaid))
        return derived._hide_arrived(all_changed)._with(changed=all_changed)

    def _updated(
        self, before: Self, changed: Iterable[MsgID], entries: Iterable[MsgID] = ()
    ) -> Self:
        """As `derived`, for a replica that differs from a derived one in the facts of the items
        `changed` and in these entries of the outbox. It looks at what these change, if that is less
        than to look at the whole outbox."""
        reached = self.outbox.reached(self.cursor)
        entry_ids = {*entries, *reached}
        known = [entry for id_ in entry_ids if (entry := before.outbox.get(id_)) is not None]
        updated = self._with(outbox=self.outbox.without_all(reached))
        named = chain.from_iterable(entry.named_ids() for entry in known)
        keys = dict.fromkeys(key for entry in known for key in entry.named_keys())
        keyed = chain.from_iterable(updated._ids_with_key(key, before) for key in keys)
        ids = frozenset(chain(changed, entry_ids, named, keyed))
        cursor = min(before.cursor, self.cursor)
        if (
            len(ids) * (1 + updated.outbox.ranges_count) > len(updated.outbox)
            or any(entry.has_ranges for entry in known)
            or updated.outbox.has_ends_after(cursor)
            or (updated.outbox.ranges_count and before._begins_after(cursor))
        ):
            return updated.derived(ids)
        return updated._shown_again(ids)

    def _begins_after(self, cursor: Time) -> bool:
        """Whether an item may begin between an old stamp and the one that is right now: a range
        leaves what has not begun by its stamp."""
        return self.shown.items.next_start(cursor) is not None

    def _ids_with_key(self, key: Key, before: Self) -> Iterator[MsgID]:
        """The ids of all items with this key that were shown before, or may be shown now."""
        yield from (item.msg_id for item in before.shown.items.of_key(key))
        yield from (item.msg_id for item in self.facts.items.of_key(key))
        yield from self.outbox.last_puts(key)

    def _shown_again(self, ids: frozenset[MsgID]) -> Self:
        """Show these items by the facts and the outbox again; the others stay as they are."""
        shown, overlaid, latest = self.shown, self.overlaid, max(self.latest_ctime, self.cursor)
        for msg_id in ids:
            alone = self._alone(msg_id)
            shown = shown.with_item_as_in(alone.shown, msg_id)
            overlaid = _without(overlaid, [msg_id]).update(alone.overlaid)
            latest = max(latest, alone.latest_ctime)
        again = self._with(shown=shown, overlaid=overlaid, latest_ctime=latest, old_stamps=True)
        return again._hide_arrived(ids)._with(changed=ids)

    def _alone(self, msg_id: MsgID) -> "Replica":
        """A replica that holds only this item, and what may change it."""
        item = self.facts.items.get(msg_id)
        facts = Facts.of([] if item is None else [item])
        outbox = Outbox.of(self.outbox.changing(msg_id, item))
        return Replica(self.device_id, cursor=self.cursor, facts=facts, outbox=outbox).derived()

    def _stamped_as_stored_next(self, shown: Mapping[MsgID, Item]) -> dict[MsgID, Item]:
        """Those of the items that unsent messages create, with the ctimes of messages that are
        stored next."""
        acknowledged = (
            part.ctime
            for entry in self.outbox.acknowledged_entries()
            if (part := entry.acknowledged_part(self.device_id)) is not None
        )
        latest, stamped = max(chain([self.cursor], acknowledged)), dict[MsgID, Item]()
        for entry in self.outbox.in_waiting_order():
            msg_id = entry.message.msg_id
            if entry.shown:
                latest = max(entry.written, latest + 1)
                if msg_id in shown and msg_id not in self.facts.items:
                    stamped[msg_id] = structs.replace(shown[msg_id], ctime=latest)
        return stamped

    def _hide_arrived(self, changed: Iterable[MsgID]) -> Self:
        """Hide the awaited items that have come, and forget the hidden ones that are gone."""
        come = [id_ for id_ in changed if id_ in self.awaited and id_ in self.facts.items]
        gone = [id_ for id_ in changed if id_ in self.hidden and not self._has_come(id_)]
        hidden = _without(self.hidden, gone).update(dict.fromkeys(come, True))
        return self._with(hidden=hidden, awaited=_without(self.awaited, come))

    def _as_stored_next(self, entry: OutboxEntry) -> InBandMessage:
        """An unsent message as if the node stored it next. An expiry that is an offset, which an
        earlier version has written, does not run yet."""
        message, creation = entry.message, entry.message.creation
        if creation is not None and creation.expires is not None and creation.expires.time is None:
            creation = structs.replace(creation, expires=None)
            message = structs.replace(message, creation=creation)
        return message.stamp(max(entry.written, self.latest_ctime + 1), self.latest_ctime)

    def _show_next(self, entry: OutboxEntry) -> Self:
        """Show an unsent message after all that is shown."""
        shown = self._show(self._as_stored_next(entry))
        return shown._with(shown=shown.shown.for_later_messages())

    def _show(self, message: InBandMessage) -> Self:
        """Show a message of the outbox on top of what is shown."""
        overlaid = self.overlaid
        for msg_id in self.shown.reached_by(message):
            overlaid = overlaid.set(msg_id, True)
        shown = self.shown.replay(message)
        latest = max(self.latest_ctime, message.ctime)
        return self._with(shown=shown, latest_ctime=latest, overlaid=overlaid)

    def _with(self, **changes: Any) -> Self:
        return structs.replace(self, **changes)


def new_rejections(before: Replica, after: Replica) -> list[WriteRejected]:
    """The messages that the operation that led from one replica to the other has rejected."""
    new = {
        msg_id: entry
        for msg_id in after.changed
        if (entry := after.rejected.get(msg_id)) is not before.rejected.get(msg_id)
        and entry is not None
    }
    return [WriteRejected(entry.message, entry.error) for entry in _in_order(new)]


def events_between(
    before: Mapping[MsgID, Item],
    after: Mapping[MsgID, Item],
    now: Time,
    messages: Sequence[InBandMessage],
) -> list[Event]:
    """How visible items have changed: those that may have, before and after. `messages` are those
    that may have caused it."""
    dismissed = sorted((item for id_, item in before.items() if id_ not in after), key=Item.order)
    created = sorted((item for id_, item in after.items() if id_ not in before), key=Item.order)
    replaced = _replaced(dismissed, messages)
    return [
        *(Dismissed(item, _why(item, now, replaced)) for item in dismissed),
        *(Created(item) for item in created),
    ]


def _why(item: Item, now: Time, replaced: Container[MsgID]) -> Why:
    if item.expired(now):
        return "expired"
    return "replaced" if item.msg_id in replaced else "dismissed"


def _replaced(dismissed: Sequence[Item], messages: Iterable[InBandMessage]) -> set[MsgID]:
    """The ids of the items that a message with a creation names, matches by a range or by a key, or
    whose key it has. The items are known to be dismissed, so no times are compared."""
    replaced: set[MsgID] = set()
    ranges: list[DismissedRange] = []
    keys: defaultdict[Key, list[DismissedKey]] = defaultdict(list)
    puts: defaultdict[tuple[Key, DeviceID | None], set[MsgID]] = defaultdict(set)
    for message in messages:
        if message.key is not None:
            puts[message.key, message.device_id].add(message.msg_id)
        if message.creation is not None and message.dismissal is not None:
            replaced.update(message.dismissal.msg_ids)
            for named in dismissed_keys(message):
                keys[named.key].append(structs.replace(named, end=MAX_TIME))
            ranges += (structs.replace(r, end=MAX_TIME) for r in dismissed_ranges(message))
    replaced.update(item.msg_id for item, _ in range_deaths(ranges, dismissed))
    for item in dismissed:
        if item.key is not None:
            is_put_again = bool(puts[item.key, item.device_id] - {item.msg_id})
            is_dismissed = any(named.covers(item) for named in keys[item.key])
            replaced.update([item.msg_id] if is_put_again or is_dismissed else ())
    return replaced


def _is_dead_when_stored(result: Result) -> bool:
    """Whether no frame will bring the item, for certain. The item of a duplicate may have died
    later: then the frames that are still to come bring it, and its dismissal after it. An item that
    expires may only have expired by the node's clock, and one that starts may not have begun."""
    is_timed = result.expires_at is not None or result.starts_at is not None
    return result.status == "stored" and result.visible is False and not is_timed


def _require_sendable(message: InBandMessage) -> None:
    if message.stamped:
        raise InvalidMessage("only the server may set `ctime`", field="ctime")
    # A node closes the connection on a frame that is too large, each time it is sent.
    if encoded_size(message) > MAX_FRAME // 2:
        raise TooLarge(f"a message is limited to {MAX_FRAME // 2} bytes; split it")


def _in_order(entries: Mapping[MsgID, Any]) -> list[Any]:
    return sorted(entries.values(), key=lambda entry: entry.number)


def _echoed(outbox: Outbox, sent: Iterable[MsgID]) -> tuple[Outbox, list[MsgID]]:
    """The outbox after the node has sent these messages, and the entries that this has changed."""
    entries = outbox.not_echoed(sent)
    for entry in entries:
        outbox = outbox.set(structs.replace(entry, echoed=True))
    return outbox, [entry.message.msg_id for entry in entries]


def _without(map_: Map[MsgID, T], msg_ids: Iterable[MsgID]) -> Map[MsgID, T]:
    for msg_id in msg_ids:
        if msg_id in map_:
            map_ = map_.delete(msg_id)
    return map_
