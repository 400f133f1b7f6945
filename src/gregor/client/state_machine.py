"""Adapts a Client to the StateMachine interface, for one user on one device."""

from collections.abc import Sequence

from gregor.client.client import Client
from gregor.core.instant import TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import State
from gregor.errors import Forbidden, HistoryForgotten


class DeviceStateMachine:
    """A StateMachine whose state is the replica of a Client.

    A consumed in-band message is durable in the outbox, and is returned without a ctime: a node
    sets that when it stores the message. Raises Forbidden for another user or device, whose state
    the replica does not have. `in_band_messages_since` always raises HistoryForgotten, because a
    replica keeps the facts and not the messages.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def consume_message(self, message: Message) -> Message:
        self._require_own(message.uid, None)
        if isinstance(message, OutOfBandMessage):
            await self._client.out_of_band(message.system, message.body)
        else:
            await self._client.write(message)
        return message

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        self._require_own(uid, device_id)
        return self._client.state(at)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        self._require_own(uid, device_id)
        raise HistoryForgotten("a device keeps the resulting state, not the messages")

    def _require_own(self, uid: UID, device_id: DeviceID | None) -> None:
        if uid != self._client.uid:
            raise Forbidden(f"this device belongs to the user {self._client.uid!r}", field="uid")
        if device_id not in (None, self._client.device_id):
            raise Forbidden(f"this is the device {self._client.device_id!r}", field="device_id")
