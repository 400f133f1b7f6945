"""The frames that a device would receive, as server-sent events: read-only and one way.

They are for browsers, whose EventSource gives up for good after any answer but 200, comes back
after the last `retry:` that it got, and then sends the id of the last event that had one.
"""

import asyncio
import random
import re
from collections.abc import Callable

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.core.instant import MAX_TIME, Time
from gregor.errors import Action, Erased, GregorError, InvalidMessage
from gregor.node.channel import NO_SOCKET, ChannelClosed
from gregor.node.conversation import Resumption
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import (
    Error,
    Frame,
    GoAway,
    Messages,
    SyncPage,
    UserErased,
    Welcome,
)
from gregor.protocol.json_line import json_line
from gregor.server.problems import problem
from gregor.server.service import Service

KEEP_ALIVE_SECONDS = 15.0
RECONNECT_MS = 4_000  # a browser comes back after half of this, up to all of it
# A node that stops cannot refuse: a load balancer would try another one, but a browser would give
# up. So the browser tries again until the balancer sends it elsewhere.
TRY_ANOTHER_AFTER_MS = 100
MEDIA_TYPE = "text/event-stream"
HEADERS = {"x-accel-buffering": "no"}


def cursor_to_resume_from(headers: Headers, parameters: QueryParams) -> Time:
    """The cursor of the last event that the client has seen; of an id that is no cursor, 0. Raises
    InvalidMessage if the parameter `cursor` is none."""
    given = parameters.get("cursor", "0")
    if not is_cursor(given):
        raise InvalidMessage("the cursor must be a ctime, which is an integer", field="cursor")
    last = headers.get("last-event-id")
    if last is None:
        return int(given)
    return int(last) if is_cursor(last) else 0


def is_cursor(text: str) -> bool:
    """Whether a text is a ctime, which is a number."""
    return re.fullmatch("[0-9]{1,16}", text) is not None and int(text) <= MAX_TIME


def only_event(frame: Frame) -> Response:
    """A stream of one event, after which the client connects again."""
    return Response(as_event(Send(frame)), headers=HEADERS, media_type=MEDIA_TYPE)


def refusal(error: GregorError) -> Response:
    """The answer to a request that fails: an event if the client is to try again, as it would not
    after another status than 200, or if the user was erased."""
    if isinstance(error, Erased):
        return only_event(UserErased(error.epoch))
    return only_event(Error.of(error)) if error.action is Action.RETRY else problem(error)


class EventStream:
    """An ASGI response that streams a user's frames as events. The event id is the cursor from
    which a client resumes."""

    def __init__(self, service: Service, resumption: Resumption) -> None:
        self._service = service
        self._resumption = resumption

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        headers = {"content-type": f"{MEDIA_TYPE}; charset=utf-8", **HEADERS}
        if scope["method"] == "HEAD":
            await Response(headers={**headers, "connection": "close"})(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": Headers(headers).raw})
        await self._service.serve(EventStreamChannel(receive, send), self._resumption)


class EventStreamChannel:
    """A response of events as a Channel. No frame is ever read from it."""

    socket = NO_SOCKET

    def __init__(self, receive: Receive, send: ASGISend) -> None:
        self._receive = receive
        self._send = send

    async def read(self) -> str | None:
        """Wait for the end of the connection. Meanwhile, send comments, because proxies and clients
        close connections that are silent for long."""
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._disconnected()
            except TimeoutError:
                await self._write_text(": keep-alive\n\n")
            else:
                raise ChannelClosed

    async def write(self, effect: Send | Close) -> None:
        match effect:
            case Send() as send:
                await self._write_text(as_event(send))
            case Close():
                await self._send({"type": "http.response.body", "body": b""})

    async def _write_text(self, text: str) -> None:
        try:
            event = {"type": "http.response.body", "body": text.encode(), "more_body": True}
            await self._send(event)
        except OSError as error:
            raise ChannelClosed from error

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _reconnect_ms(frame: Frame) -> int:
    """Within what time to come back; not before what an error says."""
    told = frame.retry_after_ms if isinstance(frame, Error) else None
    return max(RECONNECT_MS, 2 * (told or 0))


def as_event(send: Send, jitter: Callable[[], float] = random.random) -> str:
    """A frame as an event. An event has an id if a client can resume from it: not a page of a
    snapshot that is followed by more pages. The first and the last event of a stream say when to
    come back, each client at another moment."""
    lines = [f"event: {send.frame.__struct_config__.tag}", f"data: {json_line(send.text)}"]
    match send.frame:
        case SyncPage(mode="snapshot", more=True):
            pass
        case SyncPage(cursor=cursor) | Messages(cursor=cursor):
            lines.insert(0, f"id: {cursor}")
        case Welcome() | Error() | UserErased():
            lines.insert(0, f"retry: {round(_reconnect_ms(send.frame) * (0.5 + jitter() / 2))}")
        case GoAway(within_ms):
            # Not at once: a browser repeats this until it gets an answer.
            lines.insert(0, f"retry: {round(within_ms * (0.5 + jitter() / 2))}")
    return "\n".join(lines) + "\n\n"
