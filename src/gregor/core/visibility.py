"""Which items a device sees, and when: section 5 of `spec/semantics.md` as two predicates.

Every state in Python is computed by them. `gregor.stores.sql.statements` has the same rules in SQL,
under "Visibility", and `gregor.testing.oracle` repeats them on purpose; tests compare the three.
"""

from typing import Protocol

from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import DeviceID, seen_on


class Now(Struct, frozen=True):
    """What a clock shows now. Every known death counts, and so does an item whose ctime is later:
    a slow clock must not show a past state."""

    time: Time


class At(Struct, frozen=True):
    """A stated time, past or future: exact, whatever has been stored since. Only messages up to the
    ctime `known` count, which is the time by default."""

    time: Time
    known: Time | None = None

    @property
    def latest_ctime(self) -> Time:
        return self.time if self.known is None else self.known


class HasLifetime(Protocol):
    """What decides whether an item is visible, but for its death."""

    @property
    def ctime(self) -> Time: ...
    @property
    def device_id(self) -> DeviceID | None: ...
    @property
    def starts_at(self) -> Time | None: ...
    @property
    def expires_at(self) -> Time | None: ...


def is_visible(
    item: HasLifetime, dismissed_at: Time | None, device_id: DeviceID | None, when: Now | At
) -> bool:
    """Whether the device (None: any device) sees the item, which was dismissed at this time (None:
    it has no known death)."""
    begun = has_begun(item.starts_at, when.time)
    return begun and is_live(item, dismissed_at, device_id, when)


def is_live(
    item: HasLifetime, dismissed_at: Time | None, device_id: DeviceID | None, when: Now | At
) -> bool:
    """The same for items that have not begun, too."""
    if isinstance(when, Now):  # a `match` takes twice as long, and this runs for every item
        exists = dismissed_at is None
    else:
        known = when.latest_ctime
        exists = item.ctime <= known and (dismissed_at is None or dismissed_at > known)
    in_scope = seen_on(item.device_id, device_id)
    return exists and in_scope and not has_expired(item.expires_at, when.time)


def has_expired(expires_at: Time | None, time: Time) -> bool:
    """Whether an item is gone at this time; it is gone at the instant of its expiry."""
    return expires_at is not None and expires_at <= time


def has_begun(starts_at: Time | None, time: Time) -> bool:
    """Whether an item is there at this time; it is there at the instant of its start."""
    return starts_at is None or starts_at <= time
