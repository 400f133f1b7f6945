"""How long to wait before the next attempt. Pure: the time and the random numbers are arguments."""

from typing import NamedTuple

MAX_DOUBLINGS = 20
MAX_DELAY_SECONDS = 60.0  # of what another side asks for


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


def asked_delay(seconds: float) -> float:
    """The delay that another side asks for, as far as it counts: up to a minute, so that no absurd
    number keeps anybody away. What is not a number counts as 0."""
    return min(max(0.0, seconds), MAX_DELAY_SECONDS)


def retry_after(header: str | None) -> float:
    """The seconds of a `Retry-After` header, as far as they count. A date counts as 0."""
    text = (header or "").strip()
    return asked_delay(float(text)) if text.isascii() and text.isdigit() else 0.0


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
