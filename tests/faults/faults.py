"""The faults that are injected into a fleet. Each function also ends its fault."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from random import Random
from typing import TypeAlias

import asyncpg
import httpx
from redis.asyncio import Redis

from gregor.core.buckets import BUCKETS
from gregor.shards.rebalance import MAX_BUCKETS_PER_SWITCH
from tests.fleet.fleet import Fleet

Fault: TypeAlias = Callable[[Fleet, Random], Awaitable[None]]

FREEZE_SECONDS = 10.0


async def node_killed(fleet: Fleet, rng: Random) -> None:
    node = rng.choice(fleet.nodes)
    await node.kill()
    await asyncio.sleep(rng.uniform(0, 2))
    await node.start()


async def node_stopped(fleet: Fleet, rng: Random) -> None:
    """Stop and start a node as a deploy does."""
    node = rng.choice(fleet.nodes)
    await node.stop()
    await node.start()


async def node_frozen(fleet: Fleet, rng: Random) -> None:
    node = rng.choice(fleet.nodes)
    node.pause()
    await asyncio.sleep(FREEZE_SECONDS)
    node.resume()


async def pubsub_killed(fleet: Fleet, rng: Random) -> None:
    await fleet.pubsub.kill()
    await asyncio.sleep(rng.uniform(0, 2))
    await fleet.pubsub.start()


async def pubsub_frozen(fleet: Fleet, rng: Random) -> None:
    fleet.pubsub.pause()
    await asyncio.sleep(FREEZE_SECONDS)
    fleet.pubsub.resume()


async def pubsub_member_killed(fleet: Fleet, rng: Random) -> None:
    member = rng.choice(fleet.pubsub.members)
    await member.kill()
    await asyncio.sleep(rng.uniform(0, 4))
    await member.start()


async def subscriber_killed(fleet: Fleet, rng: Random) -> None:
    for _ in range(5):
        for server in fleet.pubsub.members:
            async with Redis(port=server.port) as redis:
                await redis.client_kill_filter(_type="pubsub")
        await asyncio.sleep(rng.uniform(0, 0.5))


async def publications_lost(fleet: Fleet, rng: Random) -> None:
    assert fleet.proxy is not None
    fleet.proxy.drop_publications(rng.uniform(0.1, 1), rng)
    await asyncio.sleep(rng.uniform(1, 4))
    fleet.proxy.drop_publications(0, rng)


async def postgresql_restarted(fleet: Fleet, rng: Random) -> None:
    await rng.choice((fleet.postgresql.stop, fleet.postgresql.kill))()
    await asyncio.sleep(rng.uniform(0, 1))
    await fleet.postgresql.start()


async def connections_terminated(fleet: Fleet, rng: Random) -> None:
    """Terminate all connections 20 times, so that some are terminated during a commit."""
    connection = await asyncpg.connect(fleet.postgresql.url)
    for _ in range(20):
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1",
            "gregor%",
        )
        await asyncio.sleep(rng.uniform(0, 0.1))
    await connection.close()


# With a standby. The fleet has failed over when these end, so each can be injected once.


async def demoted_but_answering(fleet: Fleet, rng: Random) -> None:
    """The primary comes back as a standby, and answers, before the address moves to the new one."""
    await fleet.postgresql.stop()  # it sends what it has committed to its standby first
    fleet.postgresql.demote()
    await fleet.postgresql.start()
    await asyncio.sleep(rng.uniform(0.5, 3))
    await fleet.replicated.fail_over()


async def replica_lags(fleet: Fleet, rng: Random) -> None:
    """The synchronous standby stops replicating, for longer than a commit is waited for or not;
    then it takes over."""
    fleet.replicated.standby.pause()
    await asyncio.sleep(rng.uniform(1, 1.5 * FREEZE_SECONDS))
    fleet.replicated.standby.resume()
    await asyncio.sleep(rng.uniform(0, 1))
    await primary_lost(fleet, rng)


async def primary_lost(fleet: Fleet, rng: Random) -> None:
    """The primary dies, and its standby takes over."""
    await fleet.postgresql.kill()
    await asyncio.sleep(rng.uniform(0, 2))
    await fleet.replicated.fail_over()


async def primary_lost_behind(fleet: Fleet, rng: Random) -> None:
    """The same while the standby is behind: what it lacks is lost."""
    fleet.replicated.standby.pause()
    await asyncio.sleep(rng.uniform(0.5, 2))
    await fleet.postgresql.kill()
    # What the primary has sent is in the standby's socket: without its receiver, it is lost.
    await fleet.replicated.standby.kill()
    await fleet.replicated.standby.start()
    await fleet.replicated.fail_over()


async def no_fault(fleet: Fleet, rng: Random) -> None:
    """Do nothing: the fault is in the fleet itself, or is the move of buckets."""


# During a move of buckets. The last shard is unused at first; finally it holds a quarter of them.

QUARTER_OF_BUCKETS = BUCKETS // 4
LATEST_FAULT = QUARTER_OF_BUCKETS - 4 * MAX_BUCKETS_PER_SWITCH  # buckets; some switches follow


def during_move(fault: Fault) -> Fault:
    """The same fault, at a random moment of a move."""

    async def inject_during_move(fleet: Fleet, rng: Random) -> None:
        buckets = rng.sample(range(BUCKETS), QUARTER_OF_BUCKETS)
        move = asyncio.create_task(move_all(fleet, buckets))
        await wait_until_moved(fleet, rng.randrange(1, LATEST_FAULT), rng)
        await fault(fleet, rng)
        await move

    return inject_during_move


async def mover_killed(fleet: Fleet, rng: Random) -> None:
    """Kill the mover twice, then let it finish."""
    buckets = rng.sample(range(BUCKETS), QUARTER_OF_BUCKETS)
    for number in sorted(rng.sample(range(1, LATEST_FAULT), 2)):
        mover = await start_mover(fleet, buckets)
        await wait_until_moved(fleet, number, rng)
        with suppress(ProcessLookupError):  # on a busy machine it may have finished meanwhile
            mover.kill()
        await mover.wait()
    await move_all(fleet, buckets)


async def wait_until_moved(fleet: Fleet, number: int, rng: Random) -> None:
    """Wait until this number of buckets has moved, then until a random point of the next switch."""
    connection = await asyncpg.connect(fleet.shards[target_of(fleet)])
    query = "SELECT count(*) FROM buckets JOIN shard ON buckets.shard = shard.name"
    while await connection.fetchval(query) < number:
        await connection.execute("SELECT pg_sleep(0.01)")
    await connection.close()
    await asyncio.sleep(rng.uniform(0, 0.03))


async def move_all(fleet: Fleet, buckets: Sequence[int]) -> None:
    """Move the buckets; start the move again if it fails, up to 20 times in all."""
    for _ in range(20):
        if await (await start_mover(fleet, buckets)).wait() == 0:
            return
    raise AssertionError("the move did not finish")


async def start_mover(fleet: Fleet, buckets: Sequence[int]) -> asyncio.subprocess.Process:
    """Start `gregor shards move`; its output goes to the output of this process."""
    stores = [argument for store in fleet.stores for argument in ("--store", store)]
    selection = [argument for bucket in buckets for argument in ("--bucket", str(bucket))]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "shards", "move"),
        *(*stores, *selection, "--to", target_of(fleet)),
    )


def target_of(fleet: Fleet) -> str:
    """The shard that the buckets move to: the last one, which is unused at first."""
    return list(fleet.shards)[-1]


# While a backend forgets history, or users, again and again.

Deed: TypeAlias = Callable[[httpx.AsyncClient, Fleet, Random], Awaitable[None]]

USERS_ERASED_AT_ONCE = 5
ANSWER_SECONDS = 60.0  # a request to prune waits until the lease of a node that was killed runs out


def meanwhile(deed: Deed, fault: Fault) -> Fault:
    """The same fault, while this is done again and again; the last time it ends after the fault."""

    async def inject_meanwhile(fleet: Fleet, rng: Random) -> None:
        over = asyncio.Event()
        async with (
            httpx.AsyncClient(trust_env=False, timeout=ANSWER_SECONDS) as http,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(repeat(lambda: deed(http, fleet, rng), over))
            await fault(fleet, rng)
            over.set()

    return inject_meanwhile


async def repeat(deed: Callable[[], Awaitable[None]], over: asyncio.Event) -> None:
    while not over.is_set():
        await deed()


async def history_pruned(http: httpx.AsyncClient, fleet: Fleet, rng: Random) -> None:
    """Forget what has been past for a moment, by a request to a node, or by the command. It is
    tried until it succeeds."""
    older_than = f"{rng.randrange(1, 4)}s"
    while True:
        node = rng.choice(fleet.nodes)
        if rng.random() < 0.2:
            pruned = await is_pruned_by_command(node.url, older_than)
        else:
            body = {"older_than": older_than}
            pruned = await succeeds(http.post(f"{node.url}/v1/prune", json=body))
        await asyncio.sleep(rng.uniform(0, 0.2))
        if pruned:
            return


async def is_pruned_by_command(url: str, older_than: str) -> bool:
    command = (sys.executable, "-m", "gregor.cli", "prune", "--url", url)
    pruner = await asyncio.create_subprocess_exec(
        *(*command, "--older-than", older_than), stdout=asyncio.subprocess.DEVNULL
    )
    return await pruner.wait() == 0


async def users_erased(http: httpx.AsyncClient, fleet: Fleet, rng: Random) -> None:
    """Erase some users at once."""
    uids = await uids_of(fleet)
    async with asyncio.TaskGroup() as tasks:
        for uid in rng.sample(uids, min(len(uids), USERS_ERASED_AT_ONCE)):
            tasks.create_task(erase(http, fleet, rng, uid))


async def erase(http: httpx.AsyncClient, fleet: Fleet, rng: Random, uid: str) -> None:
    """Erase the user; try it at any node until it succeeds."""
    while True:
        erased = await succeeds(http.delete(f"{rng.choice(fleet.urls)}/v1/users/{uid}"))
        await asyncio.sleep(rng.uniform(0, 0.1))
        if erased:
            return


async def uids_of(fleet: Fleet) -> Sequence[str]:
    """All users, in order."""
    uids: set[str] = set()
    for url in fleet.database_urls.values():
        connection = await asyncpg.connect(url)
        uids.update(row["uid"] for row in await connection.fetch("SELECT uid FROM users"))
        await connection.close()
    return sorted(uids)


async def succeeds(request: Awaitable[httpx.Response]) -> bool:
    try:
        return (await request).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def nodes_killed(fleet: Fleet, rng: Random) -> None:
    """Kill a node twice."""
    for _ in range(2):
        await asyncio.sleep(rng.uniform(0.5, 2))
        await node_killed(fleet, rng)


async def movers_and_nodes_killed(fleet: Fleet, rng: Random) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(mover_killed(fleet, rng))
        tasks.create_task(nodes_killed(fleet, rng))


SINGLE_STORE_FAULTS: dict[str, Fault] = {
    "node killed": node_killed,
    "node stopped": node_stopped,
    "node frozen": node_frozen,
    "pub/sub killed": pubsub_killed,
    "pub/sub frozen": pubsub_frozen,
    "pub/sub member killed": pubsub_member_killed,
    "subscriber killed": subscriber_killed,
    "publications lost": publications_lost,
    "PostgreSQL restarted": postgresql_restarted,
    "connections terminated": connections_terminated,
    "clock ahead": no_fault,  # the clock of one node is 5 s ahead
}

FORGETTING_FAULTS: dict[str, Fault] = {
    "prune": meanwhile(history_pruned, nodes_killed),
    "erase": meanwhile(users_erased, nodes_killed),
}

# In a fleet with three shards.
MOVE_FAULTS: dict[str, Fault] = {
    "moving": during_move(no_fault),
    "moving, mover killed": mover_killed,
    "moving, node killed": during_move(node_killed),
    "moving, pub/sub killed": during_move(pubsub_killed),
    "moving, connections terminated": during_move(connections_terminated),
    "prune, moving": meanwhile(history_pruned, movers_and_nodes_killed),
    "erase, moving": meanwhile(users_erased, movers_and_nodes_killed),
}
SYNCHRONOUS_FAULTS: dict[str, Fault] = {
    "demoted but answering": demoted_but_answering,
    "replica lags": replica_lags,
    "primary lost, synchronous standby promoted": primary_lost,
}
ASYNCHRONOUS_FAULTS: dict[str, Fault] = {
    "primary lost, asynchronous standby promoted": primary_lost_behind,
}
FAILOVERS = SYNCHRONOUS_FAULTS | ASYNCHRONOUS_FAULTS
LONG_FAULTS = FORGETTING_FAULTS | MOVE_FAULTS | FAILOVERS  # once in a round
FAULTS = SINGLE_STORE_FAULTS | LONG_FAULTS
