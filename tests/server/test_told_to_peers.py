"""What a failure of the store tells: to peers that it fails, and to operators why."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gregor.config import Settings
from gregor.server import readiness
from tests.server.harness import (
    Served,
    creation,
    http_client,
    listening,
    open_settings,
    serving,
    sql_machine,
    store_failure,
    to,
    until,
)

FILE = "the-file-of-the-store"
LIMIT = 300_000


@contextmanager
def full_disk(limit: int = LIMIT) -> Iterator[None]:
    """While the block runs, the system lets no file of this process grow beyond the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_file(folder: Path) -> Settings:
    return Settings(store=f"sqlite:///{folder}/{FILE}", drain_seconds=0)


async def fill(served: Served) -> str:
    """Post until the store refuses; the answer."""
    while (answer := await served.post(to("u", body="x" * 60_000))).is_success:
        pass
    assert answer.status_code == 503
    return answer.text


async def test_full_disk_names_no_file_to_peers_and_is_not_ready_until_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The readiness knows of a write that fails without another check.
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 3_600)
    async with (
        serving(in_file(tmp_path)) as served,
        listening(served.server.app) as port,
        http_client(port) as public,
        await served.synced("u", "phone") as device,
    ):
        assert (await public.get("/readyz")).status_code == 200
        with full_disk():
            told = [await fill(served)]
            error = await device.consume(creation(body="x" * 60_000))
            told += [str(error), (await public.get("/readyz")).text]
            assert (error["code"], error["action"]) == ("unavailable", "retry")
            assert told[-1] == "not ready\n"
            assert not [text for text in told if FILE in text or "disk" in text]
            (problem,) = (await served.http.get("/readyz")).json()["problems"]
            assert "disk is full" in problem
            assert FILE in problem
            # There is room for some pages, and not for a message like the last one.
            with full_disk((tmp_path / f"{FILE}-wal").stat().st_size + 48 * 1024):
                await sql_machine(served)._probe_write()
                assert sql_machine(served).writes.failing.is_set()
            assert FILE in caplog.text
        await until(lambda: not sql_machine(served).writes.failing.is_set())
        assert (await served.http.get("/readyz")).status_code == 200


async def test_statement_that_fails_is_told_to_operators_only() -> None:
    async with serving(open_settings()) as served, store_failure(served):
        answers = [
            await served.post(to("u")),
            *[await served.http.get(f"/v1/users/u/{name}") for name in ("state", "messages")],
        ]
        for answer in answers:
            assert answer.status_code == 503
            assert "table" not in answer.text
        assert "no such table" in (await served.http.get("/readyz")).text
