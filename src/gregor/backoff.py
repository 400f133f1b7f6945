"""How long to wait before the next attempt. Pure: the time and the random numbers are arguments."""

MAX_DOUBLINGS = 20


class Backoff:
    """Exponential backoff with full jitter, so that many devices do not come back together.

    The delay before retry k, counted from 0, is random between 0 and the least of `max_seconds`,
    `min_seconds` · 2^k and twice the time since the first failed attempt (but at least
    `min_seconds`). Without the last bound, attempts that were quick by chance would turn a short
    outage into a long one.
    """

    def __init__(self, min_seconds: float, max_seconds: float) -> None:
        self._min = min_seconds
        self._max = max_seconds
        self._attempts = 0
        self._first_failure = 0.0

    def delay(self, now: float, random: float) -> float:
        """Seconds to wait after an attempt that failed at `now`; `random` is from 0 to 1."""
        if not self._attempts:
            self._first_failure = now
        doubled = self._min * 2.0 ** min(self._attempts, MAX_DOUBLINGS)
        outage = max(self._min, 2 * (now - self._first_failure))
        self._attempts += 1
        return random * min(self._max, doubled, outage)

    def reset(self) -> None:
        """An attempt has succeeded: the next failure is a first one."""
        self._attempts = 0
