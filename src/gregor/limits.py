"""The limits of a node: how much it takes, of one message, of one user, in one second."""

from typing import Any

from msgspec import Struct


class Limits(Struct, frozen=True):
    """What a node accepts. 0: no limit. docs/limits.md says what each bounds, and what happens.

    For `ids_days` after it was sent first, a message may be sent again without being stored twice;
    0: for ever."""

    messages: int = 500
    message_bytes: int = 512 * 1024
    body_bytes: int = 64 * 1024
    frame_bytes: int = 1024 * 1024
    ids_days: int = 0
    # In one message
    ranges: int = 500
    msg_ids: int = 1000
    keys: int = 500
    skip_msg_ids: int = 1000
    # In one request
    prefixes: int = 100
    uids: int = 10_000
    # What one user has
    live_items: int = 20_000
    live_bytes: int = 64 * 1024 * 1024
    tombstones: int = 100_000
    scheduled_items: int = 2_000
    # Of one user on one node, and of one connection
    connections: int = 100
    streams: int = 20
    consumes_in_flight: int = 16
    # Of one user's devices on one node, and of one service
    messages_per_second: int = 100
    bytes_per_second: int = 256 * 1024
    syncs_per_second: int = 2
    frames_per_second: int = 100
    requests_per_second: int = 0


DEFAULT_LIMITS = Limits()

FIXED = ("messages", "message_bytes", "body_bytes", "frame_bytes", "ids_days")
"""The limits that are no settings: four are of the protocol, one follows from the setting `ids`."""

SETTINGS = tuple(name for name in Limits.__struct_fields__ if name not in FIXED)
"""The limits that are settings, under the same names."""

OFF: dict[str, Any] = dict.fromkeys(SETTINGS, 0)
"""The settings of a server that has no limits but those of the protocol."""

NO_LIMITS = Limits(**OFF)
"""Those of the protocol alone."""
