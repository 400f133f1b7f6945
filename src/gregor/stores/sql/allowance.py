"""How much more each user of a batch may have, counted without reading what the user has.

A process remembers what its users have, as of a clock of the user. If the clock is still that when
a batch has locked the user, nothing was stored meanwhile. Otherwise another process has stored
messages: only these are counted. So a number is never too small; it is too large while items have
expired or begun, or have died elsewhere. When it is over a limit, everything of the user is
counted, but not more often than every RECOUNT.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.json import encode

from gregor.core.holdings import NOTHING, Holdings, refusal
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage, Key, MsgID
from gregor.core.visibility import has_begun
from gregor.errors import LimitExceeded
from gregor.interfaces import Slot
from gregor.limits import Limits
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import (
    DeadItem,
    ItemKey,
    KeyedItem,
    LockedUser,
    UserClock,
    UserKey,
    UserSince,
)

UNLIMITED = 2**62
STAMP_BYTES = len(',"ctime":1767225600000000,"prev":1767225600000000')
RECOUNT = SECOND
MAX_REMEMBERED = 10_000
"""Of how many users a process remembers what they have."""


class _CountedHoldings(NamedTuple):
    """What a user has at most when the user's clock is this, and when all was counted last."""

    clock: Time
    at: Time
    has: Holdings


class CountedUsers:
    """What the users that have stored something lately have."""

    def __init__(self) -> None:
        self._counted: OrderedDict[UID, _CountedHoldings] = OrderedDict()

    def get(self, uid: UID) -> _CountedHoldings | None:
        return self._counted.get(uid)

    def update(self, counted: Mapping[UID, _CountedHoldings]) -> None:
        """Remember what was counted in a transaction, after its commit."""
        for uid, count in counted.items():
            self._counted[uid] = count
            self._counted.move_to_end(uid)
        while len(self._counted) > MAX_REMEMBERED:
            self._counted.popitem(last=False)


class _Account:
    """What one user of a batch has, while its messages are stored: as it was before (`has`), what
    this batch has added, and what the message at hand adds. `may_exceed`: a dismissal comes first,
    of which it is not known yet what it dismisses."""

    __slots__ = ("added", "at", "has", "may_exceed", "more", "puts")

    def __init__(self, has: Holdings, at: Time) -> None:
        self.has = has
        self.at = at
        self.added = NOTHING
        self.more: Holdings | None = None
        self.may_exceed = False
        self.puts: dict[tuple[Key, str], Holdings] = {}


class Allowance:
    """What the users of one batch, who are locked, may still have. A batch that begins with a
    dismissal may exceed what is live: by one commit, once."""

    def __init__(self, limits: Limits, known: CountedUsers, now: Time) -> None:
        self._limits = limits
        self._known = known
        self._now = now
        self._maxima = [getattr(limits, name) or UNLIMITED for name in Holdings._fields]
        self._accounts: dict[UID, _Account] = {}
        self._counted: dict[UID, _CountedHoldings] = {}

    def open(
        self,
        connection: DatabaseConnection,
        users: Mapping[UID, LockedUser],
        slots: Iterable[Slot],
    ) -> None:
        """Count what is not known of the users of these messages."""
        self._connection = connection
        uids = {slot.message.uid for slot in slots}
        self._accounts = {}
        unknown: list[UID] = []
        since: list[UserSince] = []
        for uid in uids:
            user, counted = users.get(uid), self._known.get(uid)
            if user is None or not user.ctime:
                self._accounts[uid] = _Account(NOTHING, self._now)
            elif counted is None or max(user.mark, user.epoch) > counted.clock:
                unknown.append(uid)
            else:
                self._accounts[uid] = _Account(counted.has, counted.at)
                if counted.clock != user.ctime:
                    since.append(UserSince(uid, counted.clock, self._now))
        self._count(unknown)
        for row in connection.execute_rows(statements.HOLDINGS_SINCE, since) if since else ():
            account = self._accounts[row.uid]
            account.has = account.has.plus(Holdings(row.items, row.bytes, row.scheduled))

    def _count(self, uids: Sequence[UID]) -> None:
        """Count everything of these users, as it is stored."""
        if not uids:
            return
        keys = [UserClock(uid, self._now) for uid in uids]
        tombstones = {
            row.uid: row.tombstones
            for row in self._connection.execute_rows(
                statements.TOMBSTONE_COUNTS, map(UserKey, uids)
            )
        }
        for row in self._connection.execute_rows(statements.HOLDINGS, keys):
            has = Holdings(row.items, row.bytes, row.scheduled, tombstones.get(row.uid, 0))
            account = self._accounts.setdefault(row.uid, _Account(has, self._now))
            account.has, account.at = has, self._now

    # While the messages are stored, in order

    def against(self, message: InBandMessage) -> LimitExceeded | None:
        """Why the user may not have what this new message adds, if so."""
        account = self._accounts[message.uid]
        more = account.more = self._more(message)
        if self._fits(account.has.plus(account.added).plus(more)):
            return None
        error = refusal(account.has.plus(account.added), more, self._limits)
        if error is not None and account.at <= self._now - RECOUNT:
            self._count([message.uid])
            error = refusal(account.has.plus(account.added), more, self._limits)
        if error is None:
            return None
        exact = self._less(account, message, more)
        error = refusal(account.has.plus(account.added), exact, self._limits)
        if error is not None and error.limit != "tombstones" and self._may_exceed(message):
            return None
        return error

    def add(self, message: InBandMessage) -> None:
        """The message is stored."""
        account = self._accounts[message.uid]
        more = account.more or self._more(message)
        account.added, account.more = account.added.plus(more), None
        if message.dismissal is not None:
            account.may_exceed = True
        if message.key is not None:
            account.puts[message.key, message.device_id or ""] = more

    def _fits(self, has: Holdings) -> bool:
        """Whether it is within the limits: most messages are."""
        items, bytes_, scheduled, tombstones = self._maxima
        return (
            has.live_items <= items
            and has.live_bytes <= bytes_
            and has.scheduled_items <= scheduled
            and has.tombstones <= tombstones
        )

    def _may_exceed(self, message: InBandMessage) -> bool:
        account = self._accounts[message.uid]
        dismisses = account.may_exceed or bool(message.dismissal)
        return dismisses and account.has.is_within(self._limits)

    def _more(self, message: InBandMessage) -> Holdings:
        """What the message adds at most."""
        tombstones = 0 if message.dismissal is None else len(message.dismissal.msg_ids)
        if message.creation is None:
            return Holdings(tombstones=tombstones)
        starts_at = message.creation.starts_at(message.ctime or self._now)
        is_scheduled = starts_at is not None and not has_begun(starts_at, self._now)
        return Holdings(1, self._size(message), int(is_scheduled), tombstones)

    def _size(self, message: InBandMessage) -> int:
        """The bytes that are stored of a message, which gets its stamp."""
        return len(encode(message)) + (0 if message.stamped else STAMP_BYTES)

    def _less(self, account: _Account, message: InBandMessage, more: Holdings) -> Holdings:
        """What the message adds: it may replace an item, and dismiss ids that have arrived."""
        if message.key is not None:
            more = more.minus(self._replaced(account, message.uid, message.key, message.device_id))
        if message.dismissal is not None and message.dismissal.msg_ids:
            more = more._replace(tombstones=self._unknown(message.uid, message.dismissal.msg_ids))
        return more

    def _replaced(self, account: _Account, uid: UID, key: Key, device_id: str | None) -> Holdings:
        """The item whose place is taken, if it is live."""
        scope = device_id or ""
        if (key, scope) in account.puts:
            return account.puts[key, scope]._replace(tombstones=0)
        rows = self._connection.execute_rows(
            statements.LIVE_PREDECESSOR, [KeyedItem(uid, key, device_id, self._now)]
        )
        return Holdings(rows[0].items, rows[0].bytes, rows[0].scheduled) if rows else NOTHING

    def _unknown(self, uid: UID, msg_ids: Sequence[MsgID]) -> int:
        """How many of these ids have not arrived, and are not dismissed yet."""
        keys = [ItemKey(uid, msg_id) for msg_id in dict.fromkeys(msg_ids)]
        return len(self._connection.execute_rows(statements.NEW_TOMBSTONES, keys))

    # Afterwards

    def close(self, clocks: Mapping[UID, Time], died: Iterable[DeadItem]) -> None:
        """The batch is stored: the users have these clocks, and these items have died of it."""
        accounts = self._accounts
        for item in died:
            if item.uid in accounts and item.expires_at > self._now:
                account = accounts[item.uid]
                is_scheduled = not has_begun(item.starts_at, self._now)
                dead = Holdings(1, item.size, int(is_scheduled))
                account.added = account.added.minus(dead)
        self._counted = {
            uid: _CountedHoldings(clocks[uid], account.at, account.has.plus(account.added))
            for uid, account in accounts.items()
            if uid in clocks
        }

    def committed(self) -> None:
        """Remember what the users have."""
        self._known.update(self._counted)
