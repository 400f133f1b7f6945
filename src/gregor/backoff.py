"""How long to wait before the next attempt. Pure: the time and the random numbers are arguments."""

from typing import NamedTuple

MAX_DOUBLINGS = 20


class Backoff(NamedTuple):
    """Exponential backoff with full jitter, so that many devices do not come back together.

    The delay before retry k, counted from 0, is random between 0 and the lesser of `max_seconds`
    and `min_seconds` · 2^k.
    """

    min_seconds: float
    max_seconds: float

    def delay(self, retry: int, random: float) -> float:
        """Seconds to wait before this retry; `random` is from 0 to 1."""
        return random * min(self.max_seconds, self.min_seconds * 2.0 ** min(retry, MAX_DOUBLINGS))


class Outage:
    """The failed attempts since the last success, where attempts go on without a limit.

    A delay is that of `backoff`, but from at most twice the time since the first failed attempt
    (and at least `min_seconds`). Without that bound, attempts that were quick by chance would turn
    a short outage into a long one. Where attempts are limited, use a Backoff alone: the bound would
    use them up sooner.
    """

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0
        self._first_failure = 0.0

    def delay(self, now: float, random: float) -> float:
        """Seconds to wait after an attempt that failed at `now`; `random` is from 0 to 1."""
        if not self._failures:
            self._first_failure = now
        longest = max(self._backoff.min_seconds, 2 * (now - self._first_failure))
        bounded = self._backoff._replace(max_seconds=min(self._backoff.max_seconds, longest))
        self._failures += 1
        return bounded.delay(self._failures - 1, random)

    def end(self) -> None:
        """An attempt has succeeded: the next failure is a first one."""
        self._failures = 0
