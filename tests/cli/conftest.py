"""`gregor` as it is used: with real servers, in a folder of its own, on ports that were free.

What serves or goes on is a process of its own. A command that asks one thing and is done is called
in here, which is twenty times as fast. Settings of whoever runs the tests are not for either.
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
import structlog
from typer.testing import CliRunner

from gregor.cli.main import app

COMMAND = (sys.executable, "-m", "gregor.cli")
SECONDS = 60.0


class Finished:
    """What a command has said, and its exit status."""

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

    def complained(self, *words: str) -> bool:
        """Whether it failed with one plain line that has all of these in it."""
        (line,) = self.err.splitlines()
        assert line.startswith("gregor: ")
        assert all(word in line for word in words), line
        return self.status == 1


class Shell:
    """A folder, and an environment, in which `gregor` can be called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {
            **{k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")},
            "COLUMNS": "100",
        }

    def __call__(
        self, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Finished:
        """Call a command in here."""
        foreign = {name: None for name in os.environ if name.startswith("GREGOR_")}
        environment = {**foreign, **self.environment, **(env or {})}
        with chdir(self.folder), logging_as_before():
            result = CliRunner().invoke(app, arguments, input=stdin, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Finished(result.exit_code, result.stdout, result.stderr)

    def process(
        self, *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Finished:
        """Call a command in a process of its own."""
        process = subprocess.run(
            (*COMMAND, *arguments),
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            timeout=SECONDS,
            check=False,
        )
        return Finished(process.returncode, process.stdout, process.stderr)

    @contextmanager
    def started(self, *arguments: str, **streams: Any) -> Iterator["subprocess.Popen[str]"]:
        """A command that goes on, until the block ends."""
        process = subprocess.Popen(
            (*COMMAND, *arguments), text=True, cwd=self.folder, env=self.environment, **streams
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(SECONDS)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    @contextmanager
    def serving(
        self, *arguments: str, listen: str = "127.0.0.1:0"
    ) -> Iterator["subprocess.Popen[str]"]:
        """A server, to which the commands in here then speak."""
        options = ("--listen", listen, "--log-format", "json", "--drain-seconds", "0")
        with self.started("serve", *options, *arguments, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            self.environment["GREGOR_URL"] = first(process.stderr, event="serving")["url"]
            yield process


@contextmanager
def logging_as_before() -> Iterator[None]:
    """A command says how everything is logged, which is not for the tests that follow."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("gregor").setLevel(logging.NOTSET)
        structlog.reset_defaults()


def first(lines: IO[str] | Sequence[str], **wanted: str) -> Any:
    """The first JSON object among the lines that has these values. It ends with the process."""
    for line in lines:
        found = json.loads(line)
        if wanted.items() <= found.items():
            return found
    raise AssertionError(f"the process has ended before it said {wanted}")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def gregor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell beside a server that all tests of a module share, each with a user of its own."""
    shell = Shell(tmp_path_factory.mktemp("served"))
    with shell.serving():
        yield shell
