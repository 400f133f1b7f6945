"""What the users of a batch may still have, known without reading all that they have.

A process remembers what its users have, as of a clock of the user and of a time. If the clock is
still that when a batch has locked the user, nothing was stored meanwhile. Otherwise another process
has stored messages: what they have changed is counted. So a number is never too small, and a
message that fits beside it is stored without another question.

It may be too large: while a batch is stored, by what its messages dismiss or replace; later, by
what has expired or begun, or was pruned. So a message that does not fit is not refused before the
number is exact. What came before it in the batch is stored with all that follows from it, which
gives how much that was; what this message itself ends is asked of the database; and if it still
does not fit, all that the user has is counted, once in a batch.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs

from gregor.core.holdings import LIMITED, NOTHING, Holdings, refusal
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.core.visibility import has_begun, has_expired
from gregor.errors import LimitExceeded
from gregor.interfaces import Slot
from gregor.limits import Limits
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.deaths import Deaths, would_die
from gregor.stores.sql.rows import json_of, size_of
from gregor.stores.sql.statements import (
    HeldItems,
    HeldSince,
    ItemAt,
    ItemKey,
    LockedUser,
    UserClock,
    UserKey,
    UserSince,
)

UNLIMITED = 2**62
MIN_ID_BYTES = len('"1",')
"""What an id takes in the JSON of a dismissal at least."""
MAX_REMEMBERED = 10_000
"""Of how many users a process remembers what they have."""


class _Count(NamedTuple):
    """What a user has at most when the user's clock is this, of what had not expired or begun `at`
    a time."""

    clock: Time
    at: Time
    has: Holdings


class CountedUsers:
    """What the users that have stored something lately have."""

    def __init__(self) -> None:
        self._counted: OrderedDict[UID, _Count] = OrderedDict()

    def get(self, uid: UID) -> _Count | None:
        return self._counted.get(uid)

    def items(self, uid: UID) -> int:
        """How many items a user has at most; 0 if that is not known."""
        count = self._counted.get(uid)
        return 0 if count is None else count.has.live_items

    def update(self, counted: Mapping[UID, _Count]) -> None:
        """Remember what was counted in a transaction, after its commit."""
        for uid, count in counted.items():
            self._counted[uid] = count
            self._counted.move_to_end(uid)
        while len(self._counted) > MAX_REMEMBERED:
            self._counted.popitem(last=False)


def maxima_of(limits: Limits) -> Holdings | None:
    """What a user may have at most; None if none of it is limited."""
    maxima = [getattr(limits, name) for name in LIMITED]
    return Holdings(*(most or UNLIMITED for most in maxima)) if any(maxima) else None


class _Account:
    """What one user of a batch has, while its messages are stored: `has` by all that is settled,
    at `most` with what the batch has added since, and `then` with the message at hand. The other
    fields are those of a _Count."""

    __slots__ = ("at", "clock", "has", "is_exact", "is_settled", "most", "then")

    def __init__(self, count: _Count, *, is_exact: bool = False) -> None:
        self.clock, self.at, has = count
        self.settle(has)
        self.is_exact = is_exact  # all was counted for this batch

    def settle(self, has: Holdings) -> None:
        """What has come of all that was added is known: the user has this much."""
        self.has = self.most = self.then = has
        self.is_settled = True

    def expect(self, more: Holdings) -> None:
        """The message at hand adds so much at most."""
        self.then = self.most.plus(more)

    def add(self) -> None:
        """The message at hand is added."""
        self.most = self.then
        self.is_settled = False

    def count(self, clock: Time) -> _Count:
        return _Count(clock, self.at, self.has)


class Allowance:
    """What the users of one batch, who are locked, may still have; the `maxima` are those of the
    limits."""

    def __init__(self, limits: Limits, maxima: Holdings, known: CountedUsers, now: Time) -> None:
        self._limits = limits
        self._maxima = maxima
        self._known = known
        self._now = now
        self._accounts: dict[UID, _Account] = {}
        self._counted: dict[UID, _Count] = {}

    def open(
        self,
        connection: DatabaseConnection,
        users: Mapping[UID, LockedUser],
        slots: Iterable[Slot],
    ) -> None:
        """Count what is not known of the users of these messages."""
        self._connection = connection
        self._accounts = {}
        unknown: list[UID] = []
        behind: list[UID] = []
        for uid in {slot.message.uid for slot in slots}:
            user, count = users.get(uid), self._known.get(uid)
            if user is None or not user.ctime:
                self._accounts[uid] = _Account(_Count(0, self._now, NOTHING), is_exact=True)
            elif count is None or max(user.mark, user.epoch) > count.clock or count.at > self._now:
                unknown.append(uid)
            else:
                self._accounts[uid] = _Account(count)
                if count.clock != user.ctime:
                    behind.append(uid)
        self._count(unknown, users)
        self._add_what_others_stored(behind, users)

    def _count(self, uids: Sequence[UID], users: Mapping[UID, LockedUser]) -> None:
        """Count everything of these users."""
        for uid, has in self._counted_now(uids).items():
            self._accounts[uid] = _Account(_Count(users[uid].ctime, self._now, has), is_exact=True)

    def _counted_now(self, uids: Sequence[UID]) -> dict[UID, Holdings]:
        """Everything that these users have, as it is stored."""
        if not uids:
            return {}
        counts = self._connection.execute_rows(statements.TOMBSTONE_COUNTS, map(UserKey, uids))
        tombstones = {row.uid: row.tombstones for row in counts}
        keys = [UserClock(uid, self._now) for uid in uids]
        return {
            row.uid: _held(row, tombstones.get(row.uid, 0))
            for row in self._connection.execute_rows(statements.HOLDINGS, keys)
        }

    def _add_what_others_stored(self, uids: Sequence[UID], users: Mapping[UID, LockedUser]) -> None:
        """Account for what other processes have stored of these users: exactly, but for tombstones,
        of which there may be as many more as the messages can name."""
        if not uids:
            return
        since = [self._since(uid) for uid in uids]
        for row in self._connection.execute_rows(statements.CHANGED_SINCE, since):
            account = self._accounts[row.uid]
            account.settle(account.has.plus(_held(row, row.written // MIN_ID_BYTES)))
        for uid in uids:
            account = self._accounts[uid]
            account.clock, account.at = users[uid].ctime, self._now

    def _since(self, uid: UID) -> UserSince:
        account = self._accounts[uid]
        return UserSince(uid, account.clock, account.at, self._now)

    # While the messages are stored, in order

    def has_room_for(self, message: InBandMessage, size: int) -> bool:
        """Whether the user may certainly have what this new message adds. It is as it will be
        stored, in so many bytes."""
        account = self._accounts[message.uid]
        more = _more(message, size, account.at)
        account.expect(more)
        fits = account.then.is_within(self._maxima)  # mostly it does
        return fits or refusal(account.most, more, self._limits) is None

    def is_settled(self, uid: UID) -> bool:
        """Whether it is known what has come of all that this batch has stored for the user."""
        return self._accounts[uid].is_settled

    def exceeded_by(self, message: InBandMessage, size: int) -> LimitExceeded | None:
        """Why the user may not have what this message adds, if so. What came before it is
        settled."""
        account = self._accounts[message.uid]
        more = self._exactly(message, size, account)
        error = refusal(account.has, more, self._limits)
        if error is not None and self._recount(message.uid, account):
            error = refusal(account.has, more, self._limits)
        account.expect(_more(message, size, account.at))
        return error

    def _exactly(self, message: InBandMessage, size: int, account: _Account) -> Holdings:
        """What the message adds, beside what it ends."""
        uid, dismissal = message.uid, message.dismissal
        named = set() if dismissal is None else set(dismissal.msg_ids)
        arrives = message.creation is not None and self._is_tombstone(account, message)
        ids = [ItemKey(uid, msg_id) for msg_id in named - {message.msg_id}]
        new = self._connection.execute_rows(statements.NEW_TOMBSTONES, ids) if ids else ()
        tombstones = len(new) - arrives
        if arrives or message.msg_id in named:
            return Holdings(tombstones=tombstones)
        more = structs.replace(_more(message, size, self._now), tombstones=tombstones)
        if not more.live_items or (dismissal is None and message.key is None):
            return more
        ended = would_die(self._connection, message, self._now)
        rows = [ItemAt(*key, self._now) for key in ended]
        for row in self._connection.execute_rows(statements.HELD_AMONG, rows):
            more = more.minus(_held(row))
        return more

    def _is_tombstone(self, account: _Account, message: InBandMessage) -> bool:
        """Whether the id of a new message was dismissed before."""
        if not account.has.tombstones:
            return False
        key = ItemKey(message.uid, message.msg_id)
        return bool(self._connection.execute_rows(statements.MATCHING_TOMBSTONES, [key]))

    def _recount(self, uid: UID, account: _Account) -> bool:
        """Count everything of the user, unless that was done for this batch. Returns whether it
        was done now."""
        if account.is_exact:
            return False
        account.settle(self._counted_now([uid])[uid])
        account.at, account.is_exact = self._now, True
        return True

    def add(self, message: InBandMessage, *, is_replay: bool) -> None:
        """The message is stored. If it is a replay, nobody has asked whether there is room."""
        account = self._accounts[message.uid]
        if is_replay:
            account.expect(_more(message, size_of(json_of(message)), account.at))
            account.is_exact = False  # a late one may move a tombstone, which counts as another
        account.add()

    def settle(self, deaths: Deaths) -> None:
        """What was added is stored, and this has come of it."""
        for uid, account in self._accounts.items():
            tombstones = account.has.tombstones + deaths.tombstones.get(uid, 0)
            account.settle(structs.replace(account.most, tombstones=tombstones))
        for item in deaths.died:
            account = self._accounts[item.uid]
            if not has_expired(item.expires_at, account.at):
                is_scheduled = not has_begun(item.starts_at, account.at)
                account.settle(account.has.minus(Holdings(1, item.size, int(is_scheduled))))

    # Afterwards

    def close(self, clocks: Mapping[UID, Time]) -> None:
        """The batch is stored and settled, and the users have these clocks."""
        self._counted = {
            uid: account.count(clocks[uid])
            for uid, account in self._accounts.items()
            if uid in clocks
        }

    def committed(self) -> None:
        """Remember what the users have."""
        self._known.update(self._counted)


def _more(message: InBandMessage, size: int, at: Time) -> Holdings:
    """What a stamped message of this size adds at most, of what has not expired or begun at this
    time."""
    tombstones = 0 if message.dismissal is None else len(message.dismissal.msg_ids)
    if message.creation is None or has_expired(message.expires_at, at):
        return Holdings(0, 0, 0, tombstones)
    return Holdings(1, size, 0 if has_begun(message.starts_at, at) else 1, tombstones)


def _held(row: HeldItems | HeldSince, tombstones: int = 0) -> Holdings:
    return Holdings(row.items, row.bytes, row.scheduled, tombstones)
