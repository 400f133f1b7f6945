"""The JavaScript client in Chromium, beside TinyBase, Centrifuge and the bare browser.

    make bench-browser

Each runs against its own server, and holds the same items. Centrifuge is left out if there is no
`centrifugo` on the path: `go install github.com/centrifugal/centrifugo/v6@v6.9.1`.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import msgspec
from msgspec import Struct

from bench import servers
from bench.load import BenchFailed
from bench.report import Figure
from bench.servers import Address, ServerProcess
from tests.javascript import node

HERE = Path(__file__).parent
OURS = "gregor"
TITLES = {
    "tinybase": "TinyBase",
    "centrifuge": "Centrifuge and a map",
    "bare": "the browser alone",
}


class Samples(Struct):
    """What was measured for a figure, by system."""

    name: str
    unit: str
    samples: dict[str, list[float]]


async def measure(quick: bool) -> list[Figure]:
    site = servers.free_address()
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with AsyncExitStack() as stack:
            origin = ("--allow-origin", _url(site))
            gregor = servers.gregor_serve(Path(directory, "gregor.db"), *origin)
            ours = await stack.enter_async_context(gregor)
            tinybase = await stack.enter_async_context(_tinybase())
            centrifugo = await _centrifugo(stack, Path(directory, "centrifugo.json"))
            settings = {
                "site": site.port,
                "gregor": _url(ours.address),
                "tinybase": _url(tinybase.address),
                "centrifugo": centrifugo and _url(centrifugo.address),
                "quick": quick,
            }
            samples = await _run(settings)
    return [_figure(each) for each in samples]


@asynccontextmanager
async def _tinybase() -> AsyncIterator[ServerProcess]:
    address = servers.free_address()
    command = node.command("node", str(HERE / "tinybase-server.ts"), str(address.port))
    async with servers.started(address, command) as server:
        yield server


async def _centrifugo(stack: AsyncExitStack, config: Path) -> ServerProcess | None:
    program = shutil.which("centrifugo")
    if program is None:
        return None
    address = servers.free_address()
    _configure_centrifugo(config, address)
    server = servers.started(address, (program, "-c", str(config)))
    return await stack.enter_async_context(server)


def _configure_centrifugo(config: Path, address: Address) -> None:
    """A server in memory, which keeps the history of each channel and trusts everybody."""
    settings = {
        "http_server": {"address": address.host, "port": address.port},
        "http_api": {"insecure": True},
        "client": {
            "insecure": True,
            "allowed_origins": ["*"],
            "history_max_publication_limit": 20_000,
            "queue_max_size": 16 * 2**20,  # for a whole history
        },
        "channel": {
            "namespaces": [
                {
                    "name": "us",
                    "history_size": 20_000,
                    "history_ttl": "1h",
                    "force_recovery": True,
                    "force_positioning": True,
                    "allow_subscribe_for_client": True,
                    "allow_subscribe_for_anonymous": True,
                    "allow_publish_for_client": True,
                    "allow_publish_for_anonymous": True,
                    "allow_history_for_client": True,
                    "allow_history_for_anonymous": True,
                }
            ]
        },
        "log": {"level": "error"},
        "usage_stats": {"disabled": True},
    }
    config.write_bytes(msgspec.json.encode(settings))


async def _run(settings: Mapping[str, object]) -> Sequence[Samples]:
    script = str(HERE / "run.ts")
    process = await asyncio.create_subprocess_exec(
        *node.command("node", script, msgspec.json.encode(settings).decode()),
        env=node.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise BenchFailed("the browser was not measured; `make bench-browser` installs it")
    return msgspec.json.decode(output, type=list[Samples])


def _figure(measured: Samples) -> Figure:
    """That of Gregor; beside it, that of each other, and in brackets how Gregor compares to it."""
    medians = {system: median(values) for system, values in measured.samples.items()}
    ours = medians.pop(OURS)
    beside = (
        f"{TITLES[system]}: {_text(theirs, measured.unit)}"
        + (f" ({ours / theirs:.2f})" if theirs else "")
        for system, theirs in medians.items()
    )
    text = _text(ours, measured.unit)
    return Figure(name=measured.name, measured=text, beside="; ".join(beside))


def _text(value: float, unit: str) -> str:
    match unit:
        case "bytes" if value >= 1e6:
            return f"{value / 1e6:.1f} MB"
        case "bytes":
            return f"{value / 1e3:.2f} kB"
        case "ms":
            return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
        case _:
            return f"{value:.0f}"


def _url(address: Address) -> str:
    return f"http://{address.host}:{address.port}"
