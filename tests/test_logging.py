"""Library code logs through the standard library, and prints nothing."""

import ast
import logging
import sys
from pathlib import Path

import msgspec
import pytest

import gregor
from gregor.cli.log_format import JSONFormatter, LineFormatter
from gregor.errors import Unauthenticated
from gregor.log_event import LogEvent
from tests.client.harness import client_harness, on_virtual_time

ROOT = Path(gregor.__file__).parent
# Packages that contain programs, which may print.
PROGRAMS = {"cli", "bench", "testing", "data"}
LIBRARY = [
    path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in PROGRAMS
]


@pytest.mark.parametrize("path", LIBRARY, ids=[str(path.relative_to(ROOT)) for path in LIBRARY])
def test_library_module_neither_prints_nor_configures_logging(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                pytest.fail(f"line {node.lineno} prints")
            case ast.Call(func=ast.Attribute(attr="basicConfig" | "addHandler")):
                pytest.fail(f"line {node.lineno} configures logging")


def refuse_all(token: str) -> str:
    raise Unauthenticated("the token is refused")


@on_virtual_time
async def test_client_that_stops_prints_nothing_and_logs_one_error(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with client_harness(authenticate=refuse_all) as harness, harness.device() as device:
        with pytest.raises(gregor.GregorError):
            await device.wait_synced()
    assert capsys.readouterr() == ("", "")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("gregor.client", "ERROR")
    assert record.getMessage().startswith("the client stops trying code='unauthenticated'")


def test_log_event_is_readable_text_and_keeps_its_fields() -> None:
    event = LogEvent("shard down", shard="a", problem="no answer")
    assert str(event) == "shard down shard='a' problem='no answer'"
    assert event.fields == {"shard": "a", "problem": "no answer"}


CREATED = 1_767_225_600.25
TIME = "2026-01-01T00:00:00.25"


def record_of(message: object, *arguments: object) -> logging.LogRecord:
    record = logging.LogRecord("gregor.server", logging.WARNING, "", 0, message, arguments, None)
    record.created = CREATED
    return record


def test_json_log_entry_has_each_field_of_the_event() -> None:
    formatted = JSONFormatter({"worker": 2}).format(record_of(LogEvent("shard down", shard="a")))
    entry = msgspec.json.decode(formatted)
    assert entry.pop("timestamp").startswith(TIME)
    assert entry == {
        "event": "shard down",
        "shard": "a",
        "worker": 2,
        "logger": "gregor.server",
        "level": "warning",
    }


def test_json_log_entry_of_a_library_has_its_message_and_traceback() -> None:
    record = record_of("%s failed", "it")
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    entry = msgspec.json.decode(JSONFormatter({}).format(record))
    assert entry["event"] == "it failed"
    assert entry["exception"].endswith("ValueError: why")


def test_json_log_entry_shows_values_that_json_does_not_have() -> None:
    formatted = JSONFormatter({}).format(record_of(LogEvent("ended", error=ValueError("why"))))
    assert msgspec.json.decode(formatted)["error"] == "ValueError('why')"


def test_log_line_is_readable_text() -> None:
    line = LineFormatter({"worker": 2}).format(record_of(LogEvent("shard down", shard="a")))
    assert line.startswith(TIME)
    assert line.endswith("Z [WARNING] gregor.server: shard down shard='a' worker=2")


FORGED = "2026-01-01T00:00:00Z [ERROR] gregor.server: forged"


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\x1b[2J", "\x85", "\u2028", "\x00", "\u202e"])
def test_what_a_peer_sends_neither_begins_a_line_nor_controls_the_terminal(break_: str) -> None:
    sent = f"x{break_}{FORGED}"
    for record in (record_of("%s", sent), record_of(LogEvent("invalid", uid=sent))):
        line = LineFormatter({}).format(record)
        assert line.isprintable()
        assert FORGED in line


def test_traceback_is_indented_and_shows_no_locals() -> None:
    token = "a secret token"
    try:
        raise ValueError(f"x\n{FORGED}\x1b[2J")
    except ValueError:
        record = logging.LogRecord("gregor", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    first, *rest = LineFormatter({}).format(record).splitlines()
    assert first.endswith("gregor: failed")
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
    assert token not in "".join(rest)
