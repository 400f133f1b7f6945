"""A connection to NATS.

It uses nats-py with its reconnect disabled: RemotePubSub reconnects, in the same way for all kinds
of servers. All subjects begin with `gregor.`, so that a NATS user needs permission for `gregor.>`
only.
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

from gregor.pubsub.link import LinkLost, OnMessage, OutgoingPayload

SUBJECT_PREFIX = "gregor.channel."
CONNECT_TIMEOUT_SECONDS = 86_400  # of nats-py; the caller of `open` has a shorter time-out
CLOSE_TIMEOUT_SECONDS = 0.5


def subject_of(channel: str) -> str:
    """The subject of a channel. A channel is any text, so characters with a meaning in subjects
    (spaces, dots, wildcards) are percent-encoded."""
    return SUBJECT_PREFIX + quote(channel, safe=":").replace(".", "%2E")


def channel_of(subject: str) -> str:
    return unquote(subject.removeprefix(SUBJECT_PREFIX))


class NATSLink:
    """A Link with one connection, which also receives the messages that it publishes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tls = urlsplit(url).scheme == "tls"
        self._client = _Client(self._on_received, must_encrypt=self._tls)
        self._on_message: OnMessage = _ignore
        self._subscriptions: dict[str, Subscription] = {}
        self._echo_subject = f"gregor.echo.{uuid4().hex}"
        self._echo_numbers = count()
        self._echoes: dict[bytes, asyncio.Event] = {}
        self._error: Exception | None = None
        self._opening = True
        self._closed = asyncio.Event()

    async def open(self) -> None:
        with _translating_errors():
            await self._client.connect(
                self._url,
                name="gregor",
                allow_reconnect=False,
                max_reconnect_attempts=-1,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
                tls=ssl.create_default_context() if self._tls else None,
                # Each publish waits until the server has accepted its payloads, which limits
                # the pending bytes. With limits of its own, nats-py would wait in places that
                # cannot be cancelled.
                pending_size=0,
                flusher_queue_size=0,
            )
            await self._client.subscribe(self._echo_subject)
        self._opening = False

    async def listen(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        await self._closed.wait()
        raise LinkLost(str(self._error or "the server has closed the connection"))

    async def publish(self, payloads: Sequence[OutgoingPayload]) -> int:
        accepted = [p for p in payloads if len(p.payload) <= self._client.max_payload]
        with _translating_errors():
            for channel, payload in accepted:
                await self._client.publish(subject_of(channel), payload)
        await self._flush()
        return len(payloads) - len(accepted)

    async def subscribe(self, channels: Collection[str]) -> None:
        with _translating_errors():
            for channel in channels:
                subscription = await self._client.subscribe(subject_of(channel))
                self._subscriptions[channel] = subscription
        await self._flush()

    async def unsubscribe(self, channels: Collection[str]) -> None:
        with _translating_errors():
            for channel in channels:
                await self._subscriptions.pop(channel).unsubscribe()
        await self._flush()

    async def close(self) -> None:
        # Abort: a graceful close waits until pending bytes are written, which never happens if
        # the server does not read.
        match self._client._transport:
            case TcpTransport(_io_writer=asyncio.StreamWriter() as writer):
                writer.transport.abort()
                # After a failed handshake, nats-py's close would still wait forever.
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
                        await self._client.close()

    async def _flush(self) -> None:
        """Wait until the server has processed all earlier commands: publish an echo message and
        wait until it comes back. (nats-py's own flush does not prove that, because its PING
        overtakes pending writes.)"""
        number = b"%d" % next(self._echo_numbers)
        echoed = self._echoes[number] = asyncio.Event()
        with _translating_errors():
            await self._client.publish(self._echo_subject, number)
        await echoed.wait()

    def _on_received(self, subject: str, payload: bytes) -> None:
        if subject == self._echo_subject:
            self._echoes.pop(payload, asyncio.Event()).set()
        else:
            self._on_message(channel_of(subject), payload)

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        self._closed.set()
        if self._opening:
            raise error  # otherwise nats-py would try to connect forever

    async def _on_closed(self) -> None:
        self._closed.set()


class _Client(Client):
    """A nats-py client that passes each message directly to a callback, and that can require TLS.

    nats-py gives each subscription a queue and a task: too many for ten thousand users, and a full
    queue loses messages. And if the server does not ask for TLS, nats-py continues without it and
    sends the password in clear text."""

    def __init__(self, on_message: OnMessage, *, must_encrypt: bool) -> None:
        super().__init__()
        self._on_message = on_message
        self._must_encrypt = must_encrypt

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._must_encrypt and not info.get("tls_required"):
            raise Error("the server does not offer TLS")
        await super()._process_info(info, initial_connection)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        self._on_message(bytes(subject).decode(), bytes(data))


def _ignore(channel: str, payload: bytes) -> None:
    """Discard messages that arrive before `listen` is called."""


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise LinkLost for any error of the connection, which is unusable after it. A ValueError
    means an invalid URL."""
    try:
        yield
    except (Error, OSError, ValueError) as error:
        raise LinkLost(str(error) or type(error).__name__) from error
