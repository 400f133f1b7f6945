"""What a node reports of itself, for metrics."""

from collections.abc import Sequence

from gregor.core.message import UID
from gregor.errors import Malformed
from gregor.interfaces import Caller, EraseResult, Outcome


class Observer:
    """Receives the events of a node. This base class ignores them."""

    def injected(self, caller: Caller, outcomes: Sequence[Outcome]) -> None:
        """Messages of this caller were accepted or rejected."""

    def erased(self, caller: Caller, uid: UID, result: EraseResult) -> None:
        """This caller has erased a user."""

    def gap_repaired(self, messages: int) -> None:
        """A gap repair has read this number of missed messages from the store."""

    def hash_repaired(self) -> None:
        """The store kept a wrong hash for a user, and has repaired it."""

    def invalid_publication(self, error: Malformed) -> None:
        """The pub/sub delivered a payload that no node can have published."""

    def interrupted(self) -> None:
        """The pub/sub was down and is up again."""

    def consumer_failed(self, error: Exception) -> None:
        """A consumer raised this error for a message that is already stored."""
