"""The ack latency when each user has one message in flight."""

from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from bench import servers
from bench.load_users import DEVICES, LoadRun, LoadUsers
from bench.report import Figure, Wanted

USERS, MESSAGES, SINGLE_MESSAGES, WARM_UP = 100, 300, 500, 20


async def measure(quick: bool) -> list[Figure]:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            users = await LoadUsers.connect([server.address], USERS)
            await users.run(WARM_UP, 1)
            concurrent = await users.run(10 if quick else MESSAGES, 1)
            first_user = LoadUsers(users.devices[:DEVICES])
            single = await first_user.run(10 if quick else SINGLE_MESSAGES, 1)
            users.close()
    rate = len(concurrent.latencies) / concurrent.seconds
    return [
        Figure(
            name=f"ack latency, {USERS} users with one message in flight each",
            measured=f"p99 {_p99(concurrent) * 1e3:.2f} ms, at {rate:,.0f} messages/s",
            beside=f"p50 {_p50(concurrent) * 1e3:.2f} ms",
            ratio=_p99(concurrent) / _p50(concurrent),
            wanted=Wanted.BELOW,
            threshold=5,
        ),
        Figure(
            name="ack latency, one message in flight in all",
            measured=f"p99 {_p99(single) * 1e3:.2f} ms",
            beside=f"p50 {_p50(single) * 1e3:.2f} ms",
            ratio=_p99(single) / _p50(single),
        ),
    ]


def _p50(run: LoadRun) -> float:
    return median(run.latencies)


def _p99(run: LoadRun) -> float:
    return quantiles(run.latencies, n=100)[98]
