"""What one device knows: the server's facts, and what was written here and is not yet there.

    shown = facts + outbox applied on top          visible = shown − hidden − expired

A value, like the facts in it: each operation returns a new one, and is told what time it is.

A written message stays in the outbox until the node has acknowledged it, and then, with the ctime
that it got, until the cursor has reached that ctime. Only what the node tells becomes a fact: the
node leaves out what a replica at its cursor cannot have, so a message that went in by another way
would never hear of its death.

While a message waits to be sent it is shown as if the node took it now: after all that is known,
whose dismissals cannot concern it, and with an expiry that does not run yet if it counts from the
ctime which is still to come. What the node has told us of it is not shown a second time.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import Any, Self

import msgspec
from immutables import Map
from msgspec import Struct

from gregor.client.events import Created, Dismissed, Event, Rejected, Why
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, DeviceID, InBandMessage, MsgID
from gregor.core.state import Facts, Item, Snapshot, State, dismissed_ranges
from gregor.errors import (
    Conflict,
    HistoryForgotten,
    InvalidMessage,
    SetupError,
    TooLarge,
)
from gregor.protocol.frames import MAX_FRAME, Problem, Result, weight

MOST_DEAD = 1_000  # dead items kept, beyond as many as are alive
MOST_REJECTED = 1_000
EXPIRED_FOR = 60 * SECOND  # how long an expired item is kept: more than two nodes' clocks differ


class Outbound(Struct, frozen=True, omit_defaults=True):
    """A message written here, its place in the outbox, and when that was by the clock here.
    Acknowledged, the message has a ctime. It is `told` once the node has brought it back to us,
    even if its acknowledgement was lost."""

    number: int
    written: Time
    message: InBandMessage
    told: bool = False


class Refused(Struct, frozen=True):
    """A message that the node rejected, and its place among the others."""

    number: int
    message: InBandMessage
    error: Problem


class Replica(Struct, frozen=True):
    """One device's replica of its user's state, with what was written on the device.

    `uid` is unknown until a node has said whose this is. The facts are complete from
    `known_since` on. `shown` and `latest`, the last ctime in it, follow from the rest.
    """

    device_id: DeviceID
    uid: UID | None = None
    cursor: Time = 0
    known_since: Time = 0
    facts: Facts = Facts()
    outbox: Map[MsgID, Outbound] = Map()
    hidden: Map[MsgID, bool] = Map()
    rejected: Map[MsgID, Refused] = Map()
    numbered: int = 0
    shown: Facts = Facts()
    latest: Time = 0

    # Written here

    def write(self, message: InBandMessage, now: Time) -> Self:
        """Put a message into the outbox. Twice is once; another under its id is a Conflict."""
        waiting = self.outbox.get(message.msg_id)
        if waiting is not None:
            if waiting.message.same_contents(message):
                return self
            raise Conflict("this msg_id waits in the outbox with other contents")
        _check(message)
        number = self.numbered + 1
        outbound = Outbound(number, now, message)
        outbox = self.outbox.set(message.msg_id, outbound)
        return self._with(outbox=outbox, numbered=number)._showing(outbound)

    def hide(self, msg_id: MsgID) -> Self:
        """Show this item no more, on this device. Nothing happens if it is not there."""
        if msg_id not in self.shown.items:
            return self
        return self._with(hidden=self.hidden.set(msg_id, True))

    def discard(self, msg_ids: Iterable[MsgID]) -> Self:
        """Forget rejected messages."""
        return self._with(rejected=_without(self.rejected, msg_ids))

    # Told by the node

    def belonging_to(self, uid: UID) -> Self:
        """The node says whose this is. SetupError if it has been another's so far."""
        if self.uid not in (None, uid):
            raise SetupError(
                f"this store holds the state of {self.uid!r}, and the token is of {uid!r};"
                " give each user a store of their own"
            )
        return self._with(uid=uid)

    def told(self, messages: Iterable[InBandMessage], cursor: Time, now: Time) -> Self:
        """Replay messages that continue what is known; everything up to `cursor` then is."""
        # All up to our cursor has been told, and what is dead of it may be forgotten: a message
        # from there that comes again must not rise from the dead.
        new = [message for message in messages if message.ctime > self.cursor]
        facts = self.facts.replay_all(new)
        outbox = _told(self.outbox, (message.msg_id for message in new))
        told = self._with(facts=facts, cursor=max(cursor, self.cursor), outbox=outbox)
        if len(facts.dead) > len(facts.items) + MOST_DEAD:
            told = told.forget(now)
        return told.settled()

    def replaced(self, snapshot: Snapshot, cursor: Time) -> Self:
        """Take a snapshot for what the node has told. What was written here stays, and what was
        hidden here as far as it is still there."""
        outbox = _told(self.outbox, (item.msg_id for item in snapshot.items))
        facts = snapshot.facts()
        told = self._with(facts=facts, cursor=cursor, known_since=cursor, outbox=outbox)
        return told.settled()

    def acknowledged(self, results: Iterable[tuple[InBandMessage, Result]]) -> Self:
        """What became of messages of the outbox."""
        outbox, rejected, number = self.outbox, self.rejected, self.numbered
        for message, result in results:
            waiting = outbox.get(message.msg_id)
            if waiting is None:
                continue
            if result.error is not None:
                number += 1
                outbox = outbox.delete(message.msg_id)
                rejected = rejected.set(message.msg_id, Refused(number, message, result.error))
            else:
                stamped = waiting.message.stamp(result.ctime or self.cursor, 0)
                waiting = msgspec.structs.replace(waiting, message=stamped)
                outbox = outbox.set(message.msg_id, waiting)
        surplus = [r.message.msg_id for r in _in_order(rejected)[:-MOST_REJECTED]]
        rejected = _without(rejected, surplus)
        return self._with(outbox=outbox, rejected=rejected, numbered=number).settled()

    def agrees(self, as_of: Time, hash_: str) -> bool:
        """Whether the node's facts here make the state with this hash."""
        return self.facts.state(self.device_id, as_of).hash() == hash_

    def forget(self, now: Time) -> Self:
        """Let go of what has been dead, or expired, up to the cursor."""
        horizon = min(self.cursor, now) - EXPIRED_FOR
        facts = self.facts.forget(self.cursor)
        expired = [id_ for id_, item in facts.items.items() if item.expired(horizon)]
        facts = msgspec.structs.replace(facts, items=_without(facts.items, expired))
        return self._with(facts=facts, known_since=self.cursor).settled()

    # Asking

    def unsent(self) -> list[InBandMessage]:
        """What waits to be sent, in order."""
        return [o.message for o in _in_order(self.outbox) if not o.message.stamped]

    def window(self, messages: int, size: int) -> list[InBandMessage]:
        """What to send next, addressed: so many messages, and so many bytes, but at least one."""
        waiting = self.unsent()[:messages]
        sizes = accumulate(weight(message) for message in waiting)
        fitting = sum(1 for _ in takewhile(lambda so_far: so_far <= size, sizes))
        return [
            msgspec.structs.replace(message, uid=self.uid or message.uid)
            for message in waiting[: max(1, fitting)]
        ]

    def refused(self) -> "list[Refused]":
        """The rejected messages, in the order in which that happened."""
        return _in_order(self.rejected)

    def visible(self, now: Time) -> dict[MsgID, Item]:
        """What a person sees now."""
        mine = (None, self.device_id)
        return {
            id_: item
            for id_, item in self.shown.items.items()
            if item.device_id in mine
            and (item.expires_at is None or item.expires_at > now)
            and id_ not in self.hidden
        }

    def state(self, now: Time) -> State:
        return State.of(self.visible(now).values(), now)

    def state_at(self, at: Time) -> State:
        """What the device showed, or will show, at a stated time, but for what is hidden now.
        HistoryForgotten if that lies before what the replica knows exactly."""
        if at < self.known_since:
            raise HistoryForgotten(
                f"this device knows its past from {self.known_since} on, not {at}; ask the server"
            )
        state = self.shown.state_at(self.device_id, at)
        return State.of((item for item in state if item.msg_id not in self.hidden), at)

    # What follows from the rest

    def settled(self) -> Self:
        """The same after the facts, the cursor or the outbox have changed."""
        reached = [id_ for id_, o in self.outbox.items() if 0 < o.message.ctime <= self.cursor]
        outbox = _without(self.outbox, reached)
        shown, latest = self.facts, self.cursor
        for outbound in _in_order(outbox):
            if outbound.message.stamped:
                shown, latest = shown.replay(outbound.message), outbound.message.ctime
        settled = self._with(outbox=outbox, shown=shown.deathless(), latest=latest)
        for outbound in _in_order(outbox):
            if not (outbound.message.stamped or outbound.told):
                settled = settled._showing(outbound)
        # By the node's word only: a dismissal of ours may yet be rejected.
        there = (settled.facts.items, settled.outbox)
        gone = [id_ for id_ in settled.hidden if not any(id_ in known for known in there)]
        return settled._with(hidden=_without(settled.hidden, gone))

    def _showing(self, outbound: Outbound) -> Self:
        """The same with one message on top, as if the node took it next."""
        message, creation = outbound.message, outbound.message.creation
        if creation is not None and creation.dtime is not None and creation.dtime.time is None:
            creation = msgspec.structs.replace(creation, dtime=None)
            message = msgspec.structs.replace(message, creation=creation)
        ctime = max(outbound.written, self.latest + 1)
        return self._with(shown=self.shown.replay(message.stamp(ctime, self.latest)), latest=ctime)

    def _with(self, **changes: Any) -> Self:
        return msgspec.structs.replace(self, **changes)


def rejections(before: Replica, after: Replica) -> list[Rejected]:
    """What has been rejected since."""
    new = [r for r in after.refused() if r.message.msg_id not in before.rejected]
    return [Rejected(refused.message, refused.error) for refused in new]


def events_between(
    before: Mapping[MsgID, Item],
    after: Mapping[MsgID, Item],
    now: Time,
    messages: Sequence[InBandMessage],
) -> list[Event]:
    """How what a person sees has changed. `messages` are those that may have done it."""
    gone = sorted((item for id_, item in before.items() if id_ not in after), key=Item.order)
    new = sorted((item for id_, item in after.items() if id_ not in before), key=Item.order)
    return [
        *(Dismissed(item, _why(item, now, messages)) for item in gone),
        *(Created(item) for item in new),
    ]


def _why(item: Item, now: Time, messages: Sequence[InBandMessage]) -> Why:
    if item.expired(now):
        return "expired"
    if any(message.creation and _names(message, item) for message in messages):
        return "replaced"
    return "dismissed"


def _names(message: InBandMessage, item: Item) -> bool:
    """Whether the message dismisses this item; that it is gone is known."""
    if message.dismissal is None:
        return False
    return item.msg_id in message.dismissal.msg_ids or any(
        range_.matches(item.msg_id, item.category)
        for range_ in dismissed_ranges(message.dismissal, message.ctime)
    )


def _check(message: InBandMessage) -> None:
    if message.stamped:
        raise InvalidMessage("`ctime` is the server's to set", field="ctime")
    # A node takes no such frame, and would end the conversation each time it came.
    if weight(message) > MAX_FRAME // 2:
        raise TooLarge(f"a message takes up to {MAX_FRAME // 2} bytes; send several")


def _in_order(waiting: Mapping[MsgID, Any]) -> list[Any]:
    return sorted(waiting.values(), key=lambda entry: entry.number)


def _told(outbox: Map[MsgID, Outbound], msg_ids: Iterable[MsgID]) -> Map[MsgID, Outbound]:
    """The outbox after the node has told us these messages. It takes ours in order, so it has
    dealt with those before them too, even where it left out to tell us, because they are dead."""
    last = max((outbox[msg_id].number for msg_id in msg_ids if msg_id in outbox), default=0)
    for outbound in outbox.values():
        if outbound.number <= last and not outbound.told:
            told = msgspec.structs.replace(outbound, told=True)
            outbox = outbox.set(outbound.message.msg_id, told)
    return outbox


def _without(map_: Map[MsgID, Any], msg_ids: Iterable[MsgID]) -> Map[MsgID, Any]:
    for msg_id in msg_ids:
        if msg_id in map_:
            map_ = map_.delete(msg_id)
    return map_
