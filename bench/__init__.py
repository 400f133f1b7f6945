"""Performance figures, each next to a baseline that the same run measures."""

from collections.abc import Awaitable, Callable, Sequence

import uvloop
from rich.console import Console

from bench import (
    browser,
    devices,
    fairness,
    fanout,
    fleet_latency,
    fleet_sweep,
    fleet_throughput,
    growth,
    latency,
    linear,
    prune,
    servers,
    shards,
    soak,
    startup,
    sync,
    throughput,
)
from bench.report import Figure, as_json, show
from gregor.errors import SetupError

MEASUREMENTS: dict[str, Callable[[bool], Awaitable[list[Figure]]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "growth": growth.measure,
    "linear": linear.measure,
    "sync": sync.measure,
    "devices": devices.measure,
    "prune": prune.measure,
    "fanout": fanout.measure,
    "fleet-throughput": fleet_throughput.measure,
    "fleet-latency": fleet_latency.measure,
    "fleet-sweep": fleet_sweep.measure,
    "shards": shards.measure,
    "startup": startup.measure,
}

# Measured when they are named: `make bench-browser` installs what it needs, and the abusers of the
# others take all that the machine has.
BY_NAME = {"browser": browser.measure, "fairness": fairness.measure, "soak": soak.measure}


def run(quick: bool = False, only: Sequence[str] = (), json: bool = False) -> int:
    """Measure and print the figures. Returns the exit status: 1 if a figure misses its threshold.

    `quick` takes a few seconds; it only shows that everything can be measured, and returns 0.
    `only` selects MEASUREMENTS, and those of BY_NAME. Raises SetupError for an unknown name.
    """
    known = MEASUREMENTS | BY_NAME
    for name in only:
        if name not in known:
            raise SetupError(f"unknown figure {name!r}; choose from {', '.join(known)}")
    servers.raise_open_file_limit()
    figures = uvloop.run(_measure(quick, only or tuple(MEASUREMENTS)))
    if json:
        print(as_json(figures))
    else:
        show(figures, Console())
    return int(not quick and not all(figure.met for figure in figures))


async def _measure(quick: bool, names: Sequence[str]) -> list[Figure]:
    figures: list[Figure] = []
    console = Console(stderr=True)
    with console.status("") as status:
        for name in names:
            status.update(f"measuring {name} …")
            figures += await (MEASUREMENTS | BY_NAME)[name](quick)
    return figures
