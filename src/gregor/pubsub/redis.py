"""A connection to Redis, or to a server that is compatible with it.

It uses redis-py's connections and not its client: the client retries, and its PubSub reconnects on
its own, so that messages lost in between would be lost silently.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from gregor.pubsub.link import LinkLost, OnMessage, OutgoingPayload


class RedisLink:
    """A Link with two connections, because a subscribed connection cannot publish."""

    def __init__(self, url: str) -> None:
        with _translating_errors():
            # No socket time-out: a subscriber may wait arbitrarily long for the next message.
            pool = ConnectionPool.from_url(
                url, client_name="gregor", driver_info=None, protocol=2, socket_timeout=None
            )
            self._publisher: AbstractConnection = pool.make_connection()
            self._subscriber: AbstractConnection = pool.make_connection()
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()

    async def open(self) -> None:
        for connection in (self._publisher, self._subscriber):
            with _translating_errors():
                await connection.connect()

    async def listen(self, on_message: OnMessage) -> None:
        while True:
            with _translating_errors():
                kind, channel, content = await self._subscriber.read_response()
            if kind == b"message":
                on_message(channel.decode(), content)
            else:
                self._confirm()

    async def publish(self, payloads: Sequence[OutgoingPayload]) -> int:
        await _send(self._publisher, [("PUBLISH", *payload) for payload in payloads])
        for _ in payloads:
            with _translating_errors():
                await self._publisher.read_response()
        return 0

    async def subscribe(self, channels: Collection[str]) -> None:
        await self._change_subscriptions("SUBSCRIBE", channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self._change_subscriptions("UNSUBSCRIBE", channels)

    async def close(self) -> None:
        for connection in (self._publisher, self._subscriber):
            # Abort: a graceful close waits until pending bytes are written, which never happens
            # if the server does not read.
            if connection._writer is not None:
                connection._writer.transport.abort()
            with _translating_errors():
                await connection.disconnect(nowait=True)

    async def _change_subscriptions(self, command: str, channels: Collection[str]) -> None:
        # Redis confirms each channel separately; `listen` counts the confirmations.
        self._unconfirmed = len(channels)
        self._confirmed.clear()
        await _send(self._subscriber, [(command, *channels)])
        await self._confirmed.wait()

    def _confirm(self) -> None:
        self._unconfirmed -= 1
        if not self._unconfirmed:
            self._confirmed.set()


async def _send(
    connection: AbstractConnection, commands: Sequence[tuple[str | bytes, ...]]
) -> None:
    # redis-py would reconnect on its own if it were asked to send while it is not connected.
    if not connection.is_connected:
        raise LinkLost("the connection is closed")
    with _translating_errors():
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Raise LinkLost for any error of the connection, which is unusable after it. A ValueError or
    TypeError means an invalid option in the URL."""
    try:
        yield
    except (RedisError, OSError, ValueError, TypeError) as error:
        raise LinkLost(str(error) or type(error).__name__) from error
