"""Makes the identity of a new store."""

from secrets import token_bytes, token_hex

from gregor.core.deployment import Deployment

ID_BYTES, KEY_BYTES = 8, 32


def new_deployment() -> Deployment:
    """A deployment that no other store is, with a key that nobody else knows."""
    return Deployment(token_hex(ID_BYTES), token_bytes(KEY_BYTES))
