"""Health, readiness and metrics move as they are documented."""

from tests.server.world import Served, creation, open_settings, serving, to, until, without_a_store

MESSAGES = 'gregor_messages_total{kind="%s",result="%s"}'


async def readiness(served: Served) -> tuple[int, list[str]]:
    answer = await served.http.get("/readyz")
    return answer.status_code, answer.json()["troubles"]


async def test_a_server_that_serves_is_alive_and_ready() -> None:
    async with serving() as served:
        assert (await served.http.get("/healthz")).text == "alive\n"
        assert await readiness(served) == (200, [])
        assert await served.metric("gregor_ready ") == 1


async def test_while_it_stops_it_is_alive_and_not_ready() -> None:
    async with serving() as served:
        await served.server.drain()
        assert (await served.http.get("/healthz")).status_code == 200
        assert await readiness(served) == (503, ["it is stopping"])
        assert await served.metric("gregor_ready ") == 0


async def test_it_is_ready_again_when_the_store_is() -> None:
    async with serving() as served:
        async with without_a_store(served):
            status, (trouble,) = await readiness(served)
            assert status == 503
            assert "no such table" in trouble
        assert await readiness(served) == (200, [])


async def test_it_is_ready_again_also_if_the_devices_have_left_meanwhile() -> None:
    async with serving(open_settings(sweep_seconds=0.02)) as served:
        node = served.server.node
        device = await served.synced("u")
        async with without_a_store(served):
            await until(lambda: node.behind)
            assert "devices wait for the store" in (await readiness(served))[1]
            await device.close()
            await until(lambda: not node.connected("u"))
            assert node.behind
        await until(lambda: not node.behind)
        assert await readiness(served) == (200, [])


async def test_messages_are_counted_by_kind_and_result() -> None:
    async with serving() as served:
        passing = {"uid": "u", "system": "s", "body": 1}
        batch = [to("u", msg_id="m"), to("u", msg_id="m"), to("u", body=2, msg_id="m"), passing]
        await served.post({"messages": batch})
        expected = {
            ("in_band", "stored"): 1,
            ("in_band", "duplicate"): 1,
            ("in_band", "rejected"): 1,
            ("out_of_band", "passed"): 1,
        }
        for labels, number in expected.items():
            assert await served.metric(MESSAGES % labels) == number


async def test_what_cannot_be_read_counts_as_rejected_too() -> None:
    async with serving() as served:
        await served.post({"messages": [{"uid": "u"}, to("u")]})
        await served.post({"uid": "u"})
        assert await served.metric(MESSAGES % ("unknown", "rejected")) == 2


async def test_commits_tell_how_long_they_took_and_how_much_they_held() -> None:
    async with serving() as served:
        await served.post({"messages": [to("u") for _ in range(7)]})
        assert await served.metric("gregor_commit_messages_count") == 1
        assert await served.metric("gregor_commit_messages_sum") == 7
        assert await served.metric("gregor_commit_seconds_count") == 1
        assert 0 < await served.metric("gregor_commit_seconds_sum") < 10


async def test_commits_that_the_store_does_not_take_are_counted() -> None:
    async with serving() as served:
        async with without_a_store(served):
            assert (await served.post(to("u"))).status_code == 503
        assert await served.metric("gregor_failed_commits_total") == 1
        assert (await served.post(to("u"))).status_code == 200
        assert await served.metric("gregor_failed_commits_total") == 1


async def test_connections_and_deliveries_are_counted() -> None:
    async with serving() as served:
        async with await served.synced("u") as one, await served.synced("u", "d2") as two:
            assert await served.metric("gregor_connections ") == 2
            assert await served.metric("gregor_users ") == 1
            await served.post(to("u"))
            await one.heard("messages")
            await two.heard("messages")
            assert await served.metric("gregor_deliveries_total") == 2
        await until(lambda: not served.server.node.connected("u"))
        assert await served.metric("gregor_connections ") == 0


async def test_a_snapshot_asked_for_by_a_device_that_knows_something_is_a_mismatch() -> None:
    async with serving() as served:
        await served.post(to("u"))
        async with await served.synced("u") as device:
            assert await served.metric("gregor_hash_mismatches_total") == 0
            await device.say("verify", cursor=0)
            await device.heard("sync")
            assert await served.metric("gregor_hash_mismatches_total") == 1


async def test_the_page_is_in_prometheus_own_format() -> None:
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
            "gregor_deliveries_total",
            "gregor_lagging_sessions",
            "gregor_lags_total",
            "gregor_hash_mismatches_total",
            "gregor_ready",
            "gregor_users",
            "gregor_clock_skew_seconds",
            "gregor_pubsub_interruptions_total",
        }
        assert "gregor_pubsub_up" not in names  # there is none
