"""The map: which shard holds which bucket. It lives in the shards themselves.

Each database knows for certain what it has given away, and refuses it. Whatever else it knows of
the others may be old: of two placements of a bucket the one with the higher version is right. So
a bucket moves by one transaction in the shard that holds it, and there is no moment when two do.

Functions of a connection, each inside its caller's transaction.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from msgspec.json import encode
from sqlalchemy import Connection

from gregor.core.buckets import bucket_of
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import Unavailable
from gregor.state_machines.transactions import held_elsewhere, message_of
from gregor.storage import statements, tables

PAGE = 512  # messages that are copied by one transaction
USERS_PAGE = 10_000


class Placement(NamedTuple):
    """A bucket is with a shard. It has been placed `version` times."""

    bucket: int
    shard: str
    version: int


class Extent(NamedTuple):
    """How far a user's log has come, and by how many messages."""

    ctime: Time
    messages: int


class Load(NamedTuple):
    """What a bucket holds; the bytes are those of the messages, without their indexes."""

    users: int
    messages: int
    bytes: int


class NotClosed(Unavailable):
    """The buckets were not given away: one is open again. Nothing has changed; close them once
    more."""


# The map


def name_here(connection: Connection) -> str | None:
    """The name of this database among the shards; None if it is not one."""
    return connection.scalar(statements.name_here)


def inhabited(connection: Connection) -> bool:
    """Whether this database has users."""
    return connection.execute(statements.any_user).first() is not None


def join(connection: Connection, name: str, known: Iterable[Placement]) -> None:
    """Be a shard of this name, with this map, from now on."""
    statements.insert(connection, tables.shard, [(name,)])
    adopt(connection, known)


def placements(connection: Connection) -> list[Placement]:
    """All that this database knows."""
    return [Placement._make(row) for row in connection.execute(statements.placements).all()]


def adopt(connection: Connection, known: Iterable[Placement]) -> int:
    """Take over whatever is newer than what is known here; how much that was. Twice-safe."""
    adopted = statements.adopt_placements(connection.dialect.name)
    return statements.ask(connection, adopted, known).rowcount


def exchange(connection: Connection, known: Sequence[Placement]) -> list[Placement]:
    """Take over whatever is newer than what is known here, and say what is newer here.
    Twice-safe."""
    adopt(connection, known)
    return [Placement._make(row) for row in statements.ask(connection, statements.newer, known)]


# Buckets on their way


class Closed(NamedTuple):
    """Buckets that take no messages until then, by the clock of their database."""

    until: Time
    placements: list[Placement]


def close(connection: Connection, buckets: Sequence[int], seconds: float) -> Closed:
    """Take no messages for these buckets, for so long. All that has been taken is committed and
    can be read when this is. NotClosed: none is closed."""
    # From before we wait: others wait behind us meanwhile, and all their waiting counts.
    until: Time = connection.execute(statements.time_there).scalar_one() + round(seconds * SECOND)
    _await_writers(connection)
    rows = [(bucket, until) for bucket in buckets]
    return Closed(until, _all(buckets, statements.ask(connection, statements.close_buckets, rows)))


def release(
    connection: Connection, buckets: Sequence[int], to: str, until: Time
) -> list[Placement]:
    """Give away the buckets that have been closed until then. This is what moves them. Raises
    NotClosed if one of them is open again by now, or if somebody else has closed it; then all of
    them stay."""
    _await_writers(connection)
    rows = [(bucket, until, to) for bucket in buckets]
    return _all(buckets, statements.ask(connection, statements.release_buckets, rows))


def reopen(connection: Connection, buckets: Sequence[int], until: Time) -> None:
    """Take messages again for the buckets that have been closed until then."""
    rows = [(bucket, until) for bucket in buckets]
    statements.ask(connection, statements.reopen_buckets, rows)


def _all(asked: Sequence[int], rows: Iterable[Any]) -> list[Placement]:
    """Raises NotClosed, which undoes the transaction, unless it was done to all of them."""
    placed = [Placement._make(row) for row in rows]
    for bucket in {*asked} - {placement.bucket for placement in placed}:
        raise NotClosed(f"bucket {bucket} is not here, or was closed for too short a time")
    return placed


def _await_writers(connection: Connection) -> None:
    """Go on when no transaction is under way that writes, and let none begin."""
    if connection.dialect.name == "postgresql":
        connection.execute(statements.await_writers_briefly)
        connection.execute(statements.await_writers)


# What is in a bucket


def extents(connection: Connection, buckets: Iterable[int]) -> dict[UID, Extent]:
    """The users of these buckets who have messages here."""
    rows = statements.ask(
        connection, statements.users_of_buckets, [(bucket,) for bucket in buckets]
    )
    return {row.uid: Extent(row.ctime, row.messages) for row in rows}


def page(connection: Connection, cursors: Mapping[UID, Time]) -> list[InBandMessage]:
    """What is next in the logs of these users, one user after the other, each from behind a
    cursor, as it is; fewer than PAGE messages are the last."""
    return [message_of(row) for _, row in _page(connection, cursors)]


class Digest(NamedTuple):
    """A message, without what is in it; and without its predecessor, which may come later."""

    uid: UID
    ctime: Time
    sha256: str


def digests(connection: Connection, cursors: Mapping[UID, Time]) -> list[Digest]:
    """The same, as digests of what was sent."""
    return [
        Digest(uid, row.ctime, sha256(encode(message_of(row).stamp(row.ctime, 0))).hexdigest())
        for uid, row in _page(connection, cursors)
    ]


def _page(connection: Connection, cursors: Mapping[UID, Time]) -> Iterator[tuple[UID, Any]]:
    left = PAGE
    for uid, after in cursors.items():
        question = {"uid": uid, "start": after + 1, "most": left}
        rows = connection.execute(statements.since_at_most, question).all()
        yield from ((uid, row) for row in rows)
        left -= len(rows)
        if not left:
            return


def loads(connection: Connection, buckets: Iterable[int]) -> dict[int, Load]:
    """What these buckets hold here, whether they are ours or not; nothing of one that is empty.
    This one reads all of it."""
    rows = statements.ask(connection, statements.loads, [(bucket,) for bucket in buckets])
    return {row.bucket: Load(row.users, row.messages, row.bytes) for row in rows}


def reaffirm(connection: Connection, bucket: int) -> Placement | None:
    """Place a bucket anew where it is, which is here; None if it is not. Whoever was about to
    move it has to close it once more."""
    for row in statements.ask(connection, statements.reaffirm_buckets, [(bucket,)]):
        return Placement._make(row)
    return None


def prune(connection: Connection, placement: Placement) -> bool:
    """Remove all that is here of a bucket that its holder has reaffirmed. Whether it was removed:
    whoever moves the bucket here has told us as much, or more, before looking at what is here,
    and is to find that unchanged."""
    if not adopt(connection, [placement]) or not held_elsewhere(connection, [placement.bucket]):
        return False
    for table in (tables.messages, tables.dismissed_ids, tables.dismissed_ranges, tables.users):
        connection.execute(statements.of_bucket(table), {"of": placement.bucket})
    return True


class Looked(NamedTuple):
    """Some users were looked at, up to `last`, which is None if there was none left. Nobody would
    look for the strays where they are: their bucket is not the one that their uid falls into."""

    last: UID | None
    strays: list[UID]


def strays(connection: Connection, after: UID) -> Looked:
    """Look at the buckets of the users who come next after this one."""
    question = {"after": after, "most": USERS_PAGE}
    rows = connection.execute(statements.buckets_of_users, question).all()
    return Looked(
        rows[-1].uid if rows else None,
        [row.uid for row in rows if row.bucket != bucket_of(row.uid)],
    )
