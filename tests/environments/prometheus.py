"""A real Prometheus, from Debian's package."""

import subprocess
from pathlib import Path

import httpx

from tests.fleet.servers import ManagedServer
from tests.timeouts import TIMEOUT_SECONDS


class Prometheus(ManagedServer):
    """Prometheus with this configuration file. It keeps its data until the block ends."""

    program = "prometheus"

    def __init__(self, config: Path) -> None:
        super().__init__()
        self._config = config

    async def query(self, expression: str) -> list[dict[str, object]]:
        """The samples of an instant query: their labels, and their values as `value`."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
            answer = await http.get(f"{self.url}/api/v1/query", params={"query": expression})
        return [
            {**sample["metric"], "value": float(sample["value"][1])}
            for sample in answer.json()["data"]["result"]
        ]

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        return [
            self.program,
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    async def _is_ready(self) -> bool:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http:
                return (await http.get(f"{self.url}/-/ready")).status_code == 200
        except httpx.TransportError:
            return False


def promtool(*arguments: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run promtool. Its output has what it has found."""
    command = ("promtool", *map(str, arguments))
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
