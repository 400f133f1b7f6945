"""A long hunt: every plug, many times, each round with a seed of its own.

python -m tests.faults --rounds 20
python -m tests.faults --seed 17 "node killed"
"""

import argparse
import asyncio
import sys
from pathlib import Path
from random import Random

from gregor.data import SAMPLE
from tests.faults.plugs import ALL
from tests.faults.world import play_round


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("plugs", nargs="*", help=f"only these of: {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, default=1, help="of each plug")
    parser.add_argument("--seed", type=int, help="play this one, not random ones")
    parser.add_argument("--seconds", type=float, default=8, help="how long a stream takes")
    parser.add_argument("--stream", type=Path, default=SAMPLE, help="another than the sample")
    parser.add_argument("--pubsub", choices=("redis", "nats"), default="redis")
    chosen = parser.parse_args()
    failed = 0
    for _ in range(chosen.rounds):
        for name in chosen.plugs or ALL:
            seed = Random().randrange(10**6) if chosen.seed is None else chosen.seed
            failed += not asyncio.run(hunt(name, seed, chosen))
    print(f"{failed} rounds failed" if failed else "all rounds passed")
    return int(failed > 0)


async def hunt(name: str, seed: int, chosen: argparse.Namespace) -> bool:
    """Play one round, and print how it went. Whether all was well."""
    round_ = await play_round(
        name, seed, chosen.stream, seconds=chosen.seconds, pubsub=chosen.pubsub
    )
    verdict = "FAILED" if round_.troubles else "passed"
    figures = (
        f"{round_.acknowledged:,} acknowledged, {round_.resumed:,} resumed, {round_.retold:,} by a "
        f"snapshot, agreed after {round_.settled:.1f} s"
    )
    print(f"{verdict} {name}, seed {seed}: {figures}", flush=True)
    for trouble in round_.troubles[:10]:
        print(f"       {trouble}", flush=True)
    return not round_.troubles


if __name__ == "__main__":
    sys.exit(main())
