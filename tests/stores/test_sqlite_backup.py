"""The copy of an SQLite database that is written to meanwhile."""

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from gregor.clock import now
from gregor.core.message import create
from gregor.errors import StorageUnavailable
from gregor.stores.sql import sqlite
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.sqlite import SQLiteDatabase
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at


async def test_copy_is_of_one_instant_and_transactions_run_between_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BACKUP_PAGES", 1)
    async with (
        database_at(f"sqlite:///{tmp_path}/gregor.db", migrate) as database,
        SQLStateMachine(database, now) as machine,
    ):
        batch = [create("ann", "c", "x" * 500, msg_id=f"{n}") for n in range(500)]
        await machine.consume_messages(batch)
        copying = asyncio.create_task(machine.backup())
        written = 0
        while not copying.done():
            # Both or none, as the one transaction says.
            pair = [create("bob", "c", written), create("bob", "c", written)]
            await machine.consume_messages(pair)
            written += 1
        assert written > 1
        copy = tmp_path / "copy.db"
        with await copying as contents:
            copy.write_bytes(contents.read())
    with closing(sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True)) as read:
        assert read.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = dict(read.execute("SELECT uid, count(*) FROM messages GROUP BY uid").fetchall())
    assert counts["ann"] == 500
    assert counts.get("bob", 0) % 2 == 0


async def test_database_that_is_closed_meanwhile_ends_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BACKUP_PAGES", 1)
    database = database_at(f"sqlite:///{tmp_path}/gregor.db", migrate)
    assert isinstance(database, SQLiteDatabase)
    async with database:
        copying = asyncio.create_task(database.backup())
        await asyncio.sleep(0)
    with pytest.raises(StorageUnavailable, match="closed"):
        await copying
    assert os.listdir(tmp_path) == ["gregor.db"]
