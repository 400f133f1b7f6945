"""How soon a server is ready and how large it is then, and how long the client takes to import."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

from bench import servers
from bench.report import Figure, Wanted

RUNS = 9
MAX_MIB = 60

CLIENT = "import gregor.client"
BARE_CLIENT = "import asyncio, msgspec, websockets.asyncio.client"


class Start(NamedTuple):
    """The start of a server: the seconds until it was ready, and its memory then."""

    seconds: float
    mib: float


async def measure(quick: bool) -> list[Figure]:
    new, existing, bare, imports, bare_imports = [], [], [], [], []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        for run in range(1 if quick else RUNS):
            serve = partial(servers.gregor_serve, Path(directory, f"{run}.db"))
            new.append(await _start(serve))
            existing.append(await _start(serve))
            bare.append(await _start(servers.bare_starlette))
            imports.append(_seconds(CLIENT))
            bare_imports.append(_seconds(BARE_CLIENT))
    return [
        _until_ready("a new file", new, bare),
        _until_ready("an existing file", existing, bare),
        Figure(
            name="memory of a server when it is ready",
            measured=f"{_mib(new):.1f} MiB",
            beside=f"bare Starlette on uvicorn: {_mib(bare):.1f} MiB",
            ratio=_mib(new),
            wanted=Wanted.BELOW,
            threshold=MAX_MIB,
        ),
        Figure(
            name=f"python -c '{CLIENT}'",
            measured=f"{median(imports) * 1e3:.0f} ms",
            beside=f"{BARE_CLIENT}: {median(bare_imports) * 1e3:.0f} ms",
            ratio=median(imports) / median(bare_imports),
            wanted=Wanted.BELOW,
            threshold=1.5,
        ),
    ]


def _until_ready(store: str, starts: list[Start], bare: list[Start]) -> Figure:
    seconds = median(start.seconds for start in starts)
    bare_seconds = median(start.seconds for start in bare)
    return Figure(
        name=f"gregor serve on {store}, until it is ready",
        measured=f"{seconds:.2f} s",
        beside=f"bare Starlette on uvicorn: {bare_seconds:.2f} s",
        ratio=seconds / bare_seconds,
        wanted=Wanted.BELOW,
        threshold=3,
    )


def _mib(starts: list[Start]) -> float:
    return median(start.mib for start in starts)


async def _start(
    server: Callable[[], AbstractAsyncContextManager[servers.ServerProcess]],
) -> Start:
    begin = perf_counter()
    async with server() as process:
        if not await process.ready():
            raise RuntimeError("the server accepts connections, and is not ready")
        return Start(perf_counter() - begin, process.rss() / 2**20)


def _seconds(program: str) -> float:
    """How long a new interpreter takes to run the program."""
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return perf_counter() - begin
