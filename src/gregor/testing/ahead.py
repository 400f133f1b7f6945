"""What runs in the process of a node whose clock is wrong:

python -m gregor.testing.ahead SECONDS HOST:PORT STORE… PUBSUB
"""

import asyncio
import sys

from gregor.clock import now
from gregor.config import Settings
from gregor.core.instant import SECOND, Time
from gregor.server import serving


def main(seconds: str, listen: str, *urls: str) -> None:
    *stores, pubsub = urls
    ahead = round(float(seconds) * SECOND)

    def clock() -> Time:
        return now() + ahead

    settings = Settings(listen=listen, store=tuple(stores), pubsub=pubsub)
    asyncio.run(serving.serve(settings, clock))


if __name__ == "__main__":
    main(*sys.argv[1:])
