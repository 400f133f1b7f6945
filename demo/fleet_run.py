"""Starts a fleet, and runs the demo on it."""

from pathlib import Path

from gregor.cli.demo_run import DemoResult, run_on_servers
from tests.fleet.fleet import Fleet


async def run_fleet_demo(
    file: Path,
    device_count: int,
    seconds: float,
    seed: int,
    nodes: int,
    pubsub: str,
    *,
    shards: int,
    add_shard: bool,
) -> DemoResult:
    """Play the demo on a new fleet. With `add_shard`, one more shard is added while it runs."""
    async with Fleet(nodes, pubsub, shards=shards + add_shard, unused=int(add_shard)) as fleet:
        rebalance = fleet.rebalance() if add_shard else None
        return await run_on_servers(file, fleet.urls, device_count, seconds, seed, rebalance)
