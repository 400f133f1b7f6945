"""A connection to Redis, or to a server that is compatible with it.

It uses redis-py's connections and not its client: the client retries, and its PubSub reconnects on
its own, so that messages lost in between would be lost silently.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio.connection import (
    URL_QUERY_ARGUMENT_PARSERS,
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import AuthenticationError, MovedError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from gregor.pubsub.link import (
    Candidates,
    LinkLost,
    OnMessage,
    OutgoingPayload,
    Reason,
    reason_of,
)
from gregor.pubsub.server_url import Address, ServerURL, parse_server_url

PORT = 6379

TCP_CONNECT_SECONDS = 2.0
"""For one connection. A machine that is gone does not refuse it; the next attempt may find
another machine in its place."""

OPTIONS = frozenset(
    {
        *("db", "username", "password"),
        *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password"),
        *("ssl_check_hostname", "ssl_cert_reqs"),
    }
)

NewConnection: TypeAlias = Callable[[], AbstractConnection]
Locate: TypeAlias = Callable[[], Awaitable[NewConnection]]


class RedisConnections(NamedTuple):
    """How to connect to the servers of a URL."""

    connection_class: type[Connection]
    arguments: dict[str, Any]

    def to(self, address: Address) -> AbstractConnection:
        """A connection to this address, which is still to be opened."""
        host, port = address
        return self.connection_class(host=host, port=port or PORT, **self.arguments)


def redis_candidates(url: str) -> Candidates:
    """The server at redis://, rediss:// or unix://. Raises SetupError for an invalid URL."""
    parsed = parse_server_url(url, OPTIONS)
    if parsed.scheme == "unix":
        arguments = redis_connections(parsed).arguments
        path = f"/{parsed.path}"
        return lambda: [RedisLink(here(lambda: UnixDomainSocketConnection(path=path, **arguments)))]
    if len(parsed.addresses) > 1:
        raise parsed.invalid(
            f"{parsed.scheme}:// takes one address; for several use "
            f"{parsed.scheme}+sentinel:// or {parsed.scheme}+cluster://"
        )
    address = parsed.addresses[0] if parsed.addresses else Address("localhost")
    connections = redis_connections(parsed, db=database_number(parsed, parsed.path))
    return lambda: [RedisLink(here(lambda: connections.to(address)))]


def redis_connections(url: ServerURL, **arguments: Any) -> RedisConnections:
    """With the credentials and options of the URL. Raises SetupError if an option is invalid."""
    for name in url.options.keys() & OPTIONS:
        try:
            arguments[name] = URL_QUERY_ARGUMENT_PARSERS.get(name, str)(url.options[name])
        except ValueError:
            raise url.invalid(f"the value of the option `{name}` is invalid") from None
    if url.username or url.password:
        arguments |= {"username": url.username or None, "password": url.password}
    defaults = {
        "client_name": "gregor",
        "driver_info": None,
        "protocol": 2,
        "socket_timeout": None,  # a subscriber may wait arbitrarily long for the next message
        "socket_connect_timeout": TCP_CONNECT_SECONDS,
    }
    connection_class = SSLConnection if url.scheme.startswith("rediss") else Connection
    return RedisConnections(connection_class, defaults | arguments)


def database_number(url: ServerURL, text: str) -> int:
    """The number of the database that the URL names. Raises SetupError if it is not a number."""
    if text and not text.isdecimal():
        raise url.invalid(f"the database {text!r} is not a number")
    return int(text or 0)


def here(new_connection: NewConnection) -> Locate:
    """Where no server has to be looked for."""

    async def locate() -> NewConnection:
        return new_connection

    return locate


class PubSubCommands(NamedTuple):
    """The commands of ordinary or of sharded pub/sub, and the kind of its messages."""

    publish: str
    subscribe: str
    unsubscribe: str
    message: bytes


ORDINARY = PubSubCommands("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE", b"message")
SHARDED = PubSubCommands("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE", b"smessage")


class RedisLink:
    """A Link with two connections, because a subscribed connection cannot publish. `locate` finds
    the server when the link is opened."""

    def __init__(self, locate: Locate, commands: PubSubCommands = ORDINARY) -> None:
        self._locate = locate
        self._commands = commands
        self._connections: list[AbstractConnection] = []
        self._unconfirmed: set[tuple[bytes, bytes]] = set()
        self._confirmed = asyncio.Event()

    async def open(self) -> None:
        new_connection = await self._locate()
        with translating_redis_errors():
            self._connections = [new_connection(), new_connection()]
            for connection in self._connections:
                await connection.connect()

    def heartbeat_channels(self, name: str) -> Sequence[str]:
        return [name]

    async def listen(self, on_message: OnMessage) -> None:
        _, subscriber = self._connections
        while True:
            with translating_redis_errors():
                kind, channel, content = await subscriber.read_response()
            if kind == self._commands.message:
                on_message(channel.decode(), content)
            else:
                self._confirm(kind, channel)

    async def publish(self, payloads: Sequence[OutgoingPayload]) -> int:
        publisher, _ = self._connections
        await _send(publisher, [(self._commands.publish, *payload) for payload in payloads])
        for _ in payloads:
            with translating_redis_errors():
                await publisher.read_response()
        return 0

    async def subscribe(self, channels: Collection[str]) -> None:
        await self._change_subscriptions(self._commands.subscribe, channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self._change_subscriptions(self._commands.unsubscribe, channels)

    async def close(self) -> None:
        for connection in self._connections:
            await abort(connection)

    async def _change_subscriptions(self, command: str, channels: Collection[str]) -> None:
        # Redis confirms each channel separately; `listen` counts the confirmations. One command
        # for each channel, because the channels of a sharded one must be in the same slot.
        _, subscriber = self._connections
        kind = command.lower().encode()
        self._unconfirmed = {(kind, channel.encode()) for channel in channels}
        self._confirmed.clear()
        await _send(subscriber, [(command, channel) for channel in channels])
        await self._confirmed.wait()

    def _confirm(self, kind: bytes, channel: bytes) -> None:
        if (kind, channel) not in self._unconfirmed:
            # A cluster does so when it moves the slot of the channel to another member.
            raise LinkLost("the server has ended a subscription", Reason.CLOSED)
        self._unconfirmed.remove((kind, channel))
        if not self._unconfirmed:
            self._confirmed.set()


async def ask(connection: AbstractConnection, *command: str) -> Any:
    """Open a connection, and close it after one command. Returns the reply."""
    try:
        with translating_redis_errors():
            await connection.connect()
            await connection.send_command(*command, check_health=False)
            return await connection.read_response()
    finally:
        await abort(connection)


async def hello(connection: AbstractConnection) -> Mapping[str, str]:
    """What a server says of itself: its `version`, `mode` and `role`."""
    reply = await ask(connection, "HELLO")
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in reply]
    return dict(zip(texts[::2], texts[1::2], strict=True))


async def abort(connection: AbstractConnection) -> None:
    """Close a connection without waiting: a graceful close waits until pending bytes are written,
    which never happens if the server does not read."""
    if connection._writer is not None:
        connection._writer.transport.abort()
    with translating_redis_errors():
        await connection.disconnect(nowait=True)


async def _send(
    connection: AbstractConnection, commands: Sequence[tuple[str | bytes, ...]]
) -> None:
    # redis-py would reconnect on its own if it were asked to send while it is not connected.
    if not connection.is_connected:
        raise LinkLost("the connection is closed", Reason.CLOSED)
    with translating_redis_errors():
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)


@contextmanager
def translating_redis_errors() -> Iterator[None]:
    """Raise LinkLost for any error of the connection, which is unusable after it. A ValueError or
    TypeError means an invalid option in the URL."""
    try:
        yield
    except (RedisError, OSError, ValueError, TypeError) as error:
        raise LinkLost(_text(error), _reason(error)) from error


def _text(error: BaseException) -> str:
    match error:
        case MovedError():
            return "the cluster has moved a slot to another server"
        case _:
            return str(error) or type(error).__name__


def _reason(error: BaseException) -> Reason:
    match error:
        case AuthenticationError() | NoPermissionError():
            return Reason.AUTHENTICATION
        case RedisConnectionError() if reason_of(error) is Reason.OTHER:
            return Reason.CLOSED
        case _:
            return reason_of(error)
