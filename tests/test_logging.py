"""Library code logs through the standard library, and prints nothing."""

import ast
from pathlib import Path

import pytest

import gregor
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
            case ast.Import(names=names):
                assert not any(name.name.startswith("structlog") for name in names)
            case ast.ImportFrom(module=str(module)):
                assert not module.startswith("structlog")


@on_virtual_time
async def test_client_that_stops_prints_nothing_and_logs_one_error(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with client_harness() as harness, harness.device(token="") as device:
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
