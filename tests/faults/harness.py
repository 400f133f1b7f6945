"""A fleet under load into which faults are injected, and the checks that follow."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg

from gregor.cli.demo_devices import Demo, ReceivedSnapshot, Score
from gregor.cli.demo_run import DEVICES_PER_USER, busiest, read_stream, run_stream
from gregor.cli.demo_servers import Servers
from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.message import Message
from gregor.core.sync import max_changes
from gregor.protocol.frames import Result
from gregor.shards.rebalance import Rebalancer
from gregor.shards.shard_map import read_map
from tests.faults.faults import (
    ASYNCHRONOUS_FAULTS,
    FAILOVERS,
    FAULTS,
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
    settled: float  # seconds from the last fault, or the end of the stream, to agreement


class RecordingServers(Servers):
    """Servers that record the acknowledgements."""

    def __init__(self, urls: Sequence[str], rng: Random) -> None:
        super().__init__(urls, rng)
        self.acknowledged: dict[tuple[str, str], int] = {}
        self.contradictions: list[str] = []

    async def send(self, messages: Sequence[Message]) -> Sequence[Result]:
        results = await super().send(messages)
        for result in results:
            if result.ctime is not None and result.uid is not None and result.msg_id is not None:
                known = self.acknowledged.setdefault((result.uid, result.msg_id), result.ctime)
                if known != result.ctime:
                    self.contradictions.append(f"{result.msg_id} has two ctimes")
        return results


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
            problems = [
                *await misplaced_buckets(fleet),
                *await inconsistencies(fleet, servers, demo.score),
                *(unnecessary_syncs(demo.score, await logs_of(fleet)) if keeps_all(name) else ()),
                *(f"{d.device} of {d.uid} {d.what}" for d in demo.score.differences),
                *(f"a node logged: {line}" for line in logged_errors(fleet)),
            ]
    score = demo.score
    return FaultRound(
        problems, len(servers.acknowledged), score.resynced, len(score.received_snapshots), settled
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
    for _ in range(1 if name in MOVE_FAULTS | FAILOVERS else rng.choice((1, 2))):
        await asyncio.sleep(rng.uniform(0.1, 0.4) * seconds)
        await FAULTS[name](fleet, rng)
    if name in ASYNCHRONOUS_FAULTS:
        # What was acknowledged before may be lost. What is acknowledged from now on may not.
        servers.acknowledged.clear()
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


async def inconsistencies(fleet: Fleet, servers: RecordingServers, score: Score) -> list[str]:
    """Acknowledged messages that are not in the store with the acknowledged ctime; logs that are
    not a chain of prev and ctime; and rejections that devices have received."""
    rows = await rows_of(fleet, "SELECT uid, ctime, prev, msg_id FROM messages")
    clocks = dict(await rows_of(fleet, "SELECT uid, ctime FROM users WHERE ctime > 0"))
    stored = {(row["uid"], row["msg_id"]): row["ctime"] for row in rows}
    ids = {row["msg_id"] for row in rows}
    last = {row["uid"]: row["ctime"] for row in rows}
    return [
        *servers.contradictions,
        *(f"{key} is lost" for key, at in servers.acknowledged.items() if stored.get(key) != at),
        *(f"{msg_id}, of a device, is lost" for msg_id in score.written - ids),
        *(f"{key} is stored {n} times" for key, n in Counter(_keys(rows)).items() if n > 1),
        *(
            f"{row['msg_id']} does not follow {previous['msg_id']}"
            for previous, row in pairwise(rows)
            if row["prev"] != (previous["ctime"] if previous["uid"] == row["uid"] else 0)
        ),
        *(f"the clock of {uid} is not at its last message" for uid in _differing(clocks, last)),
        *(["messages of devices were rejected"] * bool(score.rejected)),
    ]


def keeps_all(name: str) -> bool:
    """Whether the store keeps all that devices have received, so that none needs a snapshot."""
    return name not in ASYNCHRONOUS_FAULTS


def unnecessary_syncs(score: Score, logs: Mapping[str, Sequence[int]]) -> list[str]:
    """Hash mismatches and unnecessary snapshots that devices have received."""
    return [
        *(["the hash of a replica did not match"] * bool(score.mismatches)),
        *unnecessary_snapshots(score.received_snapshots, logs),
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
    for name, url in (fleet.shards or {"": fleet.store}).items():
        connection = await asyncpg.connect(url)
        found = await connection.fetch(query)
        rows += [row for row in found if holders[bucket_of(row["uid"])] == name]
        await connection.close()
    return sorted(rows, key=lambda row: (row["uid"], row["ctime"]))


async def logs_of(fleet: Fleet) -> Mapping[str, Sequence[int]]:
    """The ctimes of each user's messages, in order."""
    return _logs(await rows_of(fleet, "SELECT uid, ctime FROM messages"))


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
