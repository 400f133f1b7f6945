"""A device's replica: the facts received from the server, and the outbox of unsent messages.

    shown = facts + outbox applied on top          visible = shown − hidden − awaited − expired

A replica is an immutable value, like its facts: each operation returns a new replica, and gets the
time as an argument.

A node tells a replica in order, and never sends a creation that is dead when it is stored. So the
facts are the items without a known death, and nothing else: no tombstone, no dead item. What a
replica holds is proportional to what is live and what is unsent, whatever has passed.

A written message stays in the outbox until the node acknowledges it, and then, with the ctime that
it was given, until the cursor reaches that ctime. Only messages received from the node become
facts: the node does not send the dismissal of an item that a replica at this cursor cannot have,
so a message that became a fact in another way might never be dismissed here.

An unsent message is shown as if the node stored it now: its ctime is later than all known ones,
known dismissals do not apply to it, and an expiry that is an offset from the ctime does not run
yet. Once the node has sent the message back (it is echoed), it is shown from the facts alone.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import accumulate, chain, islice, takewhile
from typing import Any, Self, TypeVar

import msgspec
from immutables import Map
from msgspec import Struct

from gregor.client.events import Created, Dismissed, Event, Why, WriteRejected
from gregor.client.outbox import Outbox, OutboxEntry
from gregor.core.admission import EARLIEST_TIME
from gregor.core.facts import DismissedRange, Facts, dismissed_ranges
from gregor.core.instant import MAX_TIME, SECOND, Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, Dismissal, InBandMessage, MsgID
from gregor.core.range_deaths import range_deaths
from gregor.core.state import Item, State
from gregor.core.sync import EXPIRY_GRACE, Snapshot
from gregor.core.visibility import Now, is_visible
from gregor.errors import (
    Conflict,
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
    hiding. `uid` is None until a node has reported it. The facts are complete from `known_since`
    on: since then, no item has been forgotten. `clock_offset` is by how much the node's clock is
    ahead of this device's, in microseconds, to about a second. `shown`, and `latest_ctime` in it,
    are derived from the other fields; `overlaid` are the ids of the items that the outbox may have
    changed there. With `old_stamps`, unsent messages have ctimes in `shown` that may have passed: a
    state gives them those of what is stored next. `changed` are the ids for which the last
    operation may have changed anything: its store and its events look at these alone, so that an
    operation costs what it changes, not what there is.
    """

    device_id: DeviceID
    uid: UID | None = None
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
        """Put a message into the outbox. Idempotent. Raises Conflict if the outbox has this msg_id
        with other contents."""
        known = self.outbox.get(message.msg_id)
        if known is not None:
            if known.message.same_contents(message):
                return self
            raise Conflict("this msg_id is in the outbox with other contents")
        _require_sendable(message)
        number = self.last_number + 1
        entry = OutboxEntry(number, now, message)
        # The end of a range may lie between an old stamp and the one that is right now.
        before = self.derived() if self.old_stamps and entry.has_ranges_with_ends else self
        stored_next = before._as_stored_next(entry)
        changed = before.changed if before is not self else frozenset[MsgID]()
        return before._with(
            outbox=self.outbox.set(entry),
            last_number=number,
            changed=changed.union(before.shown.reached_by(stored_next)),
        )._show(stored_next)

    def dismiss_category(self, message: InBandMessage, now: Time) -> Self:
        """Write the dismissal of a category without an end. It takes what the person has seen on
        this device: what the node has told it, and by id what the device shows beyond that. What
        has arrived elsewhere meanwhile stays. Idempotent, as `write` is."""
        known = self.outbox.get(message.msg_id)
        if known is not None and _without_ends(known.message) == message.dismissal:
            return self
        seen = self._seen(message.dismissal or Dismissal(), now)
        return self.write(msgspec.structs.replace(message, dismissal=seen), now)

    def _seen(self, dismissal: Dismissal, now: Time) -> Dismissal:
        """The dismissal with the ends of its ranges at the cursor, and the ids of later items."""
        end = TimeOrOffset(time=self.cursor or EARLIEST_TIME)
        own = sorted(self.visible_among(self.overlaid, now).values(), key=Item.order)
        beyond = [i.msg_id for i in own if self._is_beyond(i) and dismisses(dismissal, i)]
        ranges = (msgspec.structs.replace(r, end_time=end) for r in dismissal.ranges)
        return Dismissal((*dismissal.msg_ids, *beyond), tuple(ranges))

    def _is_beyond(self, item: Item) -> bool:
        """Whether an item is shown that the node has not told of."""
        return item.msg_id not in self.facts.items

    def hide(self, msg_id: MsgID) -> Self:
        """Hide this item on this device. Idempotent. The id of an item that has not arrived is
        kept until the item comes; of more than 1,000 such ids, the oldest are forgotten."""
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

    # Changes received from the node

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

    def apply_snapshot(self, snapshot: Snapshot, cursor: Time) -> Self:
        """Replace the facts by a snapshot. The outbox stays, and so do the hidden ids of the items
        that still exist."""
        outbox, _ = _echoed(self.outbox, (item.msg_id for item in snapshot.items))
        replaced = self._with(
            facts=snapshot.facts(), cursor=cursor, known_since=cursor, outbox=outbox
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
                entry = msgspec.structs.replace(
                    entry, message=stamped, dead=_is_dead_when_stored(result)
                )
                outbox = (
                    outbox.without(message.msg_id)
                    if entry.acknowledged_part(self.device_id) is None
                    else outbox.set(entry)
                )
        surplus = [entry.message.msg_id for entry in _in_order(rejected)[:-MAX_REJECTED]]
        rejected = _without(rejected, surplus)
        settled = self._with(outbox=outbox, rejected=rejected, last_number=number)
        return settled._updated(self, surplus, [message.msg_id for message, _ in results])

    def hash_matches(self, as_of: Time, hash_: str) -> bool:
        """Whether the facts give the state with this hash at `as_of`."""
        return self.facts.state(self.device_id, as_of).hash() == hash_

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
            facts=Facts(self.facts.items.without_all(ids)),
            known_since=max([self.known_since, *(item.expires_at or 0 for item in expired)]),
        )
        return forgotten, ids

    # Queries

    def unsent(self) -> list[InBandMessage]:
        """The messages of the outbox that are not acknowledged, in the order of writing."""
        return [entry.message for entry in self.outbox.in_waiting_order()]

    def window(self, max_messages: int, max_bytes: int) -> list[InBandMessage]:
        """The unsent messages to send next, with the uid set: at least one, if there are any,
        and otherwise up to these limits."""
        unsent = [e.message for e in islice(self.outbox.in_waiting_order(), max_messages)]
        totals = accumulate(encoded_size(message) for message in unsent)
        fitting = sum(1 for _ in takewhile(lambda total: total <= max_bytes, totals))
        return [
            msgspec.structs.replace(message, uid=self.uid or message.uid)
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
            if not entry.echoed:
                derived = derived._show(derived._as_stored_next(entry))
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
        named = chain.from_iterable(entry.named_ids() for entry in known)
        ids = frozenset(chain(changed, entry_ids, named))
        updated = self._with(outbox=self.outbox.without_all(reached))
        if (
            len(ids) * (1 + len(updated.outbox.with_ranges)) > len(updated.outbox)
            or any(entry.has_ranges for entry in known)
            or updated.outbox.has_ends_after(self.cursor)
        ):
            return updated.derived(ids)
        return updated._shown_again(ids)

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
        outbox = Outbox.of(self.outbox.changing(msg_id))
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
            if not entry.echoed:
                latest = max(entry.written, latest + 1)
                if msg_id in shown and msg_id not in self.facts.items:
                    stamped[msg_id] = msgspec.structs.replace(shown[msg_id], ctime=latest)
        return stamped

    def _hide_arrived(self, changed: Iterable[MsgID]) -> Self:
        """Hide the awaited items that have come, and forget the hidden ones that are gone."""
        come = [id_ for id_ in changed if id_ in self.awaited and id_ in self.facts.items]
        gone = [id_ for id_ in changed if id_ in self.hidden and not self._has_come(id_)]
        hidden = _without(self.hidden, gone).update(dict.fromkeys(come, True))
        return self._with(hidden=hidden, awaited=_without(self.awaited, come))

    def _as_stored_next(self, entry: OutboxEntry) -> InBandMessage:
        """An unsent message as if the node stored it next."""
        message, creation = entry.message, entry.message.creation
        if creation is not None and creation.expires is not None and creation.expires.time is None:
            creation = msgspec.structs.replace(creation, expires=None)
            message = msgspec.structs.replace(message, creation=creation)
        return message.stamp(max(entry.written, self.latest_ctime + 1), self.latest_ctime)

    def _show(self, message: InBandMessage) -> Self:
        """Show a message of the outbox on top of what is shown."""
        overlaid = self.overlaid
        for msg_id in self.shown.reached_by(message):
            overlaid = overlaid.set(msg_id, True)
        shown = self.shown.replay(message)
        latest = max(self.latest_ctime, message.ctime)
        return self._with(shown=shown, latest_ctime=latest, overlaid=overlaid)

    def _with(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, **changes)


def new_rejections(before: Replica, after: Replica) -> list[WriteRejected]:
    """The messages that the operation that led from one replica to the other has rejected."""
    new = {
        msg_id: after.rejected[msg_id]
        for msg_id in after.changed
        if msg_id in after.rejected and msg_id not in before.rejected
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
    """The ids of the items that a message with a creation names, or matches by a range. The items
    are known to be dismissed, so their ctimes are not compared with the range's end."""
    replaced: set[MsgID] = set()
    ranges: list[DismissedRange] = []
    for message in messages:
        if message.creation is not None and message.dismissal is not None:
            replaced.update(message.dismissal.msg_ids)
            for range_ in dismissed_ranges(message.dismissal, message.ctime):
                ranges.append(msgspec.structs.replace(range_, end=MAX_TIME))
    replaced.update(item.msg_id for item, _ in range_deaths(ranges, dismissed))
    return replaced


def dismisses(dismissal: Dismissal, item: Item) -> bool:
    """Whether it names this item, or has a range that matches it, whatever the range's end."""
    return item.msg_id in dismissal.msg_ids or any(
        range_.matches(item.msg_id, item.category) for range_ in dismissed_ranges(dismissal, 0)
    )


def _without_ends(message: InBandMessage) -> Dismissal:
    """The dismissal of a category as it was meant, before the replica said what was seen."""
    ranges = message.dismissal.ranges if message.dismissal is not None else ()
    return Dismissal(ranges=tuple(msgspec.structs.replace(r, end_time=None) for r in ranges))


def _is_dead_when_stored(result: Result) -> bool:
    """Whether no frame will bring the item, for certain. The item of a duplicate may have died
    later: then the frames that are still to come bring it, and its dismissal after it. An item that
    expires may only have expired by the node's clock."""
    return result.status == "stored" and result.visible is False and result.expires_at is None


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
        outbox = outbox.set(msgspec.structs.replace(entry, echoed=True))
    return outbox, [entry.message.msg_id for entry in entries]


def _without(map_: Map[MsgID, T], msg_ids: Iterable[MsgID]) -> Map[MsgID, T]:
    for msg_id in msg_ids:
        if msg_id in map_:
            map_ = map_.delete(msg_id)
    return map_
