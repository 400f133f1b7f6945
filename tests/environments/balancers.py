"""Load balancers from Debian's packages, with the configurations in deploy/, in front of two nodes.

Of a file, only names, ports, folders and limits are changed, so that what is shipped is what runs.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import httpx

from tests.fleet.servers import ManagedServer

DEPLOY = Path(__file__).parents[2] / "deploy"


class LoadBalancer(ManagedServer):
    """A balancer of two nodes, given by their URLs."""

    variable = ""  # always started here
    file: ClassVar[str]

    def __init__(self, nodes: Sequence[str]) -> None:
        super().__init__()
        self._nodes = nodes

    def configuration(self) -> str:
        """The shipped file, with the addresses of this machine."""
        text = (DEPLOY / self.file).read_text()
        names = ("gregor1:9911", "gregor2:9911")
        nodes = dict(zip(names, (urlsplit(url).netloc for url in self._nodes), strict=True))
        for old, new in {**nodes, **self._places()}.items():
            assert text.count(old) == 1, f"{self.file} has {old!r} not once"
            text = text.replace(old, new)
        return text

    def _places(self) -> Mapping[str, str]:
        """What listens where, and the folders; each with its replacement."""
        raise NotImplementedError

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _prepare(self) -> None:
        await super()._prepare()
        (self.directory / self.file).write_text(self.configuration())

    async def _is_ready(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                return (await http.get(f"{self.url}/healthz")).is_success
            except httpx.HTTPError:
                return False


class Nginx(LoadBalancer):
    program, file = "nginx", "nginx.conf"

    def _places(self) -> Mapping[str, str]:
        # A user other than root may not write to the folders that are compiled in.
        folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "".join(f"{name}_temp_path {self.directory}/{name};" for name in folders)
        return {
            "listen 9911;": f"listen 127.0.0.1:{self.port};",
            "http {": f"http {{ {paths}",
        }

    def _command(self) -> list[str]:
        options = f"daemon off; error_log stderr; pid {self.directory}/pid;"
        file = str(self.directory / self.file)
        return [program("nginx"), "-p", str(self.directory), "-c", file, "-g", options]


class HAProxy(LoadBalancer):
    program, file = "haproxy", "haproxy.cfg"

    def _places(self) -> Mapping[str, str]:
        # HAProxy does not start where it may not open two files for each of `maxconn`.
        return {"bind :9911": f"bind 127.0.0.1:{self.port}", "maxconn 50000": "maxconn 400"}

    def _command(self) -> list[str]:
        return [program("haproxy"), "-db", "-f", str(self.directory / self.file)]


class Caddy(LoadBalancer):
    program, file = "caddy", "Caddyfile"

    def _places(self) -> Mapping[str, str]:
        options = "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}\n"
        return {"\n:9911 {": f"\n{options}:{self.port} {{"}

    def _command(self) -> list[str]:
        folders = [f"XDG_{kind}_HOME={self.directory}" for kind in ("CONFIG", "DATA")]
        return ["env", *folders, program("caddy"), "run", "--config", self.file]


def program(name: str) -> str:
    """The path of a program that a Debian package installed, perhaps where only root looks."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert found is not None, f"{name} is not installed: run tests/environments/install"
    return found
