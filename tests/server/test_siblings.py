"""The metrics of several workers as one page."""

import socket
from pathlib import Path

import pytest

from gregor.server import siblings
from gregor.server.metrics import Metrics
from gregor.server.siblings import Siblings


def metrics(commits: int) -> Metrics:
    counted = Metrics(())
    for _ in range(commits):
        counted.committed(1, 0.003, True)
    return counted


async def test_what_each_says_is_told_apart(tmp_path: Path) -> None:
    one, two = (Siblings(tmp_path, number, 2) for number in (1, 2))
    async with one.answering(metrics(3).page), two.answering(metrics(5).page):
        page = (await one.page()).decode().splitlines()
        assert (await two.page()).decode().splitlines() == page
    for worker, commits in (("1", 3), ("2", 5)):
        assert f'gregor_worker_up{{worker="{worker}"}} 1.0' in page
        assert f'gregor_commit_seconds_count{{worker="{worker}"}} {commits}.0' in page
        assert f'gregor_commit_seconds_bucket{{le="0.002",worker="{worker}"}} 0.0' in page
        assert f'gregor_commit_seconds_bucket{{le="+Inf",worker="{worker}"}} {commits}.0' in page
        assert f'gregor_deliveries_total{{worker="{worker}"}} 0.0' in page
    described = [line.split()[2] for line in page if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    assert "# TYPE gregor_deliveries_total counter" in page
    assert "# HELP gregor_deliveries_total Messages written to devices" in page


async def test_who_does_not_answer_is_left_out_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings, "PATIENCE_SECONDS", 0.1)
    one = Siblings(tmp_path, 1, 3)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "2"))
        frozen.listen()
        async with one.answering(metrics(1).page):
            page = (await one.page()).decode().splitlines()
    assert 'gregor_worker_up{worker="1"} 1.0' in page
    assert 'gregor_worker_up{worker="2"} 0.0' in page  # its kernel takes the question
    assert 'gregor_worker_up{worker="3"} 0.0' in page  # it is not there
    assert not [line for line in page if 'worker="2"' in line and "_up" not in line]


async def test_one_that_had_no_time_to_clear_its_place_away_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    one = Siblings(tmp_path, 1, 1)
    async with one.answering(metrics(1).page):
        assert b'gregor_worker_up{worker="1"} 1.0' in await one.page()
