"""The image of deploy/Dockerfile without a container engine: its steps, in a chroot of Debian.

The image that it starts from is Debian with Python in /usr/local; so is the chroot, but with
Debian's Python. Needs root, or sudo.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
SUDO = () if os.geteuid() == 0 else ("sudo",)
PACKAGES = "ca-certificates,python3-venv"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin"
# How the host reaches a registry of packages.
NETWORK_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf", "/etc/hosts")
NETWORK_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL")


class Image:
    """A file system, and what the Dockerfile says of the processes in it."""

    def __init__(self, root: Path) -> None:
        self.user = "0:0"
        self._root = root
        self._folder = "/"
        self._commands: dict[str, list[str]] = {}

    def build(self) -> None:
        """Run the steps. Raises CalledProcessError if one fails."""
        for instruction, arguments in instructions():
            match instruction:
                case "FROM":
                    assert arguments == "python:3.11-slim"
                    self._run("python3.11 -m venv /usr/local")
                case "RUN":
                    self._run(arguments)
                case "COPY":
                    *sources, target = arguments.split()
                    self._copy(sources, target)
                case "WORKDIR":
                    self._folder = arguments
                    as_root("mkdir", "-p", f"{self._root}{arguments}")
                case "USER":
                    self.user = arguments
                case "ENTRYPOINT" | "CMD" | "HEALTHCHECK":
                    self._commands[instruction] = json.loads(arguments[arguments.index("[") :])
                case _:
                    assert instruction == "EXPOSE"

    def start(self, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """Start what a container runs."""
        command = self._commands["ENTRYPOINT"] + self._commands["CMD"]
        return subprocess.Popen(self._as_user(command, environment))

    def is_healthy(self, port: int) -> bool:
        """Whether the HEALTHCHECK passes, on this port."""
        command = [part.replace("9911", str(port)) for part in self._commands["HEALTHCHECK"]]
        # Its traceback says only that nothing answers yet.
        return subprocess.run(self._as_user(command, {}), stderr=subprocess.DEVNULL).returncode == 0

    def _as_user(self, command: list[str], environment: Mapping[str, str]) -> tuple[str, ...]:
        # With `exec` everywhere, so that a signal to the process reaches the program.
        script = f'cd {self._folder} && exec "$@"'
        return self._in_chroot(self.user, environment, "sh", "-c", script, "sh", *command)

    def _run(self, command: str) -> None:
        network = {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}
        script = f"cd {self._folder} && {command}"
        subprocess.run(self._in_chroot("0:0", network, "sh", "-ec", script), check=True)

    def _copy(self, sources: list[str], target: str) -> None:
        ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        assert {f"!{source}" for source in sources} <= set(ignore)
        folder = f"{self._root}{self._folder}/{target}"
        paths = [str(REPOSITORY / source) for source in sources]
        as_root("cp", "--recursive", *(["-T"] if len(paths) == 1 else []), *paths, folder)

    def _in_chroot(
        self, user: str, environment: Mapping[str, str], *command: str
    ) -> tuple[str, ...]:
        variables = [f"{name}={value}" for name, value in {"PATH": PATH, **environment}.items()]
        chroot = ("chroot", f"--userspec={user}", str(self._root))
        return (*SUDO, *chroot, "env", "--ignore-environment", *variables, *command)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    parts = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(instruction, arguments) for instruction, _, arguments in parts]


@contextmanager
def debian() -> Iterator[Path]:
    """The folder of a new Debian with Python, which is deleted at the end."""
    # Not in TMPDIR, which may be a file system without devices.
    with TemporaryDirectory(prefix="gregor-", dir="/var/tmp") as folder:
        root = f"{folder}/root"
        try:
            options = ("--variant=minbase", f"--include={PACKAGES}")
            as_root("debootstrap", *options, "bookworm", root)
            for file in NETWORK_FILES:
                as_root("cp", "--dereference", file, f"{root}{file}")
            yield Path(root)
        finally:
            as_root("rm", "--recursive", "--force", "--one-file-system", root)


def as_root(*command: str) -> None:
    """Run a command as root. Raises CalledProcessError if it fails."""
    subprocess.run((*SUDO, *command), check=True, stdout=subprocess.DEVNULL)
