"""The log of a child process, as JSON."""

import json
from asyncio.subprocess import Process

from tests.server.harness import JSON


async def next_log_entry(process: Process, event: str) -> JSON:
    """The next entry with this event. Raises AssertionError if the process ends before."""
    assert process.stderr is not None
    while line := await process.stderr.readline():
        entry: JSON = json.loads(line)
        if entry["event"] == event:
            return entry
    raise AssertionError(f"the process ended before it logged {event!r}")
