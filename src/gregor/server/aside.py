"""Work on large bodies and answers, beside the event loop, which would stand still meanwhile.

It is done in one thread: more of them would take turns with the event loop, too. Senders take turns
in it, and it works for at most half of the time: it has the interpreter only while the event loop,
for which everybody waits, does not have it.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter, sleep
from typing import Any, TypeVar

from gregor.job import Job

T = TypeVar("T")

ASIDE_BYTES = 32 * 1024  # of JSON: to read more takes longer than to pass it to a thread
BURST_SECONDS = 0.01  # of work, after which the thread rests as long as it works


class Rests:
    """When work is done for at most half of the time, but for a burst."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._debt = 0.0  # how long it would have to rest for what it has done
        self._ended = clock()

    def due(self) -> float:
        """How many seconds to rest before the next work, which then begins."""
        self._debt = max(0.0, self._debt - (self._clock() - self._ended))
        seconds = max(0.0, self._debt - BURST_SECONDS)
        self._debt -= seconds
        return seconds

    def worked(self, seconds: float) -> None:
        """Work of so many seconds has ended."""
        self._debt += seconds
        self._ended = self._clock()


class Aside:
    """The thread, and the work that waits for it, by its senders in the order of their turns."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._lock = Lock()
        self._waiting: OrderedDict[Hashable, deque[Job[Any]]] = OrderedDict()
        self._rests = Rests()

    async def run(self, sender: Hashable, size: int, work: Callable[[], T]) -> T:
        """The result of a sender's work on so many bytes: if they are many, the thread does it."""
        if size <= ASIDE_BYTES:
            return work()
        job = Job(work)
        with self._lock:
            self._waiting.setdefault(sender, deque()).append(job)
        self._thread.submit(self._run_next)
        return await job.done

    def _run_next(self) -> None:
        """Called once for each work."""
        sleep(self._rests.due())
        with self._lock:
            sender, queued = self._waiting.popitem(last=False)
            job = queued.popleft()
            if queued:
                self._waiting[sender] = queued  # behind all others
        begin = perf_counter()
        job.run()
        self._rests.worked(perf_counter() - begin)
