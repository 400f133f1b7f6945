"""The channels on which the nodes of a deployment publish, and the signatures of their payloads.

    gregor:DEPLOYMENT:user:UID    what concerns the devices of a user
    gregor:DEPLOYMENT:nodes       the probes of the nodes

    payload = signature (32 bytes) ‖ when it was sent (8 bytes) ‖ JSON

So deployments can share a pub/sub, and who can only publish on it cannot speak for a node. The
signature is over the name of the channel too: what was published for one user is refused on the
channel of another. What is published again on its own channel is authentic. That is harmless where
the store decides; where it does not, a payload that is not fresh is refused.

A store has no deployment before schema 0009. Until then payloads are JSON alone, as nodes of
earlier versions expect (decision 52).
"""

from hashlib import blake2b
from hmac import compare_digest
from typing import NamedTuple, Protocol

from gregor.core.deployment import Deployment
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID
from gregor.errors import Malformed
from gregor.protocol.frames import MAX_FRAME

SIGNATURE_BYTES = 32
TIME_BYTES = 8

MAX_PAYLOAD_BYTES = MAX_FRAME
"""Every stored message fits in one frame to a device, and so in one payload to another node."""

FRESH = 15 * SECOND
"""How old a payload may be, or how far ahead. The clocks of two nodes that write are at most 10 s
apart: each is at most 5 s from the database's."""


class Verified(NamedTuple):
    """A payload that a node of this deployment has published on this channel. `fresh`: just now, as
    far as can be known."""

    json: bytes
    fresh: bool


class Channels(Protocol):
    """The names of channels, and what makes a payload authentic."""

    @property
    def nodes(self) -> str:
        """The channel of the probes."""
        ...

    def of(self, uid: UID) -> str:
        """The channel of a user."""
        ...

    def user_of(self, channel: str) -> UID | None:
        """The user whose channel it is; None if it is no user's."""
        ...

    def sign(self, channel: str, json: bytes, now: Time) -> bytes:
        """The payload that publishes this JSON on the channel."""
        ...

    def verify(self, channel: str, payload: bytes, now: Time) -> Verified:
        """Read a payload that was received. Raises Malformed unless it is authentic; the text has
        nothing of the payload."""
        ...


class SignedChannels:
    """The Channels of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self.nodes = f"gregor:{deployment.id}:nodes"
        self._users = f"gregor:{deployment.id}:user:"
        self._keyed = blake2b(key=deployment.key, digest_size=SIGNATURE_BYTES)

    def of(self, uid: UID) -> str:
        return self._users + uid

    def user_of(self, channel: str) -> UID | None:
        return _user_of(channel, self._users)

    def sign(self, channel: str, json: bytes, now: Time) -> bytes:
        signed = now.to_bytes(TIME_BYTES, "big") + json
        return self._signature(channel, signed) + signed

    def verify(self, channel: str, payload: bytes, now: Time) -> Verified:
        _require_size(payload)
        signature, signed = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
        if not compare_digest(signature, self._signature(channel, signed)):
            raise Malformed("the payload is not signed by a node of this deployment")
        sent_at = int.from_bytes(signed[:TIME_BYTES], "big")
        return Verified(signed[TIME_BYTES:], fresh=abs(now - sent_at) <= FRESH)

    def _signature(self, channel: str, signed: bytes) -> bytes:
        name = channel.encode()
        signing = self._keyed.copy()
        signing.update(len(name).to_bytes(4, "big") + name)
        signing.update(signed)
        return signing.digest()


class UnsignedChannels:
    """The Channels of a store that has no deployment yet. Anyone who can publish is believed."""

    nodes = "gregor:nodes"

    def of(self, uid: UID) -> str:
        return _UNSIGNED_USERS + uid

    def user_of(self, channel: str) -> UID | None:
        return _user_of(channel, _UNSIGNED_USERS)

    def sign(self, channel: str, json: bytes, now: Time) -> bytes:
        return json

    def verify(self, channel: str, payload: bytes, now: Time) -> Verified:
        _require_size(payload)
        return Verified(payload, fresh=True)


_UNSIGNED_USERS = "gregor:user:"


def channels_of(deployment: Deployment | None) -> Channels:
    """The channels of a store that has this deployment."""
    return UnsignedChannels() if deployment is None else SignedChannels(deployment)


def _user_of(channel: str, prefix: str) -> UID | None:
    return channel.removeprefix(prefix) if channel.startswith(prefix) else None


def _require_size(payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Malformed(f"the payload is too large: {len(payload)} bytes")
