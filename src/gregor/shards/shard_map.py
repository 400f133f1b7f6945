"""The shard map: which shard holds which bucket. It is stored in the shards themselves.

Each database knows for certain which buckets it has released, and rejects them. Its placements of
other buckets may be out of date: of two placements of a bucket, the one with the higher version
takes precedence. So a bucket moves by one transaction in the shard that holds it, and two shards
never hold it at the same time.

A function that takes a connection runs inside the transaction of its caller. What a database itself
says to a message or a query for a released bucket is in `transactions`.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain
from typing import NamedTuple

from msgspec.json import encode

from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import SetupError, Unavailable
from gregor.stores.sql import statements
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.statements import LoggedMessage, PlacementRow
from gregor.stores.sql.transactions import message_of, wrong_shards

MAX_PAGE_MESSAGES = 512  # that one transaction copies
MAX_PAGE_USERS = 10_000


class Placement(NamedTuple):
    """The shard that holds a bucket. The version grows by one with each placement of the bucket."""

    bucket: int
    shard: str
    version: int


class Extent(NamedTuple):
    """The ctime of the last message of a user's log, and the number of messages in it."""

    ctime: Time
    messages: int


class Load(NamedTuple):
    """The contents of a bucket; the bytes are those of the messages, without indexes."""

    users: int
    messages: int
    bytes: int


class NotClosed(Unavailable):
    """The buckets were not closed or released: one is not held here, or is open again. Nothing has
    changed; close them again."""


# The map


def name_here(connection: DatabaseConnection) -> str | None:
    """The name of this shard; None if the database is not a shard."""
    return next((row.name for row in connection.execute(statements.SHARD_NAME)), None)


def has_users(connection: DatabaseConnection) -> bool:
    """Whether this database has users."""
    return bool(connection.execute(statements.ANY_USER))


def make_shard(connection: DatabaseConnection, name: str, known: Iterable[Placement]) -> None:
    """Make this database a shard with this name and this map."""
    connection.insert(statements.INSERT_SHARD, [(name,)])
    merge_placements(connection, known)


def placements(connection: DatabaseConnection) -> list[Placement]:
    """All placements that this database knows."""
    return _placements(connection.execute(statements.PLACEMENTS))


def merge_placements(connection: DatabaseConnection, known: Iterable[Placement]) -> int:
    """Store the placements that are newer than those stored here, and return their number.
    Idempotent."""
    return len(connection.execute_rows(statements.UPSERT_NEWER_PLACEMENTS, known))


def exchange(connection: DatabaseConnection, known: Sequence[Placement]) -> list[Placement]:
    """Merge these placements, and return those that are newer here. Idempotent."""
    merge_placements(connection, known)
    return _placements(connection.execute_rows(statements.NEWER_PLACEMENTS, known))


def _placements(rows: Iterable[PlacementRow]) -> list[Placement]:
    return [Placement._make(row) for row in rows]


# The map of all shards, read from each of them


async def read_map(databases: Mapping[str, Database]) -> dict[int, Placement]:
    """The placement of each bucket. Raises SetupError if the map does not fit these shards; the
    message says how to correct that."""
    names = await asyncio.gather(*(d.read(name_here) for d in databases.values()))
    for configured, found in zip(databases, names, strict=True):
        require_name(configured, found, databases)
    return await read_newest(databases)


async def read_newest(
    databases: Mapping[str, Database], unavailable: Collection[str] = ()
) -> dict[int, Placement]:
    """Like `read_map`, but without a check of the names. The `unavailable` shards are not read."""
    known = await asyncio.gather(*(d.read(placements) for d in databases.values()))
    newest = newest_placements(chain.from_iterable(known))
    missing = {p.shard for p in newest.values()} - {*databases, *unavailable}
    if missing:
        raise SetupError(
            f"the map has buckets on shard {min(missing)!r}, which is not configured; "
            f"add --store {min(missing)}=URL"
        )
    if len(newest) < BUCKETS:
        raise SetupError(
            f"the map knows {len(newest)} of {BUCKETS} buckets; a shard is missing, or its "
            "database was recreated: configure all of them, or restore it from a backup"
        )
    return newest


def require_name(configured: str, found: str | None, shards: Iterable[str]) -> None:
    """Raises SetupError unless the shard that was found is the configured one of these shards."""
    if found is None:
        stores = " ".join(f"--store {name}=URL" for name in shards)
        raise SetupError(
            f"the database configured as shard {configured!r} is not a shard yet; add it with "
            f"`gregor migrate {stores}`"
        )
    if found != configured:
        raise SetupError(
            f"the database configured as shard {configured!r} is shard {found!r}; "
            f"write --store {found}=… before its URL"
        )


def newest_placements(candidates: Iterable[Placement]) -> dict[int, Placement]:
    """The placement with the highest version of each bucket."""
    newest: dict[int, Placement] = {}
    for placement in candidates:
        known = newest.get(placement.bucket)
        if known is None or known.version < placement.version:
            newest[placement.bucket] = placement
    return newest


# Buckets that move


class Closed(NamedTuple):
    """Buckets that accept no messages until a time of their database's clock."""

    until: Time
    placements: list[Placement]


def close(connection: DatabaseConnection, buckets: Sequence[int], seconds: float) -> Closed:
    """Accept no messages for these buckets, for so many seconds. When this is committed, all
    accepted messages are committed and can be read. Raises NotClosed if one of the buckets is not
    held here; then none is closed."""
    # The time starts before the wait for writers, because new writers already queue behind it.
    (clock,) = connection.execute(statements.DATABASE_TIME)
    until = clock.ctime + round(seconds * SECOND)
    _wait_for_writers(connection)
    rows = [(bucket, until) for bucket in buckets]
    closed = connection.execute_rows(statements.CLOSE_BUCKETS, rows)
    return Closed(until, _require_all(buckets, closed))


def release(
    connection: DatabaseConnection, buckets: Sequence[int], target: str, until: Time
) -> list[Placement]:
    """Give the buckets, which are closed until this time, to another shard. This moves them.
    Raises NotClosed if one of them is open again, or was closed again by another rebalancer; then
    none of them moves."""
    _wait_for_writers(connection)
    rows = [(bucket, until, target) for bucket in buckets]
    released = connection.execute_rows(statements.RELEASE_BUCKETS, rows)
    return _require_all(buckets, released)


def reopen(connection: DatabaseConnection, buckets: Sequence[int], until: Time) -> None:
    """Accept messages again for the buckets that are closed until this time. Idempotent."""
    rows = [(bucket, until) for bucket in buckets]
    connection.execute_rows(statements.REOPEN_BUCKETS, rows)


def _require_all(buckets: Sequence[int], rows: Iterable[PlacementRow]) -> list[Placement]:
    """Raises NotClosed, which rolls the transaction back, unless all buckets were changed."""
    changed = _placements(rows)
    for bucket in {*buckets} - {placement.bucket for placement in changed}:
        raise NotClosed(f"bucket {bucket} is not held here, or has opened again")
    return changed


def _wait_for_writers(connection: DatabaseConnection) -> None:
    """Wait until no transaction writes messages, and let none begin. Raises StorageUnavailable if
    that takes too long."""
    if connection.dialect.has_row_locks:
        connection.execute(statements.SET_LOCK_TIMEOUT)
        connection.execute(statements.WAIT_FOR_WRITERS)


# The contents of a bucket


def extents(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[UID, Extent]:
    """The extents of the users of these buckets who have messages here."""
    rows = connection.execute_rows(statements.USERS_OF_BUCKETS, [(bucket,) for bucket in buckets])
    return {row.uid: Extent(row.ctime, row.messages) for row in rows}


def page(connection: DatabaseConnection, cursors: Mapping[UID, Time]) -> list[InBandMessage]:
    """The next messages of these users after the cursor of each, one user after the other, and not
    reduced. A page of fewer than MAX_PAGE_MESSAGES messages is the last one."""
    return [message_of(row) for _, row in _page(connection, cursors)]


class Digest(NamedTuple):
    """A message as a hash of its contents, without `prev`: a predecessor may arrive later."""

    uid: UID
    ctime: Time
    sha256: str


def digests(connection: DatabaseConnection, cursors: Mapping[UID, Time]) -> list[Digest]:
    """The messages that `page` returns, as digests."""
    return [
        Digest(uid, row.ctime, sha256(encode(message_of(row).stamp(row.ctime, 0))).hexdigest())
        for uid, row in _page(connection, cursors)
    ]


def _page(
    connection: DatabaseConnection, cursors: Mapping[UID, Time]
) -> Iterator[tuple[UID, LoggedMessage]]:
    limit = MAX_PAGE_MESSAGES
    for uid, cursor in cursors.items():
        rows = connection.execute(
            statements.MESSAGES_SINCE_LIMITED, uid=uid, start=cursor + 1, limit=limit
        )
        yield from ((uid, row) for row in rows)
        limit -= len(rows)
        if not limit:
            return


def loads(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[int, Load]:
    """The loads of these buckets here, whether this shard holds them or not; empty ones are left
    out. Reads all their messages."""
    rows = connection.execute_rows(statements.LOADS, [(bucket,) for bucket in buckets])
    return {row.bucket: Load(row.users, row.messages, row.bytes) for row in rows}


def claim(connection: DatabaseConnection, bucket: int) -> Placement | None:
    """Place a bucket, which this shard holds, on this shard again, with a higher version; None if
    another shard holds it. A rebalancer that is moving it has to close it again."""
    claimed = _placements(connection.execute_rows(statements.CLAIM_BUCKETS, [(bucket,)]))
    return next(iter(claimed), None)


def prune(connection: DatabaseConnection, placement: Placement) -> bool:
    """Delete everything here of a bucket that its holder has just claimed; returns whether it was
    deleted. It is kept if this placement is not newer than the one here: a rebalancer that moves
    the bucket to this shard first publishes a placement at least as new, then reads what is stored
    here, and must find it unchanged afterwards."""
    if not merge_placements(connection, [placement]) or not wrong_shards(
        connection, [placement.bucket]
    ):
        return False
    for statement in statements.DELETE_BUCKET:
        connection.execute(statement, bucket=placement.bucket)
    return True


class UserPage(NamedTuple):
    """A page of checked users; `last` is the last of them, None if no users were left. The stored
    bucket of a misplaced user is not the bucket of its uid, so queries by bucket do not find it."""

    last: UID | None
    misplaced_users: list[UID]


def misplaced_users(connection: DatabaseConnection, after: UID) -> UserPage:
    """Check the stored buckets of the next users after this one."""
    rows = connection.execute(statements.USERS_AFTER, after=after, limit=MAX_PAGE_USERS)
    return UserPage(
        rows[-1].uid if rows else None,
        [row.uid for row in rows if row.bucket != bucket_of(row.uid)],
    )
