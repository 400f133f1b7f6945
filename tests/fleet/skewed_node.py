"""The entry point of a node process whose clock is ahead by some seconds:

python tests/fleet/skewed_node.py SECONDS HOST:PORT STORE… PUBSUB
"""

import asyncio
import sys

from gregor.clock import now
from gregor.config import load
from gregor.core.instant import SECOND, Time
from gregor.limits import OFF
from gregor.server import process


def main(seconds: str, listen: str, *urls: str) -> None:
    *stores, pubsub = urls
    skew = round(float(seconds) * SECOND)

    def clock() -> Time:
        return now() + skew

    settings = load(listen=listen, store=tuple(stores), pubsub=pubsub, **OFF)
    asyncio.run(process.serve(settings, clock))


if __name__ == "__main__":
    main(*sys.argv[1:])
