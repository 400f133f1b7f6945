"""The channels of a deployment, and what makes a payload on them authentic."""

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gregor.consumers.channels import (
    FRESH,
    MAX_PAYLOAD_BYTES,
    SignedChannels,
    UnsignedChannels,
    channels_of,
)
from gregor.core.deployment import Deployment
from gregor.core.instant import MAX_TIME, Time
from gregor.errors import Malformed

DEPLOYMENT = Deployment("0d", b"the key of the nodes")
SIGNED = SignedChannels(DEPLOYMENT)

times = st.integers(0, MAX_TIME)
channels = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(channels, st.binary(), times, times)
@example("u", b"{}", 0, FRESH)
@example("u", b"{}", FRESH + 1, 0)
def test_law_what_was_signed_is_verified_on_its_channel(
    channel: str, json: bytes, sent_at: Time, now: Time
) -> None:
    verified = SIGNED.verify(channel, SIGNED.sign(channel, json, sent_at), now)
    assert verified == (json, abs(sent_at - now) <= FRESH)


@given(channels, channels, st.binary(), times)
@example("u", "u{", b"{}", 7)
def test_law_what_was_signed_is_refused_on_every_other_channel(
    channel: str, other: str, json: bytes, now: Time
) -> None:
    assume(channel != other)
    with pytest.raises(Malformed):
        SIGNED.verify(other, SIGNED.sign(channel, json, now), now)


@given(channels, st.binary(), times, st.data())
def test_law_what_was_signed_is_refused_when_any_of_it_is_changed(
    channel: str, json: bytes, now: Time, data: st.DataObject
) -> None:
    payload = bytearray(SIGNED.sign(channel, json, now))
    place = data.draw(st.integers(0, len(payload) - 1))
    if data.draw(st.booleans()):
        payload[place] ^= data.draw(st.integers(1, 255))
    else:
        del payload[place:]
    with pytest.raises(Malformed, match="not signed by a node of this deployment"):
        SIGNED.verify(channel, bytes(payload), now)


@given(channels, st.binary(), times)
def test_law_what_was_signed_is_refused_when_it_is_split_differently(
    channel: str, json: bytes, now: Time
) -> None:
    """The times begin with a zero byte, which could be the end of a name."""
    payload = SIGNED.sign(channel, json, now)
    with pytest.raises(Malformed):
        SIGNED.verify(f"{channel}\0", payload[:32] + payload[33:], now)


@given(channels, st.binary(), times)
def test_law_what_another_key_has_signed_is_refused(channel: str, json: bytes, now: Time) -> None:
    other = SignedChannels(Deployment(DEPLOYMENT.id, b"another key"))
    with pytest.raises(Malformed):
        SIGNED.verify(channel, other.sign(channel, json, now), now)


@given(channels)
def test_law_the_channel_of_a_user_names_the_user(uid: str) -> None:
    for named in (SIGNED, UnsignedChannels()):
        assert named.user_of(named.of(uid)) == uid
        assert named.user_of(named.nodes) is None
    assert SIGNED.user_of(UnsignedChannels().of(uid)) is None
    assert UnsignedChannels().user_of(SIGNED.of(uid)) is None


def test_payload_that_is_too_large_is_refused_unread() -> None:
    for channels_ in (SIGNED, UnsignedChannels()):
        with pytest.raises(Malformed, match="bytes"):
            channels_.verify("u", b"[" * (MAX_PAYLOAD_BYTES + 1), 0)


def test_store_without_a_deployment_has_channels_that_are_not_signed() -> None:
    assert isinstance(channels_of(None), UnsignedChannels)
    assert channels_of(DEPLOYMENT).of("u") == SIGNED.of("u") == "gregor:0d:user:u"


def test_key_of_a_deployment_is_not_shown() -> None:
    assert repr(DEPLOYMENT) == str(DEPLOYMENT) == "Deployment(id='0d')"
