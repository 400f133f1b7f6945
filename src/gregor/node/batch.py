"""A batch: messages that one caller injects together, in order, with an outcome for each.

The same batch goes through every stage of the node. Each stage fills in the outcomes that it
decides, so no stage has to take the batch apart, or to know what another one has rejected.
"""

from collections.abc import Iterable, Sequence

from gregor.core.instant import Time
from gregor.core.message import InBandMessage, Message, OutOfBandMessage
from gregor.interfaces import Accepted, Caller, Outcome, Rejected, Relayed, Slot, Stored


class Batch:
    """The entries of one inject, whose caller knows this epoch of their user. `slots` are those for
    the store, with their authors. The others are decided: what the caller may not send is Rejected,
    and an out-of-band message is Relayed."""

    def __init__(
        self, caller: Caller, entries: Iterable[Message | Rejected], epoch: Time | None = None
    ) -> None:
        self._entries = [_entry(caller, entry, epoch) for entry in entries]
        self.slots = [entry for entry in self._entries if isinstance(entry, Slot)]

    def outcomes(self) -> list[Outcome]:
        """The outcome of each entry, in order, once the store has filled the slots."""
        return [_outcome(entry) for entry in self._entries]


def _entry(
    caller: Caller, entry: Message | Rejected, epoch: Time | None
) -> Slot | Relayed | Rejected:
    match entry:
        case InBandMessage():
            return Slot(entry, caller.author_of(entry), epoch)
        case OutOfBandMessage():
            return Relayed(entry)
        case Rejected():
            return entry


def _outcome(entry: Slot | Relayed | Rejected) -> Outcome:
    if not isinstance(entry, Slot):
        return entry
    assert entry.outcome is not None  # a store fills every slot, or raises
    return entry.outcome


def accepted(outcomes: Iterable[Outcome]) -> Sequence[Accepted]:
    """What is for the devices, in order: what is new in the store, and out-of-band."""
    return [outcome for outcome in outcomes if isinstance(outcome, Stored | Relayed)]
