"""A connection to NATS.

It stands on nats-py, without its reconnecting: that is done above, in the same way for all kinds
of servers. All subjects begin with `gregor.`, so that a NATS user may be allowed `gregor.>` and
nothing else.
"""

import asyncio
import ssl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import Error

from gregor.pubsub.link import LinkLost, Publication, Take

PREFIX = "gregor.channel."
A_DAY = 86_400
CLOSE_SECONDS = 0.5


def subject_of(channel: str) -> str:
    """A channel is any text; in a subject, spaces, dots, stars and signs have meanings."""
    return PREFIX + quote(channel, safe=":").replace(".", "%2E")


def channel_of(subject: str) -> str:
    return unquote(subject.removeprefix(PREFIX))


class NATSLink:
    """One connection, on which one also hears oneself. A Link."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tls = urlsplit(url).scheme == "tls"
        self._client = _Client(self._received, must_encrypt=self._tls)
        self._take: Take = _ignore
        self._subscriptions: dict[str, Subscription] = {}
        self._echo = f"gregor.echo.{uuid4().hex}"
        self._numbers = count()
        self._echoes: dict[bytes, asyncio.Event] = {}
        self._error: Exception | None = None
        self._opening = True
        self._over = asyncio.Event()

    async def open(self) -> None:
        with _losing():
            await self._client.connect(
                self._url,
                name="gregor",
                allow_reconnect=False,
                max_reconnect_attempts=-1,
                connect_timeout=A_DAY,  # whoever opens it says how long that may take
                error_cb=self._complain,
                closed_cb=self._close,
                tls=ssl.create_default_context() if self._tls else None,
                # What waits to be sent is bounded by those who wait for it to be taken in; with
                # limits of its own, nats-py would wait in places that cannot be cancelled.
                pending_size=0,
                flusher_queue_size=0,
            )
            await self._client.subscribe(self._echo)
        self._opening = False

    async def listen(self, take: Take) -> None:
        self._take = take
        await self._over.wait()
        raise LinkLost(str(self._error or "the server has closed the connection"))

    async def publish(self, publications: Sequence[Publication]) -> int:
        fitting = [p for p in publications if len(p.payload) <= self._client.max_payload]
        with _losing():
            for channel, payload in fitting:
                await self._client.publish(subject_of(channel), payload)
        await self._taken_in()
        return len(publications) - len(fitting)

    async def subscribe(self, channels: Collection[str]) -> None:
        with _losing():
            for channel in channels:
                subscription = await self._client.subscribe(subject_of(channel))
                self._subscriptions[channel] = subscription
        await self._taken_in()

    async def unsubscribe(self, channels: Collection[str]) -> None:
        with _losing():
            for channel in channels:
                await self._subscriptions.pop(channel).unsubscribe()
        await self._taken_in()

    async def close(self) -> None:
        # Not politely: a server that reads nothing would keep what waits to be written, and us
        # with it.
        match self._client._transport:
            case TcpTransport(_io_writer=asyncio.StreamWriter() as writer):
                writer.transport.abort()
                # After a handshake that has failed, it would wait for ever all the same.
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._client.close()

    async def _taken_in(self) -> None:
        """Returns when the server has done all that was asked so far: it has come to our own echo
        behind it. (nats-py's flush does not tell; its PING overtakes what waits to be written.)"""
        number = b"%d" % next(self._numbers)
        echoed = self._echoes[number] = asyncio.Event()
        with _losing():
            await self._client.publish(self._echo, number)
        await echoed.wait()

    def _received(self, subject: str, payload: bytes) -> None:
        if subject == self._echo:
            self._echoes.pop(payload, asyncio.Event()).set()
        else:
            self._take(channel_of(subject), payload)

    async def _complain(self, error: Exception) -> None:
        self._error = error
        self._over.set()
        if self._opening:
            raise error  # which otherwise it would try again, for ever

    async def _close(self) -> None:
        self._over.set()


class _Client(Client):
    """nats-py gives each subscription a queue and a task, which are many for ten thousand users,
    and full ones lose messages: this one hands over what arrives as it is read. And it would go on
    without TLS, password and all, if the server did not ask for it."""

    def __init__(self, take: Take, *, must_encrypt: bool) -> None:
        super().__init__()
        self._hand_over = take
        self._must_encrypt = must_encrypt

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._must_encrypt and not info.get("tls_required"):
            raise Error("the server does not offer TLS")
        await super()._process_info(info, initial_connection)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        self._hand_over(bytes(subject).decode(), bytes(data))


def _ignore(channel: str, payload: bytes) -> None:
    """Nobody listens yet."""


@contextmanager
def _losing() -> Iterator[None]:
    """Whatever goes wrong with a connection, it is not to be used again. The ValueErrors are about
    the URL."""
    try:
        yield
    except (Error, OSError, ValueError) as error:
        raise LinkLost(str(error) or type(error).__name__) from error
