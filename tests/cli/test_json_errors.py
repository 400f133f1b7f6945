"""Where logs are JSON, whatever ends a command is one JSON line on stderr."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from tests.cli.conftest import CommandResult, Shell

JSON = {"GREGOR_LOG_FORMAT": "json"}
UNREACHABLE = "postgresql://u:secret@127.0.0.1:1/x"


def entry(result: CommandResult) -> Any:
    """The only line of stderr."""
    (line,) = result.err.splitlines()
    found = msgspec.json.decode(line)
    assert found.keys() >= {"event", "logger", "level", "timestamp"}
    assert (found["logger"], found["level"]) == ("gregor.cli", "critical")
    assert result.out == ""
    return found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("serve", "--listen", "9911"), "setting `listen`: give HOST:PORT"),
        (("serve", "--log-format", "xml"), "setting `log_format`"),
        (("serve", "--workers", "3"), "--workers 3 needs a store"),
        (("serve", "--listen", "127.0.0.1:0", "--store", UNREACHABLE), "u:***@127.0.0.1:1/x"),
        (("--config", "no.toml", "serve"), "no.toml does not exist"),
        (("migrate", "--store", UNREACHABLE), "start PostgreSQL"),
        (("count", "u", "--url", "http://127.0.0.1:1"), "127.0.0.1:1"),
    ],
)
def test_error_is_a_json_line(shell: Shell, arguments: tuple[str, ...], reason: str) -> None:
    result = shell.process(*arguments, env=JSON)
    found = entry(result)
    assert result.status == 1
    assert found["event"] == "failed"
    assert reason in found["reason"]
    assert "secret" not in result.err


@pytest.mark.parametrize(
    "arguments", [("serve", "--bad"), ("--bad",), ("bad",), ("serve", "--workers", "many")]
)
def test_wrong_usage_is_a_json_line(shell: Shell, arguments: tuple[str, ...]) -> None:
    result = shell.process(*arguments, env=JSON)
    found = entry(result)
    assert result.status == 2
    assert found["event"] == "failed"
    assert any(word in found["reason"] for word in ("--bad", "'bad'", "--workers"))


def test_option_and_file_ask_for_json_as_the_environment_does(shell: Shell) -> None:
    bad = ("serve", "--listen", "bad")
    assert "`listen`" in entry(shell.process(*bad, "--log-format", "json"))["reason"]
    (shell.folder / "gregor.toml").write_text('log_format = "json"')
    assert "`listen`" in entry(shell.process("--config", "gregor.toml", *bad))["reason"]
    console = ("--config", "gregor.toml", *bad, "--log-format", "console")
    assert shell.process(*console).failed_with("`listen`")
    assert shell.process(*bad, "--log-format", "console", env=JSON).failed_with("`listen`")


def test_file_that_does_not_parse_is_reported_as_the_environment_asks(shell: Shell) -> None:
    (shell.folder / "gregor.toml").write_text("log_format = ")
    result = shell.process("--config", "gregor.toml", "serve", env=JSON)
    assert "gregor.toml" in entry(result)["reason"]
    assert shell.process("--config", "gregor.toml", "serve").failed_with("gregor.toml")


def test_errors_for_people_stay_plain(shell: Shell) -> None:
    assert shell.process("serve", "--listen", "9911").failed_with("`listen`")
    usage = shell.process("serve", "--bad")
    assert usage.status == 2
    assert "Usage:" in usage.err


CRASH = """
import asyncio, sys
from gregor.cli.main import app
from gregor.server import process

async def crash(settings):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail("a defect\\nof two lines"))

async def fail(message):
    raise ZeroDivisionError(message)

process.serve = crash
app(["serve"])
"""


def crashed(shell: Shell, **environment: str) -> CommandResult:
    done = subprocess.run(
        (sys.executable, "-c", CRASH),
        capture_output=True,
        text=True,
        cwd=shell.folder,
        env={**shell.environment, **environment},
        check=False,
    )
    return CommandResult(done.returncode, done.stdout, done.stderr)


def test_crash_is_a_json_line_with_the_traceback(shell: Shell) -> None:
    result = crashed(shell, **JSON)
    found = entry(result)
    assert result.status == 1
    assert found["event"] == "crashed"
    assert "ZeroDivisionError: a defect" in found["exception"]
    assert "Traceback" in found["exception"]


def test_crash_for_people_is_a_traceback(shell: Shell) -> None:
    result = crashed(shell)
    assert result.status == 1
    assert "ZeroDivisionError: a defect" in result.err
    assert "{" not in result.err.splitlines()[0]


def test_missing_extra_is_a_json_line(shell: Shell) -> None:
    without_typer = "import sys; sys.modules['typer'] = None; from gregor.cli import __main__ as m"
    done = subprocess.run(
        (sys.executable, "-c", f"{without_typer}; m.main()"),
        capture_output=True,
        text=True,
        env={**shell.environment, **JSON},
        check=False,
    )
    result = CommandResult(done.returncode, done.stdout, done.stderr)
    assert "gregor-sync[cli]" in entry(result)["reason"]


def test_crash_of_a_worker_names_the_worker(shell: Shell) -> None:
    settings = {"log_format": "json", "store": "sqlite://"}
    sockets = {"listener": 2, "admin": None}
    config = {"number": 7, **sockets, "folder": "/nowhere", "settings": settings}
    result = shell.process("worker", stdin=msgspec.json.encode(config).decode() + "\n")
    found = entry(result)  # stderr is no socket to listen on
    assert (result.status, found["event"], found["worker"]) == (1, "crashed", 7)
