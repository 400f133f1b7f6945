"""A real node for the tests of JavaScript, whose clock can be set ahead while it runs.

GREGOR_JWT_SECRET=... python -m tests.javascript.server STORE HOST:PORT ORIGIN_OF_PAGES [PUBSUB]

Each line on stdin is by how many seconds the clock is ahead of this machine's. The server stops
when stdin ends, so that none outlives its test.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterable

from gregor.clock import now
from gregor.config import Auth, load
from gregor.core.instant import SECOND, Time
from gregor.server.process import serve


class AdjustedClock:
    """The clock of this machine, and by how much it is ahead."""

    def __init__(self) -> None:
        self._ahead = 0

    def __call__(self) -> Time:
        return now() + self._ahead

    def follow(self, lines: Iterable[str]) -> None:
        """Be ahead by what each line says; after the last one, stop this process."""
        for line in lines:
            self._ahead = int(line) * SECOND
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    store, listen, origin, *pubsub = sys.argv[1:]
    clock = AdjustedClock()
    threading.Thread(target=clock.follow, args=(sys.stdin,), daemon=True).start()
    settings = load(
        store=store,
        listen=listen,
        auth=Auth.JWT,
        allow_origin=origin,
        pubsub=pubsub[0] if pubsub else None,
        migrate=True,
    )
    asyncio.run(serve(settings, clock))


if __name__ == "__main__":
    main()
