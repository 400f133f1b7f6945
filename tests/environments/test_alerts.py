"""The rules in deploy/alerts.yml fire when they should, and a real Prometheus scrapes a real node.

Each case has the series of a problem, as promtool writes them (one sample a minute), and those of a
fleet that is nearly as bad: with the first exactly one alert fires, with the second none does.
"""

import asyncio
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest

from gregor.config import Settings
from gregor.server.app import Server
from gregor.server.worker_metrics import WorkerMetrics
from tests.environments.prometheus import Prometheus, promtool
from tests.server.harness import listening, open_settings
from tests.timeouts import TIMEOUT_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "alerts.yml"

Series: TypeAlias = dict[str, str]


class AlertCase(NamedTuple):
    """The series with which the alert fires after so many minutes, and with which it does not."""

    alert: str
    minutes: int
    fires: Series
    quiet: Series


def node(metric: str, **labels: str) -> str:
    """The name of a series of one node."""
    pairs = {"job": "gregor", "instance": "n1", **labels}
    return metric + "{" + ",".join(f'{name}="{value}"' for name, value in pairs.items()) + "}"


def commits(metric: str, each: float) -> Series:
    """60 commits a minute, each of which adds this to the histogram."""
    return {
        node(f"gregor_commit_{metric}_sum"): f"0+{60 * each}x60",
        node(f"gregor_commit_{metric}_count"): "0+60x60",
    }


def lags(each: float) -> Series:
    """240 samples a minute, each of which is so late."""
    return {
        node("gregor_event_loop_lag_seconds_sum"): f"0+{240 * each}x60",
        node("gregor_event_loop_lag_seconds_count"): "0+240x60",
    }


def requests(status: str, share: int, route: str = "/v1/messages") -> Series:
    """1,000 requests a minute, of which so many have this status."""
    name, labels = "gregor_http_requests_total", {"method": "POST", "route": route}
    return {
        node(name, **labels, status="200"): f"0+{1000 - share}x60",
        node(name, **labels, status=status): f"0+{share}x60",
    }


def answers(fast: int) -> Series:
    """100 answers a minute, of which so many take less than a second, and all less than 5 s."""
    name, labels = "gregor_http_request_seconds_bucket", {"method": "GET", "route": "/"}
    return {
        node(name, **labels, le="1"): f"0+{fast}x60",
        node(name, **labels, le="5"): "0+100x60",
        node(name, **labels, le="+Inf"): "0+100x60",
    }


def messages(result: str, share: int) -> Series:
    """100 messages a minute, of which so many have this result."""
    name = "gregor_messages_total"
    return {
        node(name, kind="in_band", result="stored"): f"0+{100 - share}x60",
        node(name, kind="in_band", result=result): f"0+{share}x60",
    }


def descriptors(opened: int) -> Series:
    return {node("process_open_fds"): f"{opened}x60", node("process_max_fds"): "1024x60"}


def versions(newer: str) -> Series:
    return {
        node("gregor_build_info", version="0.1.0"): "1x300",
        node("gregor_build_info", version="0.2.0", instance="n2"): newer,
    }


def peers(heard: int) -> Series:
    """Three nodes, of which the first hears so many others."""
    ready = {node("gregor_ready", instance=f"n{number}"): "1x60" for number in (1, 2, 3)}
    return {**ready, node("gregor_pubsub_peers"): f"{heard}x60"}


def gaps(recovered: str, up: str | None) -> Series:
    pubsub = {} if up is None else {node("gregor_pubsub_up", instance="n2"): up}
    return {node("gregor_gap_messages_recovered_total"): recovered, **pubsub}


FAILED = node("gregor_failed_commits_total", reason="disk_full")
WAITING = node("gregor_store_connections_waiting", pool="reader", shard="")
DROPPED = node("gregor_pubsub_dropped_total")
PUBSUB_UP = node("gregor_pubsub_up")
ONE_AT_ONCE = "0x10 1x20"  # a counter that is 0, and then 1

CASES = [
    AlertCase("GregorDown", 5, {node("up"): "1 0x9"}, {node("up"): "1x4 0"}),
    AlertCase(
        "GregorNotReady", 6, {node("gregor_ready"): "1 0x9"}, {node("gregor_ready"): "1x3 0 0 0"}
    ),
    AlertCase(
        "GregorWorkerDown",
        5,
        {node("gregor_worker_up", worker="2"): "1 0x9"},
        {node("gregor_worker_up", worker="2"): "1x4 0"},
    ),
    AlertCase(
        "GregorRestarts",
        40,
        {node("process_start_time_seconds"): "1x9 2x9 3x9 4x30"},
        {node("process_start_time_seconds"): "1x9 2x9 3x30"},
    ),
    AlertCase("GregorVersionsDiffer", 130, versions("1x300"), versions("1x90")),
    AlertCase(
        "GregorProcessorBusy",
        30,
        {node("process_cpu_seconds_total"): "0+58x60"},
        {node("process_cpu_seconds_total"): "0+50x60"},
    ),
    AlertCase("GregorEventLoopLate", 20, lags(0.2), lags(0.05)),
    AlertCase("GregorDescriptorsRunOut", 10, descriptors(900), descriptors(800)),
    AlertCase("GregorCommitsFail", 12, {FAILED: ONE_AT_ONCE}, {FAILED: "7x60"}),
    AlertCase("GregorCommitsSlow", 20, commits("seconds", 0.2), commits("seconds", 0.05)),
    AlertCase("GregorCommitsFull", 20, commits("messages", 190), commits("messages", 100)),
    AlertCase(
        "GregorStoreConnectionsBusy", 15, {WAITING: "3x60"}, {WAITING: "3 3 0 3 3 0 3 3 3 3 0x6"}
    ),
    AlertCase(
        "GregorWritesFail",
        5,
        {node("gregor_writes_failing"): "0 1x9"},
        {node("gregor_writes_failing"): "0x4 1"},
    ),
    AlertCase(
        "GregorShardDown",
        5,
        {node("gregor_shard_up", shard="a"): "1 0x9"},
        {node("gregor_shard_up", shard="a"): "1x4 0"},
    ),
    AlertCase(
        "GregorClockWrong",
        5,
        {node("gregor_clock_skew_seconds"): "-0.7x9"},
        {node("gregor_clock_skew_seconds"): "-0.3x9"},
    ),
    AlertCase(
        "GregorClockTooWrong",
        5,
        {node("gregor_clock_skew_seconds"): "-6x9"},
        {node("gregor_clock_skew_seconds"): "0.4x9"},
    ),
    AlertCase("GregorErrors", 15, requests("503", 20), requests("503", 5) | requests("422", 900)),
    AlertCase("GregorErrors", 15, requests("500", 1000), requests("503", 1000, "/readyz")),
    AlertCase("GregorAnswersSlow", 20, answers(fast=98), answers(fast=100)),
    AlertCase(
        "GregorConnectionsFell",
        23,
        {node("gregor_connections"): "1000x20 300x20"},
        {node("gregor_connections"): "1000x20 700x20"},
    ),
    AlertCase("GregorMessagesRejected", 30, messages("rejected", 8), messages("rejected", 2)),
    AlertCase("GregorMessagesRepeated", 30, messages("duplicate", 20), messages("duplicate", 5)),
    AlertCase(
        "GregorDevicesLag",
        15,
        {node("gregor_lagging_sessions"): "500x60"},
        {node("gregor_lagging_sessions"): "50x60"},
    ),
    AlertCase(
        "GregorDevicesLag",
        15,
        {node("gregor_slow_consumer_resets_total"): "0+100x60"},
        {node("gregor_slow_consumer_resets_total"): "0+1x60"},
    ),
    AlertCase("GregorPubsubDown", 5, {PUBSUB_UP: "1 0x9"}, {PUBSUB_UP: "1x4 0"}),
    AlertCase(
        "GregorPubsubUnstable",
        60,
        {node("gregor_pubsub_interruptions_total"): "0+1x60"},
        {node("gregor_pubsub_interruptions_total"): "0x20 1x20 2x20"},
    ),
    AlertCase(
        "GregorPubsubSplit",
        5,
        {node("gregor_pubsub_split"): "0 1x9"},
        {node("gregor_pubsub_split"): "0x4 1"},
    ),
    AlertCase("GregorPeersMissing", 6, peers(1), peers(2)),
    AlertCase(
        "GregorPubsubRefuses",
        12,
        {node("gregor_pubsub_reconnects_total", reason="authentication"): ONE_AT_ONCE},
        {node("gregor_pubsub_reconnects_total", reason="closed"): ONE_AT_ONCE},
    ),
    AlertCase(
        "GregorPubsubDrops",
        40,
        {DROPPED: "0+5x60", PUBSUB_UP: "1x60"},
        {DROPPED: "0+5x60", PUBSUB_UP: "1x30 0 1x30"},
    ),
    AlertCase("GregorMessagesMissed", 40, gaps("0+5x60", "1x60"), gaps("0+5x60", "1x30 0 1x30")),
    AlertCase("GregorMessagesMissed", 40, gaps("0+5x60", None), gaps("5x60", None)),
    AlertCase(
        "GregorForeignMessages",
        12,
        {node("gregor_pubsub_invalid_messages_total"): ONE_AT_ONCE},
        {node("gregor_pubsub_invalid_messages_total"): "3x60"},
    ),
    AlertCase(
        "GregorPruneFails",
        60,
        {node("gregor_prune_failures_total", shard=""): "0+1x60"},
        {node("gregor_prune_failures_total", shard=""): "0+0.05x60"},
    ),
    AlertCase(
        "GregorHistoryGrows",
        2,
        {node("gregor_prune_age_seconds", shard="", instance=name): "90000x5" for name in "ab"},
        {
            node("gregor_prune_age_seconds", shard="", instance="a"): "90000x5",
            node("gregor_prune_age_seconds", shard="", instance="b"): "80x5",
        },
    ),
    AlertCase(
        "GregorHashesDiffer",
        12,
        {node("gregor_hash_mismatches_total"): ONE_AT_ONCE},
        {node("gregor_hash_mismatches_total"): "3x60"},
    ),
    AlertCase(
        "GregorKeptHashesWrong",
        12,
        {node("gregor_kept_hash_mismatches_total"): ONE_AT_ONCE},
        {node("gregor_kept_hash_mismatches_total"): "3x60"},
    ),
    AlertCase(
        "GregorPublishFailures",
        12,
        {node("gregor_publish_failures_total"): ONE_AT_ONCE},
        {node("gregor_publish_failures_total"): "3x60"},
    ),
    AlertCase(
        "GregorRefusesConnections",
        12,
        {node("gregor_refused_connections_total"): ONE_AT_ONCE},
        {node("gregor_refused_connections_total"): "3x60"},
    ),
    AlertCase(
        "GregorShedsConnections",
        25,
        {node("gregor_shed_connections_total"): "0+20x60"},
        {node("gregor_shed_connections_total"): "0+5x60"},
    ),
    AlertCase(
        "GregorRefusesAddress",
        25,
        {node("gregor_refused_connections_of_address_total"): "0+1x60"},
        {node("gregor_refused_connections_of_address_total"): "3x60"},
    ),
    AlertCase(
        "GregorPeerErrors",
        25,
        {node("gregor_peer_errors_total", reason="token"): "0+1500x60"},
        {node("gregor_peer_errors_total", reason="token"): "0+600x60"},
    ),
    AlertCase(
        "GregorOldCertificate",
        10,
        {node("gregor_tls_reload_failing"): "1x60"},
        {node("gregor_tls_reload_failing"): "0x60"},
    ),
]


def promtool_test(series: Series, minutes: int, firing: list[str]) -> dict[str, Any]:
    """A test of promtool: after so many minutes, exactly these alerts fire."""
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in firing]
    expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{minutes}m", "exp_samples": expected}
        ],
    }


def rule_tests(folder: Path, *tests: dict[str, Any]) -> Path:
    """A file with these tests, for promtool. (JSON is YAML.)"""
    file = folder / "test.yml"
    file.write_text(
        json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests})
    )
    return file


@pytest.mark.parametrize("case", CASES, ids=[case.alert for case in CASES])
def test_alert_fires_alone_and_only_when_it_should(case: AlertCase, tmp_path: Path) -> None:
    fires = promtool_test(case.fires, case.minutes, [case.alert])
    quiet = promtool_test(case.quiet, case.minutes, [])
    result = promtool("test", "rules", rule_tests(tmp_path, fires, quiet))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("case", CASES, ids=[case.alert for case in CASES])
def test_annotations_of_alert_say_what_happens_and_what_to_do(
    case: AlertCase, tmp_path: Path
) -> None:
    no_alert = {"eval_time": f"{case.minutes}m", "alertname": case.alert, "exp_alerts": []}
    test = promtool_test(case.fires, case.minutes, [case.alert]) | {"alert_rule_test": [no_alert]}
    result = promtool("test", "rules", rule_tests(tmp_path, test))
    # It fails, as the alert is not expected, and shows the alert with its annotations.
    assert result.returncode == 1
    assert re.search(r'Annotations:{action="\w.* summary="\w', result.stderr), result.stderr
    assert "error expanding template" not in result.stderr
    assert "<no value>" not in result.stderr


def test_rules_are_valid_and_each_has_a_case() -> None:
    assert promtool("check", "rules", ALERTS).returncode == 0
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert set(alerts) == {case.alert for case in CASES}


def test_configuration_is_valid() -> None:
    result = promtool("check", "config", DEPLOY / "prometheus.yml")
    assert result.returncode == 0, result.stdout + result.stderr


async def test_metrics_follow_the_conventions_of_prometheus(tmp_path: Path) -> None:
    server = Server.from_settings(
        Settings(store=("a=sqlite://", "b=sqlite://"), pubsub="redis://localhost")
    )
    server.metrics.answered("GET", "/v1/users/{uid}/state", 200, 0.1)
    worker = WorkerMetrics(tmp_path, 1, 2)
    async with worker.serving_page(server.metrics.page):
        pages = (server.metrics.page(), await worker.page())
    for page in pages:
        result = promtool("check", "metrics", stdin=page.decode())
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def config_for(port: int, folder: Path) -> Path:
    """The configuration of deploy/, for a node on this port, with a shorter interval."""
    config = (DEPLOY / "prometheus.yml").read_text()
    for theirs, ours in (
        (": 15s", ": 1s"),
        ("- alerts.yml", f"- {ALERTS}"),
        ('["gregor1:9912", "gregor2:9912"]', f'["127.0.0.1:{port}"]'),
    ):
        assert theirs in config
        config = config.replace(theirs, ours)
    path = folder / "prometheus.yml"
    path.write_text(config)
    return path


async def samples_of(prometheus: Prometheus, expression: str) -> list[dict[str, object]]:
    """The samples of a query, as soon as there are any."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not (found := await prometheus.query(expression)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return found


async def test_prometheus_scrapes_a_node_and_evaluates_the_alerts(tmp_path: Path) -> None:
    server = Server.from_settings(open_settings())
    async with (
        server,
        listening(server.admin) as port,
        Prometheus(config_for(port, tmp_path)) as prometheus,
    ):
        (build,) = await samples_of(prometheus, "gregor_build_info")
        assert (build["version"], build["job"]) == (version("gregor-sync"), "gregor")
        (up,) = await prometheus.query('up{job="gregor"}')
        assert up["value"] == 1
        assert await prometheus.query("ALERTS") == []
        server.service.readiness.stopping = True
        (pending,) = await samples_of(prometheus, "ALERTS")
        assert (pending["alertname"], pending["alertstate"]) == ("GregorNotReady", "pending")
