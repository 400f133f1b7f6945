"""A server in a child process, for the duration of a block."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec

from gregor.errors import SetupError
from gregor.limits import OFF

START_TIMEOUT_SECONDS = 20.0
STOP_TIMEOUT_SECONDS = 20.0
WITHOUT_LIMITS = tuple(part for name in OFF for part in (f"--{name.replace('_', '-')}", "0"))
"""The options of a server for those who send as fast as they can."""
COMMAND = (sys.executable, "-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0")


class _LogEntry(msgspec.Struct):
    event: str
    url: str = ""


@asynccontextmanager
async def running_server(store: str, options: Sequence[str] = WITHOUT_LIMITS) -> AsyncIterator[str]:
    """Start a server on this store, on loopback and without authentication, by default without
    limits; yield its URL. Raises SetupError if it does not start, or if it ends before the block
    does."""
    # The caller's settings must not configure this server.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")}
    arguments = ("--store", store, "--log-format", "json", "--drain-seconds", "0")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, *options, stderr=PIPE, env=environment
    )
    last_lines: deque[str] = deque(maxlen=5)
    try:
        url = await _wait_started(process, last_lines)
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(_read_log(process, last_lines))
            yield url
            reading.cancel()
    finally:
        await _stop(process)


async def _wait_started(process: Process, last_lines: deque[str]) -> str:
    """Wait for the log entry that contains the server's URL, and return the URL."""
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            async for line in process.stderr:
                last_lines.append(line.decode(errors="replace").strip())
                entry = _parse_log_entry(line)
                if entry is not None and entry.event == "serving":
                    return entry.url
    except TimeoutError:
        last_lines.append(f"it was not ready within {START_TIMEOUT_SECONDS:.0f} s")
    raise SetupError(_failure("did not start", last_lines))


async def _read_log(process: Process, last_lines: deque[str]) -> None:
    """Read the server's log; raise SetupError when the server ends."""
    assert process.stderr is not None
    async for line in process.stderr:
        last_lines.append(line.decode(errors="replace").strip())
    raise SetupError(_failure("ended unexpectedly", last_lines))


def _failure(what: str, last_lines: deque[str]) -> str:
    reason = last_lines[-1].removeprefix("gregor: ") if last_lines else "it logged nothing"
    return f"the server {what}: {reason}"


def _parse_log_entry(line: bytes) -> _LogEntry | None:
    try:
        return msgspec.json.decode(line, type=_LogEntry)
    except msgspec.DecodeError:
        return None


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
