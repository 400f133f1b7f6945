"""The process of an abuser, which is at work until it is ended:

python -m bench.abuse KIND HOST PORT

It prints `started`, waits for a line, and prints `ready` when what it needs first is stored. Its
tokens come from the environment. If it is refused, or disconnected, it comes back at once. It would
be on another machine, so it has only what others leave of the processor.
"""

import asyncio
import os
import sys

import msgspec
import uvloop

from bench.abusers import (
    BATCH,
    DEVICE_TOKEN,
    HTTP,
    KINDS,
    SERVICE_TOKEN,
    UID,
    Abuser,
    Target,
)
from bench.load import BenchFailed
from bench.servers import Address, raise_open_file_limit


async def main(kind: str, host: str, port: str) -> None:
    tokens = os.environ[DEVICE_TOKEN], os.environ[SERVICE_TOKEN]
    target = Target(Address(host, int(port)), *tokens)
    abuser = KINDS[kind]
    await _store(abuser, target)
    print("ready", flush=True)
    while True:
        try:
            await abuser.abuse(target)
        except* (OSError, EOFError, BenchFailed):
            await asyncio.sleep(0.01)


async def _store(abuser: Abuser, target: Target) -> None:
    async with HTTP(target.address, target.device_token) as http:
        for start in range(0, len(abuser.stored), BATCH):
            batch = [{"uid": UID, **m} for m in abuser.stored[start : start + BATCH]]
            body = msgspec.json.encode({"messages": batch})
            await http.request("POST", "/v1/messages", body)


def give_way_to_others() -> None:
    """Use the processor only while nobody else wants it. A low priority would not do: fifty
    processes with `nice -n 10` together still take more than half of it from two busy ones."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


if __name__ == "__main__":
    give_way_to_others()
    raise_open_file_limit()
    print("started", flush=True)
    sys.stdin.readline()
    uvloop.run(main(*sys.argv[1:]))
