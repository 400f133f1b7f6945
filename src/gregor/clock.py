"""The clock of the machine that this runs on, for whoever is given no other."""

from time import time_ns

from gregor.core.instant import Time


def now() -> Time:
    return time_ns() // 1000
