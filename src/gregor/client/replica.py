"""A device's replica: the facts received from the server, and the outbox of unsent messages.

    shown = facts + outbox applied on top          visible = shown − hidden − expired

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

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Any, Self

import msgspec
from immutables import Map
from msgspec import Struct

from gregor.client.events import Created, Dismissed, Event, Why, WriteRejected
from gregor.core.facts import Facts, dismissed_ranges
from gregor.core.instant import MAX_TIME, SECOND, Time
from gregor.core.message import UID, DeviceID, InBandMessage, MsgID
from gregor.core.state import Item, State
from gregor.core.sync import EXPIRY_GRACE, Snapshot
from gregor.errors import (
    Conflict,
    HistoryForgotten,
    InvalidMessage,
    SetupError,
    TooLarge,
)
from gregor.protocol.frames import MAX_FRAME, Problem, Result, encoded_size

MAX_REJECTED = 1_000


class OutboxEntry(Struct, frozen=True, omit_defaults=True):
    """A message written on this device, its position in the outbox, and the device's time of
    writing. An acknowledged message has a ctime; it is `dead` if the node said that its item is not
    visible. It is `echoed` once the node has sent it back to this device, even if the
    acknowledgement was lost."""

    number: int
    written: Time
    message: InBandMessage
    echoed: bool = False
    dead: bool = False

    def acknowledged_part(self, device_id: DeviceID) -> InBandMessage | None:
        """What the acknowledged message changes on this device; None if nothing."""
        message = self.message.addressed_to(device_id)
        if message is None or not self.dead:
            return message
        return message.reduced(None, message.dismissal)


class RejectedEntry(Struct, frozen=True):
    """A message that the node rejected, its position among the rejected ones, and the error."""

    number: int
    message: InBandMessage
    error: Problem


class Replica(Struct, frozen=True):
    """One device's replica of its user's state, with the outbox of the device.

    `uid` is None until a node has reported it. The facts are complete from `known_since` on: since
    then, no item has been forgotten. No item expires before `next_expiry`. `clock_offset` is by how
    much the node's clock is ahead of this device's, in microseconds, to about a second. `shown`,
    and `latest_ctime` in it, are derived from the other fields.
    """

    device_id: DeviceID
    uid: UID | None = None
    cursor: Time = 0
    known_since: Time = 0
    next_expiry: Time = 0
    facts: Facts = Facts()
    outbox: Map[MsgID, OutboxEntry] = Map()
    hidden: Map[MsgID, bool] = Map()
    rejected: Map[MsgID, RejectedEntry] = Map()
    last_number: int = 0
    clock_offset: int = 0
    shown: Facts = Facts()
    latest_ctime: Time = 0

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
        outbox = self.outbox.set(message.msg_id, entry)
        return self._with(outbox=outbox, last_number=number)._show_unsent(entry)

    def hide(self, msg_id: MsgID) -> Self:
        """Hide this item on this device. Idempotent; an unknown id is ignored."""
        if msg_id not in self.shown.items:
            return self
        return self._with(hidden=self.hidden.set(msg_id, True))

    def discard(self, msg_ids: Iterable[MsgID]) -> Self:
        """Forget rejected messages. Idempotent."""
        return self._with(rejected=_without(self.rejected, msg_ids))

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
        return self._with(uid=uid)

    def apply(self, messages: Iterable[InBandMessage], cursor: Time) -> Self:
        """Replay messages that continue the facts, which are then complete up to `cursor`.
        Idempotent: messages up to the present cursor are ignored."""
        # Dead items are forgotten, so a repeated creation must not bring its item back.
        new = [message for message in messages if message.ctime > self.cursor]
        cursor = max(cursor, self.cursor)
        facts = self.facts.replay_all(new)
        expiries = [at for message in new if (at := message.expires_at) is not None]
        applied = self._with(
            facts=facts.pruned(),
            cursor=cursor,
            known_since=cursor if facts.dismissed else self.known_since,
            next_expiry=min([self.next_expiry, *expiries]),
            outbox=_mark_echoed(self.outbox, (message.msg_id for message in new)),
        )
        return applied._forget_expired(cursor).derived()

    def apply_snapshot(self, snapshot: Snapshot, cursor: Time) -> Self:
        """Replace the facts by a snapshot. The outbox stays, and so do the hidden ids of the items
        that still exist."""
        outbox = _mark_echoed(self.outbox, (item.msg_id for item in snapshot.items))
        replaced = self._with(
            facts=snapshot.facts(), cursor=cursor, known_since=cursor, next_expiry=0, outbox=outbox
        )
        return replaced._forget_expired(cursor).derived()

    def apply_results(self, results: Iterable[tuple[InBandMessage, Result]]) -> Self:
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
                outbox = outbox.delete(message.msg_id)
                rejected = rejected.set(
                    message.msg_id, RejectedEntry(number, message, result.error)
                )
            else:
                stamped = entry.message.stamp(result.ctime or self.cursor, 0)
                entry = msgspec.structs.replace(
                    entry, message=stamped, dead=result.visible is False
                )
                outbox = (
                    outbox.delete(message.msg_id)
                    if entry.acknowledged_part(self.device_id) is None
                    else outbox.set(message.msg_id, entry)
                )
        surplus = [entry.message.msg_id for entry in _in_order(rejected)[:-MAX_REJECTED]]
        rejected = _without(rejected, surplus)
        return self._with(outbox=outbox, rejected=rejected, last_number=number).derived()

    def hash_matches(self, as_of: Time, hash_: str) -> bool:
        """Whether the facts give the state with this hash at `as_of`."""
        return self.facts.state(self.device_id, as_of).hash() == hash_

    def synced(self, as_of: Time) -> Self:
        """A sync is complete, which the node read at the instant `as_of`. What was created and
        dismissed since the cursor before it was never sent."""
        return self._with(known_since=self.cursor)._forget_expired(as_of).derived()

    def _forget_expired(self, told: Time) -> Self:
        """Forget the items that expired EXPIRY_GRACE or more before an instant that a node told."""
        cutoff = told - EXPIRY_GRACE
        if cutoff < self.next_expiry:
            return self
        items = self.facts.items
        expired = [item for item in items.values() if item.expired(cutoff)]
        items = _without(items, (item.msg_id for item in expired))
        return self._with(
            facts=Facts(items),
            known_since=max([self.known_since, *map(_expiry, expired)]),
            next_expiry=min(map(_expiry, items.values()), default=MAX_TIME),
        )

    # Queries

    def unsent(self) -> list[InBandMessage]:
        """The messages of the outbox that are not acknowledged, in the order of writing."""
        return [entry.message for entry in _in_order(self.outbox) if not entry.message.stamped]

    def window(self, max_messages: int, max_bytes: int) -> list[InBandMessage]:
        """The unsent messages to send next, with the uid set: at least one, if there are any,
        and otherwise up to these limits."""
        unsent = self.unsent()[:max_messages]
        totals = accumulate(encoded_size(message) for message in unsent)
        fitting = sum(1 for _ in takewhile(lambda total: total <= max_bytes, totals))
        return [
            msgspec.structs.replace(message, uid=self.uid or message.uid)
            for message in unsent[: max(1, fitting)]
        ]

    def rejected_entries(self) -> list[RejectedEntry]:
        """The rejected messages, in the order of rejection."""
        return _in_order(self.rejected)

    def visible(self, now: Time) -> dict[MsgID, Item]:
        """The items visible on this device now."""
        visible = self.shown.visible(self.device_id, now)
        return {item.msg_id: item for item in visible if item.msg_id not in self.hidden}

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
        state = self.shown.state_at(self.device_id, at)
        return State.of((item for item in state if item.msg_id not in self.hidden), at)

    # Derived fields

    def derived(self) -> Self:
        """This replica with its derived fields computed from the facts, cursor and outbox."""
        reached = [id_ for id_, e in self.outbox.items() if 0 < e.message.ctime <= self.cursor]
        outbox = _without(self.outbox, reached)
        shown, latest_ctime = self.facts, self.cursor
        for entry in _in_order(outbox):
            part = entry.acknowledged_part(self.device_id) if entry.message.stamped else None
            if part is not None:
                shown, latest_ctime = shown.replay(part), part.ctime
        derived = self._with(
            outbox=outbox, shown=shown.without_tombstones(), latest_ctime=latest_ctime
        )
        for entry in _in_order(outbox):
            if not (entry.message.stamped or entry.echoed):
                derived = derived._show_unsent(entry)
        # `shown` does not decide: a dismissal in the outbox may still be rejected.
        obsolete = [
            id_
            for id_ in derived.hidden
            if id_ not in derived.facts.items and id_ not in derived.outbox
        ]
        return derived._with(hidden=_without(derived.hidden, obsolete))

    def _show_unsent(self, entry: OutboxEntry) -> Self:
        """Show an unsent message as if the node stored it next."""
        message, creation = entry.message, entry.message.creation
        if creation is not None and creation.expires is not None and creation.expires.time is None:
            creation = msgspec.structs.replace(creation, expires=None)
            message = msgspec.structs.replace(message, creation=creation)
        ctime = max(entry.written, self.latest_ctime + 1)
        shown = self.shown.replay(message.stamp(ctime, self.latest_ctime))
        return self._with(shown=shown, latest_ctime=ctime)

    def _with(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, **changes)


def new_rejections(before: Replica, after: Replica) -> list[WriteRejected]:
    """The messages rejected between two versions of a replica."""
    new = [e for e in after.rejected_entries() if e.message.msg_id not in before.rejected]
    return [WriteRejected(entry.message, entry.error) for entry in new]


def events_between(
    before: Mapping[MsgID, Item],
    after: Mapping[MsgID, Item],
    now: Time,
    messages: Sequence[InBandMessage],
) -> list[Event]:
    """How the visible items have changed. `messages` are those that may have caused it."""
    dismissed = sorted((item for id_, item in before.items() if id_ not in after), key=Item.order)
    created = sorted((item for id_, item in after.items() if id_ not in before), key=Item.order)
    return [
        *(Dismissed(item, _why(item, now, messages)) for item in dismissed),
        *(Created(item) for item in created),
    ]


def _why(item: Item, now: Time, messages: Sequence[InBandMessage]) -> Why:
    if item.expired(now):
        return "expired"
    if any(message.creation and _dismisses(message, item) for message in messages):
        return "replaced"
    return "dismissed"


def _dismisses(message: InBandMessage, item: Item) -> bool:
    """Whether the message names this item, or has a range that matches it. The item is known to
    be dismissed, so its ctime is not compared with the range's end."""
    if message.dismissal is None:
        return False
    return item.msg_id in message.dismissal.msg_ids or any(
        range_.matches(item.msg_id, item.category)
        for range_ in dismissed_ranges(message.dismissal, message.ctime)
    )


def _expiry(item: Item) -> Time:
    return MAX_TIME if item.expires_at is None else item.expires_at


def _require_sendable(message: InBandMessage) -> None:
    if message.stamped:
        raise InvalidMessage("only the server may set `ctime`", field="ctime")
    # A node closes the connection on a frame that is too large, each time it is sent.
    if encoded_size(message) > MAX_FRAME // 2:
        raise TooLarge(f"a message is limited to {MAX_FRAME // 2} bytes; split it")


def _in_order(entries: Mapping[MsgID, Any]) -> list[Any]:
    return sorted(entries.values(), key=lambda entry: entry.number)


def _mark_echoed(
    outbox: Map[MsgID, OutboxEntry], msg_ids: Iterable[MsgID]
) -> Map[MsgID, OutboxEntry]:
    """The outbox after the node has sent these messages. A node stores the outbox in order, so it
    has also stored the entries before them, even if it does not send those that are dead by now."""
    last = max((outbox[msg_id].number for msg_id in msg_ids if msg_id in outbox), default=0)
    for entry in outbox.values():
        if entry.number <= last and not entry.echoed:
            echoed = msgspec.structs.replace(entry, echoed=True)
            outbox = outbox.set(entry.message.msg_id, echoed)
    return outbox


def _without(map_: Map[MsgID, Any], msg_ids: Iterable[MsgID]) -> Map[MsgID, Any]:
    for msg_id in msg_ids:
        if msg_id in map_:
            map_ = map_.delete(msg_id)
    return map_
