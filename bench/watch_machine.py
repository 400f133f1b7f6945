"""The process that watches the machine, until it is ended:

python -m bench.watch_machine FOLDER

Then it prints a Machine. A server on the disk of the folder waits for both, too.
"""

import os
import signal
import sys
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
    syncs = Thread(target=_sync_again, args=(Path(folder), machine, end))
    syncs.start()
    while True:
        begin = perf_counter()
        if end.wait(SLEEP_SECONDS):
            break
        machine.late = max(machine.late, perf_counter() - begin - SLEEP_SECONDS)
    syncs.join()
    print(msgspec.json.encode(machine).decode())


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
