"""A fleet under load, whose plugs are pulled; and what must be so afterwards."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import asyncpg
from msgspec import Raw

from gregor.cli.devices import Retold, Score, Stage
from gregor.cli.rehearsal import DEVICES_PER_USER, busiest, play, taped
from gregor.cli.servers import Servers
from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.message import Message
from gregor.core.state import most_changes
from gregor.protocol.frames import Result
from gregor.state_machines.moving import Mover
from gregor.state_machines.sharded import read_map
from gregor.testing.fleet import Fleet
from tests.faults.plugs import ALL, MOVES, QUARTER, target_of

SETTLE_SECONDS = 10.0


class Round(NamedTuple):
    """One round: what was wrong in the end (nothing, if all is well), and the figures."""

    troubles: list[str]
    acknowledged: int
    resumed: int  # how often a device came back
    retold: int  # and was sent a snapshot, because it had missed too much
    settled: float  # seconds from the last plug, or the end of the stream, to agreement


class Recorded(Servers):
    """Servers whose acknowledgements are kept."""

    def __init__(self, urls: Sequence[str], mind: Random) -> None:
        super().__init__(urls, mind)
        self.acknowledged: dict[tuple[str, str], int] = {}
        self.unlike: list[str] = []

    async def send(self, messages: Sequence[Message | Raw]) -> Sequence[Result]:
        results = await super().send(messages)
        for result in results:
            if result.ctime is not None and result.uid is not None and result.msg_id is not None:
                known = self.acknowledged.setdefault((result.uid, result.msg_id), result.ctime)
                if known != result.ctime:
                    self.unlike.append(f"{result.msg_id} has two ctimes")
        return results


async def play_round(
    name: str, seed: int, file: Path, *, devices: int = 200, seconds: float = 8, pubsub: str
) -> Round:
    """Play the stream through all nodes at once, pull the plug at random times, and judge."""
    mind = Random(seed)
    tape = await taped(file)
    ahead = 5.0 if name == "clock ahead" else 0.0
    loop = asyncio.get_running_loop()
    with TemporaryDirectory(prefix="gregor-faults-") as folder:
        async with (
            Fleet(
                2,
                pubsub,
                ahead=ahead,
                proxied=name == "publications lost",
                shards=3 if name in MOVES else 1,
                unused=1 if name in MOVES else 0,
            ) as fleet,
            Recorded(fleet.urls, Random(mind.random())) as servers,
        ):
            stage = Stage(servers, Path(folder), devices)
            pulling = pull(name, fleet, Random(mind.random()), seconds)
            users = busiest(tape, -(-devices // DEVICES_PER_USER))
            judging = asyncio.create_task(_since(stage.over))
            await play(stage, tape, seconds, users, devices, mind, pulling)
            settled = loop.time() - await judging
            troubles = [
                *await misplaced(fleet),
                *await lost(fleet, servers, stage.score),
                *(f"{d.device} of {d.uid} {d.what}" for d in stage.score.differences),
                *_slow(settled),
                *(f"a node says: {line}" for line in complaints(fleet)),
            ]
    score = stage.score
    return Round(troubles, len(servers.acknowledged), score.resynced, len(score.retold), settled)


async def pull(name: str, fleet: Fleet, random: Random, seconds: float) -> None:
    """Pull it once or twice while the stream is played."""
    for _ in range(1 if name in MOVES else random.choice((1, 2))):
        await asyncio.sleep(random.uniform(0.1, 0.4) * seconds)
        await ALL[name](fleet, random)


async def _since(event: asyncio.Event) -> float:
    """When it happens."""
    await event.wait()
    return asyncio.get_running_loop().time()


async def misplaced(fleet: Fleet) -> list[str]:
    """Whether a quarter of the buckets has moved; whom the shards hold who is not theirs, and what
    they have of a user that the holder lacks."""
    if not fleet.shards:
        return []
    moved = Counter((await placed(fleet)).values())[target_of(fleet)]
    async with fleet.databases() as databases:
        findings, _ = await Mover(databases).verify()
    return [
        *([f"{moved} buckets have moved"] if moved != QUARTER else ()),
        *(f"shard {finding.shard}: {finding.what}" for finding in findings),
    ]


def _slow(settled: float) -> list[str]:
    return [f"they agreed after {settled:.1f} s"] if settled > SETTLE_SECONDS else []


async def lost(fleet: Fleet, servers: Recorded, score: Score) -> list[str]:
    """What was acknowledged and is not in the store, or not as it was acknowledged; every place
    where a user's log is not one chain; and what devices should not have been told."""
    holders = await placed(fleet)
    rows: list[asyncpg.Record] = []
    clocks: dict[str, int] = {}
    for name, url in (fleet.shards or {"": fleet.store}).items():
        connection = await asyncpg.connect(url)
        found = await connection.fetch("SELECT uid, ctime, prev, msg_id FROM messages")
        rows += [row for row in found if holders[bucket_of(row["uid"])] == name]
        found = await connection.fetch("SELECT uid, ctime FROM users WHERE ctime > 0")
        clocks |= {uid: ctime for uid, ctime in found if holders[bucket_of(uid)] == name}
        await connection.close()
    rows.sort(key=lambda row: (row["uid"], row["ctime"]))
    stored = {(row["uid"], row["msg_id"]): row["ctime"] for row in rows}
    ids = {row["msg_id"] for row in rows}
    last = {row["uid"]: row["ctime"] for row in rows}
    return [
        *servers.unlike,
        *(f"{key} is lost" for key, at in servers.acknowledged.items() if stored.get(key) != at),
        *(f"{msg_id}, of a device, is lost" for msg_id in score.written - ids),
        *(f"{key} is there {n} times" for key, n in Counter(_keys(rows)).items() if n > 1),
        *(
            f"{two['msg_id']} does not follow {one['msg_id']}"
            for one, two in pairwise(rows)
            if two["prev"] != (one["ctime"] if one["uid"] == two["uid"] else 0)
        ),
        *(f"the clock of {uid} is not at its last message" for uid in _apart(clocks, last)),
        *(["devices were refused"] * bool(score.rejected)),
        *(["the hash of a replica did not fit"] * bool(score.mismatches)),
        *needlessly_retold(score.retold, _logs(rows)),
    ]


def needlessly_retold(retold: Iterable[Retold], logs: Mapping[str, Sequence[int]]) -> list[str]:
    """Devices that knew something and were sent a snapshot, though they had missed so little that
    changes would have done: their cursors meant nothing any more. `logs` are the users' ctimes."""
    return [
        f"{r.device} of {r.uid} missed {missed} messages and got a snapshot of {r.items} items"
        for r in retold
        if (missed := sum(r.known < ctime <= r.cursor for ctime in logs[r.uid]))
        <= most_changes(r.items)
    ]


async def placed(fleet: Fleet) -> dict[int, str]:
    """Who holds which bucket; without shards, the one store."""
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


def _apart(clocks: dict[str, int], last: dict[str, int]) -> set[str]:
    return {uid for uid in clocks | last if clocks.get(uid) != last.get(uid)}


def complaints(fleet: Fleet) -> list[str]:
    """What nodes say that no fault excuses."""
    words = ("Traceback", "a consumer failed", "has failed")
    lines = [line for node in fleet.nodes for line in node.log().splitlines()]
    return [line for line in lines if any(word in line for word in words)]
