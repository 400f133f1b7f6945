"""Whether a store takes writes, and why not: for the log, readiness and a metric."""

import asyncio
import logging
from collections.abc import Callable

from gregor.log_event import LogEvent

log = logging.getLogger("gregor.store")

LOG_INTERVAL_SECONDS = 60.0


class WriteHealth:
    """Writes fail from the first one that the store refuses until the next one that it commits.

    The first failure is logged with its reason; of the later ones, their number, once a minute.
    `monotonic` is a clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.failing = asyncio.Event()
        self.reason = ""
        self._monotonic = monotonic
        self._logged_at = 0.0
        self._unlogged = 0

    def failed(self, reason: str) -> None:
        """A write has failed."""
        self.reason = reason
        if not self.failing.is_set():
            self.failing.set()
            self._logged_at = self._monotonic()
            log.warning(LogEvent("writes fail", reason=reason))
            return
        self._unlogged += 1
        seconds = self._monotonic() - self._logged_at
        if seconds >= LOG_INTERVAL_SECONDS:
            log.warning(
                LogEvent(
                    "writes still fail", more=self._unlogged, seconds=round(seconds), reason=reason
                )
            )
            self._logged_at += seconds
            self._unlogged = 0

    def succeeded(self) -> None:
        """A write was committed."""
        if self.failing.is_set():
            self.failing.clear()
            log.info(LogEvent("writes succeed again", more=self._unlogged))
            self._unlogged = 0

    def problems(self) -> list[str]:
        return [f"writes fail: {self.reason}"] if self.failing.is_set() else []
