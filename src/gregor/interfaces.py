"""The two interfaces of the system, as the seed has them, and what refines them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import State, Sync
from gregor.errors import GregorError


@runtime_checkable
class MessageConsumer(Protocol):
    """Whatever consumes messages: half of the state machine protocol."""

    async def consume_message(self, message: Message) -> Message:
        """Take a message, and return it as everyone will see it.

        Twice-safe: a message that is consumed again changes nothing, and the one that was stored
        is returned. In-band messages change state; out-of-band ones only pass by. When it
        returns, the effect is as durable as this consumer ever makes it; when it raises
        Unavailable, the effect may or may not have happened, and the message may be sent again.
        """
        ...


class BatchConsumer(MessageConsumer):
    """A MessageConsumer that takes several messages for less than one at a time."""

    async def consume_message(self, message: Message) -> Message:
        await self.consume_batch([message])
        return message

    @abstractmethod
    async def consume_batch(self, messages: Sequence[Message]) -> None:
        """Take messages, each user's in order, as `consume_message` takes one after another."""


@runtime_checkable
class StateMachine(MessageConsumer, Protocol):
    """Consumes messages, and remembers what they make of each user's state."""

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        """The state of the user on the device (None: on all devices together) at a time.

        Without a time: now, when every known dismissal counts. An unknown user has an empty
        state. A past state is exact, whatever has happened since.
        """
        ...

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        """What brings a replica on the device that knows everything before `since` to the
        present: the messages from then on, that instant included, in order, each reduced to what
        still matters. For every instant, state(known before) + these = state(now)."""
        ...


class Stored(NamedTuple):
    """The message is durable, and everyone will see it as it is here."""

    message: InBandMessage


class Duplicate(NamedTuple):
    """The message was known already, as it is here. Nothing changed; it is a success."""

    message: InBandMessage


class Rejected(NamedTuple):
    """The message changed nothing, and will not if it is sent again as it is."""

    message: Message
    error: GregorError


class Passed(NamedTuple):
    """The message was out-of-band, and is on its way to the devices that are connected now."""

    message: OutOfBandMessage


Outcome: TypeAlias = Stored | Duplicate | Rejected | Passed


@runtime_checkable
class StateMachineOfRecord(StateMachine, Protocol):
    """The state machine that gives messages their ctime, and that everyone else follows.

    For one user, ctime is unique and strictly increasing in the order of commits, whatever the
    clocks say; `prev` of each message is the ctime of the one before.
    """

    async def consume_message(self, message: Message) -> Message:
        if isinstance(message, OutOfBandMessage):
            return message
        (outcome,) = await self.consume_messages([message])
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome.message

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> Sequence[Outcome]:
        """Store messages, in order, and say of each what became of it.

        All that is Stored is durable when this returns. A message that already has a ctime is a
        replay and keeps it. One bad message rejects itself, not its neighbours. Raises
        Unavailable if the store cannot be reached, and then any of them may have been stored.
        """
        ...

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        """What brings a replica that knows everything up to `cursor` to the present, with the
        hash of the result, all read at one moment. From 0, or from a cursor that lies ahead of
        the user's clock, it is a snapshot; otherwise whichever is smaller."""
        ...

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        """The clocks of these users: the ctime of the last message of each, 0 if there is none.
        Those whom a part of the store holds that does not answer now are left out."""
        ...

    async def troubles(self) -> Sequence[str]:
        """What keeps it from its work, in words for whoever is on call; nothing if all is well."""
        ...
