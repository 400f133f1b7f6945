"""Run many fault rounds on a real fleet, each with its own seed.

python -m tests.faults --rounds 20
python -m tests.faults --seed 17 "node killed"
"""

import argparse
import asyncio
import sys
from pathlib import Path
from random import Random

from gregor.cli.sample import SAMPLE
from tests.faults.faults import FAULTS
from tests.faults.harness import FaultRound, play_round
from tests.fleet.fleet import PUBSUBS

MAX_SETTLE_SECONDS = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", help=f"only these faults, of: {', '.join(FAULTS)}")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each fault")
    parser.add_argument("--seed", type=int, help="use this seed instead of random ones")
    parser.add_argument("--devices", type=int, default=200, help="how many hear of the stream")
    parser.add_argument("--seconds", type=float, default=8, help="how long the stream takes")
    parser.add_argument(
        "--stream", type=Path, default=SAMPLE, help="a stream other than the sample"
    )
    parser.add_argument("--pubsub", choices=PUBSUBS, default="redis")
    options = parser.parse_args()
    failed = 0
    for _ in range(options.rounds):
        for name in options.faults or FAULTS:
            seed = Random().randrange(10**6) if options.seed is None else options.seed
            failed += not asyncio.run(run_round(name, seed, options))
    print(f"{failed} rounds failed" if failed else "all rounds passed")
    return int(failed > 0)


async def run_round(name: str, seed: int, options: argparse.Namespace) -> bool:
    """Run one round and print its result. Returns whether it passed."""
    round_ = await play_round(
        name,
        seed,
        options.stream,
        devices=options.devices,
        seconds=options.seconds,
        pubsub=options.pubsub,
    )
    problems = [*round_.problems, *slow_agreement(round_)]
    verdict = "FAILED" if problems else "passed"
    figures = (
        f"{round_.acknowledged:,} acknowledged, {round_.resumed:,} resumed, "
        f"{round_.received_snapshots:,} by a snapshot, {round_.pruned:,} pruned, "
        f"{round_.wiped:,} wiped, agreed after {round_.settled:.1f} s"
    )
    print(f"{verdict} {name}, seed {seed}: {figures}", flush=True)
    for problem in problems[:10]:
        print(f"       {problem}", flush=True)
    return not problems


def slow_agreement(round_: FaultRound) -> list[str]:
    """Agreement is measured here only: a test must not depend on the speed of its machine."""
    if round_.settled <= MAX_SETTLE_SECONDS:
        return []
    return [f"the replicas agreed after {round_.settled:.1f} s"]


if __name__ == "__main__":
    sys.exit(main())
