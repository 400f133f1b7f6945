"""The one predicate of visibility, at its edges."""

from collections.abc import Sequence

import pytest

from gregor.core.instant import Time
from gregor.core.message import DeviceID
from gregor.core.sync import ItemFate
from gregor.core.visibility import At, Now, has_expired, is_visible

CREATED, DEAD, GONE = 10, 20, 30


def times_visible(
    fate: ItemFate, kind: type[Now] | type[At], device_id: DeviceID | None = None
) -> Sequence[Time]:
    edges = [t + step for t in (CREATED, DEAD, GONE) for step in (-1, 0, 1)]
    return [t for t in edges if is_visible(fate, fate.dismissed_at, device_id, kind(t))]


@pytest.mark.parametrize(
    ("expires_at", "dismissed_at", "now", "at"),
    [
        (None, None, [9, 10, 11, 19, 20, 21, 29, 30, 31], [10, 11, 19, 20, 21, 29, 30, 31]),
        (GONE, None, [9, 10, 11, 19, 20, 21, 29], [10, 11, 19, 20, 21, 29]),
        (None, DEAD, [], [10, 11, 19]),
        (GONE, DEAD, [], [10, 11, 19]),
        (0, None, [], []),
    ],
)
def test_item_is_visible_from_its_ctime_until_its_expiry_or_death(
    expires_at: Time | None, dismissed_at: Time | None, now: Sequence[Time], at: Sequence[Time]
) -> None:
    """Now, a known death counts at once, and the item's ctime is not compared."""
    fate = ItemFate(CREATED, None, expires_at, dismissed_at)
    assert times_visible(fate, Now) == now
    assert times_visible(fate, At) == at


@pytest.mark.parametrize("kind", [Now, At])
def test_item_of_a_device_is_visible_there_and_to_all_devices_together(
    kind: type[Now] | type[At],
) -> None:
    fate = ItemFate(CREATED, "d1", None, None)
    assert times_visible(fate, kind, "d1") == times_visible(fate, kind, None) != []
    assert times_visible(fate, kind, "d2") == []


def test_expiry_is_exclusive() -> None:
    assert [has_expired(GONE, t) for t in (29, 30, 31)] == [False, True, True]
    assert not has_expired(None, 2**53)
