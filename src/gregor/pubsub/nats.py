"""A connection to NATS.

It uses nats-py with its reconnect disabled: RemotePubSub reconnects, in the same way for all kinds
of servers. All subjects begin with `gregor.`, so that a NATS user needs permission for `gregor.>`
only.
"""

import asyncio
import re
import ssl
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from random import shuffle
from typing import Any
from urllib.parse import quote, unquote
from uuid import uuid4

from nats.aio.client import Client, RawCredentials
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import AuthorizationError, ConnectionClosedError, Error, StaleConnectionError

from gregor.extras import required_extra
from gregor.pubsub.link import (
    Candidates,
    Link,
    LinkLost,
    OnMessage,
    OutgoingPayload,
    Reason,
    reason_of,
)
from gregor.pubsub.server_url import Address, ServerURL, parse_server_url, with_default_port

SUBJECT_PREFIX = "gregor.channel."
CONNECT_TIMEOUT_SECONDS = 86_400  # of nats-py; the caller of `open` has a shorter time-out
CLOSE_TIMEOUT_SECONDS = 0.5
PORT = 4222

CREDENTIALS_OPTIONS = frozenset({"creds", "nkey"})
TLS_OPTIONS = frozenset({"tls_ca", "tls_cert", "tls_key"})
JWT_MARKER = "-----BEGIN NATS USER JWT-----"
USER_SEED = re.compile(r"\bSU[A-Z2-7]{56}\b")


def nats_candidates(url: str) -> Candidates:
    """The servers at nats://, or tls:// for TLS, in a random order. Raises SetupError for an
    invalid URL."""
    tls = url.startswith("tls:")
    parsed = parse_server_url(url, CREDENTIALS_OPTIONS | (TLS_OPTIONS if tls else set()))
    if parsed.path or not parsed.addresses:
        raise parsed.invalid("name servers, and nothing else: nats://HOST:PORT,HOST:PORT")
    if parsed.options.keys() >= CREDENTIALS_OPTIONS:
        raise parsed.invalid("give one of the options `creds` and `nkey`")
    if parsed.options.keys() & CREDENTIALS_OPTIONS:
        with required_extra("nats"):
            import_module("nkeys")  # with which nats-py signs
    addresses = [with_default_port(address, PORT) for address in parsed.addresses]

    def candidates() -> list[Link]:
        shuffle(addresses)
        return [NATSLink(parsed, address) for address in addresses]

    return candidates


def subject_of(channel: str) -> str:
    """The subject of a channel. A channel is any text, so characters with a meaning in subjects
    (spaces, dots, wildcards) are percent-encoded."""
    return SUBJECT_PREFIX + quote(channel, safe=":").replace(".", "%2E")


def channel_of(subject: str) -> str:
    return unquote(subject.removeprefix(SUBJECT_PREFIX))


class NATSLink:
    """A Link with one connection, which also receives the messages that it publishes. The files
    that the URL names are read each time, because they may be replaced."""

    def __init__(self, url: ServerURL, address: Address) -> None:
        self._url = url
        self._address = address
        self._client = _Client(self._on_received, must_encrypt=url.scheme == "tls")
        self._on_message: OnMessage = _ignore
        self._subscriptions: dict[str, Subscription] = {}
        self._echo_subject = f"gregor.echo.{uuid4().hex}"
        self._echo_numbers = count()
        self._echoes: dict[bytes, asyncio.Event] = {}
        self._error: Exception | None = None
        self._opening = True
        self._closed = asyncio.Event()

    async def open(self) -> None:
        host, port = self._address
        with _translating_errors():
            await self._client.connect(
                f"{self._url.scheme}://{f'[{host}]' if ':' in host else host}:{port}",
                name="gregor",
                allow_reconnect=False,
                max_reconnect_attempts=-1,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                error_cb=self._on_error,
                closed_cb=self._on_closed,
                tls=_tls_context(self._url) if self._url.scheme == "tls" else None,
                # Each publish waits until the server has accepted its payloads, which limits
                # the pending bytes. With limits of its own, nats-py would wait in places that
                # cannot be cancelled.
                pending_size=0,
                flusher_queue_size=0,
                **_credentials(self._url),
            )
            await self._client.subscribe(self._echo_subject)
        self._opening = False

    def heartbeat_channels(self, name: str) -> Sequence[str]:
        return [name]

    async def listen(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        await self._closed.wait()
        if self._error is None:
            raise LinkLost("the server has closed the connection", Reason.CLOSED)
        raise LinkLost(str(self._error), _reason(self._error))

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
                if self._client.is_connecting:
                    return  # after a failed handshake, nats-py's close would wait forever
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


def _credentials(url: ServerURL) -> dict[str, Any]:
    """How to authenticate, as arguments of nats-py. Raises ValueError if a file is invalid."""
    for option in url.options.keys() & CREDENTIALS_OPTIONS:
        file = url.options[option]
        text = Path(file).read_text()
        seed = USER_SEED.search(text)
        # In a file without a JWT, nats-py would search for it forever.
        if seed is None or (option == "creds" and JWT_MARKER not in text):
            raise ValueError(f"{file} has no credentials of a NATS user")
        if option == "creds":
            return {"user_credentials": RawCredentials(text)}
        return {"nkeys_seed_str": seed[0]}
    if url.password:
        return {"user": url.username, "password": url.password}
    return {"token": url.username} if url.username else {}


def _tls_context(url: ServerURL) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=url.options.get("tls_ca"))
    if "tls_cert" in url.options:
        context.load_cert_chain(url.options["tls_cert"], url.options.get("tls_key"))
    return context


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise LinkLost for any error of the connection, which is unusable after it. A ValueError
    means an invalid file of credentials."""
    try:
        yield
    except (Error, OSError, ValueError) as error:
        raise LinkLost(str(error) or type(error).__name__, _reason(error)) from error


def _reason(error: Exception) -> Reason:
    text = str(error).lower()
    match error:
        case AuthorizationError():
            return Reason.AUTHENTICATION
        case Error() if "authorization" in text or "permissions violation" in text:
            return Reason.AUTHENTICATION
        case StaleConnectionError() | ConnectionClosedError():
            return Reason.CLOSED
        case _:
            return reason_of(error)
