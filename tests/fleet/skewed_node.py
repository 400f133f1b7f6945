"""The entry point of a node process whose clock is ahead by some seconds:

python tests/fleet/skewed_node.py SECONDS HOST:PORT STORE… PUBSUB
"""

import asyncio
import sys

from gregor.clock import now
from gregor.config import Settings
from gregor.core.instant import SECOND, Time
from gregor.server import process


def main(seconds: str, listen: str, *urls: str) -> None:
    *stores, pubsub = urls
    skew = round(float(seconds) * SECOND)

    def clock() -> Time:
        return now() + skew

    settings = Settings(listen=listen, store=tuple(stores), pubsub=pubsub)
    asyncio.run(process.serve(settings, clock))


if __name__ == "__main__":
    main(*sys.argv[1:])
