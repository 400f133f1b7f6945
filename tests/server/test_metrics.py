"""Health, readiness and metrics change as documented."""

import asyncio
import resource
from importlib.metadata import version
from platform import python_version
from threading import Event
from time import perf_counter

from gregor.clock import now
from gregor.core.instant import SECOND
from gregor.pubsub.link import Reason
from gregor.stores.sql.failure_reason import FailureReason
from tests.fleet.servers import Redis
from tests.server.harness import (
    Served,
    creation,
    open_settings,
    serving,
    sql_machine,
    store_failure,
    to,
    until,
)
from tests.timeouts import TIMEOUT_SECONDS

MESSAGES = 'gregor_messages_total{kind="%s",result="%s"}'


async def readiness(served: Served) -> tuple[int, list[str]]:
    answer = await served.http.get("/readyz")
    return answer.status_code, answer.json()["problems"]


async def test_running_server_is_alive_and_ready() -> None:
    async with serving() as served:
        assert (await served.http.get("/healthz")).text == "alive\n"
        assert await readiness(served) == (200, [])
        assert await served.metric("gregor_ready ") == 1


async def test_draining_server_is_alive_and_not_ready() -> None:
    async with serving() as served:
        await served.server.drain()
        assert (await served.http.get("/healthz")).status_code == 200
        assert await readiness(served) == (503, ["it is stopping"])
        assert await served.metric("gregor_ready ") == 0


async def test_server_is_ready_again_when_store_works_again() -> None:
    async with serving() as served:
        async with store_failure(served):
            status, (problem,) = await readiness(served)
            assert status == 503
            assert "no such table" in problem
        assert await readiness(served) == (200, [])


async def test_server_is_ready_again_if_waiting_devices_disconnected_meanwhile() -> None:
    async with serving(open_settings(sweep_seconds=0.02)) as served:
        node = served.server.node
        device = await served.synced("u")
        async with store_failure(served):
            await until(lambda: node.waiting_for_store)
            assert "devices wait for the store" in (await readiness(served))[1]
            await device.close()
            await until(lambda: not node.device_count("u"))
            assert node.waiting_for_store
        await until(lambda: not node.waiting_for_store)
        assert await readiness(served) == (200, [])


async def test_messages_are_counted_by_kind_and_result() -> None:
    async with serving() as served:
        out_of_band = {"uid": "u", "system": "s", "body": 1}
        batch = [to("u", msg_id="m"), to("u", msg_id="m"), to("u", body=2, msg_id="m"), out_of_band]
        await served.post({"messages": batch})
        expected = {
            ("in_band", "stored"): 1,
            ("in_band", "duplicate"): 1,
            ("in_band", "rejected"): 1,
            ("out_of_band", "relayed"): 1,
        }
        for labels, number in expected.items():
            assert await served.metric(MESSAGES % labels) == number


async def test_invalid_messages_are_counted_as_rejected() -> None:
    async with serving() as served:
        await served.post({"messages": [{"uid": "u"}, to("u")]})
        await served.post({"uid": "u"})
        assert await served.metric(MESSAGES % ("unknown", "rejected")) == 2


async def test_commit_duration_and_size_are_observed() -> None:
    async with serving() as served:
        start = perf_counter()
        await served.post({"messages": [to("u") for _ in range(7)]})
        request_seconds = perf_counter() - start
        assert await served.metric("gregor_commit_messages_count") == 1
        assert await served.metric("gregor_commit_messages_sum") == 7
        assert await served.metric("gregor_commit_seconds_count") == 1
        # The commit is a part of the request.
        assert 0 < await served.metric("gregor_commit_seconds_sum") < request_seconds


async def test_failed_commits_are_counted_by_reason() -> None:
    async with serving() as served:
        failed = 'gregor_failed_commits_total{reason="%s"}'
        async with store_failure(served):
            assert (await served.post(to("u"))).status_code == 503
        assert await served.metric(failed % "schema") == 1
        assert (await served.post(to("u"))).status_code == 200
        assert await served.metric(failed % "schema") == 1
        page = (await served.http.get("/metrics")).text
        assert all(failed % reason in page for reason in FailureReason)  # at 0 before the first


async def test_reconnects_of_the_pubsub_are_counted_by_reason() -> None:
    reconnects = 'gregor_pubsub_reconnects_total{reason="%s"}'
    async with Redis() as redis, serving(open_settings(pubsub=redis.url)) as served:
        page = served.server.metrics.page
        assert all(f"{reconnects % reason} 0.0".encode() in page() for reason in Reason)
        pubsub = served.server.node.pubsub
        assert pubsub is not None
        await redis.stop()
        await until(lambda: f"{reconnects % 'closed'} 1.0".encode() in page())
        await until(lambda: f"{reconnects % 'refused'} 0.0".encode() not in page())
        await redis.start()
        await until(lambda: pubsub.up)


async def test_build_and_process_are_described() -> None:
    async with serving() as served:
        build = f'{{python="{python_version()}",version="{version("gregor-sync")}"}}'
        assert await served.metric(f"gregor_build_info{build} ") == 1
        assert await served.metric("process_start_time_seconds") > now() / SECOND - 86_400
        assert await served.metric("process_resident_memory_bytes") > 2**20
        assert await served.metric("process_cpu_seconds_total") > 0
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert await served.metric("process_max_fds") == limit
        before = await served.metric("process_open_fds")
        async with await served.synced("u"):
            assert await served.metric("process_open_fds") >= before + 2  # both ends are here


async def test_pools_of_the_store_are_shown() -> None:
    async with serving() as served:
        pool = '{pool="file",shard=""}'
        assert await served.metric(f"gregor_store_connections_limit{pool}") == 1
        database = sql_machine(served).database
        finish = Event()
        writes = [
            asyncio.create_task(database.write(lambda connection: finish.wait())) for _ in range(30)
        ]
        await asyncio.sleep(0)
        try:
            assert await served.metric(f"gregor_store_connections_in_use{pool}") == 1
            waiting = await served.metric(f"gregor_store_connections_waiting{pool}")
            assert 29 <= waiting < 40  # with those of the server itself
        finally:
            finish.set()  # or the server would wait for its thread for ever
        await asyncio.gather(*writes)
        assert await served.metric(f"gregor_store_connections_waiting{pool}") < 10
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await served.metric(f"gregor_store_connections_in_use{pool}"):
                pass


async def test_connections_and_deliveries_are_counted() -> None:
    async with serving() as served:
        async with await served.synced("u") as one, await served.synced("u", "d2") as two:
            assert await served.metric("gregor_connections ") == 2
            assert await served.metric("gregor_users ") == 1
            await served.post(to("u"))
            await one.receive_type("messages")
            await two.receive_type("messages")
            assert await served.metric("gregor_deliveries_total") == 2
        await until(lambda: not served.server.node.device_count("u"))
        assert await served.metric("gregor_connections ") == 0


async def test_snapshot_requested_by_synced_device_is_counted_as_hash_mismatch() -> None:
    async with serving() as served:
        await served.post(to("u"))
        async with await served.synced("u") as device:
            assert await served.metric("gregor_hash_mismatches_total") == 0
            await device.send("verify", cursor=0)
            await device.receive_type("sync")
            assert await served.metric("gregor_hash_mismatches_total") == 1


async def test_wrong_hash_in_the_store_is_repaired_and_counted() -> None:
    name = "gregor_kept_hash_mismatches_total"
    metrics, wrong = f"{name} 1.0".encode(), f"UPDATE users SET hash = '{'1' * 64}'"
    async with serving(open_settings(sweep_seconds=0.02)) as served:
        await served.post(to("u"))
        async with await served.synced("u"):
            assert await served.metric(name) == 0
            await sql_machine(served).database.write(lambda c: c.execute_sql(wrong))
            await until(lambda: metrics in served.server.metrics.page())
        async with await served.device("u", "d2") as device:
            sync = await device.receive()
            assert sync["hash"] == (await served.http.get("/v1/users/u/state")).json()["hash"]


async def test_metrics_page_has_prometheus_format_and_all_metrics() -> None:
    async with serving() as served, await served.synced("u") as device:
        await device.consume(creation())
        answer = await served.http.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        names = {line.split()[2] for line in answer.text.splitlines() if line.startswith("# TYPE")}
        assert names >= {
            "gregor_connections",
            "gregor_messages_total",
            "gregor_commit_seconds",
            "gregor_commit_messages",
            "gregor_event_loop_lag_seconds",
            "gregor_http_request_seconds",
            "gregor_http_requests_total",
            "gregor_deliveries_total",
            "gregor_lagging_sessions",
            "gregor_slow_consumer_resets_total",
            "gregor_hash_mismatches_total",
            "gregor_ready",
            "gregor_users",
            "gregor_clock_skew_seconds",
            "gregor_pubsub_interruptions_total",
        }
        assert "gregor_pubsub_up" not in names  # this server has no pub/sub
