"""Looks for bugs in the JavaScript client for longer than the tests do.

python -m tests.javascript.hunt --rounds 200

A failure prints its seed, and GREGOR_SEED=SEED plays that round again; GREGOR_FLEET=1 plays it with
a fleet.
"""

import argparse
import subprocess
import sys

from tests.javascript.node import JS, ROOT, command, environment
from tests.javascript.test_browser import BROWSER

HISTORIES_PER_ROUND = 250
SEEDS_PER_ROUND = 10
ROUNDS_PER_FLEET_ROUND = 10
SIMULATIONS = ("-m", "tests.simulation", "--javascript", "--seeds")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.javascript.hunt", description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=200,
        help="rounds in a browser; each adds 10 simulations, 250 histories, 0.1 fleet rounds",
    )
    rounds: int = parser.parse_args().rounds
    fleet_rounds = -(-rounds // ROUNDS_PER_FLEET_ROUND)
    histories = {"GREGOR_HISTORIES": str(rounds * HISTORIES_PER_ROUND)}
    failed = [
        _hunt({"GREGOR_ROUNDS": str(rounds)}, *BROWSER, "rounds"),
        _hunt({"GREGOR_ROUNDS": str(fleet_rounds), "GREGOR_FLEET": "1"}, *BROWSER, "rounds"),
        _hunt(histories, "run", "tests/oracle"),
        subprocess.call((sys.executable, *SIMULATIONS, str(rounds * SEEDS_PER_ROUND)), cwd=ROOT),
    ]
    return max(failed)


def _hunt(variables: dict[str, str], *arguments: str) -> int:
    hunt = command("vitest", *arguments)
    return subprocess.call(hunt, cwd=JS, env={**variables, **environment()})


if __name__ == "__main__":
    sys.exit(main())
