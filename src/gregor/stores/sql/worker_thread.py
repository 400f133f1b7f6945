"""The thread of a database whose driver waits.

A ThreadPoolExecutor would do the same. It makes a future of each call, with a lock and a condition,
and finishes it after the call: while the event loop waits for the interpreter. Here, a call hands
over its result itself (`Job`), and nobody awaits that future.
"""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread


class WorkerThread:
    """Calls functions one after the other, in the order in which they were submitted. It starts
    with the first one. None of them may raise. One thread submits and ends."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        # A daemon: a database that nobody has closed does not keep the process from ending.
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._has_ended = False

    def submit(self, call: Callable[[], object]) -> None:
        """Call this later. Raises RuntimeError if the thread has ended: nobody would call it."""
        if self._has_ended:
            raise RuntimeError(f"the thread {self._thread.name!r} has ended")
        if self._thread.ident is None:
            self._thread.start()
        self._calls.put(call)

    def end(self) -> None:
        """End the thread. Returns when all that was submitted has been called. Idempotent."""
        self._has_ended = True
        self._calls.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # or its result is kept until the next one comes
