"""The hashes that are kept: for each user and scope the sum over the items that are live.

What a batch changes is added and subtracted in its transaction, so a sync need not read what is
live. An item may expire without a write, so a sum is that of the items without a death that expire
after an instant, `hashed_until`; who reads it at another instant corrects it by the few items that
expire in between.

The sum of the items that all devices see is in the user's row, where NULL means that it has not
been computed yet; a sum for each device that has items of its own is in `scope_hashes`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, DeviceID, InBandMessage
from gregor.core.state_hash import entry_hash, hash_of, hash_text
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import (
    FOREVER,
    DeadItem,
    LiveEntry,
    LockedUser,
    Period,
    ScopeHash,
    ScopeKey,
    UserClock,
    UserHash,
    UserHead,
    UserKey,
)

MAX_LAG = 300 * SECOND
"""A batch moves `hashed_until` of its users to the present if it is further behind, so that readers
have few items to correct. Until then it costs no statement."""

ALL_DEVICES = ""  # as a scope: no device has this id


class KeptHash(NamedTuple):
    """The sum of the items that all devices see, without those that had expired by `until`."""

    hash: str
    until: Time


class _Sum(NamedTuple):
    uid: UID
    scope: DeviceID


class Change(NamedTuple):
    """What a batch has changed: the items that it has created, and those that have died of it,
    which may be among them."""

    created: Sequence[InBandMessage]
    died: Sequence[DeadItem]


# Writing


def update_hashes(
    connection: DatabaseConnection,
    users: Mapping[UID, LockedUser],
    uids: Iterable[UID],
    change: Change,
    now: Time,
) -> dict[UID, KeptHash]:
    """Bring the sums of these users, whose messages and deaths are stored, up to date. `users` are
    those of the batch as they were before it. Returns the hashes for the users' rows; the others
    are stored."""
    kept = {uid: _kept(users.get(uid), now) for uid in uids}
    changes: Counter[_Sum] = Counter()
    for message in change.created:
        before = kept[message.uid]
        if before is not None and _expiry(message) > before.until:
            changes[_Sum(message.uid, message.device_id or ALL_DEVICES)] += entry_hash(
                message.ctime, message.msg_id
            )
    counted = ((item, kept[item.uid]) for item in change.died)
    _subtract(changes, (i for i, before in counted if before and i.expires_at > before.until))
    lagging = {uid: k for uid, k in kept.items() if k is not None and k.until < now - MAX_LAG}
    _subtract(changes, _expired(connection, lagging, now))
    until = dict.fromkeys(lagging, now)
    updated = {
        uid: KeptHash(
            _added(before.hash, changes[_Sum(uid, ALL_DEVICES)]), until.get(uid, before.until)
        )
        for uid, before in kept.items()
        if before is not None
    }
    _update_scopes(connection, changes)
    return updated | _computed(connection, [uid for uid in kept if kept[uid] is None], now)


def _kept(user: LockedUser | None, now: Time) -> KeptHash | None:
    """What is kept of a user before a batch; None if it is not computed yet."""
    if user is None or not user.ctime:  # this is the first message
        return KeptHash(hash_text(0), now)
    return None if user.hash is None else KeptHash(user.hash, user.hashed_until)


def _expiry(message: InBandMessage) -> Time:
    expires_at = message.expires_at
    return FOREVER if expires_at is None else expires_at


def _subtract(changes: Counter[_Sum], entries: Iterable[LiveEntry | DeadItem]) -> None:
    for entry in entries:
        changes[_Sum(entry.uid, entry.device_id or ALL_DEVICES)] -= entry_hash(
            entry.ctime, entry.msg_id
        )


def _added(hash_: str, change: int) -> str:
    return hash_text(int(hash_, 16) + change) if change else hash_


def _expired(
    connection: DatabaseConnection, lagging: Mapping[UID, KeptHash], now: Time
) -> list[LiveEntry]:
    """The items that have expired since the sums of these users were up to date."""
    if not lagging:
        return []
    periods = [Period(uid, kept.until, now) for uid, kept in lagging.items()]
    return connection.execute_rows(statements.EXPIRED_ENTRIES, periods)


def _update_scopes(connection: DatabaseConnection, changes: Mapping[_Sum, int]) -> None:
    keys = [ScopeKey(*sum_) for sum_, change in changes.items() if change and sum_.scope]
    if not keys:
        return
    rows = connection.execute_rows(statements.SCOPE_HASHES, keys)
    before = {ScopeKey(row.uid, row.device_id): row.hash for row in rows}
    zero = hash_text(0)
    after = [ScopeHash(*k, _added(before.get(k, zero), changes[_Sum(*k)])) for k in keys]
    connection.execute_rows(statements.UPSERT_SCOPE_HASHES, after)


def _computed(
    connection: DatabaseConnection, uids: Sequence[UID], now: Time
) -> dict[UID, KeptHash]:
    """The hashes of users of whom none is kept, from all that is live. Those of scopes are
    stored."""
    if not uids:
        return {}
    sums = _sums(connection, dict.fromkeys(uids, now))
    scopes = [ScopeHash(*sum_, hash_) for sum_, hash_ in sums.items() if sum_.scope]
    if scopes:
        connection.execute_rows(statements.UPSERT_SCOPE_HASHES, scopes)
    return {uid: KeptHash(sums[_Sum(uid, ALL_DEVICES)], now) for uid in uids}


def _sums(connection: DatabaseConnection, until: Mapping[UID, Time]) -> dict[_Sum, str]:
    """The sums of these users, without what had expired by an instant, computed from all that is
    live."""
    times = [UserClock(uid, time) for uid, time in until.items()]
    totals: defaultdict[_Sum, int] = defaultdict(int, {_Sum(uid, ALL_DEVICES): 0 for uid in until})
    for entry in connection.execute_rows(statements.LIVE_ENTRIES, times):
        totals[_Sum(entry.uid, entry.device_id or ALL_DEVICES)] += entry_hash(
            entry.ctime, entry.msg_id
        )
    return {sum_: hash_text(total) for sum_, total in totals.items()}


def account_for_expiries(
    connection: DatabaseConnection, users: Mapping[UID, LockedUser], now: Time
) -> None:
    """Bring the sums of these users, who are locked, to the present. Then no item that has expired
    is in them, and its message can go."""
    kept = {uid: KeptHash(u.hash, u.hashed_until) for uid, u in users.items() if u.hash is not None}
    changes: Counter[_Sum] = Counter()
    _subtract(changes, _expired(connection, kept, now))
    _update_scopes(connection, changes)
    rows = [
        UserHash(uid, _added(before.hash, changes[_Sum(uid, ALL_DEVICES)]), now)
        for uid, before in kept.items()
    ]
    if rows:
        connection.execute_rows(statements.UPDATE_HASHES, rows)


# Checking


def check_sums(
    connection: DatabaseConnection, users: Mapping[UID, LockedUser], now: Time
) -> list[UID]:
    """Compare the sums of these users, who are locked, with their items. Those that differ or were
    not computed yet are stored as they should be. Returns the users of those that differ."""
    until = {uid: now if u.hash is None else u.hashed_until for uid, u in users.items()}
    right = _sums(connection, until)
    kept = {
        _Sum(row.uid, row.device_id): row.hash
        for row in connection.execute_rows(statements.SCOPE_HASHES_OF_USERS, map(UserKey, users))
    }
    kept |= {_Sum(uid, ALL_DEVICES): u.hash for uid, u in users.items() if u.hash is not None}
    zero = hash_text(0)
    wrong = {s: right.get(s, zero) for s in kept.keys() | right.keys() if _differs(s, kept, right)}
    scopes = [ScopeHash(*sum_, hash_) for sum_, hash_ in wrong.items() if sum_.scope]
    if scopes:
        connection.execute_rows(statements.UPSERT_SCOPE_HASHES, scopes)
    own = [UserHash(s.uid, hash_, until[s.uid]) for s, hash_ in wrong.items() if not s.scope]
    if own:
        connection.execute_rows(statements.UPDATE_HASHES, own)
    return sorted({sum_.uid for sum_ in wrong if users[sum_.uid].hash is not None})


def _differs(sum_: _Sum, kept: Mapping[_Sum, str], right: Mapping[_Sum, str]) -> bool:
    zero = hash_text(0) if sum_.scope else None  # a user's row without a hash is to be computed
    return kept.get(sum_, zero) != right.get(sum_, hash_text(0))


# Reading


def read_hash(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    head: Sequence[UserHead],
    as_of: Time,
) -> str:
    """The hash of what is live on the device at an instant that is about now. `head` are the rows
    of the user for the scopes that the device sees."""
    if not head:
        return hash_text(0)
    kept = head[0]
    if kept.hash is None:
        live = connection.execute(statements.LIVE_IDS, uid=uid, device_id=device_id, now=as_of)
        return hash_of(live)
    total = int(kept.hash, 16) + sum(int(h.scope_hash, 16) for h in head if h.scope_hash)
    first, last = sorted((kept.hashed_until, as_of))
    between = connection.execute(
        statements.EXPIRED_IDS, uid=uid, device_id=device_id, now=first, last=last
    )
    difference = sum(entry_hash(ctime, msg_id) for ctime, msg_id in between)
    return hash_text(total - difference if as_of > kept.hashed_until else total + difference)
