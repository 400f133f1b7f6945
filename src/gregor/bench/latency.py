"""How long a sender waits for its ack when each user has one message in flight."""

from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from gregor.bench import servers
from gregor.bench.crowd import DEVICES, Crowd, Exchange
from gregor.bench.report import Figure, Wanted

USERS, MESSAGES, ALONE, WARM_UP = 100, 300, 500, 20


async def measure(quick: bool) -> list[Figure]:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            crowd = await Crowd.gather([server.address], USERS)
            await crowd.exchange(WARM_UP, 1)
            together = await crowd.exchange(10 if quick else MESSAGES, 1)
            first = Crowd(crowd.devices[:DEVICES])
            alone = await first.exchange(10 if quick else ALONE, 1)
            crowd.close()
    rate = len(together.latencies) / together.seconds
    return [
        Figure(
            name=f"ack latency, {USERS} users with one message in flight each",
            measured=f"p99 {_p99(together) * 1e3:.2f} ms, at {rate:,.0f} messages/s",
            beside=f"p50 {_p50(together) * 1e3:.2f} ms",
            ratio=_p99(together) / _p50(together),
            wanted=Wanted.BELOW,
            threshold=5,
        ),
        Figure(
            name="ack latency, one message in flight in all",
            measured=f"p99 {_p99(alone) * 1e3:.2f} ms",
            beside=f"p50 {_p50(alone) * 1e3:.2f} ms",
            ratio=_p99(alone) / _p50(alone),
        ),
    ]


def _p50(exchange: Exchange) -> float:
    return median(exchange.latencies)


def _p99(exchange: Exchange) -> float:
    return quantiles(exchange.latencies, n=100)[98]
