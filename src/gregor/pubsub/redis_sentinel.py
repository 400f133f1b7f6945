"""A connection to the master that Redis Sentinel names.

redis-py's client of Sentinel asks one Sentinel after the other, so that a frozen one delays the
answer. Here each Sentinel is a candidate: the master of the first one that leads to a master is
used. Where Sentinel has not yet noticed that a master is gone, the next attempt asks again.
"""

from functools import partial
from random import shuffle

from redis.asyncio.connection import AbstractConnection

from gregor.pubsub.link import Candidates, Link, LinkLost
from gregor.pubsub.redis import (
    OPTIONS,
    NewConnection,
    RedisConnections,
    RedisLink,
    ask,
    database_number,
    hello,
    redis_connections,
)
from gregor.pubsub.server_url import Address, ServerURL, parse_server_url, with_default_port

SENTINEL_PORT = 26379
SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}


def sentinel_candidates(url: str) -> Candidates:
    """The master of redis+sentinel:// or rediss+sentinel://, by way of each Sentinel. Raises
    SetupError for an invalid URL."""
    parsed = parse_server_url(url, OPTIONS | SENTINEL_OPTIONS.keys())
    master, _, database = parsed.path.partition("/")
    if not (master and parsed.addresses):
        raise parsed.invalid(
            "name the Sentinels and the master: redis+sentinel://HOST,HOST/MASTER, "
            "and percent-encode each / in a password"
        )
    servers = redis_connections(parsed, db=database_number(parsed, database))
    sentinels = _connections_to_sentinels(parsed, servers)
    addresses = [with_default_port(address, SENTINEL_PORT) for address in parsed.addresses]

    def candidates() -> list[Link]:
        shuffle(addresses)
        return [
            RedisLink(partial(_locate_master, sentinels.to(address), servers, master))
            for address in addresses
        ]

    return candidates


def _connections_to_sentinels(url: ServerURL, servers: RedisConnections) -> RedisConnections:
    """As to the servers, but with their own credentials: usually none."""
    credentials = {
        argument: url.options.get(option) for option, argument in SENTINEL_OPTIONS.items()
    }
    return servers._replace(arguments={**servers.arguments, "db": 0, **credentials})


async def _locate_master(
    sentinel: AbstractConnection, servers: RedisConnections, master: str
) -> NewConnection:
    """The master that this Sentinel names, if it is one: a Sentinel that was cut off from the
    others may name a server that is a replica by now, on which nobody else publishes."""
    found = await ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", master)
    if found is None:
        raise LinkLost(f"a Sentinel knows no master {master!r}")
    host, port = found
    address = Address(host.decode(), int(port))
    role = (await hello(servers.to(address)))["role"]
    if role != "master":
        raise LinkLost(f"{address.host}:{address.port} is a {role}, and no master")
    return partial(servers.to, address)
