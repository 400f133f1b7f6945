"""How much of something each user may do in a second: token buckets, with the time as an argument.

A bucket holds `burst` tokens, and `per_second` flow in until it is full. Tokens that are there are
taken at once. What is kept of a bucket is the time at which it will be full again, so one
that is full is nothing, and is forgotten.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from gregor.core.instant import SECOND, Time

K = TypeVar("K", bound=Hashable)

FEW = 1000
"""So many buckets are kept without a look at which of them are full."""


class Buckets(Generic[K]):
    """The buckets of many users. `at` is the time now, by a clock that never goes back. In any
    period, at most `burst` and what flows in during it is taken from one bucket."""

    def __init__(self, per_second: int, burst: int) -> None:
        self.per_second = per_second
        self.burst = burst
        self._full_at: dict[K, Time] = {}
        self._most = FEW

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._full_at)

    def wait(self, key: K, tokens: int, at: Time) -> Time:
        """How long it takes until so many tokens are there, at most `burst`; 0: they are now."""
        return max(0, self._missing(key, at) + self._filling(tokens) - self._filling(self.burst))

    def available(self, key: K, at: Time) -> int:
        """How many tokens are there."""
        there = self._filling(self.burst) - self._missing(key, at)
        return max(0, min(self.burst, there * self.per_second // SECOND))

    def take(self, key: K, tokens: int, at: Time) -> None:
        """Take tokens. If they are not there, the next ones are late for it."""
        self._full_at[key] = at + self._missing(key, at) + self._filling(tokens)
        if len(self._full_at) > self._most:
            self._forget_full(at)

    def _missing(self, key: K, at: Time) -> Time:
        """In what time the bucket is full."""
        return max(0, self._full_at.get(key, at) - at)

    def _filling(self, tokens: int) -> Time:
        """In what time so many tokens flow in, rounded up."""
        return -(-tokens * SECOND // self.per_second)

    def _forget_full(self, at: Time) -> None:
        self._full_at = {key: full for key, full in self._full_at.items() if full > at}
        self._most = max(FEW, 2 * len(self._full_at))
