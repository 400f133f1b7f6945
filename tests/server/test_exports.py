"""Exports, imports and backups over HTTP: who may ask for them, and what is answered."""

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gregor.server.auth import Role
from tests.server.harness import Served, jwt_settings, serving, shared_settings, to, token

SERVICE = {"Authorization": f"Bearer {token('backend', Role.SERVICE)}"}
ANN = {"Authorization": f"Bearer {token('ann')}"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed() -> AsyncIterator[Served]:
    """A server that checks tokens."""
    async with serving(jwt_settings()) as served:
        for uid in ("ann", "bob"):
            answer = await served.post(to(uid, msg_id="m"), token("backend", Role.SERVICE))
            assert answer.status_code == 200
        yield served


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


async def test_service_exports_all_users_or_one(closed: Served) -> None:
    answer = await closed.http.get("/v1/export", headers=SERVICE)
    assert answer.headers["content-type"] == "application/jsonl"
    assert lines(answer.text)[-1] == {"end": {"users": 2, "messages": 2}}
    one = await closed.http.get("/v1/users/bob/export", headers=SERVICE)
    _, user, message, end = lines(one.text)
    assert (user["user"]["uid"], message["message"]["uid"]) == ("bob", "bob")
    assert end == {"end": {"users": 1, "messages": 1}}


async def test_device_exports_its_own_user_alone(closed: Served) -> None:
    own = await closed.http.get("/v1/users/ann/export", headers=ANN)
    assert lines(own.text)[-1] == {"end": {"users": 1, "messages": 1}}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/export"),
        ("GET", "/v1/users/bob/export"),
        ("POST", "/v1/import"),
        ("GET", "/v1/backup"),
    ],
)
@pytest.mark.parametrize(("headers", "status"), [(ANN, 403), ({}, 401)])
async def test_nobody_else_may(
    closed: Served, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    assert (await closed.http.request(method, path, headers=headers)).status_code == status


async def test_parameters_are_refused(closed: Served) -> None:
    answer = await closed.http.get("/v1/export?user=ann", headers=SERVICE)
    assert answer.status_code == 422


async def test_import_answers_what_came_of_it(closed: Served) -> None:
    text = (await closed.http.get("/v1/users/bob/export", headers=SERVICE)).text
    answer = await closed.http.post("/v1/import", content=text + "more\n", headers=SERVICE)
    assert answer.json() == {
        "users": 1,
        "stored": 0,
        "known": 1,
        "refused": 1,
        "complete": True,
        "problems": [
            {"line": 5, "code": "malformed", "reason": "this line comes after the end"},
        ],
    }
    other = await closed.http.post("/v1/import", content=b"[]", headers=SERVICE)
    assert other.status_code == 400
    assert "not an export of Gregor" in other.json()["detail"]


async def test_connected_device_hears_of_what_was_imported() -> None:
    """With the next sweep, as of messages of another node."""
    async with serving(shared_settings("sqlite://", sweep_seconds=0.05)) as served:
        await served.post(to("ann", body="old", msg_id="a"))
        text = (await served.http.get("/v1/export")).text
        device = await served.synced("ann")
        message = json.loads(text.splitlines()[2])
        message["message"] |= {"msg_id": "b", "ctime": message["message"]["ctime"] + 1}
        more = "\n".join(['{"gregor_export":1}', json.dumps(message)])
        assert (await served.http.post("/v1/import", content=more)).json()["stored"] == 1
        frame = await device.receive()
        assert "b" in json.dumps(frame)


async def test_backup_is_a_sound_copy_while_messages_are_stored(tmp_path: Path) -> None:
    async with serving(shared_settings(f"sqlite:///{tmp_path}/gregor.db")) as served:
        for _ in range(20):
            batch = {"messages": [to("ann", body="x" * 1000) for _ in range(200)]}
            assert (await served.post(batch)).status_code == 200
        copied = served.http.get("/v1/backup")
        stored = [await served.post(to("bob", body=n)) for n in range(20)]
        assert all(answer.status_code == 200 for answer in stored)
        copy = tmp_path / "copy.db"
        copy.write_bytes((await copied).content)
    with sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM messages WHERE uid = 'ann'").fetchall() == [
            (4000,)
        ]
    database.close()
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "gregor.db"]
