"""The plugs that are pulled, each by a function that puts it back."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeAlias

import asyncpg
from redis.asyncio import Redis

from gregor.core.buckets import BUCKETS
from gregor.state_machines.moving import SEVERAL
from gregor.testing.fleet import Fleet

Plug: TypeAlias = Callable[[Fleet, Random], Awaitable[None]]

FROZEN_SECONDS = 10.0


async def node_killed(fleet: Fleet, random: Random) -> None:
    node = random.choice(fleet.nodes)
    await node.kill()
    await asyncio.sleep(random.uniform(0, 2))
    await node.start()


async def node_stopped(fleet: Fleet, random: Random) -> None:
    """As a deploy does it."""
    node = random.choice(fleet.nodes)
    await node.stop()
    await node.start()


async def node_frozen(fleet: Fleet, random: Random) -> None:
    node = random.choice(fleet.nodes)
    node.pause()
    await asyncio.sleep(FROZEN_SECONDS)
    node.resume()


async def pubsub_killed(fleet: Fleet, random: Random) -> None:
    await fleet.pubsub.kill()
    await asyncio.sleep(random.uniform(0, 2))
    await fleet.pubsub.start()


async def pubsub_frozen(fleet: Fleet, random: Random) -> None:
    fleet.pubsub.pause()
    await asyncio.sleep(FROZEN_SECONDS)
    fleet.pubsub.resume()


async def subscriber_killed(fleet: Fleet, random: Random) -> None:
    async with Redis.from_url(fleet.pubsub.url) as redis:
        for _ in range(5):
            await redis.client_kill_filter(_type="pubsub")
            await asyncio.sleep(random.uniform(0, 0.5))


async def publications_lost(fleet: Fleet, random: Random) -> None:
    assert fleet.proxy is not None
    fleet.proxy.lose(random.uniform(0.1, 1), random)
    await asyncio.sleep(random.uniform(1, 4))
    fleet.proxy.lose(0, random)


async def postgresql_restarted(fleet: Fleet, random: Random) -> None:
    await random.choice((fleet.postgresql.stop, fleet.postgresql.kill))()
    await asyncio.sleep(random.uniform(0, 1))
    await fleet.postgresql.start()


async def connections_terminated(fleet: Fleet, random: Random) -> None:
    """Again and again, so that some of them are in the middle of a commit."""
    connection = await asyncpg.connect(fleet.postgresql.url)
    for _ in range(20):
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            "gregor",
        )
        await asyncio.sleep(random.uniform(0, 0.1))
    await connection.close()


async def nothing(fleet: Fleet, random: Random) -> None:
    """Where it is the fleet that has something to it: the clock of one node is 5 s ahead."""


# While buckets move. The last shard is unused as yet; when all is over, it holds a quarter of them.

QUARTER = BUCKETS // 4
NEARLY_ALL = QUARTER - 4 * SEVERAL  # when there are switches still to come


def moving(plug: Plug) -> Plug:
    """The same at a random moment of a move."""

    async def pull_meanwhile(fleet: Fleet, random: Random) -> None:
        buckets = random.sample(range(BUCKETS), QUARTER)
        move = asyncio.create_task(move_all(fleet, buckets))
        await some_have_moved(fleet, random.randrange(1, NEARLY_ALL), random)
        await plug(fleet, random)
        await move

    return pull_meanwhile


async def mover_killed(fleet: Fleet, random: Random) -> None:
    """Twice, and then it may finish."""
    buckets = random.sample(range(BUCKETS), QUARTER)
    for number in sorted(random.sample(range(1, NEARLY_ALL), 2)):
        mover = await start_mover(fleet, buckets)
        await some_have_moved(fleet, number, random)
        mover.kill()
        await mover.wait()
    await move_all(fleet, buckets)


async def some_have_moved(fleet: Fleet, number: int, random: Random) -> None:
    """Wait until so many are where they are to go, and then into the midst of the next switch."""
    connection = await asyncpg.connect(fleet.shards[target_of(fleet)])
    question = "SELECT count(*) FROM buckets JOIN shard ON buckets.shard = shard.name"
    while await connection.fetchval(question) < number:
        await connection.execute("SELECT pg_sleep(0.01)")
    await connection.close()
    await asyncio.sleep(random.uniform(0, 0.03))


async def move_all(fleet: Fleet, buckets: Sequence[int]) -> None:
    """Begin the move again for as long as something stops it."""
    for _ in range(20):
        if await (await start_mover(fleet, buckets)).wait() == 0:
            return
    raise AssertionError("the move has not come to its end")


async def start_mover(fleet: Fleet, buckets: Sequence[int]) -> asyncio.subprocess.Process:
    """What it says goes where what we say goes."""
    stores = [word for store in fleet.stores for word in ("--store", store)]
    chosen = [word for bucket in buckets for word in ("--bucket", str(bucket))]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "shards", "move"),
        *(*stores, *chosen, "--to", target_of(fleet)),
    )


def target_of(fleet: Fleet) -> str:
    return list(fleet.shards)[-1]


PLUGS: dict[str, Plug] = {
    "node killed": node_killed,
    "node stopped": node_stopped,
    "node frozen": node_frozen,
    "pub/sub killed": pubsub_killed,
    "pub/sub frozen": pubsub_frozen,
    "subscriber killed": subscriber_killed,
    "publications lost": publications_lost,
    "PostgreSQL restarted": postgresql_restarted,
    "connections terminated": connections_terminated,
    "clock ahead": nothing,
}

# Of a fleet over three shards.
MOVES: dict[str, Plug] = {
    "moving": moving(nothing),
    "moving, mover killed": mover_killed,
    "moving, node killed": moving(node_killed),
    "moving, pub/sub killed": moving(pubsub_killed),
    "moving, connections terminated": moving(connections_terminated),
}
ALL = PLUGS | MOVES
