"""The deaths that follow from a batch of messages which are stored already.

Facts are order-free: all deaths are looked up together, whatever the order of the messages in the
batch, and the earliest death of each item counts. The cost is proportional to what is live and what
is new, and not to the product of the batch's dismissals and the items.

The ranges and keys of a dismissal end with it, and a message with a key replaces the one item
before it. So, but for an id that was dismissed before its item arrived, what was stored before a
batch can kill items of the batch only if they are late replays, which are behind the user's clock;
and only late replays can give an item that is dead an earlier death.
"""

from collections import ChainMap, Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Generic, NamedTuple, TypeVar

import msgspec

from gregor.core.facts import DismissedKey, DismissedRange, dismissed_keys, dismissed_ranges
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, Category, InBandMessage, MsgID
from gregor.core.range_deaths import Pattern, few_patterns, range_deaths
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import (
    BulkStatement,
    DeadItem,
    Death,
    FoundPredecessor,
    ItemKey,
    KeyCtime,
    KeyedItem,
    MatchedItem,
    NamedKey,
    RangePattern,
    StoredKey,
    StoredRange,
    UserClock,
    UserKey,
)

# A range need not dismiss expired items, and must not read all items that ever expired. But a clock
# that lags or is set back shows an expired item again, so a range also dismisses items that expired
# less than this time ago. No clock may be wrong by more.
MAX_CLOCK_DIFFERENCE = 3600 * SECOND

# How many patterns of one user's ranges are looked up by themselves in one transaction.
MAX_PATTERNS = 4

T = TypeVar("T")
Reach = TypeVar("Reach", RangePattern, NamedKey)


class StoredBatch(NamedTuple):
    """Messages that a transaction has stored, and those of them that are late replays; and the
    users who had tombstones before."""

    stored: Sequence[InBandMessage]
    late: Sequence[InBandMessage]
    with_tombstones: Set[UID]
    now: Time


class Deaths(NamedTuple):
    """What has come of a batch: the keys of the items that are dead; those that have died of it,
    which were not dead before; how many items each dismissal has killed that were live before it,
    and which item each creation has replaced, by the user and the ctime of the message; and how
    many tombstones each user has more, or at most if replays were late."""

    dead: frozenset[ItemKey]
    died: Sequence[DeadItem]
    dismissed: Mapping[UserClock, int]
    replaced: Mapping[UserClock, MsgID]
    tombstones: Mapping[UID, int]

    @classmethod
    def of_parts(cls, parts: Sequence["Deaths"]) -> "Deaths":
        """What has come of a batch that was stored in these parts, in order. What
        each part has dismissed and replaced is as of its end, before late replays of later ones."""
        if len(parts) == 1:
            return parts[0]
        tombstones: Counter[UID] = Counter()
        for part in parts:
            tombstones.update(part.tombstones)
        return cls(
            frozenset(chain.from_iterable(part.dead for part in parts)),
            list(chain.from_iterable(part.died for part in parts)),
            dict(ChainMap(*(dict(part.dismissed) for part in parts))),
            dict(ChainMap(*(dict(part.replaced) for part in parts))),
            tombstones,
        )

    # Most batches dismiss and replace nothing: then no key is built.

    def include(self, message: InBandMessage) -> bool:
        return bool(self.dead) and ItemKey(message.uid, message.msg_id) in self.dead

    def dismissed_by(self, message: InBandMessage) -> int:
        if not self.dismissed:
            return 0
        return self.dismissed.get(UserClock(message.uid, message.ctime), 0)

    def replaced_by(self, message: InBandMessage) -> MsgID | None:
        if not self.replaced:
            return None
        return self.replaced.get(UserClock(message.uid, message.ctime))


def store_deaths(connection: DatabaseConnection, batch: StoredBatch) -> Deaths:
    """Store every death that follows from these messages: of the items that they create, by earlier
    facts, and of any item by these messages."""
    if not _may_end_items(batch):
        return NO_DEATHS
    dismissed_ids = _dismissed_ids(batch.stored)
    arrived = _matching_tombstones(connection, batch)
    by_dismissal = _earliest(
        dismissed_ids.items(), arrived.items(), _deaths_by_reach(connection, batch)
    )
    predecessors = _predecessors(connection, batch.stored)
    deaths = _earliest(
        by_dismissal.items(),
        ((ItemKey(p.uid, p.msg_id), p.successor) for p in predecessors),
        _deaths_by_successor(connection, batch.late),
    )
    died: list[DeadItem] = []
    earlier: list[DeadItem] = []
    if deaths:
        rows = [Death(*key, at) for key, at in deaths.items()]
        died = connection.execute_rows(statements.DISMISS_ITEMS, rows)
        if batch.late:
            earlier = connection.execute_rows(statements.DISMISS_EARLIER, rows)
    if arrived:
        connection.execute_rows(statements.DELETE_TOMBSTONES, arrived)
    return Deaths(
        frozenset(deaths),
        died,
        _counted([*died, *earlier], by_dismissal),
        {UserClock(p.uid, p.successor): p.msg_id for p in predecessors},
        _tombstones(_insert_tombstones(connection, dismissed_ids), arrived),
    )


NO_DEATHS = Deaths(frozenset(), (), {}, {}, {})


def _may_end_items(batch: StoredBatch) -> bool:
    """Most batches are of new items without a key, whose ids nobody has dismissed."""
    if batch.late or batch.with_tombstones:
        return True
    return any(m.dismissal is not None or m.key is not None for m in batch.stored)


def would_die(
    connection: DatabaseConnection, message: InBandMessage, now: Time
) -> Iterable[ItemKey]:
    """The items that would be dead if this new message were stored next, and ids that it dismisses.
    Changes nothing."""
    batch = StoredBatch([message], [], frozenset(), now)
    predecessors = _predecessors(connection, [message])
    return {
        *_dismissed_ids([message]),
        *(key for key, _ in _deaths_by_reach(connection, batch)),
        *(ItemKey(p.uid, p.msg_id) for p in predecessors),
    }


def _dismissed_ids(messages: Iterable[InBandMessage]) -> dict[ItemKey, Time]:
    """The ids that these messages dismiss, each with its first dismissal."""
    return _earliest(
        (ItemKey(m.uid, id_), m.ctime)
        for m in messages
        if m.dismissal is not None
        for id_ in m.dismissal.msg_ids
    )


def _deaths_by_reach(
    connection: DatabaseConnection, batch: StoredBatch
) -> Iterator[tuple[ItemKey, Time]]:
    yield from _deaths_by_range(connection, batch)
    yield from _deaths_by_key(connection, batch)


def _insert_tombstones(
    connection: DatabaseConnection, dismissed_ids: Mapping[ItemKey, Time]
) -> Iterable[UserKey]:
    if not dismissed_ids:
        return ()
    rows = [Death(*key, at) for key, at in dismissed_ids.items()]
    return connection.execute_rows(statements.INSERT_TOMBSTONES, rows)


def _tombstones(inserted: Iterable[UserKey], arrived: Iterable[ItemKey]) -> Counter[UID]:
    """How many tombstones each user has more."""
    more = Counter(user.uid for user in inserted)
    more.subtract(key.uid for key in arrived)
    return more


def _counted(items: Iterable[DeadItem], by_dismissal: Mapping[ItemKey, Time]) -> Counter[UserClock]:
    """How many of these items were killed by each dismissal and live before it."""
    return Counter(
        UserClock(item.uid, item.dismissed_at)
        for item in items
        if item.ctime < item.dismissed_at < item.expires_at
        and by_dismissal.get(ItemKey(item.uid, item.msg_id)) == item.dismissed_at
    )


# By id


def _matching_tombstones(connection: DatabaseConnection, batch: StoredBatch) -> dict[ItemKey, Time]:
    """The deaths of new items that were dismissed by id before they arrived."""
    ids = [
        ItemKey(message.uid, message.msg_id)
        for message in batch.stored
        if message.creation is not None and message.uid in batch.with_tombstones
    ]
    if not ids:
        return {}
    rows = connection.execute_rows(statements.MATCHING_TOMBSTONES, ids)
    return {ItemKey(row.uid, row.msg_id): row.ctime for row in rows}


# By range


def _deaths_by_range(
    connection: DatabaseConnection, batch: StoredBatch
) -> Iterator[tuple[ItemKey, Time]]:
    new = _by_user((m.uid, range_) for m in batch.stored for range_ in dismissed_ranges(m))
    if new:
        patterns = [p for uid, ranges in new.items() for p in _patterns(uid, ranges, batch.now)]
        found = _find(connection, batch, patterns, _BY_CATEGORY)
        yield from _covered(new, found)
    late = [_matched(m, m.creation.category) for m in batch.late if m.creation is not None]
    if late:
        first = _earliest((item.uid, item.ctime) for item in late)
        keys = [UserClock(uid, ctime) for uid, ctime in first.items()]
        rows = connection.execute_rows(statements.RANGES_ENDING_AFTER, keys)
        yield from _covered(_by_user((row.uid, _range(row)) for row in rows), late)


def _patterns(uid: UID, ranges: Sequence[DismissedRange], now: Time) -> Iterator[RangePattern]:
    """A few patterns that together match all that these ranges cover: the database compares each
    pattern with each live item."""
    patterns = few_patterns((Pattern(r.category, r.prefix) for r in ranges), MAX_PATTERNS)
    first_ctime = min(range_.ctime for range_ in ranges)
    for pattern in patterns:
        yield RangePattern(
            uid=uid,
            ctime=first_ctime,
            end_time=max(range_.end for range_ in ranges),
            category=pattern.category,
            prefix=int(pattern.prefix),
            expired=min(now, first_ctime) - MAX_CLOCK_DIFFERENCE,
        )


def _range(row: StoredRange) -> DismissedRange:
    return DismissedRange(
        row.end_time,
        row.ctime,
        row.category,
        bool(row.prefix),
        msgspec.json.decode(row.skip_msg_ids, type=tuple[MsgID, ...]),
        bool(row.scheduled),
        row.device_id,
        row.own,
    )


# By key


def _deaths_by_key(
    connection: DatabaseConnection, batch: StoredBatch
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths by dismissals that name keys. Like a range, a key is compared with many items at
    once: with the key in the place of the category."""
    new = _by_user((m.uid, key) for m in batch.stored for key in dismissed_keys(m))
    if new:
        named = [key for uid, keys in new.items() for key in _named(uid, keys)]
        found = _find(connection, batch, named, _BY_KEY)
        yield from _covered(_as_ranges(new), found)
    late = [_matched(m, m.key) for m in batch.late if m.key is not None]
    if late:
        first = _earliest(((item.uid, item.category), item.ctime) for item in late)
        keys = [KeyCtime(uid, key, ctime) for (uid, key), ctime in first.items()]
        rows = connection.execute_rows(statements.KEYS_ENDING_AFTER, keys)
        yield from _covered(_as_ranges(_by_user((row.uid, _key(row)) for row in rows)), late)


def _named(uid: UID, keys: Iterable[DismissedKey]) -> Iterator[NamedKey]:
    by_key: defaultdict[str, list[DismissedKey]] = defaultdict(list)
    for key in keys:
        by_key[key.key].append(key)
    for name, same in by_key.items():
        yield NamedKey(uid, name, min(k.ctime for k in same), max(k.end for k in same))


def _as_ranges(
    keys: Mapping[UID, Iterable[DismissedKey]],
) -> dict[UID, list[DismissedRange]]:
    return {
        uid: [
            DismissedRange(k.end, k.ctime, k.key, scheduled=True, device_id=k.device_id, own=k.own)
            for k in named
        ]
        for uid, named in keys.items()
    }


def _key(row: StoredKey) -> DismissedKey:
    return DismissedKey(row.end_time, row.ctime, row.key, row.device_id, row.own)


# By a later item with the same key


def _predecessors(
    connection: DatabaseConnection, stored: Iterable[InBandMessage]
) -> Sequence[FoundPredecessor]:
    """The items whose place these messages take. What was before them has an earlier death."""
    keyed = _keyed(stored)
    return connection.execute_rows(statements.PREDECESSORS, keyed) if keyed else ()


def _deaths_by_successor(
    connection: DatabaseConnection, late: Iterable[InBandMessage]
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of late replays that a stored message has replaced."""
    keyed = _keyed(late)
    if not keyed:
        return
    ids = {UserClock(m.uid, m.ctime): m.msg_id for m in late}
    for row in connection.execute_rows(statements.SUCCESSORS, keyed):
        if row.successor is not None:
            yield ItemKey(row.uid, ids[UserClock(row.uid, row.ctime)]), row.successor


def _keyed(messages: Iterable[InBandMessage]) -> list[KeyedItem]:
    return [KeyedItem(m.uid, m.key, m.device_id, m.ctime) for m in messages if m.key is not None]


# Many dismissals, compared with many items


class _Finding(NamedTuple, Generic[Reach]):
    """How items are found that new dismissals may reach: those without a death; or, if the user has
    late replays, those that are dead later as well."""

    live: BulkStatement[Reach, MatchedItem]
    in_log: BulkStatement[Reach, MatchedItem]


_BY_CATEGORY = _Finding(statements.ITEMS_MATCHED, statements.ITEMS_MATCHED_IN_LOG)
_BY_KEY = _Finding(statements.ITEMS_NAMED, statements.ITEMS_NAMED_IN_LOG)


def _find(
    connection: DatabaseConnection,
    batch: StoredBatch,
    reaches: Sequence[Reach],
    how: _Finding[Reach],
) -> list[MatchedItem]:
    """The items that these dismissals may reach. Without a late dismissal of a user, the user's log
    is not read: what is dead has died before."""
    late_uids = {message.uid for message in batch.late if message.dismissal is not None}
    live = [reach for reach in reaches if reach.uid not in late_uids]
    late = [reach for reach in reaches if reach.uid in late_uids]
    found = connection.execute_rows(how.live, live) if live else []
    return found + (connection.execute_rows(how.in_log, late) if late else [])


def _matched(message: InBandMessage, category: Category) -> MatchedItem:
    return MatchedItem(
        message.uid,
        message.msg_id,
        message.ctime,
        category,
        message.device_id,
        message.starts_at,
    )


def _covered(
    ranges: Mapping[UID, Sequence[DismissedRange]], items: Iterable[MatchedItem]
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of these items by the ranges of their users."""
    for uid, matched in _by_user((item.uid, item) for item in items).items():
        for item, at in range_deaths(ranges.get(uid, ()), matched):
            yield ItemKey(uid, item.msg_id), at


def _by_user(values: Iterable[tuple[UID, T]]) -> dict[UID, list[T]]:
    grouped: defaultdict[UID, list[T]] = defaultdict(list)
    for uid, value in values:
        grouped[uid].append(value)
    return grouped


def _earliest(*times: Iterable[tuple[T, Time]]) -> dict[T, Time]:
    """The earliest time of each key."""
    earliest: dict[T, Time] = {}
    for some in times:
        for key, at in some:
            earliest[key] = min(at, earliest.get(key, at))
    return earliest
