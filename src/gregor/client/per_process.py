"""A resource that a forked process must not share with its parent, such as open connections."""

import os
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from gregor.errors import SetupError

T = TypeVar("T")


class _Owned(NamedTuple, Generic[T]):
    pid: int
    value: T


class PerProcess(Generic[T]):
    """A value for each process: after a fork, the child makes its own. If parent and child used the
    same connections, each would read answers to the other.

    Thread-safe. It takes no lock, because a lock that another thread holds during the fork stays
    locked in the child; so two threads may each make a value, and one of the two is kept.
    """

    def __init__(self, make: Callable[[], T], *, may_be_made_again: bool = True) -> None:
        self._make = make
        self._may_be_made_again = may_be_made_again
        self._owned = _Owned(os.getpid(), make())

    def get(self) -> T:
        """The value of this process. Raises SetupError if it cannot be made again after a fork."""
        owned = self._owned
        if owned.pid != os.getpid():
            if not self._may_be_made_again:
                raise SetupError("create a producer with its own transport in each process")
            # The parent's value is not closed: that would say goodbye on the parent's connections.
            owned = self._owned = _Owned(os.getpid(), self._make())
        return owned.value

    def made(self) -> T | None:
        """The value that this process has made, if it has."""
        return self._owned.value if self._owned.pid == os.getpid() else None
