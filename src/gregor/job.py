"""Work that a thread does for somebody who waits for its result."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple


class Job(NamedTuple):
    work: Callable[[], Any]
    done: Future[Any]

    def run(self) -> None:
        """Do the work, unless nobody waits for it any more."""
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            result = self.work()
        except BaseException as error:  # noqa: BLE001 (raised again, where it is awaited)
            self.done.set_exception(error)
            del self  # or the error refers to this frame, and by it to itself
        else:
            self.done.set_result(result)
