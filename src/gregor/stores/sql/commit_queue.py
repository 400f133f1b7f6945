"""What waits to be committed, and whose turn it is.

Senders take turns. A commit takes from each of them its share, until it is large enough, and those
whom it has not reached are first in the next one. So what a sender has queued delays the others by
a share and not by all of it. The more senders there are, the smaller it is: who comes to a crowd
waits for one turn of each. A message may cost more than a share, and so may a few that were sent
together; then their sender is in debt, and has no turn until the shares of later commits have paid
it (deficit round robin). Senders whose next message is heavy have their turns after the others, who
would wait for many of these, and at least one of them in each commit. What is of one sender is
committed in its order.

A sender that is alone gets a whole commit. It is not taken to be alone until it has been so for
some commits: others may be about to send again, and would wait for all of it.

Pure: it knows neither time nor transactions.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from gregor.core.message import UID, InBandMessage
from gregor.interfaces import Slot

SHARE_COST, LEAST_SHARE_COST = 50, 10
ROUND_COST = 400
"""Of what many senders have together in one commit, so that it reaches all of them."""
COMMIT_COST = 1_000
"""Of a commit, about. A message costs at least 1."""

WHOLE_COST = 50
"""So many messages that are sent together are committed together if they cost no more: in several
commits, the same pages of their user would be written in each."""

ITEMS_OF_A_COST = 100
"""So many items of a user cost 1 if a message has ranges, which are held against all of them."""

ALONE_AFTER_COMMITS = 100

MAX_QUEUED_MESSAGES = 50_000

Sender: TypeAlias = tuple[str, str]
"""A user, or who sends to several users at once."""


class QueuedBatch(Protocol):
    """Slots that one caller waits for."""

    @property
    def slots(self) -> Sequence[Slot]: ...


B = TypeVar("B", bound=QueuedBatch)


def _none_known(uid: UID) -> int:
    """How many items a user has, if that is not known."""
    return 0


class Piece(NamedTuple, Generic[B]):
    """The next slots of a batch, which are committed together; and whether they are the last."""

    batch: B
    slots: Sequence[Slot]
    is_last: bool


class CommitQueue(Generic[B]):
    """The batches that wait, by their senders, who are in the order of their turns. How many items
    a user has, `items_of` says, if it is known: what a message costs depends on it."""

    def __init__(self, items_of: Callable[[UID], int] = _none_known) -> None:
        self.messages = 0
        self._items_of = items_of
        self._by_sender: dict[Sender, deque[_Waiting[B]]] = {}
        self._debts: dict[Sender, int] = {}  # what they have had beyond their shares
        self._last: Sender | None = None
        self._commits_alone = ALONE_AFTER_COMMITS

    def __bool__(self) -> bool:
        return bool(self._by_sender)

    def add(self, batch: B) -> bool:
        """Add a batch, if there is room for it; and say whether. What others have queued does not
        keep out who has queued nothing."""
        size, sender = len(batch.slots), sender_of(batch.slots)
        waiting = self._by_sender.get(sender)
        limit = MAX_QUEUED_MESSAGES * (2 if waiting is None else 1)
        if size > MAX_QUEUED_MESSAGES or self.messages + size > limit:
            return False
        if waiting is None:
            waiting = self._by_sender[sender] = deque()
        waiting.append(_Waiting(batch, 0))
        self.messages += size
        return True

    def take(self) -> list[Piece[B]]:
        """The pieces of the next commit; at least one slot, if there is any."""
        share = COMMIT_COST if self._is_alone() else _share_among(len(self._by_sender))
        rooms = self._rooms(share)
        costs = {sender: self._next_cost(sender) for sender in rooms}
        light = [sender for sender, cost in costs.items() if cost <= WHOLE_COST]
        heavy = [sender for sender, cost in costs.items() if cost > WHOLE_COST]
        pieces, left = self._serve(light, rooms, COMMIT_COST, heaviest=WHOLE_COST)
        if heavy:  # at least one, whatever the others had
            pieces += self._serve(heavy, rooms, max(left, 1))[0]
        return pieces

    def _serve(
        self,
        senders: Sequence[Sender],
        rooms: Mapping[Sender, int],
        left: int,
        heaviest: float = inf,
    ) -> tuple[list[Piece[B]], int]:
        """Take from each of these senders its turn, as long as something is left of what a commit
        may cost; and say what is left then."""
        pieces: list[Piece[B]] = []
        for sender in senders:
            if left <= 0:
                break
            waiting, room = self._by_sender.pop(sender), rooms[sender]
            taken, cost = self._take(waiting, min(room, left), heaviest)
            pieces += taken
            left -= cost
            if cost > room:
                self._debts[sender] = cost - room
            if waiting:
                self._by_sender[sender] = waiting  # behind all others
        self.messages -= sum(len(piece.slots) for piece in pieces)
        return pieces, left

    def _take(
        self, waiting: "deque[_Waiting[B]]", share: int, heaviest: float
    ) -> tuple[list[Piece[B]], int]:
        """The next pieces of a sender, until they cost a share or more, or one message more than
        the `heaviest`; and what they cost."""
        pieces: list[Piece[B]] = []
        spent = 0
        while waiting and spent < share:
            batch, start = waiting.popleft()
            count, end = len(batch.slots), start
            most = share if count > WHOLE_COST else max(share, spent + WHOLE_COST)
            while end < count and spent < most:
                cost = self._cost_of(batch.slots[end])
                if cost > heaviest:
                    break
                spent += cost
                end += 1
            is_last = end == count
            if end > start:
                pieces.append(Piece(batch, batch.slots[start:end], is_last))
            if not is_last:
                waiting.appendleft(_Waiting(batch, end))
                break
        return pieces, spent

    def _next_cost(self, sender: Sender) -> int:
        """What the next message of a sender costs."""
        batch, start = self._by_sender[sender][0]
        return self._cost_of(batch.slots[start])

    def _cost_of(self, slot: Slot) -> int:
        return cost_of(slot.message, self._items_of)

    def _rooms(self, share: int) -> dict[Sender, int]:
        """Pay the debts with this share; and what each of those who have a turn then may have."""
        if not self._debts:
            return dict.fromkeys(self._by_sender, share)
        debts = self._debts_to_pay(share)
        self._debts = {sender: debt - share for sender, debt in debts.items() if debt > share}
        rooms = {sender: share - debts.get(sender, 0) for sender in self._by_sender}
        return {sender: room for sender, room in rooms.items() if room > 0}

    def _debts_to_pay(self, share: int) -> dict[Sender, int]:
        """What is paid with this share and later ones: less, if nobody who waits had a turn
        otherwise."""
        least = min((self._debts.get(sender, 0) for sender in self._by_sender), default=0)
        if least < share:
            return self._debts
        return {sender: debt - least for sender, debt in self._debts.items()}

    def _is_alone(self) -> bool:
        """Whether the only sender has been the only one for some commits."""
        sender = next(iter(self._by_sender), None)
        others = len(self._by_sender) > 1 or self._last not in (None, sender)
        self._last = sender
        self._commits_alone = 0 if others else self._commits_alone + 1
        return self._commits_alone >= ALONE_AFTER_COMMITS

    def drop(self, batch: B) -> None:
        """Forget what is left of a batch of which a piece could not be stored."""
        sender = sender_of(batch.slots)
        waiting = self._by_sender.get(sender)
        if waiting and waiting[0].batch is batch:
            self.messages -= len(batch.slots) - waiting.popleft().start
            if not waiting:
                del self._by_sender[sender]

    def take_all(self) -> list[B]:
        """All batches that are left."""
        left = [waiting.batch for queued in self._by_sender.values() for waiting in queued]
        self._by_sender.clear()
        self.messages = 0
        return left


class _Waiting(NamedTuple, Generic[B]):
    """A batch, of which the slots from here on wait."""

    batch: B
    start: int


def _share_among(senders: int) -> int:
    """The cost that one of so many senders may have in a commit."""
    return max(LEAST_SHARE_COST, min(SHARE_COST, ROUND_COST // max(senders, 1)))


def sender_of(slots: Sequence[Slot]) -> Sender:
    """Whose turn it is with these slots: their user's, or if they are for several, who sends."""
    uid = slots[0].message.uid
    if all(slot.message.uid == uid for slot in slots):
        return "user", uid
    return "sender", next((slot.author or "" for slot in slots), "")


def cost_of(message: InBandMessage, items_of: Callable[[UID], int] = _none_known) -> int:
    """About how much work it is to store a message of a user who has so many items: 1 for a small
    one, twice as much with a key, by which another one may end, and more for what it dismisses, and
    for a large body."""
    cost = 1
    if (creation := message.creation) is not None:
        cost += creation.key is not None
        cost += len(memoryview(creation.raw_body)) // 4_096
    if (dismissal := message.dismissal) is not None:
        skipped = sum(len(range_.skip_msg_ids) for range_ in dismissal.ranges)
        named = len(dismissal.msg_ids) + len(dismissal.ranges) + len(dismissal.keys)
        cost += named // 4 + skipped // 64
        cost += items_of(message.uid) // ITEMS_OF_A_COST if dismissal.ranges else 0
    return cost
