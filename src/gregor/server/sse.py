"""The frames that a device would receive, as server-sent events: read-only and one way."""

import asyncio

from starlette.types import Receive, Scope, Send

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID
from gregor.protocol import effects
from gregor.protocol.frames import Frame, Messages, SyncPage, encode
from gregor.server.delivery import Delivery
from gregor.server.service import Service

KEEP_ALIVE_SECONDS = 15.0


class EventStream:
    """An ASGI response that streams a user's frames as events. The event id is the cursor from
    which a client resumes."""

    def __init__(
        self,
        service: Service,
        uid: UID,
        device_id: DeviceID,
        cursor: Time,
        expires_at: Time | None,
    ) -> None:
        self._service = service
        self._uid = uid
        self._device_id = device_id
        self._cursor = cursor
        self._expires_at = expires_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-store"),
                    (b"x-accel-buffering", b"no"),
                ],
            }
        )
        delivery = Delivery(self._service.node, self._service.metrics)
        with self._service.serving(delivery), delivery.guarded():
            delivery.expire(self._expires_at)
            async with (
                self._service.node.attach(self._uid, delivery),
                asyncio.TaskGroup() as tasks,
            ):
                delivery.session.resume(self._uid, self._device_id, self._cursor)
                writer = tasks.create_task(self._write(delivery, send))
                keep_alive = tasks.create_task(_keep_alive(send))
                disconnect = tasks.create_task(_wait_for_disconnect(receive))
                await asyncio.wait([writer, disconnect], return_when=asyncio.FIRST_COMPLETED)
                for task in (writer, keep_alive, disconnect):
                    task.cancel()

    async def _write(self, delivery: Delivery, send: Send) -> None:
        async def write(effect: effects.Send | effects.Close) -> None:
            match effect:
                case effects.Close():
                    await send({"type": "http.response.body", "body": b""})
                case effects.Send(frame):
                    await send(_body(as_event(frame)))

        await delivery.write_all(write)


def as_event(frame: Frame) -> str:
    """A frame as an event. An event has an id if a client can resume from it: not a page of a
    snapshot that is followed by more pages."""
    lines = [f"event: {frame.__struct_config__.tag}", f"data: {encode(frame)}"]
    match frame:
        case SyncPage(mode="snapshot", more=True):
            pass
        case SyncPage(cursor=cursor) | Messages(cursor=cursor):
            lines.insert(0, f"id: {cursor}")
    return "\n".join(lines) + "\n\n"


async def _keep_alive(send: Send) -> None:
    """Send comments, because proxies and clients close connections that are silent for long."""
    while True:
        await asyncio.sleep(KEEP_ALIVE_SECONDS)
        await send(_body(": keep-alive\n\n"))


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(text: str) -> dict[str, object]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}
