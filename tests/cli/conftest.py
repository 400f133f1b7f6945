"""Runs `gregor` as users do: with real servers, in a temporary folder, on free ports.

Servers and other long-running commands are processes. A short command is called in this process,
which is twenty times as fast. Neither sees the `GREGOR_…` variables of the caller's environment.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from gregor.cli.main import app

COMMAND = (sys.executable, "-m", "gregor.cli")
COMMAND_TIMEOUT_SECONDS = 60.0


class CommandResult:
    """The output and the exit status of a command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    def failed_with(self, *words: str) -> bool:
        """Whether the exit status is 1. Asserts that stderr is one line with all of these words."""
        (line,) = self.err.splitlines()
        assert line.startswith("gregor: ")
        assert all(word in line for word in words), line
        return self.status == 1


class Shell:
    """A folder and an environment in which tests call `gregor`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")},
            "COLUMNS": "100",
            "GREGOR_LISTEN": "127.0.0.1:0",  # several servers start at the same time
        }

    def __call__(
        self, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Call a command in this process."""
        removed = {name: None for name in os.environ if name.startswith("GREGOR_")}
        environment = {**removed, **self.environment, **(env or {})}
        with chdir(self.folder):
            result = CliRunner().invoke(app, arguments, input=stdin, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return CommandResult(result.exit_code, result.stdout, result.stderr)

    def process(
        self, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run a command in a child process."""
        process = subprocess.run(
            (*COMMAND, *arguments),
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
        return CommandResult(process.returncode, process.stdout, process.stderr)

    @contextmanager
    def running(self, *arguments: str, **streams: Any) -> Iterator["subprocess.Popen[str]"]:
        """Start a long-running command, and terminate it when the block ends."""
        process = subprocess.Popen(
            (*COMMAND, *arguments), text=True, cwd=self.folder, env=self.environment, **streams
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(COMMAND_TIMEOUT_SECONDS)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    @contextmanager
    def serving(
        self, *arguments: str, listen: str = "127.0.0.1:0"
    ) -> Iterator["subprocess.Popen[str]"]:
        """Start a server; commands of this shell then use it."""
        options = ("--listen", listen, "--log-format", "json", "--drain-seconds", "0")
        with self.running("serve", *options, *arguments, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            self.environment["GREGOR_URL"] = first_json(process.stderr, event="serving")["url"]
            yield process


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore the logging configuration, which a command that is called in this process changes."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("gregor").setLevel(logging.NOTSET)


def first_json(lines: IO[str] | Sequence[str], **expected: str) -> Any:
    """The first line that is a JSON object with these values. Fails if the process ends before."""
    for line in lines:
        value = json.loads(line)
        if expected.items() <= value.items():
            return value
    raise AssertionError(f"the process ended before it wrote {expected}")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def gregor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell with a server that all tests of a module share; each test uses its own user."""
    shell = Shell(tmp_path_factory.mktemp("server"))
    with shell.serving():
        yield shell
