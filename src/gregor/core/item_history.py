"""What became of one item and why: which messages made and ended it, when, and who sent them.

A death is explained by the message that has its ctime, which a store finds with one look-up, and by
the rule of that message which reaches the item. So what is named is what has killed.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct, structs

from gregor.core.facts import dismissed_keys, dismissed_ranges
from gregor.core.instant import Time
from gregor.core.message import UID, Category, InBandMessage, Key, MsgID
from gregor.core.state import Item
from gregor.core.visibility import has_begun

Author: TypeAlias = str
"""Who has sent a message: `device:ID` or `service:SUB`; `user:UID` if it was one of the user's
devices, which did not say which."""

ItemState: TypeAlias = Literal[
    "visible", "scheduled", "dismissed", "replaced", "expired", "pruned", "unknown"
]
What: TypeAlias = Literal["created", "started", "replaced", "dismissed", "expired", "pruned"]


class IDRule(Struct, frozen=True, tag_field="kind", tag="id"):
    """The message names the item's id."""

    msg_id: MsgID


class RangeRule(Struct, frozen=True, tag_field="kind", tag="range"):
    """A range of the message reaches the item. `end` is where it ends: never after the message."""

    category: Category
    prefix: bool
    scheduled: bool
    end: Time


class KeyRule(Struct, frozen=True, tag_field="kind", tag="key"):
    """The message dismisses the item's key."""

    key: Key
    end: Time


class PutRule(Struct, frozen=True, tag_field="kind", tag="put"):
    """The message creates an item with the same key and scope, which takes the item's place."""

    key: Key


Rule: TypeAlias = IDRule | RangeRule | KeyRule | PutRule


class Cause(Struct, frozen=True):
    """The message that was the cause, and who sent it; None: not known."""

    msg_id: MsgID
    author: Author | None = None


class ItemEvent(Struct, frozen=True):
    """Something that happened to an item. `at` is None if that is not kept. A start and an expiry
    come from no other message, and have no `by`; nor has a death whose message is forgotten. Only a
    death has a `rule`; None if it is not known."""

    at: Time | None
    what: What
    by: Cause | None = None
    rule: Rule | None = None


class ItemHistory(Struct, frozen=True):
    """What has happened to an item up to now, in order, and its state. Nothing happens to an item
    after its end."""

    uid: UID
    msg_id: MsgID
    state: ItemState
    events: tuple[ItemEvent, ...] = ()

    def without_services(self) -> "ItemHistory":
        """The same for the user's own devices: the names of services are not theirs to know."""
        return structs.replace(self, events=tuple(map(_without_service, self.events)))


def _without_service(event: ItemEvent) -> ItemEvent:
    by = event.by
    if by is None or by.author is None or not by.author.startswith("service:"):
        return event
    return structs.replace(event, by=Cause(by.msg_id, "service"))


class Authored(NamedTuple):
    """A stored message, and who sent it; None: not known."""

    message: InBandMessage
    author: Author | None = None

    @property
    def cause(self) -> Cause:
        return Cause(self.message.msg_id, self.author)


class Trace(NamedTuple):
    """What a store has of one id: the message with the id; when that was stored, if its contents
    are `forgotten`; when its item died, or when the id was dismissed before it arrived; and the
    message of that ctime, if it is not forgotten."""

    message: Authored | None = None
    forgotten: Time | None = None
    died_at: Time | None = None
    killer: Authored | None = None


def history_of(uid: UID, msg_id: MsgID, trace: Trace, now: Time) -> ItemHistory:
    """The history of an item of which a store has this trace."""
    if trace.message is not None:
        item = Item.of(trace.message.message)
        if item is None:  # a message that creates none
            return ItemHistory(uid, msg_id, "unknown")
        events = sorted(_events(item, trace.message.cause, trace, now), key=_at)
        return ItemHistory(uid, msg_id, _state(item, events, now), tuple(events))
    if trace.forgotten is not None:
        created = ItemEvent(trace.forgotten, "created", Cause(msg_id))
        return ItemHistory(uid, msg_id, "pruned", (created, ItemEvent(None, "pruned")))
    if trace.died_at is not None:
        return ItemHistory(uid, msg_id, "unknown", (_dismissal_of_id(msg_id, trace),))
    return ItemHistory(uid, msg_id, "unknown")


def _events(item: Item, cause: Cause, trace: Trace, now: Time) -> Iterator[ItemEvent]:
    yield ItemEvent(item.ctime, "created", cause)
    end = _end(item, trace, now)
    last = now if end is None else _at(end) - 1
    if item.starts_at is not None and item.ctime < item.starts_at <= last:
        yield ItemEvent(item.starts_at, "started")
    if end is not None:
        yield end


def _end(item: Item, trace: Trace, now: Time) -> ItemEvent | None:
    """How the item ended: by what came first. A store need not know of a death after an expiry."""
    died_at, expires_at = trace.died_at, item.expires_at
    # A death has happened, even if this clock is behind.
    if expires_at is not None and expires_at <= (now if died_at is None else died_at):
        return ItemEvent(max(expires_at, item.ctime), "expired")
    return None if died_at is None else _death(item, died_at, trace.killer)


def _death(item: Item, died_at: Time, killer: Authored | None) -> ItemEvent:
    rule = None if killer is None else rule_that_reaches(item, killer.message)
    if killer is None or rule is None:
        # Before it is created, only its id can reach an item.
        return ItemEvent(
            died_at, "dismissed", rule=IDRule(item.msg_id) if died_at < item.ctime else None
        )
    what: What = "replaced" if isinstance(rule, PutRule) else "dismissed"
    return ItemEvent(died_at, what, killer.cause, rule)


def _dismissal_of_id(msg_id: MsgID, trace: Trace) -> ItemEvent:
    """The dismissal of an id that has not arrived."""
    by = None if trace.killer is None else trace.killer.cause
    return ItemEvent(trace.died_at, "dismissed", by, IDRule(msg_id))


def _state(item: Item, events: list[ItemEvent], now: Time) -> ItemState:
    for event in events:
        if event.what in ("dismissed", "replaced", "expired"):
            return event.what
    return "visible" if has_begun(item.starts_at, now) else "scheduled"


def _at(event: ItemEvent) -> Time:
    return event.at or 0


def rule_that_reaches(item: Item, message: InBandMessage) -> Rule | None:
    """The first rule by which the stamped message ends the item; None if it does not."""
    return next(_rules_that_reach(item, message), None)


def _rules_that_reach(item: Item, message: InBandMessage) -> Iterator[Rule]:
    if _takes_place_of(item, message):
        assert item.key is not None
        yield PutRule(item.key)
    if message.dismissal is not None and item.msg_id in message.dismissal.msg_ids:
        yield IDRule(item.msg_id)
    for range_ in dismissed_ranges(message):
        if range_.covers(item):
            yield RangeRule(range_.category, range_.prefix, range_.scheduled, range_.end)
    for key in dismissed_keys(message):
        if key.covers(item):
            yield KeyRule(key.key, key.end)


def _takes_place_of(item: Item, message: InBandMessage) -> bool:
    same_register = (message.key, message.device_id) == (item.key, item.device_id)
    return item.key is not None and same_register and message.ctime > item.ctime
