"""What a device writes: instants for offsets, and when two messages are the same."""

import pytest
from hypothesis import given

from gregor.client.writing import repeats, repeats_item, with_ends, with_instants
from gregor.core.facts import Facts
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, create, dismiss_category, dismiss_key, put, raw
from gregor.core.state import Item
from gregor.errors import InvalidMessage
from gregor.testing import strategies

NOW = 1_600_000_000 * SECOND


def at(seconds: int) -> TimeOrOffset:
    return TimeOrOffset(time=NOW + seconds * SECOND)


@given(strategies.messages(), strategies.times)
def test_message_with_instants_means_what_it_means_if_it_is_stored_now(
    message: InBandMessage, now: Time
) -> None:
    """So it has the same item, and reaches the same items, whenever it is stored."""
    now += 100  # no offset leads to a time before all times
    try:
        meant = with_instants(message, now)
    except InvalidMessage:
        return  # its item would not begin before it expires
    assert with_instants(meant, now + 50) == meant
    stored, said = meant.stamp(now, 0), message.stamp(now, 0)
    assert Item.of(stored) == Item.of(said)
    assert Facts().replay(stored) == Facts().replay(said)


@given(strategies.messages(), strategies.times)
def test_message_repeats_what_was_written_for_it(message: InBandMessage, now: Time) -> None:
    try:
        written = with_instants(message, now)
    except InvalidMessage:
        return
    assert repeats(written, now, message)
    assert repeats(written, now, written)


def test_offset_counts_from_now() -> None:
    message = create("u", "a", starts="1h", expires=at(7200), msg_id="m")
    creation = with_instants(message, NOW).creation
    assert creation is not None
    assert (creation.starts, creation.expires) == (at(3600), at(7200))
    with pytest.raises(InvalidMessage, match="starts"):
        with_instants(message, NOW + 3600 * SECOND)
    for dismissal in (dismiss_category("u", "a", end_time="-1m"), dismiss_key("u", "k")):
        ended = with_ends(dismissal, TimeOrOffset(offset=-60 * SECOND))
        assert with_instants(ended, NOW) == with_ends(dismissal, at(-60))


ITEM = Item("m", NOW, "a", raw({"n": 1}), "d", NOW + SECOND, None, "k")


@pytest.mark.parametrize(
    ("changes", "repeated"),
    [
        ({}, True),
        ({"body": {"n": 2}}, False),
        ({"body": {"n": True}}, False),
        ({"key": "l"}, False),
        ({"device_id": None}, False),
        ({"starts": "1s", "expires": "2s"}, False),
        ({"expires": at(1)}, False),
        ({"expires": None}, False),
    ],
)
def test_message_with_offsets_repeats_an_item_that_differs_in_these_at_most(
    changes: dict[str, object], repeated: bool
) -> None:
    parts = {"body": {"n": 1}, "key": "k", "device_id": "d", "expires": "5h", "msg_id": "m"}
    message = put("u", "a", **{**parts, **changes})  # type: ignore[arg-type]  # of several types
    assert repeats_item(ITEM, message) == repeated
