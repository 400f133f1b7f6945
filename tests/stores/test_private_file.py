"""Files of a store are for their own user, whatever the umask says."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gregor.client import SQLiteStore
from gregor.clock import now
from gregor.core.message import create
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have no modes")


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="{:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {
        file.name: f"{stat.S_IMODE(file.stat().st_mode):04o}"
        for file in folder.rglob("*")
        if file.is_file()
    }


async def write(path: Path) -> dict[str, str]:
    """Write to a database of this path; the modes of the files while it is open."""
    database = database_at(f"sqlite:///{path}", migrate)
    async with database, SQLStateMachine(database, now) as machine:
        await machine.consume_message(create("ann", "mail", "private"))
        with await machine.backup():
            return modes(path.parent)


@pytest.mark.usefixtures("umask")
async def test_new_database_is_for_its_own_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = await write(tmp_path / "gregor.db")
    assert found.keys() >= {"gregor.db", "gregor.db-wal"}
    assert set(found.values()) == {"0600"}
    assert set(modes(tmp_path).values()) == {"0600"}
    assert "every account" not in caplog.text


@pytest.mark.usefixtures("umask")
async def test_new_store_of_a_device_is_for_its_own_user(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "laptop.db"):
        assert set(modes(tmp_path).values()) == {"0600"}


@pytest.mark.usefixtures("umask")
def test_export_and_backup_are_for_their_own_user(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/gregor.db")
    for command in (("migrate",), ("export", "users.jsonl"), ("backup", "copy.db")):
        subprocess.run(
            (sys.executable, "-m", "gregor.cli", *command, *store),
            check=True,
            cwd=tmp_path,
            capture_output=True,
        )
    assert modes(tmp_path) == dict.fromkeys(("gregor.db", "users.jsonl", "copy.db"), "0600")


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o606, True), (0o640, False)])
async def test_file_that_exists_keeps_its_mode_and_is_logged_if_everybody_can_use_it(
    tmp_path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gregor.db"
    path.touch()
    path.chmod(mode)
    found = await write(path)
    assert found["gregor.db"] == f"{mode:04o}"
    assert ("every account" in caplog.text) is warned
