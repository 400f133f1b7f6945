"""The shard map: which shard holds which bucket. It is stored in the shards themselves.

Each database knows for certain which buckets it has released, and rejects them. Its placements of
other buckets may be out of date: of two placements of a bucket, the one with the higher version
takes precedence. So a bucket moves by one transaction in the shard that holds it, and two shards
never hold it at the same time.

A function that takes a connection runs inside the transaction of its caller. What a database itself
says to a message or a query for a released bucket is in `transactions`.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from gregor.core.buckets import BUCKETS
from gregor.core.deployment import Deployment
from gregor.core.instant import SECOND, Time
from gregor.errors import SetupError, Unavailable
from gregor.stores.new_deployment import new_deployment
from gregor.stores.sql import statements
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.deployment import (
    has_deployments,
    keep_deployment,
    read_deployment,
    replace_deployment,
)
from gregor.stores.sql.schema import require_writer
from gregor.stores.sql.statements import (
    BucketKey,
    ClosedBucket,
    Placement,
    ReleasedBucket,
    ShardName,
)
from gregor.stores.sql.transactions import wait_for_writers, wrong_shards


class NotClosed(Unavailable):
    """The buckets were not closed or released: one is not held here, or is open again. Nothing has
    changed; close them again."""


class Outdated(Unavailable):
    """What was read of buckets that move is outdated. Nothing has changed; read it again."""


# The map


def name_here(connection: DatabaseConnection) -> str | None:
    """The name of this shard; None if the database is not a shard."""
    return next((row.name for row in connection.execute(statements.SHARD_NAME)), None)


def has_users(connection: DatabaseConnection) -> bool:
    """Whether this database has users."""
    return bool(connection.execute(statements.ANY_USER))


def make_shard(connection: DatabaseConnection, name: str, known: Iterable[Placement]) -> None:
    """Make this database a shard with this name and this map."""
    connection.insert(statements.INSERT_SHARD, [ShardName(name)])
    merge_placements(connection, known)


def placements(connection: DatabaseConnection) -> list[Placement]:
    """All placements that this database knows."""
    return connection.execute(statements.PLACEMENTS)


def merge_placements(connection: DatabaseConnection, known: Iterable[Placement]) -> int:
    """Store the placements that are newer than those stored here, and return their number.
    Idempotent."""
    require_writer(connection)
    return len(connection.execute_rows(statements.UPSERT_NEWER_PLACEMENTS, known))


def exchange(connection: DatabaseConnection, known: Sequence[Placement]) -> list[Placement]:
    """Merge these placements, and return those that are newer here. Idempotent."""
    merge_placements(connection, known)
    return connection.execute_rows(statements.NEWER_PLACEMENTS, known)


# The map of all shards, read from each of them


async def read_map(databases: Mapping[str, Database]) -> dict[int, Placement]:
    """The placement of each bucket. Raises SetupError if the map does not fit these shards; the
    message says how to correct that."""
    names = await asyncio.gather(*(d.read(name_here) for d in databases.values()))
    for configured, found in zip(databases, names, strict=True):
        require_name(configured, found, databases)
    require_one_deployment(await _deployments(databases))
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


def require_one_deployment(deployments: Mapping[str, Deployment | None]) -> None:
    """Raises SetupError unless these shards, by name, are of one deployment, as far as is known."""
    known = [(name, found) for name, found in deployments.items() if found is not None]
    for name, found in known:
        first, deployment = known[0]
        if found != deployment:
            raise SetupError(
                f"shard {name!r} belongs to another deployment ({found.id}) than shard {first!r} "
                f"({deployment.id}); correct its --store, or give an empty database and run "
                "`gregor migrate` with all shards"
            )


async def _deployments(databases: Mapping[str, Database]) -> dict[str, Deployment | None]:
    found = await asyncio.gather(*(d.read(read_deployment) for d in databases.values()))
    return dict(zip(databases, found, strict=True))


def newest_placements(candidates: Iterable[Placement]) -> dict[int, Placement]:
    """The placement with the highest version of each bucket."""
    newest: dict[int, Placement] = {}
    for placement in candidates:
        known = newest.get(placement.bucket)
        if known is None or known.version < placement.version:
            newest[placement.bucket] = placement
    return newest


async def establish(databases: Mapping[str, Database]) -> dict[int, Placement]:
    """Make these databases, whose schema is up to date, the shards of one map. Idempotent.

    For a new map: if all are empty, they share the buckets evenly; if one has users, it holds all
    buckets. A database that is added to a map holds no buckets until some are moved to it. Raises
    SetupError if the databases do not fit together.
    """
    names = {name: await d.read(name_here) for name, d in databases.items()}
    known = newest_placements(
        [p for d in databases.values() for p in await d.read(placements)],
    )
    new = [name for name, shard_name in names.items() if shard_name is None]
    with_users = [name for name in new if await databases[name].read(has_users)]
    if with_users and (known or len(with_users) > 1):
        raise SetupError(
            f"the database of shard {with_users[-1]!r} has users of its own already, and cannot "
            "join others; give an empty one"
        )
    if not known:
        holders = with_users or list(databases)
        known = {
            bucket: Placement(bucket, holders[bucket * len(holders) // BUCKETS], 1)
            for bucket in range(BUCKETS)
        }
    for name in new:
        await databases[name].write(partial(make_shard, name=name, known=list(known.values())))
    await _join_deployment(databases, known_first=[name for name in databases if name not in new])
    return await read_map(databases)


async def _join_deployment(databases: Mapping[str, Database], known_first: Sequence[str]) -> None:
    """Make these shards one deployment: that of those with users, or else of the `known_first`.
    Raises SetupError if shards with users are of different ones."""
    if not all([await d.read(has_deployments) for d in databases.values()]):
        return  # a shard still has an older schema; the next `gregor migrate` does it
    found = await _deployments(databases)
    occupied = [name for name, d in databases.items() if await d.read(has_users)]
    require_one_deployment({name: found[name] for name in occupied})
    order = list(dict.fromkeys([*occupied, *known_first, *databases]))
    known = (deployment for name in order if (deployment := found[name]) is not None)
    # Another process that does the same now begins with the same shard, and finds what is stored.
    wanted = next(known, None) or new_deployment()
    deployment = await databases[order[0]].write(lambda c: keep_deployment(c, wanted))
    for name in order[1:]:
        if found[name] != deployment:
            join = keep_deployment if name in occupied else replace_deployment
            await databases[name].write(partial(join, deployment=deployment))


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
    _begin_switch(connection)
    rows = [ClosedBucket(bucket, until) for bucket in buckets]
    closed = connection.execute_rows(statements.CLOSE_BUCKETS, rows)
    return Closed(until, _require_all(buckets, closed))


def release(
    connection: DatabaseConnection, buckets: Sequence[int], target: str, until: Time
) -> list[Placement]:
    """Give the buckets, which are closed until this time, to another shard. This moves them.
    Raises NotClosed if one of them is open again, or was closed again by another rebalancer; then
    none of them moves."""
    _begin_switch(connection)
    rows = [ReleasedBucket(bucket, until, target) for bucket in buckets]
    released = connection.execute_rows(statements.RELEASE_BUCKETS, rows)
    return _require_all(buckets, released)


def reopen(connection: DatabaseConnection, buckets: Sequence[int], until: Time) -> None:
    """Accept messages again for the buckets that are closed until this time. Idempotent."""
    rows = [ClosedBucket(bucket, until) for bucket in buckets]
    connection.execute_rows(statements.REOPEN_BUCKETS, rows)


def claim(connection: DatabaseConnection, buckets: Iterable[int]) -> list[Placement]:
    """Place those of these buckets that this shard holds on this shard again, with higher versions.
    A rebalancer that has claimed them before, to move them, has to begin again."""
    require_writer(connection)
    return connection.execute_rows(statements.CLAIM_BUCKETS, map(BucketKey, buckets))


def require_newest(connection: DatabaseConnection, claim: Sequence[Placement]) -> None:
    """Raises Outdated unless this shard knows no newer placements of the buckets than these. That
    stays true until the commit."""
    keys = [BucketKey(placement.bucket) for placement in claim]
    if connection.dialect.has_row_locks:
        connection.execute_rows(statements.LOCK_PLACEMENTS, keys)
    if connection.execute_rows(statements.PLACEMENTS_OF, keys) != sorted(claim):
        raise Outdated("another rebalancer has claimed the buckets")


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


def _require_all(buckets: Sequence[int], rows: Iterable[Placement]) -> list[Placement]:
    """Raises NotClosed, which rolls the transaction back, unless all buckets were changed."""
    changed = list(rows)
    for bucket in {*buckets} - {placement.bucket for placement in changed}:
        raise NotClosed(f"bucket {bucket} is not held here, or has opened again")
    return changed


def _begin_switch(connection: DatabaseConnection) -> None:
    """Wait for the writers, while none can begin. Raises NodeTooOld if this code may not write."""
    wait_for_writers(connection)
    require_writer(connection)
