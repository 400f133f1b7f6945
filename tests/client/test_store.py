"""A ClientStore keeps what it has taken: all of a change or none, and through a kill -9."""

import asyncio
import random
import sqlite3
import sys
from pathlib import Path

import pytest

from gregor.client import Client, ClientStore, MemoryStore, SQLiteStore
from gregor.client.connection import Disconnected, Transport
from gregor.client.replica import Replica
from gregor.client.store import alterations, restored
from gregor.core.message import InBandMessage, create
from gregor.errors import SetupError


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ClientStore:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "device.db")


async def nowhere() -> Transport:
    raise Disconnected(0, "there is no network")


def offline(store: ClientStore, device_id: str = "laptop", uid: str | None = None) -> Client:
    return Client(
        "http://nowhere",
        "alice",
        device_id=device_id,
        uid=uid,
        store=store,
        connect=nowhere,
    )


async def test_a_new_store_is_empty(store: ClientStore) -> None:
    async with store:
        assert await store.load() == {}


async def test_it_keeps_what_it_was_given_and_no_more(store: ClientStore) -> None:
    async with store:
        await store.save({("item", "a"): b"1", ("item", "b"): b"2", ("outbox", "a"): b'"\xc3\xa9"'})
        await store.save({("item", "a"): None, ("item", "b"): b"3", ("item", "gone"): None})
        assert await store.load() == {("item", "b"): b"3", ("outbox", "a"): b'"\xc3\xa9"'}


async def test_a_client_finds_everything_again(store: ClientStore, tmp_path: Path) -> None:
    async with offline(store) as client:
        await client.create("mail", {"n": 1}, dtime="1h", msg_id="m")
        await client.create("chat", msg_id="c")
        await client.hide("c")
    again = store if isinstance(store, MemoryStore) else SQLiteStore(tmp_path / "device.db")
    async with offline(again) as client:
        assert [item.msg_id for item in client.state()] == ["m"]
        assert [m.msg_id for m in client.replica.unsent()] == ["m", "c"]


async def test_a_store_of_another_device_is_refused(store: ClientStore, tmp_path: Path) -> None:
    async with offline(store, "laptop"):
        pass
    again = store if isinstance(store, MemoryStore) else SQLiteStore(tmp_path / "device.db")
    with pytest.raises(SetupError, match="laptop"):
        async with offline(again, "phone"):
            pass


async def test_a_store_of_another_user_is_refused() -> None:
    store = MemoryStore()
    async with offline(store, uid="alice"):
        pass
    with pytest.raises(SetupError, match="alice"):
        async with offline(store, uid="bob"):
            pass


async def test_records_that_are_no_replica_are_refused() -> None:
    store = MemoryStore()
    await store.save({("device", ""): b'{"device_id": 7}'})
    with pytest.raises(SetupError, match="damaged"):
        async with offline(store):
            pass


async def test_only_what_has_changed_is_saved() -> None:
    replica = Replica("laptop")
    for n in range(100):
        replica = replica.write(_message(n), n)
    altered = alterations(replica, replica.write(_message(100), 100))
    assert list(altered) == [("outbox", "m100")]


def _message(n: int) -> InBandMessage:
    return create("u", "mail", n, msg_id=f"m{n}")


# The file


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    path.write_bytes(b"this is a letter to my mother, and not a database\n" * 100)
    with pytest.raises(SetupError, match="not an SQLite database"):
        async with SQLiteStore(path):
            pass


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(SetupError, match="another program"):
        async with SQLiteStore(path):
            pass


async def test_a_newer_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", "a"): b"1"})
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SetupError, match="schema 99"):
        async with SQLiteStore(path):
            pass


async def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", f"{n}"): b'"%d"' % n * 50 for n in range(2_000)})
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 9] = random.Random(1).randbytes(4096 * 6)
    path.write_bytes(content)
    with pytest.raises(SetupError, match="damaged"):
        async with SQLiteStore(path) as store:
            await store.load()


async def test_a_file_that_is_open_is_refused_to_a_second(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "device.db"):
        with pytest.raises(SetupError, match="open in another process"):
            async with SQLiteStore(tmp_path / "device.db"):
                pass


async def test_a_path_may_be_strange(tmp_path: Path) -> None:
    path = tmp_path / "a b%20c?d#e é.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", "a"): b"1"})
    assert path.exists()


# Power cuts

WRITER = """
import asyncio, os, random, sys
from gregor.client import Client, Disconnected, SQLiteStore

async def nowhere():
    raise Disconnected(0, "there is no network")

async def write(path):
    store = SQLiteStore(path)
    async with Client("http://x", "a", device_id="d", store=store, connect=nowhere) as client:
        while True:
            written = await asyncio.gather(*(client.create("mail", n) for n in range(3)))
            print(*written, flush=True)

folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
for round in range(rounds):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        asyncio.run(write(f"{folder}/{round}.db"))
    os.close(writing)
    with open(reading) as lines, open(f"{folder}/{round}.accepted", "w") as accepted:
        for _ in range(rng.randrange(1, 40)):
            accepted.write(lines.readline())
        os.kill(child, 9)
        accepted.writelines(line for line in lines if line.endswith("\\n"))
    os.waitpid(child, 0)
"""


async def test_what_was_accepted_offline_survives_kill_9(tmp_path: Path) -> None:
    rounds, seed = 20, random.randrange(1_000_000)
    arguments = ["-c", WRITER, str(tmp_path), str(rounds), str(seed)]
    writer = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    assert await writer.wait() == 0
    for number in range(rounds):
        accepted = (tmp_path / f"{number}.accepted").read_text().split()
        async with SQLiteStore(tmp_path / f"{number}.db") as store:
            replica = restored(await store.load(), "d")
        assert accepted, f"seed {seed}: nothing was written"
        assert set(accepted) <= set(replica.outbox), f"seed {seed}"
