"""The thread of a database calls what is submitted, in order, and keeps nothing of it."""

import subprocess
import sys
import weakref
from functools import partial
from threading import Event

import pytest

from gregor.stores.sql.worker_thread import WorkerThread
from tests.timeouts import TIMEOUT_SECONDS


class Used:
    """Something that a call uses."""


def test_calls_are_made_in_order_and_all_before_the_end() -> None:
    thread, called = WorkerThread("test"), list[int]()
    for n in range(100):
        thread.submit(partial(called.append, n))
    thread.end()
    thread.end()
    assert called == list(range(100))


def test_thread_that_has_ended_refuses_calls_instead_of_keeping_them_waiting() -> None:
    thread = WorkerThread("test")
    thread.end()
    with pytest.raises(RuntimeError, match="'test' has ended"):
        thread.submit(list)


def test_nothing_of_a_call_is_kept_until_the_next_one() -> None:
    thread, used, is_gone = WorkerThread("test"), Used(), Event()
    weakref.finalize(used, is_gone.set)
    thread.submit(partial(id, used))
    del used
    assert is_gone.wait(TIMEOUT_SECONDS)
    thread.end()


def test_thread_that_nobody_ends_does_not_keep_the_process_running() -> None:
    script = (
        "from threading import Event; from gregor.stores.sql.worker_thread import WorkerThread;"
        "is_called = Event(); WorkerThread('test').submit(is_called.set); is_called.wait()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=TIMEOUT_SECONDS)
