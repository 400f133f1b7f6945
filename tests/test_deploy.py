"""The files in deploy/ and the operations page name existing settings and metrics."""

import re
from pathlib import Path

import pytest

from gregor.clock import now
from gregor.config import Settings
from gregor.pubsub.link import Reason
from gregor.server.app import Server
from gregor.server.composition import Parts
from gregor.stores.sql.failure_reason import FailureReason

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "deploy").iterdir() if path.is_file())
SETTINGS = {f"GREGOR_{name.upper()}" for name in Settings.model_fields} | {"GREGOR_CONFIG"}
ALERTS = (ROOT / "deploy" / "alerts.yml").read_text()
# Of a supervisor, and of a process with a certificate.
PROCESS_METRICS = {"gregor_worker_up", "gregor_tls_reload_failing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_in_a_deploy_file_exists(path: Path) -> None:
    named = set(re.findall(r"GREGOR_[A-Z]+(?:_[A-Z]+)*", path.read_text()))
    assert named <= SETTINGS


def test_operations_page_lists_exactly_the_metrics_that_exist() -> None:
    stores = ("a=sqlite://", "b=sqlite://")
    server = Server.from_settings(Settings(store=stores, pubsub="redis://localhost"))
    page = server.metrics.page().decode()
    exported = set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))
    exported = {name for name in exported if not name.endswith("_created")} | PROCESS_METRICS
    operations = (ROOT / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"`((?:gregor|process)_\w+)(?:\{[\w,]+\})?`", operations))
    assert listed == exported


def test_operations_page_lists_the_reasons_of_failed_commits() -> None:
    (row,) = (row for row in metric_rows() if "gregor_failed_commits_total" in row[0])
    assert re.findall("`(.*?)`", row[1]) == [*FailureReason]


def test_operations_page_lists_the_reasons_of_reconnects() -> None:
    (row,) = (row for row in metric_rows() if "gregor_pubsub_reconnects_total" in row[0])
    assert re.findall("`(.*?)`", row[1]) == [*Reason]


def test_each_alert_is_about_metrics_that_exist() -> None:
    listed = {name for names, *_ in metric_rows() for name in metrics_in(names)}
    assert metrics_in(ALERTS) <= listed


def test_there_is_an_alert_wherever_the_operations_page_says_when_to_act() -> None:
    alerted = metrics_in(ALERTS)
    for names, _, when in metric_rows():
        if when.strip():
            assert metrics_in(names) & alerted, names


def metrics_in(text: str) -> set[str]:
    """The metrics that the text names. A sample of a histogram counts as its metric."""
    names = re.findall(r"\b(?:gregor|process)_\w+", text)
    return {re.sub("_(bucket|sum|count)$", "", name) for name in names}


def test_operations_page_says_how_many_connections_a_process_has() -> None:
    settings = Settings(store="postgresql:///x")
    (database,) = Parts(settings, now).databases.values()
    connections = sum(pool.limit for pool in database.pools().values())
    operations = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"`max_connections`\D+(\d+)\s+times", operations) == [str(connections)]


def number_in(file: str, pattern: str) -> float:
    """The number that follows the pattern in a file of deploy/."""
    match = re.search(rf"{pattern}(\d+)", (ROOT / "deploy" / file).read_text())
    assert match is not None, pattern
    return float(match[1])


def test_example_of_the_settings_has_no_secret() -> None:
    example = (ROOT / "deploy" / "gregor.env.example").read_text()
    assert re.findall("^(.*(?:SECRET|PASSWORD)).*=(.*)$", example, re.MULTILINE) == [
        ("POSTGRES_PASSWORD", ""),
        ("REDIS_PASSWORD", ""),
        ("GREGOR_JWT_SECRET", ""),
    ]


@pytest.mark.parametrize("name", ["requirements.lock", "deploy/requirements.lock"])
def test_each_package_of_a_lock_has_its_hashes(name: str) -> None:
    lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    packages = [line for line in lines if line.strip() and not line.strip().startswith("#")]
    assert len(packages) > 20
    assert all(" --hash=sha256:" in line for line in packages)


def test_service_managers_wait_longer_than_a_shutdown_takes() -> None:
    drain = number_in("gregor.env.example", "GREGOR_DRAIN_SECONDS=")
    assert number_in("gregor.service", "TimeoutStopSec=") > 2 * drain + 20  # --workers
    assert number_in("compose.yaml", "stop_grace_period: ") > 2 * drain + 11


def metric_rows() -> list[list[str]]:
    """The rows of the table of metrics: their names, their meaning, and when to act."""
    operations = (ROOT / "docs" / "operations.md").read_text()
    table = operations.partition("| metric |")[2].partition("\n\n")[0]
    return [line.removesuffix("|").split("|")[1:] for line in table.splitlines()[2:]]
