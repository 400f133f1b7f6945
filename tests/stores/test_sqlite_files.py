"""What is left in the files of an SQLite database of what was deleted, and the space it takes."""

import gzip
import sqlite3
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.sqlite_pages import Layout
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock

START = 1_700_000_000 * SECOND
LENGTHS = (60, 300, 300, 900, 900, 1_500, 1_500, 9_000)  # the longest spill to overflow pages
BATCHES = 150
BATCH_MESSAGES = 10
USERS = ("ann", "bob", "cleo")


def files(path: Path) -> bytes:
    """The bytes of the database's file, its WAL, and whatever else is beside them."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.glob(f"{path.name}*")))


def secret(uid: str, number: int) -> str:
    return f"<{uid}'s secret {number}>"


def secrets_of(uid: str, path: Path) -> int:
    """How often a body of this user stands in the files."""
    return files(path).count(f"<{uid}'s secret ".encode())


def some_messages(rng: Random, sent: Counter[str]) -> list[InBandMessage]:
    """Messages of three users with bodies of all lengths. Some dismiss earlier ones, whose rows
    then grow."""
    messages: list[InBandMessage] = []
    for uid in rng.choices(USERS, k=BATCH_MESSAGES):
        text = secret(uid, sent[uid])
        body = text * (rng.choice(LENGTHS) // len(text) + 1)
        messages.append(create(uid, "mail", body, msg_id=f"{uid}-{sent[uid]}"))
        sent[uid] += 1
        if rng.random() < 0.5:
            messages.append(dismiss(uid, f"{uid}-{rng.randrange(sent[uid])}"))
    return messages


async def fill(machine: SQLStateMachine, rng: Random) -> None:
    """Store messages of three users, of whom some of two are deleted in between: so pages are split
    and merged."""
    sent: Counter[str] = Counter()
    for _ in range(BATCHES):
        await machine.consume_messages(some_messages(rng, sent))
        uid = rng.choice(("bob", "cleo"))
        deletion = _delete_some(uid, rng.randrange(sent[uid] + 1))
        await machine.database.write(lambda c: c.execute_sql(deletion))  # noqa: B023


def _delete_some(uid: str, number: int) -> str:
    ids = ", ".join(f"'{uid}-{n}'" for n in range(number, number + 3))
    return f"DELETE FROM messages WHERE uid = '{uid}' AND msg_id IN ({ids})"


@pytest.mark.parametrize("seed", range(5))
async def test_no_body_of_an_erased_user_is_left_in_any_file(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "gregor.db"
    clock = ManualClock(START)
    async with (
        database_at(f"sqlite:///{path}", migrate) as database,
        SQLStateMachine(database, clock) as machine,
    ):
        await fill(machine, Random(seed))
        assert secrets_of("ann", path) > BATCHES
        others = {uid: await machine.state(uid) for uid in ("bob", "cleo")}
        await machine.erase("ann")
        assert secrets_of("ann", path) == 0
        # Nothing that was overwritten comes back from memory when the same pages change again.
        await machine.database.write(lambda c: c.execute_sql("UPDATE messages SET author = 'x'"))
        await machine.database.write(lambda c: c.execute_sql(_delete_some("bob", 0)))
        assert secrets_of("ann", path) == 0
        await machine.erase("bob")
        assert (secrets_of("ann", path), secrets_of("bob", path)) == (0, 0)
        assert await machine.state("cleo") == others["cleo"]
        check = await database.read(lambda c: c.execute_sql("PRAGMA integrity_check"))
        assert check == [("ok",)]
    assert secrets_of("ann", path) == 0


async def test_gaps_are_what_secure_delete_leaves(tmp_path: Path) -> None:
    """If SQLite overwrites them itself one day, they need no code of ours."""
    path = tmp_path / "gregor.db"
    left = 0
    for seed in range(5):
        async with (
            database_at(f"sqlite:///{path}", migrate) as database,
            SQLStateMachine(database, ManualClock(START)) as machine,
        ):
            await fill(machine, Random(seed))
            await database.write(lambda c: c.execute_sql("DELETE FROM messages WHERE uid = 'ann'"))
        left += secrets_of("ann", path)
        path.unlink()
    assert left > 0


async def auto_vacuum(path: Path) -> object:
    async with database_at(f"sqlite:///{path}") as database:
        return await database.read(lambda c: c.execute_sql("PRAGMA auto_vacuum"))


INCREMENTAL = [(2,)]


def old_file(path: Path, body: str) -> None:
    """A file of an older version, in which a message with this body was deleted."""
    compressed = Path(__file__).parent / "schema_0002" / "store.sqlite.gz"
    path.write_bytes(gzip.decompress(compressed.read_bytes()))
    driver = sqlite3.connect(path)
    driver.execute("PRAGMA secure_delete = OFF")
    driver.execute("CREATE TABLE deleted (body TEXT)")
    driver.execute("INSERT INTO deleted VALUES (?)", [body * 1_000])
    driver.commit()
    driver.execute("DELETE FROM deleted")
    driver.commit()
    driver.close()


async def test_migration_rewrites_an_older_file_once_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gregor.db"
    old_file(path, secret("ann", 1))
    assert secrets_of("ann", path) > 0
    for _ in range(2):
        async with database_at(f"sqlite:///{path}", migrate):
            pass
        assert caplog.text.count("rewriting the file") == 1
        assert str(path) in caplog.text
    assert secrets_of("ann", path) == 0
    assert await auto_vacuum(path) == INCREMENTAL


async def test_new_file_needs_no_rewriting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gregor.db"
    async with database_at(f"sqlite:///{path}", migrate):
        pass
    assert caplog.text == ""
    assert await auto_vacuum(path) == INCREMENTAL


async def test_file_that_lacks_auto_vacuum_again_gets_it_from_migrate_or_an_erase(
    tmp_path: Path,
) -> None:
    """As when the first rewriting was killed, or the file was copied by another tool."""
    path = tmp_path / "gregor.db"
    for erases in (False, True):
        async with (
            database_at(f"sqlite:///{path}", migrate) as database,
            SQLStateMachine(database, ManualClock(START)) as machine,
        ):
            await fill(machine, Random(1))
        driver = sqlite3.connect(path)
        driver.executescript("PRAGMA journal_mode = DELETE; PRAGMA auto_vacuum = NONE; VACUUM")
        driver.close()
        assert await auto_vacuum(path) == [(0,)]
        if erases:
            async with (
                database_at(f"sqlite:///{path}") as database,
                SQLStateMachine(database, ManualClock(START)) as machine,
            ):
                await machine.erase("ann")
                assert secrets_of("ann", path) == 0
        else:
            async with database_at(f"sqlite:///{path}", migrate):
                pass
        assert await auto_vacuum(path) == INCREMENTAL
        path.unlink()


@pytest.mark.parametrize("page_bytes", [512, 1024, 4096, 65536])
def test_layout_is_that_of_the_format(tmp_path: Path, page_bytes: int) -> None:
    path = tmp_path / "any.db"
    driver = sqlite3.connect(path)
    driver.executescript(
        f"PRAGMA page_size = {page_bytes}; PRAGMA auto_vacuum = INCREMENTAL; CREATE TABLE t (a)"
    )
    driver.executemany("INSERT INTO t VALUES (?)", [["x" * page_bytes]] * 2_000)
    driver.commit()
    driver.close()
    with path.open("rb") as file:
        layout = Layout.of(file.fileno())
        pages = [page for number in range(layout.maps) for page in layout.pages_of(number)]
    assert layout.page_bytes == page_bytes
    assert pages == list(range(2, path.stat().st_size // page_bytes + 1))


def test_pointer_map_is_not_on_the_page_of_the_lock_byte() -> None:
    """With pages of 1,024 bytes it would be, in a file of a gigabyte."""
    layout = Layout(page_bytes=1024, usable_bytes=1024, pages=2**21)
    lock_page = 2**30 // 1024 + 1
    number = (lock_page - 2) // 205
    assert layout.pages_of(number).start == lock_page + 1
    assert layout.pages_of(number).stop == layout.pages_of(number + 1).start
