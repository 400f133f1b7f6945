"""A connection to Redis, or to what speaks its protocol.

It stands on redis-py's connections and not on its client: the client retries, and its PubSub
connects anew by itself, so that what was missed in between is missed without a word.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from gregor.pubsub.link import LinkLost, Publication, Take


class RedisLink:
    """Two connections, for one that is subscribed can do nothing else. A Link."""

    def __init__(self, url: str) -> None:
        with _losing():
            # No timeouts of theirs: a subscriber waits as long as nothing is published.
            pool = ConnectionPool.from_url(
                url, client_name="gregor", driver_info=None, protocol=2, socket_timeout=None
            )
            self._publisher: AbstractConnection = pool.make_connection()
            self._subscriber: AbstractConnection = pool.make_connection()
        self._unconfirmed = 0
        self._confirmed = asyncio.Event()

    async def open(self) -> None:
        for connection in (self._publisher, self._subscriber):
            with _losing():
                await connection.connect()

    async def listen(self, take: Take) -> None:
        while True:
            with _losing():
                kind, channel, content = await self._subscriber.read_response()
            if kind == b"message":
                take(channel.decode(), content)
            else:
                self._confirm()

    async def publish(self, publications: Sequence[Publication]) -> int:
        await _send(self._publisher, [("PUBLISH", *publication) for publication in publications])
        for _ in publications:
            with _losing():
                await self._publisher.read_response()
        return 0

    async def subscribe(self, channels: Collection[str]) -> None:
        await self._change("SUBSCRIBE", channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        await self._change("UNSUBSCRIBE", channels)

    async def close(self) -> None:
        for connection in (self._publisher, self._subscriber):
            # Not politely: a server that reads nothing would keep what waits to be written, and
            # us with it.
            if connection._writer is not None:
                connection._writer.transport.abort()
            with _losing():
                await connection.disconnect(nowait=True)

    async def _change(self, command: str, channels: Collection[str]) -> None:
        # There is one confirmation for each channel, and whoever listens counts them.
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
    # Asked to send when it is not connected, it would connect anew.
    if not connection.is_connected:
        raise LinkLost("the connection is closed")
    with _losing():
        packed = connection.pack_commands(commands)
        await connection.send_packed_command(packed, check_health=False)


@contextmanager
def _losing() -> Iterator[None]:
    """Whatever goes wrong with a connection, it is not to be used again. The ValueErrors and
    TypeErrors are about options in the URL."""
    try:
        yield
    except (RedisError, OSError, ValueError, TypeError) as error:
        raise LinkLost(str(error) or type(error).__name__) from error
