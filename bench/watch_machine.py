"""The process that watches the machine, until it is ended:

python -m bench.watch_machine FOLDER

Then it prints a Machine. A server on the disk of the folder waits for both, too. Each processor is
watched by a thread of its own: the host of a virtual machine may stop one of them and not the
others, and with it the thread of a server for which all its other threads wait.
"""

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import msgspec

from bench.machine import Machine

SLEEP_SECONDS, SYNC_PAUSE_SECONDS = 0.01, 0.1
PAGE = bytes(4_096)


def main(folder: str) -> None:
    machine, end = Machine(), Event()
    signal.signal(signal.SIGTERM, lambda *_: end.set())
    threads = [Thread(target=_sync_again, args=(Path(folder), machine, end))]
    threads += [Thread(target=_sleep_on, args=(cpu, machine, end)) for cpu in _processors()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(msgspec.json.encode(machine).decode())


def _processors() -> Iterable[int | None]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [None]


def _sleep_on(cpu: int | None, machine: Machine, end: Event) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})  # this thread
    while True:
        begin = perf_counter()
        if end.wait(SLEEP_SECONDS):
            return
        machine.late = max(machine.late, perf_counter() - begin - SLEEP_SECONDS)


def _sync_again(folder: Path, machine: Machine, end: Event) -> None:
    file = os.open(folder / "page", os.O_CREAT | os.O_WRONLY)
    while not end.wait(SYNC_PAUSE_SECONDS):
        begin = perf_counter()
        os.pwrite(file, PAGE, 0)
        os.fsync(file)
        machine.sync = max(machine.sync, perf_counter() - begin)
    os.close(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
