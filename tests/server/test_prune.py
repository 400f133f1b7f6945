"""Pruning over the API, and the settings of how long history is kept."""

import asyncio
import logging
from typing import Any

import pytest

from gregor.config import Settings
from gregor.core.history import DAY, Cutoff, Retention
from gregor.core.instant import SECOND
from gregor.errors import SetupError
from gregor.interfaces import PruneStep
from gregor.server.auth import Role
from gregor.server.composition import retention_of, warn_of_short_history
from gregor.stores.sql.statements import KnownID
from tests.server.harness import (
    RawDevice,
    Served,
    jwt_settings,
    open_settings,
    serving,
    sql_machine,
    token,
    until,
)

PATH = "/v1/prune"


async def rows(served: Served, table: str) -> list[tuple[Any, ...]]:
    query = f"SELECT uid, msg_id, ctime FROM {table} ORDER BY ctime"
    return await sql_machine(served).database.read(lambda c: c.execute_sql(query))


async def replace(served: Served, uid: str) -> None:
    """Store an item twice, and let a moment pass."""
    for _ in range(2):
        message = {"uid": uid, "creation": {"category": "a", "body": 1, "key": "k"}}
        assert (await served.post(message)).status_code == 200
    await asyncio.sleep(0.002)


async def test_contents_of_what_is_past_are_forgotten_and_ids_are_kept() -> None:
    async with serving() as served:
        await replace(served, "ann")
        first, second = [KnownID(*row) for row in await rows(served, "messages")]
        answer = await served.http.post(PATH, json={"older_than": "1us"})
        assert answer.json() == {"users": 1, "contents": 1, "ids": 0}
        assert await rows(served, "messages") == [second]
        assert await rows(served, "pruned") == [first]
        assert await served.metric("gregor_pruned_messages_total") == 1
        assert await served.metric("gregor_forgotten_ids_total") == 0
        assert 0 <= await served.metric("gregor_prune_age_seconds") < 10


@pytest.mark.parametrize("body", [b"", b"{}", b'{"older_than": null}'])
async def test_without_a_time_that_of_the_settings_counts(body: bytes) -> None:
    async with serving(open_settings(history="1s")) as served:
        await replace(served, "ann")
        assert (await served.http.post(PATH, content=body)).json()["contents"] == 0
        await asyncio.sleep(1)
        assert (await served.http.post(PATH, content=body)).json()["contents"] == 1


REFUSED: list[tuple[Any, int, str]] = [
    ({"older_than": "0"}, 422, "more than 0"),
    ({"older_than": "0s"}, 422, "more than 0"),
    ({"older_than": "-30d"}, 422, "more than 0"),
    ({"older_than": "30"}, 422, "bare number"),
    ({"older_than": 30}, 400, "Expected `str"),
    ({"older_than": ""}, 422, "not a duration"),
    ({"older_than": "100000d"}, 422, "before 2001"),
    ({"older": "30d"}, 400, "unknown field"),
    ([], 400, "Expected `object`"),
]


@pytest.mark.parametrize(("body", "status", "detail"), REFUSED)
async def test_request_that_makes_no_sense_is_refused_and_names_its_field(
    body: Any, status: int, detail: str
) -> None:
    async with serving() as served:
        await replace(served, "ann")
        answer = await served.http.post(PATH, json=body)
        assert answer.status_code == status
        assert detail in answer.json()["detail"]
        assert answer.json().get("field") in (None, *body)
        assert len(await rows(served, "messages")) == 2
        assert (await served.http.post(f"{PATH}?older_than=30d")).status_code == 422


async def test_only_services_may_prune() -> None:
    async with serving(jwt_settings()) as served:
        for role, status in ((Role.DEVICE, 403), (Role.SERVICE, 200)):
            headers = {"Authorization": f"Bearer {token('ann', role)}"}
            assert (await served.http.post(PATH, headers=headers)).status_code == status
        assert (await served.http.post(PATH)).status_code == 401


async def test_server_that_stops_does_not_wait_for_a_prune() -> None:
    async with serving() as served:
        walks = served.server.node.pruner.walks[0]
        begun = asyncio.Event()

        async def endless(cutoff: Cutoff, after: str = "") -> PruneStep:
            begun.set()
            await asyncio.sleep(0)
            return PruneStep("more")

        walks._part.prune = endless  # type: ignore[method-assign]
        asked = asyncio.create_task(served.http.post(PATH))
        await begun.wait()
        await served.server.drain()
        answer = await asked
        assert (answer.status_code, answer.json()["action"]) == (503, "retry")
        assert "stopping" in answer.json()["detail"]
        assert (await served.http.post(PATH)).status_code == 503


async def test_failure_in_the_background_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gregor.node.pruning.FIRST_SECONDS", 0.05)
    async with serving() as served:
        sql_machine(served).skew = 10 * SECOND  # it must not prune by such a clock
        walks = served.server.node.pruner.walks[0]
        await until(lambda: walks.failures > 0)
        assert await served.metric("gregor_prune_failures_total") == 1


# What devices are told


@pytest.mark.parametrize(
    ("history", "ids", "days"),
    [("90d", "400d", 400), ("1d", "36h", 1), ("1h", "2h", 1), ("90d", "0", 0), ("0", "400d", 0)],
)
async def test_devices_are_told_how_long_an_unsent_write_is_safe(
    history: str, ids: str, days: int
) -> None:
    async with (
        serving(open_settings(history=history, ids=ids)) as served,
        await RawDevice.connect(served.url) as device,
    ):
        await device.send("hello", token="ann", device_id="d1", protocol=2)
        assert (await device.receive())["limits"]["ids_days"] == days


async def test_device_with_a_cursor_below_the_floor_gets_a_snapshot() -> None:
    async with serving() as served:
        await replace(served, "ann")
        await served.http.post(PATH, json={"older_than": "1us"})
        async with await served.device("ann", cursor=1) as device:
            sync = await device.receive()
            assert (sync["type"], sync["mode"]) == ("sync", "snapshot")
        answer = await served.http.get("/v1/users/ann/messages?after=1")
        assert (answer.status_code, answer.json()["code"]) == (410, "history-forgotten")
        assert answer.json()["action"] == "resync"


# Settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Retention()),
        ({"history": "30d", "ids": "60d"}, Retention(30 * DAY, 60 * DAY)),
        ({"history": "P30D"}, Retention(30 * DAY, 400 * DAY)),
        ({"history": "0"}, Retention(0, 400 * DAY)),
        ({"history": 0}, Retention(0, 400 * DAY)),  # of a TOML file
        ({"ids": "0"}, Retention(90 * DAY, 0)),
    ],
)
def test_times_of_the_settings(settings: dict[str, Any], expected: Retention) -> None:
    assert retention_of(Settings(**settings)) == expected


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"history": "90"}, "history"),
        ({"history": 90}, "history"),
        ({"history": "-1d"}, "history"),
        ({"history": "long"}, "history"),
        ({"history": "1ms"}, "history"),
        ({"ids": "-1d"}, "ids"),
        ({"ids": "90d"}, "ids"),
        ({"history": "400d"}, "ids"),
    ],
)
def test_times_that_make_no_sense_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(SetupError, match=f"setting `{field}`") as raised:
        retention_of(Settings(**settings))
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("history", "warned"), [("29d", True), ("1s", True), ("30d", False), ("0", False)]
)
def test_history_that_is_shorter_than_a_usual_absence_is_warned_of(
    history: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    warn_of_short_history(Settings(history=history))
    assert ["short history" in record.getMessage() for record in caplog.records] == [True] * warned
