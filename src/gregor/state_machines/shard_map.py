"""The map: which shard holds which bucket. It lives in the shards themselves.

Each database knows for certain what it has given away, and refuses it. Whatever else it knows of
the others may be old: of two placements of a bucket the one with the higher version is right. So
a bucket moves by one transaction in the shard that holds it, and there is no moment when two do.

Functions of a connection, each inside its caller's transaction.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from sqlalchemy import Connection

from gregor.core.buckets import bucket_of
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import Unavailable
from gregor.state_machines.transactions import message_of
from gregor.storage import statements, tables

PAGE = 500  # messages that are copied by one transaction


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
    """The bucket was not given away: it is open again. Nothing has changed; close it once more."""


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
    return [Placement(*row) for row in connection.execute(statements.placements)]


def adopt(connection: Connection, known: Iterable[Placement]) -> None:
    """Take over whatever is newer than what is known here. Twice-safe."""
    adopted = statements.adopt_placements(connection.dialect.name)
    statements.ask(connection, adopted, known)


# A bucket on its way


def close(connection: Connection, bucket: int, seconds: float) -> Time:
    """Take no messages for the bucket, for so long; until when, by the database's clock. All that
    has been taken is committed and can be read when this is."""
    _await_writers(connection)
    question = {"of": bucket, "micros": round(seconds * SECOND)}
    until: Time | None = connection.scalar(statements.close_bucket, question)
    if until is None:
        raise NotClosed(f"bucket {bucket} is not here to be closed")
    return until


def release(connection: Connection, bucket: int, to: str, until: Time) -> Placement:
    """Give away the bucket that has been closed until then. This is what moves it. Raises
    NotClosed if it is open again by now, or if somebody else has closed it."""
    _await_writers(connection)
    question = {"of": bucket, "to": to, "until": until}
    version: int | None = connection.scalar(statements.release_bucket, question)
    if version is None:
        raise NotClosed(f"bucket {bucket} was closed for too short a time")
    return Placement(bucket, to, version)


def reopen(connection: Connection, bucket: int, until: Time) -> None:
    """Take messages again for the bucket that has been closed until then."""
    connection.execute(statements.reopen_bucket, {"of": bucket, "until": until})


def placement(connection: Connection, bucket: int) -> Placement | None:
    """Where this database says the bucket is."""
    row = connection.execute(statements.placement, {"of": bucket}).one_or_none()
    return None if row is None else Placement(*row)


def _await_writers(connection: Connection) -> None:
    """Go on when no transaction is under way that writes, and let none begin."""
    if connection.dialect.name == "postgresql":
        connection.execute(statements.await_writers_briefly)
        connection.execute(statements.await_writers)


# What is in a bucket


def extents(connection: Connection, bucket: int) -> dict[UID, Extent]:
    """The users of the bucket who have messages here."""
    rows = connection.execute(statements.users_of_bucket, {"of": bucket})
    return {row.uid: Extent(row.ctime, row.messages) for row in rows}


def page(connection: Connection, uid: UID, after: Time) -> list[InBandMessage]:
    """The next messages of a user's log, as they are; fewer than PAGE are the last."""
    question = {"uid": uid, "start": after + 1, "most": PAGE}
    return [message_of(row) for row in connection.execute(statements.since_at_most, question)]


class Digest(NamedTuple):
    """A message, without what is in it."""

    ctime: Time
    sha256: str


def digests(connection: Connection, uid: UID, after: Time) -> list[Digest]:
    """The same, as digests of what was sent."""
    question = {"uid": uid, "start": after + 1, "most": PAGE}
    rows = connection.execute(statements.since_at_most, question)
    return [Digest(row.ctime, sha256(row.message.encode()).hexdigest()) for row in rows]


def loads(connection: Connection) -> dict[int, Load]:
    """What each bucket holds here, whether it is ours or not. This one reads everything."""
    rows = connection.execute(statements.loads)
    return {row.bucket: Load(row.users, row.messages, row.bytes) for row in rows}


def prune(connection: Connection, bucket: int) -> None:
    """Remove all that is here of a bucket. Raises Unavailable if it is ours."""
    found = placement(connection, bucket)
    if found is None or found.shard == name_here(connection):
        raise Unavailable(f"bucket {bucket} is held here; nothing of it was removed")
    for table in (tables.messages, tables.dismissed_ids, tables.dismissed_ranges, tables.users):
        connection.execute(statements.of_bucket(table), {"of": bucket})


def strays(connection: Connection) -> set[UID]:
    """Users whose bucket is not the one that their uid falls into: nobody would look there."""
    rows = connection.execute(statements.buckets_of_users)
    return {row.uid for row in rows if row.bucket != bucket_of(row.uid)}
