"""What of the Relay needs no node: when it speaks, and what it takes for a publication."""

import pytest

from gregor.consumers.publisher import (
    MAX_PUBLICATION,
    Publisher,
    channel_of,
    open_envelope,
    seal,
)
from gregor.consumers.relay import Seldom
from gregor.core.message import MAX_BODY, MAX_MESSAGE, Message, create, dismiss, out_of_band
from gregor.errors import Malformed
from gregor.pubsub.interface import Received
from gregor.pubsub.memory import Exchange, MemoryPubSub


def test_the_first_is_spoken_of_at_once_and_the_others_together_later() -> None:
    seldom = Seldom(10)
    assert seldom.happened(0) == 1
    assert [seldom.happened(now) for now in (1, 2, 9.9)] == [0, 0, 0]
    assert seldom.happened(10) == 4
    assert seldom.happened(15) == 0
    assert seldom.happened(100) == 2


@pytest.mark.parametrize(
    "message",
    [
        create("u", "c", {"a": "ü"}, dtime="P1D", device_id="d").stamp(8, 5),
        dismiss("u", "a", "b").stamp(8, 0),
        out_of_band("u", "typing", [1, 2]),
    ],
)
def test_what_one_node_seals_another_opens(message: Message) -> None:
    received = Received(channel_of("u"), seal("here", message))
    assert open_envelope(received, "there") == [message]


def test_nobody_reads_their_own_echo() -> None:
    received = Received(channel_of("u"), seal("here", create("u", "c").stamp(8, 5)))
    assert open_envelope(received, "here") == []


async def test_a_users_messages_share_a_publication_until_it_is_full() -> None:
    exchange = Exchange()
    line = MemoryPubSub(exchange)
    for uid in ("u", "v"):
        await line.subscribe(channel_of(uid))
    events = line.received()
    mine = [create("u", "c", "x" * 20_000).stamp(n + 1, n) for n in range(10)]
    yours = create("v", "c").stamp(1, 0)
    await Publisher(line, "here").consume_batch([*mine[:5], yours, *mine[5:]])
    heard = [await anext(events) for _ in range(5)]
    opened = [open_envelope(event, "there") for event in heard if isinstance(event, Received)]
    assert opened == [mine[:3], mine[3:6], mine[6:9], mine[9:], [yours]]


def test_the_largest_message_that_is_taken_is_not_too_large_to_be_told() -> None:
    body = create("u", "c", "x" * (MAX_BODY - 2)).stamp(8, 5)
    assert open_envelope(Received(channel_of("u"), seal("here", body)), "there") == [body]
    ids = [f"{number:064}" for number in range(MAX_MESSAGE // 67)]
    dismissal = dismiss("u", *ids).stamp(8, 5)
    received = Received(channel_of("u"), seal("here", dismissal))
    assert open_envelope(received, "there") == [dismissal]


def test_what_is_huge_is_not_even_read() -> None:
    with pytest.raises(Malformed, match="bytes"):
        open_envelope(Received(channel_of("u"), b"[" * (MAX_PUBLICATION + 1)), "there")
