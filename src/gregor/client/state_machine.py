"""A client as the StateMachine that it is: one user's, on one device."""

from collections.abc import Sequence

from gregor.client.client import Client
from gregor.core.instant import TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import State
from gregor.errors import Forbidden, HistoryForgotten


class DeviceStateMachine:
    """What a program that is written for any StateMachine sees of a Client.

    An in-band message that it consumes is durable in the outbox, and returned as it was written:
    it gets its ctime when a node takes it. Other users and other devices are Forbidden, for this
    device does not know them. It has no messages to show, only what they have made.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def consume_message(self, message: Message) -> Message:
        self._require(message.uid, None)
        if isinstance(message, OutOfBandMessage):
            await self._client.out_of_band(message.system, message.body)
        else:
            await self._client.write(message)
        return message

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        self._require(uid, device_id)
        return self._client.state(at)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        self._require(uid, device_id)
        raise HistoryForgotten("a device keeps what messages have made, not the messages")

    def _require(self, uid: UID, device_id: DeviceID | None) -> None:
        if uid != self._client.uid:
            raise Forbidden(f"this device is {self._client.uid!r}'s", field="uid")
        if device_id not in (None, self._client.device_id):
            raise Forbidden(f"this device is {self._client.device_id!r}", field="device_id")
