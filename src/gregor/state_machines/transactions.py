"""What the state machine on a database does in one transaction: store a batch, or read one user.

Functions of a connection, which know no more of it than its dialect. Nothing here reads a user's
log; what a message costs is what is live, and what is new.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import msgspec
from sqlalchemy import Connection, Executable

from gregor.core.buckets import bucket_of
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, DeviceID, Dismissal, InBandMessage, MsgID, seen_on
from gregor.core.state import (
    Changes,
    DismissedRange,
    Item,
    Known,
    Snapshot,
    State,
    Sync,
    dismissed_ranges,
    hash_of,
    most_changes,
    since,
)
from gregor.errors import Conflict, Elsewhere
from gregor.interfaces import Duplicate, Outcome, Rejected, Stored
from gregor.storage import statements, tables
from gregor.storage.tables import FOREVER

# A range need not bury what has expired, and must not look at all that ever has. But a clock that
# lags, or is set back, shows it once more: no clock does by more than this.
CLOCKS_DIFFER = 3600 * SECOND

T = TypeVar("T")
ItemID: TypeAlias = tuple[UID, MsgID]


# One transaction that consumes


def consume(
    connection: Connection,
    messages: Sequence[InBandMessage],
    now: Time,
    *,
    moving: bool = False,
) -> list[Outcome]:
    """Store a batch, and say of each message what became of it. Runs inside a transaction.
    `moving` in, messages are taken though their users belong elsewhere as yet.

    Facts may come in any order, so the batch need not be taken message by message: first all that
    is new is stored, then all that is dead, by old facts or new ones, is buried.
    """
    # Only what is read under the users' locks is still true when they are released.
    users = _take_users(connection, {message.uid for message in messages})
    messages, refused = (messages, {}) if moving else _admit(connection, messages)
    known = _read_known(connection, messages)
    return _with_refused(_consume(connection, messages, now, users, known), refused)


def consume_new(
    connection: Connection, messages: Sequence[InBandMessage], now: Time
) -> list[Outcome]:
    """The same for messages that are not stamped and whose ids are not known; ends in
    AlreadyThere if one is."""
    users = _take_users(connection, {message.uid for message in messages})
    messages, refused = _admit(connection, messages)
    return _with_refused(_consume(connection, messages, now, users, {}), refused)


def _admit(
    connection: Connection, messages: Sequence[InBandMessage]
) -> tuple[Sequence[InBandMessage], dict[int, Rejected]]:
    """The messages that are this database's to take, and by their places those that are not.
    True until the commit, for who wants to change it waits for whoever has taken users."""
    elsewhere = {
        e.bucket: e for e in _ask_places(connection, statements.not_written_here, messages)
    }
    if not elsewhere:
        return messages, {}
    refused = {
        place: Rejected(message, elsewhere[bucket])
        for place, message in enumerate(messages)
        if (bucket := bucket_of(message.uid)) in elsewhere
    }
    return [m for place, m in enumerate(messages) if place not in refused], refused


def _with_refused(outcomes: list[Outcome], refused: Mapping[int, Rejected]) -> list[Outcome]:
    for place in sorted(refused):
        outcomes.insert(place, refused[place])
    return outcomes


def _ask_places(
    connection: Connection, question: Executable, messages: Iterable[InBandMessage]
) -> list[Elsewhere]:
    buckets = {bucket_of(uid) for uid in {message.uid for message in messages}}
    return _elsewhere(connection, question, buckets)


def _elsewhere(
    connection: Connection, question: Executable, buckets: Iterable[int]
) -> list[Elsewhere]:
    rows = statements.ask(connection, question, [(bucket,) for bucket in buckets])
    return [Elsewhere(row.bucket, row.shard, row.version) for row in rows]


def _consume(
    connection: Connection,
    messages: Sequence[InBandMessage],
    now: Time,
    users: Mapping[UID, "_User"],
    known: dict[ItemID, InBandMessage],
) -> list[Outcome]:
    clocks = {user.uid: user.ctime for user in users.values()}
    outcomes: list[Outcome] = []
    new: list[InBandMessage] = []
    stored: list[InBandMessage] = []
    late = False
    for message in messages:
        earlier = known.get((message.uid, message.msg_id))
        clock = clocks.get(message.uid, 0)
        if earlier is not None:
            outcomes.append(_again(message, earlier))
        elif message.stamped and message.ctime <= clock:
            late = True
            _insert(connection, new)
            new = []
            outcomes.append(_squeeze_in(connection, message, known))
        else:
            new.append(message.stamp(message.ctime or max(now, clock + 1), clock))
            outcomes.append(Stored(new[-1]))
            clocks[message.uid] = new[-1].ctime
        match outcomes[-1]:
            case Stored(message):
                known[message.uid, message.msg_id] = message
                stored.append(message)
    _insert(connection, new)
    _bury(connection, stored, users, now, late)
    if stored:
        uids = {message.uid for message in stored}
        moved = [(uid, clocks[uid], bucket_of(uid)) for uid in uids]
        statements.ask(connection, statements.move_clocks(connection.dialect.name), moved)
    return outcomes


def _again(message: InBandMessage, earlier: InBandMessage) -> Outcome:
    if earlier.same_contents(message):
        return Duplicate(earlier)
    return Rejected(message, Conflict("this msg_id is known with other contents", field="msg_id"))


def _squeeze_in(
    connection: Connection, message: InBandMessage, known: dict[ItemID, InBandMessage]
) -> Outcome:
    """Store a replay that lies behind the user's clock, between its neighbours."""
    place = {"uid": message.uid, "ctime": message.ctime}
    follower = connection.execute(statements.first_from, place).one()
    if follower.ctime == message.ctime:
        error = Conflict("another message of this user has this ctime", field="ctime")
        return Rejected(message, error)
    before = connection.scalar(statements.last_before, place) or 0
    statements.ask(connection, statements.relink, [(message.uid, follower.ctime, message.ctime)])
    later = known.get((message.uid, follower.msg_id))
    if later is not None:  # it may come once more in this batch
        known[message.uid, later.msg_id] = later.stamp(later.ctime, message.ctime)
    stored = message.stamp(message.ctime, before)
    _insert(connection, [stored])
    return Stored(stored)


def _insert(connection: Connection, new: Sequence[InBandMessage]) -> None:
    statements.insert(connection, tables.messages, [_row(message) for message in new])
    ranges = [
        (
            m.uid,
            m.ctime,
            number,
            r.end,
            r.category,
            r.prefix,
            _encoder.encode(r.skip_msg_ids).decode(),
        )
        for m in new
        if m.dismissal is not None
        for number, r in enumerate(dismissed_ranges(m.dismissal, m.ctime))
    ]
    statements.insert(connection, tables.dismissed_ranges, ranges)


def _row(message: InBandMessage) -> tuple[object, ...]:
    creation = message.creation
    category = expires_at = None
    if creation is not None:
        category = creation.category
        expires_at = creation.expires_at(message.ctime)
        if expires_at is None:
            expires_at = FOREVER
    return (
        message.uid,
        message.ctime,
        message.prev,
        message.msg_id,
        message.device_id,
        _json(message),
        category,
        expires_at,
        None,
    )


def _bury(
    connection: Connection,
    stored: Sequence[InBandMessage],
    users: Mapping[UID, "_User"],
    now: Time,
    late: bool,
) -> None:
    """Note every death that follows from these messages, which are stored already: of the items
    they create, by facts that came before them, and of any item by the facts that they bring.
    `users` are those of the batch as they were before it."""
    deaths: dict[ItemID, Time] = {}
    created = [(m, users[m.uid]) for m in stored if m.creation is not None and m.uid in users]
    _collect(deaths, _deaths_by_ids_awaiting(connection, [m for m, u in created if u.awaits]))
    _collect(
        deaths,
        _deaths_by_ranges_reaching(connection, [m for m, u in created if m.ctime <= u.reach]),
    )
    dismissing = [(m, m.dismissal) for m in stored if m.dismissal is not None]
    told: dict[ItemID, Time] = {}
    if dismissing:
        _collect(told, (((m.uid, id_), m.ctime) for m, d in dismissing for id_ in d.msg_ids))
        _collect(deaths, told.items())
        _collect(deaths, _deaths_by_range(connection, dismissing, now, late))
    if deaths:
        statements.ask(connection, statements.bury, [(*id_, at) for id_, at in deaths.items()])
    if told:
        dismissed = [(*id_, at) for id_, at in told.items()]
        statements.ask(connection, statements.await_ids(connection.dialect.name), dismissed)


def _deaths_by_ids_awaiting(
    connection: Connection, created: Sequence[InBandMessage]
) -> Iterator[tuple[ItemID, Time]]:
    """Which of the new items were said to be dead before they came."""
    if not created:
        return
    ids = [(message.uid, message.msg_id) for message in created]
    awaited = statements.ask(connection, statements.ids_awaiting, ids).all()
    yield from (((row.uid, row.msg_id), row.ctime) for row in awaited)
    if awaited:
        statements.ask(connection, statements.forget_ids, [row[:2] for row in awaited])


def _deaths_by_ranges_reaching(
    connection: Connection, created: Sequence[InBandMessage]
) -> Iterator[tuple[ItemID, Time]]:
    """Which of the new items fall into a range that was there before them."""
    if not created:
        return
    earliest: dict[UID, Time] = {}
    _collect(earliest, ((message.uid, message.ctime) for message in created))
    reaching: defaultdict[UID, list[DismissedRange]] = defaultdict(list)
    for row in statements.ask(connection, statements.ranges_reaching, earliest.items()):
        reaching[row.uid].append(_range(row))
    for message in created:
        item = Item.of(message)
        if item is not None:
            for range_ in reaching[message.uid]:
                if range_.covers(item):
                    yield (message.uid, message.msg_id), range_.ctime


def _deaths_by_range(
    connection: Connection,
    dismissing: Sequence[tuple[InBandMessage, Dismissal]],
    now: Time,
    late: bool,
) -> Iterator[tuple[ItemID, Time]]:
    ranges = [(m.uid, r) for m, d in dismissing for r in dismissed_ranges(d, m.ctime)]
    if not ranges:
        return
    question = statements.items_covered_ever if late else statements.items_covered
    rows = [
        (uid, r.ctime, r.end, r.category, int(r.prefix), number, min(now, r.ctime) - CLOCKS_DIFFER)
        for number, (uid, r) in enumerate(ranges)
    ]
    for row in statements.ask(connection, question, rows):
        range_ = ranges[row.range][1]
        if range_.matches(row.msg_id, row.category):
            yield (row.uid, row.msg_id), range_.ctime


def _collect(earliest: dict[T, Time], deaths: Iterable[tuple[T, Time]]) -> None:
    for key, at in deaths:
        earliest[key] = min(at, earliest.get(key, at))


# One transaction that reads


class _User(NamedTuple):
    """A user of a batch, before it: the clock, whether ids are awaited, how far ranges reach."""

    uid: UID
    ctime: Time
    awaits: bool
    reach: Time


def _take_users(connection: Connection, uids: Iterable[UID]) -> dict[UID, _User]:
    """The users as they are; nobody else writes for them until the commit."""
    named = [(uid,) for uid in uids]
    if connection.dialect.name == "postgresql":
        introduced = [(uid, bucket_of(uid)) for (uid,) in named]
        statements.ask(connection, statements.introduce, introduced)
        statements.ask(connection, statements.lock, named)
    rows = statements.ask(connection, statements.users_taken, named)
    return {row.uid: _User(row.uid, row.ctime, row.awaited is not None, row.reach) for row in rows}


def read_clock(connection: Connection) -> Time | None:
    """The database's clock; None if it is this machine's."""
    if connection.dialect.name == "postgresql":
        return connection.scalar(statements.time_there)
    return None


def read_clocks(connection: Connection, uids: Iterable[UID]) -> dict[UID, Time]:
    """The clocks of these users, but for those who are not here."""
    fallen: defaultdict[int, list[UID]] = defaultdict(list)
    for uid in uids:
        fallen[bucket_of(uid)].append(uid)
    for gone in held_elsewhere(connection, fallen):
        del fallen[gone.bucket]
    here = [uid for bucket in fallen.values() for uid in bucket]
    rows = statements.ask(connection, statements.clocks, [(uid,) for uid in here])
    return dict.fromkeys(here, 0) | {row.uid: row.ctime for row in rows}


def expect_here(connection: Connection, uid: UID) -> None:
    """Raises Elsewhere if another shard holds the user. Part of the transaction that reads: then
    what it reads is all there was, at that moment."""
    for gone in held_elsewhere(connection, [bucket_of(uid)]):
        raise gone


def held_elsewhere(connection: Connection, buckets: Iterable[int]) -> list[Elsewhere]:
    """Which of these buckets are not here, and who has them."""
    return _elsewhere(connection, statements.held_elsewhere, buckets)


def _read_known(
    connection: Connection, messages: Sequence[InBandMessage]
) -> dict[ItemID, InBandMessage]:
    ids = [(message.uid, message.msg_id) for message in messages]
    rows = statements.ask(connection, statements.known_messages, ids)
    return {(row.uid, row.msg_id): message_of(row) for row in rows}


def read_state(
    connection: Connection, uid: UID, device_id: DeviceID | None, now: Time, at: Time | None
) -> State:
    expect_here(connection, uid)
    return _read_state(connection, uid, device_id, now, at)


def _read_state(
    connection: Connection, uid: UID, device_id: DeviceID | None, now: Time, at: Time | None
) -> State:
    if at is None:
        rows = connection.execute(statements.live, {"uid": uid, "now": now})
    else:
        rows = connection.execute(statements.visible_at, {"uid": uid, "at": at})
    items = (_item(row) for row in rows)
    visible = [item for item in items if seen_on(item.device_id, device_id)]
    return State.of(visible, now if at is None else at)


def read_since(
    connection: Connection, uid: UID, device_id: DeviceID | None, start: Time, now: Time
) -> list[InBandMessage]:
    expect_here(connection, uid)
    rows = connection.execute(statements.since, {"uid": uid, "start": start})
    log = [message_of(row) for row in rows]
    return list(since(log, device_id, start, _read_fates(connection, uid, log, now)))


def read_sync(
    connection: Connection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time
) -> Sync:
    expect_here(connection, uid)
    clock = connection.scalar(statements.clock, {"uid": uid}) or 0
    rows = connection.execute(statements.live_names, {"uid": uid, "now": now})
    names = [(ctime, msg_id) for ctime, msg_id, scope in rows if seen_on(scope, device_id)]
    content: Changes | Snapshot | None = None
    if 0 < cursor <= clock:
        content = _read_changes(connection, uid, device_id, cursor, now, most_changes(len(names)))
    if content is None:
        content = _read_snapshot(connection, uid, device_id, clock, now)
    return Sync(content, clock, now, hash_of(names))


def _read_changes(
    connection: Connection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time, most: int
) -> Changes | None:
    """What came after the cursor; None if it is more than `most` messages."""
    question = {"uid": uid, "start": cursor + 1, "most": most + 1}
    log = [message_of(row) for row in connection.execute(statements.since_at_most, question)]
    if len(log) > most:
        return None
    fates = _read_fates(connection, uid, log, now)
    return Changes(tuple(since(log, device_id, cursor + 1, fates)))


def _read_snapshot(
    connection: Connection, uid: UID, device_id: DeviceID | None, clock: Time, now: Time
) -> Snapshot:
    state = _read_state(connection, uid, device_id, now, None)
    ids = connection.execute(statements.awaited_ids, {"uid": uid})
    ranges = connection.execute(statements.ranges_ahead, {"uid": uid, "cursor": clock})
    return Snapshot(
        state.items, tuple((msg_id, at) for msg_id, at in ids), tuple(_range(row) for row in ranges)
    )


def _read_fates(
    connection: Connection, uid: UID, log: Sequence[InBandMessage], now: Time
) -> Callable[[MsgID], Known | None]:
    """What has become of the items that these messages create or dismiss."""
    named = {message.msg_id for message in log if message.creation is not None}
    for message in log:
        if message.dismissal is not None:
            named.update(message.dismissal.msg_ids)
    rows = statements.ask(connection, statements.fates, [(uid, id_) for id_ in named])
    known = {
        row.msg_id: Known(
            row.ctime, row.device_id, row.dismissed_at is None and row.expires_at > now
        )
        for row in rows
    }
    return known.get


def message_of(row: Any) -> InBandMessage:
    return _decoder.decode(row.message).stamp(row.ctime, row.prev)


def _item(row: Any) -> Item:
    item = Item.of(_decoder.decode(row.message).stamp(row.ctime, 0))
    assert item is not None  # the row has a category, so its message has a creation
    return item


def _range(row: Any) -> DismissedRange:
    skip = msgspec.json.decode(row.skip_msg_ids, type=tuple[MsgID, ...])
    return DismissedRange(row.end_time, row.ctime, row.category, row.prefix, skip)


def _json(value: object) -> str:
    return _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(InBandMessage)
