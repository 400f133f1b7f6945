"""A server in a process of its own, for as long as it is needed."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from gregor.errors import SetupError

START_SECONDS = 20.0
STOP_SECONDS = 20.0
COMMAND = (sys.executable, "-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0")


class _Logged(msgspec.Struct):
    event: str
    url: str = ""


@asynccontextmanager
async def running_server(store: str) -> AsyncIterator[str]:
    """The URL of a fresh server on this store, which lets in everybody on this machine.
    Raises SetupError if it does not start, and if it ends before it should."""
    # Settings of whoever calls are not for this server.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")}
    arguments = ("--store", store, "--log-format", "json", "--drain-seconds", "0")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stderr=PIPE, env=environment
    )
    last_words: deque[str] = deque(maxlen=5)
    try:
        url = await _started(process, last_words)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(process, last_words))
            yield url
            watching.cancel()
    finally:
        await _stop(process)


async def _started(process: Process, last_words: deque[str]) -> str:
    """The URL that it serves, which it logs as soon as it does."""
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            async for line in process.stderr:
                last_words.append(line.decode(errors="replace").strip())
                logged = _logged(line)
                if logged is not None and logged.event == "serving":
                    return logged.url
    except TimeoutError:
        last_words.append(f"it is not ready after {START_SECONDS:.0f} s")
    raise SetupError(_complaint("did not start", last_words))


async def _watch(process: Process, last_words: deque[str]) -> None:
    """Read what it says, and raise if it ends."""
    assert process.stderr is not None
    async for line in process.stderr:
        last_words.append(line.decode(errors="replace").strip())
    raise SetupError(_complaint("has ended", last_words))


def _complaint(what: str, last_words: deque[str]) -> str:
    said = last_words[-1].removeprefix("gregor: ") if last_words else "it said nothing"
    return f"the server {what}: {said}"


def _logged(line: bytes) -> _Logged | None:
    try:
        return msgspec.json.decode(line, type=_Logged)
    except msgspec.DecodeError:
        return None


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
