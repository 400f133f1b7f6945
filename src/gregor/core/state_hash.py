"""The hash of a state: a sum over its live items, which is kept up by adding and subtracting.

It finds defects and restored backups. It is no protection against a forger, who could only deceive
his own replica.
"""

from collections.abc import Iterable
from hashlib import sha256

from gregor.core.instant import Time
from gregor.core.message import MsgID

HASH_MODULUS = 2**256


def entry_hash(ctime: Time, msg_id: MsgID) -> int:
    """What one live item adds to the sum: SHA-256 of the line `"{ctime} {msg_id}\\n"`, read as a
    big-endian integer."""
    return int.from_bytes(sha256(f"{ctime} {msg_id}\n".encode()).digest())


def hash_text(total: int) -> str:
    """A sum of entries, modulo 2^256, as 64 lower-case hex digits."""
    return f"{total % HASH_MODULUS:064x}"


def hash_of(entries: Iterable[tuple[Time, MsgID]]) -> str:
    """The hash of a state in which the items with these ctimes and ids are live."""
    return hash_text(sum(entry_hash(ctime, msg_id) for ctime, msg_id in entries))
