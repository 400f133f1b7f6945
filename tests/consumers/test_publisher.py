"""The Publisher and its envelopes: encoding, decoding, size limits."""

import msgspec
import pytest
from hypothesis import given
from msgspec.structs import replace

from gregor.consumers.publisher import (
    ErasureNotice,
    Publisher,
    UnknownVersion,
    decode_envelope,
    encode_envelope,
)
from gregor.core.instant import Time
from gregor.core.message import MAX_BODY, MAX_MESSAGE, create, dismiss, out_of_band, put
from gregor.errors import Malformed
from gregor.interfaces import Accepted, Relayed, Stored
from gregor.protocol.publication import Publication
from gregor.pubsub.interface import Received
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.strategies import History, histories, late_times


@pytest.mark.parametrize(
    "outcome",
    [
        Stored(create("u", "c", {"a": "ü"}, expires="P1D", device_id="d").stamp(8, 5)),
        Stored(create("u", "c").stamp(8, 5), dead=True),
        Stored(put("u", "c").stamp(8, 5), dead=True, replaced="p"),
        Stored(dismiss("u", "a", "b").stamp(8, 0)),
        Relayed(out_of_band("u", "typing", [1, 2])),
    ],
    ids=["creation", "dead-creation", "dead-creation-with-a-key", "dismissal", "out-of-band"],
)
def test_decoded_envelope_contains_what_was_encoded(outcome: Accepted) -> None:
    json = encode_envelope("a", outcome)
    assert decode_envelope("u", json, "b") == [outcome]


def test_envelope_of_version_1_has_no_field_that_earlier_nodes_reject() -> None:
    payload = encode_envelope("a", Stored(create("u", "c", 1, msg_id="m").stamp(8, 5)))
    assert payload.startswith(b'{"node":"a","messages":[{')
    assert b"version" not in payload


def test_envelope_names_the_predecessor_of_an_item_that_devices_are_not_sent() -> None:
    """It needs no other: the creation tells a device what it replaces."""
    live = Stored(put("u", "c", msg_id="live").stamp(8, 5), replaced="p")
    expired = Stored(put("u", "c", expires="2001-01-02T00:00:00Z").stamp(10**15, 8), replaced="q")
    json = encode_envelope("a", live, expired)
    assert decode_envelope("u", json, "b") == [replace(live, replaced=None), expired]
    payload = encode_envelope("a", live)
    assert b"replaced" not in payload, "nodes of earlier versions know no such field"


@pytest.mark.parametrize(
    "replaced", ['{"m":""}', '{"m":"\\u0000"}', '{"m":7}', '{"m":"' + "é" * 64 + '"}']
)
def test_envelope_with_an_invalid_predecessor_is_rejected(replaced: str) -> None:
    payload = encode_envelope("a", Stored(put("u", "c", msg_id="m").stamp(8, 5), dead=True))
    invalid = payload[:-1] + f',"replaced":{replaced}}}'.encode()
    with pytest.raises(Malformed):
        decode_envelope("u", invalid, "b")


@given(histories(), late_times)
async def test_law_a_node_that_receives_an_envelope_sends_devices_what_its_publisher_sends(
    history: History, now: Time
) -> None:
    store = MemoryStateMachine(lambda: now)
    outcomes = await store.consume_messages([message.stamp(0, 0) for message in history])
    for stored in outcomes:
        if isinstance(stored, Stored):  # and not refused, for its start
            payload = encode_envelope("a", stored)
            received = decode_envelope("user", payload, "b")
            assert isinstance(received, list)
            relayed = [outcome for outcome in received if isinstance(outcome, Stored)]
            assert Publication.of(*relayed) == Publication.of(stored)


def test_own_envelope_decodes_to_no_messages() -> None:
    json = encode_envelope("a", Stored(create("u", "c").stamp(8, 5)))
    assert decode_envelope("u", json, "a") == []


async def test_messages_of_a_user_share_envelopes_up_to_the_size_limit() -> None:
    pubsub = MemoryPubSub(Exchange())
    publisher = Publisher(pubsub, "a")
    for uid in ("u", "v"):
        await pubsub.subscribe(publisher.channels.of(uid))
    events = pubsub.received()
    messages_of_u = [Stored(create("u", "c", "x" * 20_000).stamp(n + 1, n)) for n in range(10)]
    message_of_v = Stored(create("v", "c").stamp(1, 0))
    await publisher.consume_batch([*messages_of_u[:5], message_of_v, *messages_of_u[5:]])
    received = [await anext(events) for _ in range(5)]
    batches = [
        decode_envelope(publisher.channels.user_of(event.channel) or "", event.payload, "b")
        for event in received
        if isinstance(event, Received)
    ]
    assert batches == [
        messages_of_u[:3],
        messages_of_u[3:6],
        messages_of_u[6:9],
        messages_of_u[9:],
        [message_of_v],
    ]


def test_largest_accepted_message_fits_in_an_envelope() -> None:
    creation = Stored(create("u", "c", "x" * (MAX_BODY - 2)).stamp(8, 5))
    json = encode_envelope("a", creation)
    assert decode_envelope("u", json, "b") == [creation]
    ids = [f"{number:064}" for number in range(MAX_MESSAGE // 67)]
    dismissal = Stored(dismiss("u", *ids).stamp(8, 5))
    json = encode_envelope("a", dismissal)
    assert decode_envelope("u", json, "b") == [dismissal]


# Notices


async def published_erasure(node: str) -> bytes:
    """What the node publishes when it has erased `u`."""
    publisher = Publisher(MemoryPubSub(Exchange()), node)
    await publisher.pubsub.subscribe(publisher.channels.of("u"))
    await publisher.publish_erasure("u")
    received = await anext(publisher.pubsub.received())
    assert isinstance(received, Received)
    return received.payload


async def test_notice_of_an_erase_is_read_by_other_nodes_only() -> None:
    json = await published_erasure("a")
    assert isinstance(decode_envelope("u", json, "b"), ErasureNotice)
    assert decode_envelope("u", json, "a") == []


async def test_notice_is_an_envelope_of_another_version_for_nodes_that_do_not_know_it() -> None:
    """They then read the store, as they do for every such envelope."""
    payload = msgspec.json.decode(await published_erasure("a"))
    assert payload == {"version": 2, "node": "a", "event": "erased"}


@pytest.mark.parametrize(
    "payload",
    [
        b'{"version":2,"node":"a"}',
        b'{"version":2,"node":"a","event":"renamed"}',
        b'{"version":2,"node":7,"event":"erased"}',
        b'{"version":2,"node":"a","event":"erased","epoch":7}',
        b'{"version":3,"node":"a","event":"erased"}',
    ],
)
def test_notice_of_another_form_is_of_another_version(payload: bytes) -> None:
    with pytest.raises(UnknownVersion):
        decode_envelope("u", payload, "b")
