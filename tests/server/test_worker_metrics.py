"""The metrics pages of all workers, merged into one page."""

import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gregor.server import worker_metrics
from gregor.server.metrics import Metrics, gauges
from gregor.server.worker_metrics import WorkerMetrics
from gregor.stores.sql.failure_reason import FailureReason


def metrics_with(commits: int) -> Metrics:
    metrics = Metrics()
    for _ in range(commits):
        metrics.committed(1, 0.003, None)
    return metrics


async def test_samples_of_all_workers_have_a_worker_label(tmp_path: Path) -> None:
    one, two = (WorkerMetrics(tmp_path, number, 2) for number in (1, 2))
    async with one.serving_page(metrics_with(3).page), two.serving_page(metrics_with(5).page):
        page = (await one.page()).decode().splitlines()
        assert of_gregor((await two.page()).decode().splitlines()) == of_gregor(page)
    for worker, commits in (("1", 3), ("2", 5)):
        assert f'gregor_worker_up{{worker="{worker}"}} 1.0' in page
        assert f'gregor_commit_seconds_count{{worker="{worker}"}} {commits}.0' in page
        assert f'gregor_commit_seconds_bucket{{le="0.002",worker="{worker}"}} 0.0' in page
        assert f'gregor_commit_seconds_bucket{{le="+Inf",worker="{worker}"}} {commits}.0' in page
        failed = f'gregor_failed_commits_total{{reason="disk_full",worker="{worker}"}} 0.0'
        assert failed in page
    described = [line.split()[2] for line in page if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    assert "# TYPE gregor_failed_commits_total counter" in page
    assert "# HELP gregor_failed_commits_total Commits that the store did not accept" in page


def of_gregor(page: list[str]) -> list[str]:
    """Without the metrics of the process, which change by themselves."""
    return [line for line in page if line.startswith("gregor_")]


async def test_each_sample_of_each_worker_is_on_the_page_unchanged(tmp_path: Path) -> None:
    pages = {str(number): page_with(number) for number in (1, 2)}
    one, two = (WorkerMetrics(tmp_path, number, 2) for number in (1, 2))
    async with (
        one.serving_page(lambda: pages["1"]),
        two.serving_page(lambda: pages["2"]),
    ):
        merged = samples_of(await one.page())
    expected = {
        (name, labels | {("worker", worker)}): value
        for worker, page in pages.items()
        for (name, labels), value in samples_of(page).items()
    }
    up = {("gregor_worker_up", frozenset({("worker", worker)})): 1.0 for worker in pages}
    assert merged == expected | up
    assert len(expected) > 100


def page_with(number: int) -> bytes:
    """A page with labels of all kinds, some of which only this worker has."""
    metrics = Metrics()
    metrics.answered("GET", "/v1/users/{uid}/state", 200 + number, 0.02 * number)
    metrics.answered("GET", "none", 404, 7.0)
    metrics.committed(900, 0.7, FailureReason.TIMEOUT)
    text = 'a "quoted" \\ path,\nof {two} lines # 1'
    metrics.readings.append(gauges("odd", text, ("label",), lambda: {(text,): number}))
    return metrics.page()


def samples_of(page: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The value of each sample, by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


async def test_worker_that_does_not_answer_is_left_out_and_shown_as_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_metrics, "PAGE_TIMEOUT_SECONDS", 0.1)
    one = WorkerMetrics(tmp_path, 1, 3)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(tmp_path / "2"))
        frozen.listen()
        async with one.serving_page(metrics_with(1).page):
            page = (await one.page()).decode().splitlines()
    assert 'gregor_worker_up{worker="1"} 1.0' in page
    assert 'gregor_worker_up{worker="2"} 0.0' in page  # accepts the connection, and is silent
    assert 'gregor_worker_up{worker="3"} 0.0' in page  # has no socket
    assert not [line for line in page if 'worker="2"' in line and "_up" not in line]


async def test_socket_file_of_killed_worker_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "1").touch()
    one = WorkerMetrics(tmp_path, 1, 1)
    async with one.serving_page(metrics_with(1).page):
        assert b'gregor_worker_up{worker="1"} 1.0' in await one.page()
