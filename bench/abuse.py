"""The process of an abuser, which is at work until it is ended:

python -m bench.abuse KIND HOST PORT

It prints `ready` when what it needs first is stored. Its tokens come from the environment. If it is
refused, or disconnected, it comes back at once.
"""

import asyncio
import os
import sys

import msgspec
import uvloop

from bench.abusers import BATCH, HTTP, KINDS, UID, Abuser, Target
from bench.load import BenchFailed
from bench.servers import Address, raise_open_file_limit

DEVICE_TOKEN, SERVICE_TOKEN = "BENCH_DEVICE_TOKEN", "BENCH_SERVICE_TOKEN"


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


if __name__ == "__main__":
    raise_open_file_limit()
    uvloop.run(main(*sys.argv[1:]))
