"""What waits for a socket: its order, and its limits."""

from gregor.core.message import create, out_of_band
from gregor.interfaces import Stored
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import GoAway, OutOfBand
from gregor.protocol.outbound_queue import QUEUE_BYTES, QUEUE_MESSAGES, OutboundQueue
from gregor.protocol.publication import Publication

TYPING = out_of_band("u", "typing", 1)


def publication(ctime: int, size: int = 1) -> Publication:
    message = create("u", "a", "x" * size, msg_id=f"m{ctime}")
    return Publication.of(Stored(message.stamp(ctime, ctime - 1)))


def test_control_frames_come_before_out_of_band_messages() -> None:
    queue = OutboundQueue()
    queue.add_out_of_band(TYPING)
    queue.add_control_frame(GoAway(1))
    queue.add_control_frame(GoAway(2))
    sent = [queue.next_urgent() for _ in range(4)]
    expected = [GoAway(1), GoAway(2), OutOfBand("typing", TYPING.raw_body)]
    assert sent == [*(Send(frame) for frame in expected), None]


def test_close_comes_once_after_the_control_frames_and_messages_are_dropped() -> None:
    queue = OutboundQueue()
    queue.add_out_of_band(TYPING)
    queue.add_publication(publication(1))
    queue.end(Close(1000, "bye"))
    queue.add_control_frame(GoAway(1))
    sent = [queue.next_urgent() for _ in range(3)]
    assert sent == [Send(GoAway(1)), Close(1000, "bye"), None]
    assert not queue.take_publications()


def test_control_frames_are_limited() -> None:
    queue = OutboundQueue()
    added = [queue.add_control_frame(GoAway(n)) for n in range(QUEUE_MESSAGES + 1)]
    assert added == [True] * QUEUE_MESSAGES + [False]


def test_out_of_band_messages_are_limited_however_small() -> None:
    queue = OutboundQueue()
    added = [queue.add_out_of_band(TYPING) for _ in range(QUEUE_MESSAGES + 1)]
    assert added == [True] * QUEUE_MESSAGES + [False]


def test_publications_are_limited_in_messages_and_taken_all_at_once() -> None:
    queue = OutboundQueue()
    publications = [publication(n) for n in range(1, QUEUE_MESSAGES + 1)]
    assert all(queue.add_publication(each) for each in publications)
    assert queue.take_publications() == publications
    assert not queue.take_publications()
    assert all(queue.add_publication(each) for each in publications)
    assert not queue.add_publication(publication(QUEUE_MESSAGES + 1))


def test_publications_and_out_of_band_messages_share_the_limit_in_bytes() -> None:
    queue = OutboundQueue()
    assert queue.add_publication(publication(1, size=60_000))
    size = (QUEUE_BYTES - 61_000) // 4
    large = out_of_band("u", "s", "x" * size)
    assert all(queue.add_out_of_band(large) for _ in range(4))
    assert not queue.add_out_of_band(large)
    assert not queue.add_publication(publication(2, size=1_000))


def test_what_is_taken_or_dropped_makes_room() -> None:
    queue = OutboundQueue()
    large = out_of_band("u", "s", "x" * 60_000)
    while queue.add_out_of_band(large):
        pass
    queue.next_urgent()
    assert queue.add_out_of_band(large)
    queue.drop_out_of_band()
    assert queue.next_urgent() is None
    assert queue.add_publication(publication(1, size=60_000))
    queue.take_publications()
    assert [queue.add_out_of_band(large) for _ in range(4)] == [True] * 4
