"""Publications: one span of a user's clock, encoded once for all devices."""

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import (
    Dismissal,
    InBandMessage,
    create,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.core.sync import Recipient, knowledge_in, reductions, snapshot_of, what_is_left
from gregor.interfaces import Stored
from gregor.protocol.frames import Messages
from gregor.protocol.publication import Publication
from gregor.testing.strategies import History, histories, late_times


def test_devices_share_one_encoded_frame() -> None:
    first = create("u", "a", msg_id="1").stamp(11, 10)
    second = create("u", "a", msg_id="2").stamp(12, 11)
    publication = Publication.of(Stored(first), Stored(second))
    assert publication.shared_frame is not None
    assert publication.shared_frame.frame == Messages(10, (first, second), 12)
    assert publication.size == len(publication.shared_frame.text)


def test_publication_with_a_scoped_creation_has_no_shared_frame() -> None:
    scoped = create("u", "a", device_id="d1").stamp(11, 10)
    assert Publication.of(Stored(scoped)).shared_frame is None


def test_dismissals_by_a_device_share_one_frame() -> None:
    by_category = dismiss_category("u", "a", device_id="d1").stamp(11, 10)
    by_key = dismiss_key("u", "k", device_id="d1").stamp(12, 11)
    publication = Publication.of(Stored(by_category), Stored(by_key))
    assert publication.shared_frame is not None
    assert publication.shared_frame.frame == Messages(10, (by_category, by_key), 12)


def test_device_gets_its_own_items_and_all_dismissals() -> None:
    other = create("u", "a", device_id="d2", msg_id="x").stamp(11, 10)
    update = put("u", "a", "secret", device_id="d2", msg_id="y").stamp(12, 11)
    update = structs.replace(update, dismissal=Dismissal(("m",)))
    publication = Publication.of(Stored(other), Stored(update))
    assert publication.addressed_to("d2") == (other, update)
    (dismissal,) = publication.addressed_to("d1")
    assert (dismissal.creation, dismissal.dismissal) == (None, update.dismissal)


def test_item_that_is_left_out_gives_its_place_to_the_id_of_its_predecessor() -> None:
    dead = put("u", "a", 1, key="k", msg_id="x").stamp(11, 10)
    expired = put("u", "a", 1, key="l", expires="2001-01-02T00:00:00Z", msg_id="y")
    live = put("u", "a", 1, key="m", msg_id="z").stamp(13, 12)
    now = 10**15
    publication = Publication.of(
        Stored(dead, dead=True, replaced="p"),
        Stored(expired.stamp(now, 12), expired=True, replaced="q"),
        Stored(live, replaced="r"),
    )
    left = [(m.creation, m.dismissal) for m in publication.messages]
    assert left == [(None, Dismissal(("p",))), (None, Dismissal(("q",))), (live.creation, None)]


# One reduction for all devices together


def held(history: Iterable[InBandMessage], device_id: str) -> Facts:
    """What a device holds that was told of this history in order."""
    return snapshot_of(Facts().replay_all(history), device_id, 0).facts()


def told(replica: Facts, messages: Sequence[InBandMessage]) -> Facts:
    for message in messages:
        replica = replica.replay(message).pruned()
    return replica


@given(histories(), st.sampled_from(["d1", "d2"]), late_times, st.integers(0, 8))
def test_law_what_is_read_for_all_devices_does_to_each_what_is_read_for_it(
    history: History, device_id: str, now: Time, known: int
) -> None:
    """A gap repair reads once for all devices of a user."""
    cursor = history[:known][-1].ctime if history[:known] else 0
    store = knowledge_in(Facts().replay_all(history))

    def read(device_id: str | None) -> tuple[InBandMessage, ...]:
        missed = history[known:]
        return what_is_left(reductions(missed, Recipient(device_id, cursor, now), store))

    shared = Publication.span(cursor, read(None), now)
    replica = held(history[:known], device_id)
    expected = told(replica, read(device_id))
    assert told(replica, shared.addressed_to(device_id)) == expected
    if shared.shared_frame is not None:
        assert told(replica, shared.messages) == expected
