"""A clock that stands where it is put."""

from gregor.core.instant import Time


class ManualClock:
    """A clock for tests: it shows `now`, which anybody may set, backwards too."""

    def __init__(self, now: Time = 0) -> None:
        self.now = now

    def __call__(self) -> Time:
        return self.now
