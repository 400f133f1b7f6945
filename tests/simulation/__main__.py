"""Runs many simulations on all processors, or a single one by its seed.

python -m tests.simulation --seeds 2000
python -m tests.simulation --seed 17 --trace
python -m tests.simulation --seeds 2000 --sharded
python -m tests.simulation --seeds 2000 --javascript
"""

import argparse
import gc
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.browsers import JavaScript
from tests.simulation.simulation import Disagreement, NewDevice, SimulatedDevice, simulate

_new_device: NewDevice = SimulatedDevice


def main() -> None:
    """Run many simulations on all processors, or a single one by its seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000, help="number of simulations")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run only this seed")
    parser.add_argument(
        "--sharded", action="store_true", help="use a sharded store in each simulation"
    )
    parser.add_argument("--javascript", action="store_true", help="with devices of both languages")
    parser.add_argument("--trace", action="store_true", help="print the trace of --seed")
    options = parser.parse_args()
    sharded = True if options.sharded else None
    if options.seed is not None:
        _prepare(options.javascript)
        simulation = simulate(options.seed, sharded, _new_device)
        print("\n".join(simulation.trace) if options.trace else f"seed {options.seed}: all agree")
        return
    failed = 0
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(initializer=_prepare, initargs=(options.javascript,)) as processes:
        for seed, problem in zip(
            seeds,
            processes.map(partial(problem_with, sharded=sharded), seeds, chunksize=20),
            strict=True,
        ):
            if problem is not None:
                failed += 1
                arguments = f"--seed {seed} --trace" + (" --sharded" if sharded else "")
                arguments += " --javascript" if options.javascript else ""
                print(f"seed {seed} failed; reproduce with {arguments}\n{problem}", flush=True)
    print(f"{options.seeds} simulations, {failed} failed")
    sys.exit(1 if failed else 0)


def _prepare(javascript: bool) -> None:
    """Prepare this process for simulations."""
    # The thresholds of a server: without them, sharded simulations spend a third of their time in
    # garbage collection.
    gc.set_threshold(50_000, 20, 100)
    if javascript:
        global _new_device
        _new_device = JavaScript().__enter__().new_device  # Node ends with this process


def problem_with(seed: int, sharded: bool | None) -> str | None:
    """The problem of the simulation with this seed; None if it passes."""
    try:
        simulate(seed, sharded, _new_device)
    except Disagreement as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
