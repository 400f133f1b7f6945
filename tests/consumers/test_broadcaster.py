"""The Broadcaster: which messages it delivers, drops, or reports as a gap."""

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.message import InBandMessage, create, out_of_band
from gregor.interfaces import Relayed, Stored
from gregor.protocol.publication import Publication
from tests.node.fakes import FakeListener


def message(ctime: int, prev: int) -> InBandMessage:
    return create("u", "a", msg_id=f"m{ctime}").stamp(ctime, prev)


def stored(ctime: int, prev: int) -> Stored:
    return Stored(message(ctime, prev))


async def test_message_that_continues_the_feed_goes_to_every_device_of_the_user() -> None:
    broadcaster, listeners = Broadcaster(), [FakeListener(), FakeListener()]
    for listener in listeners:
        broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    await broadcaster.consume_message(message(8, 5))
    assert [listener.publications for listener in listeners] == [[Publication.of(stored(8, 5))]] * 2


async def test_message_behind_the_feed_is_dropped() -> None:
    broadcaster, listener = Broadcaster(), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 8)
    await broadcaster.consume_message(message(8, 5))
    assert listener.publications == []


async def test_position_of_a_feed_is_the_lowest_one_of_its_devices() -> None:
    """One device reads the store before a message is committed, the other after it. The message
    must still be delivered to the first device."""
    broadcaster, behind, ahead = Broadcaster(), FakeListener(), FakeListener()
    broadcaster.add("u", behind)
    broadcaster.add("u", ahead)
    broadcaster.lower_position("u", 8)  # the reply to the later read arrives first
    broadcaster.lower_position("u", 5)
    await broadcaster.consume_message(message(8, 5))
    assert behind.publications == [Publication.of(stored(8, 5))]


async def test_message_after_missing_ones_is_reported_as_gap_and_not_delivered() -> None:
    gaps: list[str] = []
    broadcaster, listener = Broadcaster(gaps.append), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    await broadcaster.consume_message(message(9, 8))
    assert (gaps, listener.publications) == (["u"], [])


async def test_later_message_whose_prev_is_behind_the_feed_is_reported_as_gap() -> None:
    gaps: list[str] = []
    broadcaster, listener = Broadcaster(gaps.append), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    await broadcaster.consume_message(message(9, 3))
    assert (gaps, listener.publications, broadcaster.position("u")) == (["u"], [], 5)


async def test_messages_behind_the_feed_are_left_out_of_a_batch() -> None:
    broadcaster, listener = Broadcaster(), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 7)
    await broadcaster.consume_batch([stored(7, 5), stored(8, 7), stored(9, 8)])
    assert listener.publications == [Publication.of(stored(8, 7), stored(9, 8))]


async def test_message_of_a_user_without_devices_is_dropped() -> None:
    broadcaster = Broadcaster()
    await broadcaster.consume_message(message(9, 8))
    assert broadcaster.positions() == {}


async def test_out_of_band_message_is_delivered_regardless_of_the_feed() -> None:
    broadcaster, listener = Broadcaster(), FakeListener()
    broadcaster.add("u", listener)
    out_of_band_message = out_of_band("u", "typing", 1)
    await broadcaster.consume_message(out_of_band_message)
    assert listener.out_of_band == [out_of_band_message]


def test_feed_is_removed_with_its_last_device() -> None:
    broadcaster, first, second = Broadcaster(), FakeListener(), FakeListener()
    broadcaster.add("u", first)
    broadcaster.add("u", second)
    assert broadcaster.device_count("u") == 2
    assert not broadcaster.remove("u", first)
    assert broadcaster.remove("u", second)
    assert not broadcaster.has_devices("u")


async def test_listener_removed_during_delivery_does_not_affect_others() -> None:
    broadcaster, other = Broadcaster(), FakeListener()

    class DetachingListener(FakeListener):
        def publish(self, publication: Publication) -> None:
            broadcaster.remove("u", self)

    broadcaster.add("u", DetachingListener())
    broadcaster.add("u", other)
    await broadcaster.consume_message(message(1, 0))
    assert other.publications == [Publication.of(stored(1, 0))]


async def test_consecutive_messages_share_one_publication() -> None:
    broadcaster, listener = Broadcaster(), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    out_of_band_message = out_of_band("u", "ping")
    await broadcaster.consume_batch(
        [stored(7, 5), stored(8, 7), Relayed(out_of_band_message), stored(9, 8)]
    )
    assert listener.publications == [
        Publication.of(stored(7, 5), stored(8, 7)),
        Publication.of(stored(9, 8)),
    ]
    assert listener.out_of_band == [out_of_band_message]


async def test_gap_within_a_batch_is_reported() -> None:
    gaps: list[str] = []
    broadcaster, listener = Broadcaster(gaps.append), FakeListener()
    broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    await broadcaster.consume_batch([stored(7, 5), stored(9, 8)])
    assert listener.publications == [Publication.of(stored(7, 5))]
    assert gaps == ["u"]


async def test_erase_is_told_to_every_device_and_moves_the_feed_behind_it() -> None:
    gaps: list[str] = []
    broadcaster, listeners = Broadcaster(gaps.append), [FakeListener(), FakeListener()]
    for listener in listeners:
        broadcaster.add("u", listener)
    broadcaster.lower_position("u", 5)
    broadcaster.erase("u", 9)
    broadcaster.erase("v", 9)
    assert [listener.epochs for listener in listeners] == [[9], [9]]
    await broadcaster.consume_message(message(8, 5))  # it was under way, and is erased
    await broadcaster.consume_message(message(10, 9))
    assert listeners[0].ids == ["m10"]
    assert gaps == []


def test_erase_does_not_move_a_feed_back_nor_give_it_a_position() -> None:
    broadcaster = Broadcaster()
    broadcaster.add("u", FakeListener())
    broadcaster.erase("u", 9)
    assert broadcaster.position("u") is None
    broadcaster.lower_position("u", 12)
    broadcaster.erase("u", 9)
    assert broadcaster.position("u") == 12
