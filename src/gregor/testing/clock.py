"""A clock for tests, which only moves when a test sets it."""

from gregor.core.instant import Time


class ManualClock:
    """A clock that returns `now`. A test sets `now`, also to an earlier time."""

    def __init__(self, now: Time = 0) -> None:
        self.now = now

    def __call__(self) -> Time:
        return self.now
