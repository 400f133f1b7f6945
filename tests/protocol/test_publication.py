"""Publications: one span of a user's clock, encoded once for all devices."""

from gregor.core.message import create, dismiss_category, put
from gregor.interfaces import Stored
from gregor.protocol.frames import Messages
from gregor.protocol.publication import Publication


def test_devices_share_one_encoded_frame() -> None:
    first = create("u", "a", msg_id="1").stamp(11, 10)
    second = create("u", "a", msg_id="2").stamp(12, 11)
    publication = Publication.of(Stored(first), Stored(second))
    assert publication.shared_frame is not None
    assert publication.shared_frame.frame == Messages(10, (first, second), 12)
    assert publication.size == len(publication.shared_frame.text)


def test_publication_with_a_scoped_message_has_no_shared_frame() -> None:
    scoped = create("u", "a", device_id="d1").stamp(11, 10)
    assert Publication.of(Stored(scoped)).shared_frame is None


def test_device_gets_its_own_items_and_all_dismissals() -> None:
    other = create("u", "a", device_id="d2", msg_id="x").stamp(11, 10)
    update = replace("u", "a", "secret", device_id="d2", msg_id="y").stamp(12, 11)
    publication = Publication.of(Stored(other), Stored(update))
    assert publication.addressed_to("d2") == (other, update)
    (dismissal,) = publication.addressed_to("d1")
    assert (dismissal.creation, dismissal.dismissal) == (None, update.dismissal)
