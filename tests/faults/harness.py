"""A fleet under load into which faults are injected, and the checks that follow."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg

from gregor.cli.demo_devices import Demo, ReceivedSnapshot, Score, Written
from gregor.cli.demo_run import DEVICES_PER_USER, busiest, read_stream, run_stream
from gregor.cli.demo_servers import Servers
from gregor.clock import now
from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.message import Message
from gregor.core.sync import max_changes
from gregor.protocol.frames import Result
from gregor.shards.rebalance import Rebalancer
from gregor.shards.shard_map import read_map
from gregor.stores.sql.transactions import check_hashes
from tests.faults.faults import (
    ASYNCHRONOUS_FAULTS,
    FAULTS,
    LONG_FAULTS,
    MOVE_FAULTS,
    QUARTER_OF_BUCKETS,
    SYNCHRONOUS_FAULTS,
    target_of,
)
from tests.fleet.fleet import Fleet, Replication


class FaultRound(NamedTuple):
    """The problems that one round has found, none if it passed, and its figures."""

    problems: list[str]
    acknowledged: int
    resumed: int  # how often a device reconnected
    received_snapshots: int  # how often it got a snapshot, because it had missed too much
    pruned: int  # messages of which only the ids are left
    wiped: int  # how often a device heard that its user was erased
    settled: float  # seconds from the last fault, or the end of the stream, to agreement


class RecordingServers(Servers):
    """Servers that record the acknowledgements: several of a message, if its user was erased."""

    def __init__(self, urls: Sequence[str], rng: Random) -> None:
        super().__init__(urls, rng)
        self.acknowledged = defaultdict[tuple[str, str], set[int]](set)

    async def send(self, messages: Sequence[Message]) -> Sequence[Result]:
        acknowledged = self.acknowledged
        results = await super().send(messages)
        for result in results:
            if result.ctime is not None and result.uid is not None and result.msg_id is not None:
                acknowledged[result.uid, result.msg_id].add(result.ctime)
        return results

    def forget(self) -> None:
        """Record only acknowledgements of what is sent from now on: one that is on its way may be
        of what the store has lost."""
        self.acknowledged = defaultdict(set)


async def play_round(
    name: str, seed: int, file: Path, *, devices: int = 200, seconds: float = 8, pubsub: str
) -> FaultRound:
    """Play the stream through all nodes at once, inject the fault at random times, then check."""
    rng = Random(seed)
    lines = await read_stream(file)
    ahead = 5.0 if name == "clock ahead" else 0.0
    loop = asyncio.get_running_loop()
    with TemporaryDirectory(prefix="gregor-faults-") as folder:
        async with (
            Fleet(
                2,
                pubsub,
                ahead=ahead,
                proxied=name == "publications lost",
                shards=3 if name in MOVE_FAULTS else 1,
                unused=1 if name in MOVE_FAULTS else 0,
                replication=replication_for(name),
            ) as fleet,
            RecordingServers(fleet.urls, Random(rng.random())) as servers,
        ):
            demo = Demo(servers, Path(folder), devices)
            faults = inject(name, fleet, Random(rng.random()), seconds, servers, demo.score)
            users = busiest(lines, -(-devices // DEVICES_PER_USER))
            ended_at = asyncio.create_task(_time_of(demo.over))
            await run_stream(demo, lines, seconds, users, devices, rng, faults)
            settled = loop.time() - await ended_at
            records = await records_of(fleet)
            problems = [
                *await misplaced_buckets(fleet),
                *inconsistencies(records, servers, demo.score),
                *await left_of_erased(fleet, records.users),
                *await wrong_hashes(fleet),
                *(unnecessary_syncs(demo.score, records) if keeps_all(name) else ()),
                *(f"{d.device} of {d.uid} {d.what}" for d in demo.score.differences),
                *(f"a node logged: {line}" for line in logged_errors(fleet)),
            ]
    pruned = sum(row["prev"] is None for row in records.ids)
    return FaultRound(
        [*problems, *without_effect(name, pruned, demo.score.erased)],
        acknowledged=len(servers.acknowledged),
        resumed=demo.score.resynced,
        received_snapshots=len(demo.score.received_snapshots),
        pruned=pruned,
        wiped=demo.score.erased,
        settled=settled,
    )


def replication_for(name: str) -> Replication:
    if name in SYNCHRONOUS_FAULTS:
        return Replication.SYNCHRONOUS
    return Replication.ASYNCHRONOUS if name in ASYNCHRONOUS_FAULTS else Replication.NONE


async def inject(
    name: str,
    fleet: Fleet,
    rng: Random,
    seconds: float,
    servers: RecordingServers,
    score: Score,
) -> None:
    """Inject the fault once or twice while the stream is played."""
    for _ in range(1 if name in LONG_FAULTS else rng.choice((1, 2))):
        await asyncio.sleep(rng.uniform(0.1, 0.4) * seconds)
        await FAULTS[name](fleet, rng)
    if name in ASYNCHRONOUS_FAULTS:
        # What was acknowledged before may be lost. What is acknowledged from now on may not.
        servers.forget()
        score.written.clear()


async def _time_of(event: asyncio.Event) -> float:
    """The loop time at which the event is set."""
    await event.wait()
    return asyncio.get_running_loop().time()


async def misplaced_buckets(fleet: Fleet) -> list[str]:
    """Whether other than a quarter of the buckets has moved, and what `gregor shards verify`
    finds: users on a shard that does not hold them, with messages that their holder lacks."""
    if not fleet.shards:
        return []
    moved = Counter((await holders_of(fleet)).values())[target_of(fleet)]
    async with fleet.databases() as databases:
        findings, _ = await Rebalancer(databases).verify()
    return [
        *([f"{moved} buckets have moved"] if moved != QUARTER_OF_BUCKETS else ()),
        *(f"shard {finding.shard}: {finding.what}" for finding in findings),
    ]


class Records(NamedTuple):
    """What the store has: the ids of all messages, in order, and the users. `prev` is None in those
    whose contents are forgotten."""

    ids: Sequence[asyncpg.Record]
    users: Mapping[str, asyncpg.Record]


async def records_of(fleet: Fleet) -> Records:
    ids = """
        SELECT uid, ctime, prev, msg_id FROM messages
        UNION ALL SELECT uid, ctime, NULL, msg_id FROM pruned
    """
    users = await rows_of(fleet, "SELECT uid, ctime, epoch, floor FROM users WHERE ctime > 0")
    return Records(await rows_of(fleet, ids), {user["uid"]: user for user in users})


def inconsistencies(records: Records, servers: RecordingServers, score: Score) -> list[str]:
    """Acknowledged messages that the store does not know with the acknowledged ctime, unless their
    users were erased later, and those that came back; logs that are not a chain of prev and ctime;
    and rejections that devices have received."""
    rows = records.ids
    stored = {(row["uid"], row["msg_id"]): row["ctime"] for row in rows}
    clocks = {uid: user["ctime"] for uid, user in records.users.items()}
    epochs = {uid: user["epoch"] for uid, user in records.users.items() if user["epoch"]}
    last = epochs | {row["uid"]: row["ctime"] for row in rows}
    return [
        *(
            f"{key} is lost"
            for key, ctimes in servers.acknowledged.items()
            if any(at > epochs.get(key[0], 0) and stored.get(key) != at for at in ctimes)
        ),
        *wrong_writes(score.written, stored, epochs),
        *(f"{key} is stored {n} times" for key, n in Counter(_keys(rows)).items() if n > 1),
        *broken_links(rows, epochs),
        *(f"the clock of {uid} is not at its last message" for uid in _differing(clocks, last)),
        *(["messages of devices were rejected"] * bool(score.rejected)),
    ]


def wrong_writes(
    written: Iterable[Written], stored: Container[tuple[str, str]], epochs: Mapping[str, int]
) -> Iterator[str]:
    """Messages of devices that are lost; and those that a device accepted before it knew that its
    user was erased, and that were stored after that."""
    for uid, msg_id, epoch in written:
        is_stored, last = (uid, msg_id) in stored, epochs.get(uid, 0)
        if is_stored and epoch is not None and epoch < last:
            yield f"{msg_id}, which a device wrote before {uid} was erased, has come back"
        if not is_stored and (epoch or 0) == last:
            yield f"{msg_id}, of a device, is lost"


def broken_links(rows: Sequence[asyncpg.Record], epochs: Mapping[str, int]) -> Iterator[str]:
    """Messages that do not follow the one before, or the erase of their user."""
    clocks = dict(epochs)
    for row in rows:
        before = clocks.get(row["uid"], 0)
        if row["prev"] not in (before, None):
            yield f"{row['msg_id']} of {row['uid']} does not follow {before}"
        clocks[row["uid"]] = row["ctime"]


TABLES_OF_USERS = ("messages", "pruned", "dismissed_ids", "dismissed_ranges", "dismissed_keys")
REMOVAL_SECONDS = 30.0


async def left_of_erased(fleet: Fleet, users: Mapping[str, asyncpg.Record]) -> list[str]:
    """What any shard still has from before the last erase of a user, when no erase is pending."""
    problems = []
    epochs = [user["epoch"] for user in users.values()]
    for name, url in fleet.database_urls.items():
        connection = await asyncpg.connect(url)
        if not await _nothing_pending(connection):
            problems.append(f"shard {name!r} still has pending erasures")
        for table in TABLES_OF_USERS:
            query = f"""
                SELECT count(*) FROM {table}
                JOIN unnest($1::text[], $2::bigint[]) AS erased (uid, epoch) USING (uid)
                WHERE {table}.ctime <= erased.epoch
            """
            if left := await connection.fetchval(query, list(users), epochs):
                problems.append(f"shard {name!r} has {left} rows of erased users in {table}")
        await connection.close()
    return problems


async def _nothing_pending(connection: asyncpg.Connection) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(REMOVAL_SECONDS):
            while await connection.fetchval("SELECT count(*) FROM pending_erasures"):
                await connection.execute("SELECT pg_sleep(0.1)")
            return True
    return False


async def wrong_hashes(fleet: Fleet) -> list[str]:
    """Users whose kept hash is not that of their items."""
    uids = [user["uid"] for user in await rows_of(fleet, "SELECT uid, ctime FROM users")]
    check = partial(check_hashes, uids=uids, now=now(), any_bucket=not fleet.shards)
    async with fleet.databases() as databases:
        wrong = [uid for d in databases.values() for uid in await d.write(check)]
    return [f"the kept hash of {uid} is wrong" for uid in wrong]


def without_effect(name: str, pruned: int, wiped: int) -> Iterator[str]:
    """That a round has forgotten nothing, which it is to forget: then it shows nothing."""
    if name.startswith("prune") and not pruned:
        yield "nothing was pruned"
    if name.startswith("erase") and not wiped:
        yield "no device heard that its user was erased"


def keeps_all(name: str) -> bool:
    """Whether the store keeps all that devices have received, so that none needs a snapshot."""
    return name not in ASYNCHRONOUS_FAULTS


def unnecessary_syncs(score: Score, records: Records) -> list[str]:
    """Hash mismatches and unnecessary snapshots that devices have received. One that knows less
    than the floor gets a snapshot."""
    floors = {uid: user["floor"] for uid, user in records.users.items()}
    received = [r for r in score.received_snapshots if r.known >= floors.get(r.uid, 0)]
    return [
        *(["the hash of a replica did not match"] * bool(score.mismatches)),
        *unnecessary_snapshots(received, _logs(records.ids)),
    ]


def unnecessary_snapshots(
    received_snapshots: Iterable[ReceivedSnapshot], logs: Mapping[str, Sequence[int]]
) -> list[str]:
    """Devices that got a snapshot although they had missed so few messages that changes would have
    been enough: a node did not accept their cursors. `logs` maps users to their ctimes."""
    return [
        f"{r.device} of {r.uid} missed {missed} messages and got a snapshot of {r.items} items"
        for r in received_snapshots
        if (missed := sum(r.known < ctime <= r.cursor for ctime in logs[r.uid]))
        <= max_changes(r.items)
    ]


async def rows_of(fleet: Fleet, query: str) -> list[asyncpg.Record]:
    """The rows of all users, from the shards that hold them, sorted by uid and ctime."""
    holders = await holders_of(fleet)
    rows: list[asyncpg.Record] = []
    for name, url in fleet.database_urls.items():
        connection = await asyncpg.connect(url)
        found = await connection.fetch(query)
        rows += [row for row in found if holders[bucket_of(row["uid"])] == name]
        await connection.close()
    return sorted(rows, key=lambda row: (row["uid"], row["ctime"]))


async def holders_of(fleet: Fleet) -> dict[int, str]:
    """The shard that holds each bucket; "" for the single store of a fleet without shards."""
    if not fleet.shards:
        return dict.fromkeys(range(BUCKETS), "")
    async with fleet.databases() as databases:
        return {bucket: p.shard for bucket, p in (await read_map(databases)).items()}


def _keys(rows: Sequence[asyncpg.Record]) -> list[tuple[str, str]]:
    return [(row["uid"], row["msg_id"]) for row in rows]


def _logs(rows: Sequence[asyncpg.Record]) -> Mapping[str, Sequence[int]]:
    logs = defaultdict[str, list[int]](list)
    for row in rows:
        logs[row["uid"]].append(row["ctime"])
    return logs


def _differing(clocks: dict[str, int], last: dict[str, int]) -> set[str]:
    return {uid for uid in clocks | last if clocks.get(uid) != last.get(uid)}


def logged_errors(fleet: Fleet) -> list[str]:
    """Log lines of nodes that no fault explains."""
    patterns = ("Traceback", "a consumer failed", "has failed")
    lines = [line for node in fleet.nodes for line in node.log().splitlines()]
    return [line for line in lines if any(pattern in line for pattern in patterns)]
