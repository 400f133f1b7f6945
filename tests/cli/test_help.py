"""The help texts list every command, with examples."""

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gregor.cli.main import app

COMMANDS = {
    "serve", "migrate", "token", "send", "put", "snooze", "dismiss", "state", "get", "count", "log",
    "explain", "watch", "replay", "demo", "notify", "inbox", "prune", "erase",
    "export", "import", "backup",
}  # fmt: skip


GROUPS = {"shards"}
SHARDS_COMMANDS = ("status", "plan", "move", "verify")


def help_of(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    return result.output


def test_help_lists_every_command() -> None:
    listed = set(re.findall(r"^│ (\w+) ", help_of(), re.MULTILINE))
    assert listed == COMMANDS | GROUPS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_each_command_has_examples(command: str) -> None:
    examples = re.findall(rf"\$ .*gregor {command}\b", help_of(command))
    assert 1 <= len(examples) <= 3


@pytest.mark.parametrize("command", SHARDS_COMMANDS)
def test_help_of_each_shards_command_has_examples(command: str) -> None:
    examples = re.findall(rf"\$ gregor shards {command}\b", help_of("shards", command))
    assert 1 <= len(examples) <= 3


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_examples_fit_on_a_narrow_terminal(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"})
    examples = [line for line in result.output.splitlines() if line.startswith(" $ ")]
    continued = [line for line in result.output.splitlines() if line.rstrip().endswith("\\")]
    assert examples
    assert not continued
    assert all(line.count("'") % 2 == 0 for line in examples)


def test_version_option_prints_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert re.fullmatch(r"gregor \d+\.\d+\.\d+\n", result.output)


def test_wrong_usage_exits_with_2() -> None:
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2
    assert CliRunner().invoke(app, ["state"]).exit_code == 2
    assert CliRunner().invoke(app, ["state", "alice", "--nonsense"]).exit_code == 2


def test_help_imports_no_slow_module() -> None:
    slow = "{'sqlalchemy', 'starlette', 'uvicorn', 'httpx', 'pydantic', 'websockets', 'rich'}"
    program = f"import gregor.cli.main, sys; print({slow} & set(sys.modules))"
    result = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
