"""The Broadcaster: who is told what, and what it does not take for known."""

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.message import InBandMessage, OutOfBandMessage, create, out_of_band
from gregor.protocol.server import Publication


class Ear:
    """A device that hears."""

    def __init__(self) -> None:
        self.heard: list[Publication] = []
        self.passed: list[OutOfBandMessage] = []

    def publish(self, publication: Publication) -> None:
        self.heard.append(publication)

    def pass_by(self, message: OutOfBandMessage) -> None:
        self.passed.append(message)


def message(ctime: int, prev: int) -> InBandMessage:
    return create("u", "a", msg_id=f"m{ctime}").stamp(ctime, prev)


async def test_what_continues_the_feed_goes_to_every_device_of_the_user() -> None:
    broadcaster, ears = Broadcaster(), [Ear(), Ear()]
    for ear in ears:
        broadcaster.add("u", ear)
    broadcaster.told("u", 5)
    await broadcaster.consume_message(message(8, 5))
    assert [ear.heard for ear in ears] == [[Publication.of(message(8, 5))]] * 2


async def test_what_lies_behind_the_feed_goes_to_nobody() -> None:
    broadcaster, ear = Broadcaster(), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 8)
    await broadcaster.consume_message(message(8, 5))
    assert ear.heard == []


async def test_a_feed_is_only_as_far_as_the_least_of_its_devices() -> None:
    """One device reads the store before a message is committed, the other after it. When the
    message comes to be passed on, the first still has to hear of it."""
    broadcaster, early, late = Broadcaster(), Ear(), Ear()
    broadcaster.add("u", early)
    broadcaster.add("u", late)
    broadcaster.told("u", 8)  # the late one's answer is here first
    broadcaster.told("u", 5)
    await broadcaster.consume_message(message(8, 5))
    assert early.heard == [Publication.of(message(8, 5))]


async def test_a_message_that_others_precede_shows_a_gap_and_goes_to_nobody() -> None:
    gaps: list[str] = []
    broadcaster, ear = Broadcaster(gaps.append), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 5)
    await broadcaster.consume_message(message(9, 8))
    assert (gaps, ear.heard) == (["u"], [])


async def test_a_message_that_neither_follows_nor_lies_behind_shows_a_gap() -> None:
    gaps: list[str] = []
    broadcaster, ear = Broadcaster(gaps.append), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 5)
    await broadcaster.consume_message(message(9, 3))
    assert (gaps, ear.heard, broadcaster.position("u")) == (["u"], [], 5)


async def test_of_several_messages_those_that_lie_behind_are_left_out() -> None:
    broadcaster, ear = Broadcaster(), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 7)
    await broadcaster.consume_batch([message(7, 5), message(8, 7), message(9, 8)])
    assert ear.heard == [Publication.of(message(8, 7), message(9, 8))]


async def test_a_message_of_a_user_without_devices_here_is_let_go() -> None:
    broadcaster = Broadcaster()
    await broadcaster.consume_message(message(9, 8))
    assert broadcaster.positions() == {}


async def test_an_out_of_band_message_passes_by_whatever_the_feed_knows() -> None:
    broadcaster, ear = Broadcaster(), Ear()
    broadcaster.add("u", ear)
    passing = out_of_band("u", "typing", 1)
    await broadcaster.consume_message(passing)
    assert ear.passed == [passing]


def test_a_feed_ends_with_its_last_device() -> None:
    broadcaster, first, second = Broadcaster(), Ear(), Ear()
    broadcaster.add("u", first)
    broadcaster.add("u", second)
    assert not broadcaster.remove("u", first)
    assert broadcaster.remove("u", second)
    assert broadcaster.feeds == {}


async def test_a_device_that_leaves_while_it_is_told_disturbs_nobody() -> None:
    broadcaster, staying = Broadcaster(), Ear()

    class Leaving(Ear):
        def publish(self, publication: Publication) -> None:
            broadcaster.remove("u", self)

    broadcaster.add("u", Leaving())
    broadcaster.add("u", staying)
    await broadcaster.consume_message(message(1, 0))
    assert staying.heard == [Publication.of(message(1, 0))]


async def test_messages_that_follow_one_another_go_in_one_piece() -> None:
    broadcaster, ear = Broadcaster(), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 5)
    passing = out_of_band("u", "ping")
    await broadcaster.consume_batch([message(7, 5), message(8, 7), passing, message(9, 8)])
    assert ear.heard == [
        Publication.of(message(7, 5), message(8, 7)),
        Publication.of(message(9, 8)),
    ]
    assert ear.passed == [passing]


async def test_a_gap_within_what_is_passed_on_is_seen() -> None:
    gaps: list[str] = []
    broadcaster, ear = Broadcaster(gaps.append), Ear()
    broadcaster.add("u", ear)
    broadcaster.told("u", 5)
    await broadcaster.consume_batch([message(7, 5), message(9, 8)])
    assert ear.heard == [Publication.of(message(7, 5))]
    assert gaps == ["u"]
