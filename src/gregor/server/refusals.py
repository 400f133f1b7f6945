"""Refusals of one kind: counted, and logged once a minute at most, however many there are."""

import logging
import math
import time
from collections.abc import Callable

from gregor.log_event import LogEvent

log = logging.getLogger("gregor.server")

LOG_INTERVAL_SECONDS = 60.0


class Refusals:
    """Counts refusals; logs the first one, and then how many more there were."""

    def __init__(
        self,
        event: str,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = 0
        self._event = event
        self._level = level
        self._clock = clock
        self._logged = 0
        self._logged_at = -math.inf

    def count(self, **fields: object) -> None:
        self.total += 1
        now = self._clock()
        if now - self._logged_at >= LOG_INTERVAL_SECONDS:
            log.log(self._level, LogEvent(self._event, refused=self.total - self._logged, **fields))
            self._logged_at, self._logged = now, self.total
