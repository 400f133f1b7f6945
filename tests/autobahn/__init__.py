"""The WebSocket of a server against the test suite of Autobahn, which is the field's reference.

`install` puts it into `.autobahn`. It needs Python 2.7, so it runs in a process of its own, as a
client that breaks the rules of RFC 6455 in all ways, against an app that sends back what it gets.
"""

import asyncio
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import uvicorn
from starlette.types import Receive, Scope, Send

from gregor.server import process
from gregor.server.socket import WebSockets

PACKAGES = Path(__file__).parents[2] / ".autobahn"
START = """
import os, site
site.addsitedir(os.environ["PYTHONPATH"])
from autobahntestsuite import wstest
wstest.run()
"""
MAX_SIZE = 32 * 1024 * 1024  # the suite sends messages of 16 MiB
PASSED = frozenset({"OK", "NON-STRICT", "INFORMATIONAL"})
"""NON-STRICT: RFC 6455 allows it, and the suite would rather see something else."""


class Verdict(NamedTuple):
    """What the suite says of a case: of what happened, and of how the connection ended."""

    case: str
    behavior: str
    ending: str

    @property
    def passed(self) -> bool:
        return self.behavior in PASSED and self.ending in PASSED


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message back."""
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def run(cases: Sequence[str]) -> list[Verdict]:
    """Run these cases, such as `7.*`, against the WebSocket of `gregor serve`."""
    with process.listen("127.0.0.1", 0) as listener, TemporaryDirectory() as directory:
        server = uvicorn.Server(process.config(echo, websockets=WebSockets(MAX_SIZE)))
        serving = asyncio.create_task(server.serve([listener]))
        spec = _spec(listener.getsockname()[1], cases, Path(directory, "reports"))
        await asyncio.to_thread(_run_suite, Path(directory), spec)
        server.should_exit = True
        await serving
        return _verdicts(Path(directory, "reports", "index.json"))


def _spec(port: int, cases: Sequence[str], reports: Path) -> dict[str, Any]:
    return {
        "outdir": str(reports),
        "servers": [{"agent": "gregor", "url": f"ws://127.0.0.1:{port}"}],
        "cases": [*cases],
        "exclude-cases": [],
    }


def _run_suite(directory: Path, spec: dict[str, Any]) -> None:
    path = directory / "spec.json"
    path.write_text(json.dumps(spec))
    python = (PACKAGES / "python").read_text().strip()
    subprocess.run(
        [python, "-W", "ignore", "-c", START, "--mode", "fuzzingclient", "--spec", str(path)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _verdicts(index: Path) -> list[Verdict]:
    (cases,) = json.loads(index.read_text()).values()
    verdicts = [Verdict(c, v["behavior"], v["behaviorClose"]) for c, v in cases.items()]
    return sorted(verdicts, key=lambda verdict: [int(part) for part in verdict.case.split(".")])
