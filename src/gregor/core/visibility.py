"""Which items a device sees, and when: section 5 of `spec/semantics.md` as one predicate.

Every state in Python is computed by it. `gregor.stores.sql.statements` has the same rule in SQL,
under "Visibility", and `gregor.testing.oracle` repeats it on purpose; tests compare the three.
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
    """A stated time, past or future: exact, whatever has been stored since."""

    time: Time


class HasLifetime(Protocol):
    """What decides whether an item is visible, but for its death."""

    @property
    def ctime(self) -> Time: ...
    @property
    def device_id(self) -> DeviceID | None: ...
    @property
    def expires_at(self) -> Time | None: ...


def is_visible(
    item: HasLifetime, dismissed_at: Time | None, device_id: DeviceID | None, when: Now | At
) -> bool:
    """Whether the device (None: any device) sees the item, which was dismissed at this time (None:
    it has no known death)."""
    time = when.time
    if isinstance(when, Now):  # a `match` takes twice as long, and this runs for every item
        exists = dismissed_at is None
    else:
        exists = item.ctime <= time and (dismissed_at is None or dismissed_at > time)
    return exists and seen_on(item.device_id, device_id) and not has_expired(item.expires_at, time)


def has_expired(expires_at: Time | None, time: Time) -> bool:
    """Whether an item is gone at this time; it is gone at the instant of its expiry."""
    return expires_at is not None and expires_at <= time
