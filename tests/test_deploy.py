"""The files that people start from, and the page for who is on call, speak of what is there."""

import re
from pathlib import Path

import pytest

from gregor.config import Settings
from gregor.server.app import Server

ROOT = Path(__file__).parents[1]
FILES = sorted(path for path in (ROOT / "deploy").iterdir() if path.is_file())
SETTINGS = {f"GREGOR_{name.upper()}" for name in Settings.model_fields} | {"GREGOR_CONFIG"}
OF_WORKERS = {"gregor_worker_up"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"GREGOR_[A-Z]+(?:_[A-Z]+)*", path.read_text()))
    assert named <= SETTINGS


def test_every_metric_is_on_the_page_for_who_is_on_call() -> None:
    """And no other."""
    stores = ("a=sqlite://", "b=sqlite://")
    page = Server(Settings(store=stores, pubsub="redis://localhost")).metrics.page().decode()
    told = set(re.findall(r"^# TYPE (gregor_\w+) ", page, re.MULTILINE))
    told = {name for name in told if not name.endswith("_created")} | OF_WORKERS
    operations = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(gregor_\w+)(?:\{[\w,]+\})?`", operations))
    assert named == told
