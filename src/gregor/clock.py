"""The wall clock of this machine: the default for code that is given no other clock."""

from time import time_ns

from gregor.core.instant import Time


def now() -> Time:
    return time_ns() // 1000
