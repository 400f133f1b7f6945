"""A ClientStore saves each change completely or not at all, and keeps it through kill -9."""

import asyncio
import gzip
import random
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from gregor.client import Client, ClientStore, MemoryStore, SQLiteStore
from gregor.client.connection import Transport
from gregor.client.outside import Disconnected
from gregor.client.replica import Replica
from gregor.client.store import RecordKey, changed_records, load_replica
from gregor.core.instant import TimeOrOffset
from gregor.core.message import Creation, InBandMessage, create
from gregor.errors import Action, Conflict, InvalidMessage, SetupError, TooLarge
from gregor.testing import strategies
from tests.client.harness import client_harness, on_virtual_time


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ClientStore:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "device.db")


async def unreachable() -> Transport:
    raise Disconnected(0, "there is no network")


def offline_client(store: ClientStore, device_id: str = "laptop", uid: str | None = None) -> Client:
    return Client(
        "http://unused",
        "alice",
        device_id=device_id,
        uid=uid,
        store=store,
        connect=unreachable,
    )


def test_client_does_not_load_the_drivers_and_libraries_of_a_node() -> None:
    slow = "{'sqlalchemy', 'alembic', 'asyncpg', 'starlette'}"
    program = f"import gregor.client, sys; print({slow} & set(sys.modules))"
    result = subprocess.run(
        (sys.executable, "-c", program), capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


async def test_new_store_is_empty(store: ClientStore) -> None:
    async with store:
        assert await store.load() == {}


async def test_store_returns_exactly_the_saved_records(store: ClientStore) -> None:
    async with store:
        await store.save({("item", "a"): b"1", ("item", "b"): b"2", ("outbox", "a"): b'"\xc3\xa9"'})
        await store.save({("item", "a"): None, ("item", "b"): b"3", ("item", "gone"): None})
        assert await store.load() == {("item", "b"): b"3", ("outbox", "a"): b'"\xc3\xa9"'}


async def test_store_can_be_opened_again_after_it_was_closed(store: ClientStore) -> None:
    for n in range(3):
        async with offline_client(store) as client:
            assert client.count() == n
            await client.create("mail")


async def test_reopened_client_has_state_and_outbox(store: ClientStore, tmp_path: Path) -> None:
    async with offline_client(store) as client:
        await client.create("mail", {"n": 1}, expires="1h", msg_id="m")
        await client.create("chat", msg_id="c")
        await client.hide("c")
    reopened = store if isinstance(store, MemoryStore) else SQLiteStore(tmp_path / "device.db")
    async with offline_client(reopened) as client:
        assert [item.msg_id for item in client.state()] == ["m"]
        assert [m.msg_id for m in client.replica.unsent()] == ["m", "c"]


async def test_store_of_another_device_is_refused(store: ClientStore, tmp_path: Path) -> None:
    async with offline_client(store, "laptop"):
        pass
    reopened = store if isinstance(store, MemoryStore) else SQLiteStore(tmp_path / "device.db")
    with pytest.raises(SetupError, match="laptop"):
        async with offline_client(reopened, "phone"):
            pass


async def test_store_of_another_user_is_refused() -> None:
    store = MemoryStore()
    async with offline_client(store, uid="alice"):
        pass
    with pytest.raises(SetupError, match="alice"):
        async with offline_client(store, uid="bob"):
            pass


# Records that cannot be read

UNREADABLE_RECORDS = {
    "not JSON": b"{",
    "not text": b'"\xff"',
    "of another type": b"[1.5]",
    "null": b"null",
}


@pytest.mark.parametrize("record", UNREADABLE_RECORDS.values(), ids=UNREADABLE_RECORDS)
async def test_record_that_cannot_be_read_costs_only_itself(
    record: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "device.db"
    async with offline_client(SQLiteStore(path)) as client:
        for msg_id in ("lost", "kept"):
            await client.create("notes", msg_id=msg_id)
    damage(path, "outbox", "lost", record)
    for _ in range(2):  # it is reported again by each client
        async with offline_client(SQLiteStore(path)) as client:
            assert [message.msg_id for message in client.replica.unsent()] == ["kept"]
            assert list(client.set_aside) == [("outbox", "lost")]
            assert client.status.set_aside == 1
    assert "set aside kind='outbox' name='lost'" in caplog.text


KINDS = ("device", "owner", "item", "outbox", "hidden", "rejected")


@pytest.mark.parametrize("kind", KINDS)
@on_virtual_time
async def test_device_recovers_from_an_unreadable_record_of_each_kind(kind: str) -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        await harness.inject(create("alice", "mail", msg_id="m"), create("alice", "x", msg_id="r"))
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            await laptop.hide("m")
            await laptop.create("conflicting", msg_id="r")
            await laptop.flush()
            harness.server.reachable = False
            harness.server.cut_all()
            await laptop.create("note", msg_id="n")
        key = next(key for key in store.records if key[0] == kind)
        store.records[key] = b"[1.5]"
        harness.server.reachable = True
        async with harness.device(store=store) as laptop:
            assert list(laptop.set_aside) == [key]
            await laptop.wait_synced()
            await laptop.flush()
            await asyncio.sleep(1)
            state = await harness.state()
            hidden = laptop.replica.hidden
            shown = [item.msg_id for item in laptop.state()]
            assert shown == [item.msg_id for item in state if item.msg_id not in hidden]
        assert store.records["set_aside", "/".join(key)] == b"[1.5]"
        assert load_replica(store.records, "laptop").uid == "alice"


OWNERLESS: dict[str, dict[RecordKey, bytes | None]] = {
    "both records that name the owner are damaged": {("device", ""): b"{", ("owner", ""): b"null"},
    "a store of an earlier version has a damaged device": {
        ("device", ""): b'{"device_id":"laptop","uid":7}',
        ("owner", ""): None,
    },
}


@pytest.mark.parametrize("user", ["alice", "bob"])
@pytest.mark.parametrize("name", OWNERLESS)
async def test_store_whose_owner_is_unknown_is_refused_and_keeps_its_outbox(
    name: str, user: str
) -> None:
    store = MemoryStore()
    async with offline_client(store, "laptop", uid="alice") as laptop:
        await laptop.create("note", msg_id="n")
    await store.save(OWNERLESS[name])
    before = dict(store.records)
    for uid in (user, None):
        with pytest.raises(SetupError, match="to which user it belongs"):
            async with offline_client(store, "laptop", uid=uid):
                pass
    assert store.records == before
    assert ("outbox", "n") in before


@pytest.mark.parametrize("damaged", [("device", ""), ("owner", "")])
@pytest.mark.parametrize("record", UNREADABLE_RECORDS.values(), ids=UNREADABLE_RECORDS)
@on_virtual_time
async def test_unreadable_record_never_gives_a_store_to_another_user(
    record: bytes, damaged: RecordKey
) -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            harness.server.reachable = False
            harness.server.cut_all()
            await laptop.create("note", msg_id="n")
        store.records[damaged] = record
        harness.server.reachable = True
        for _ in range(2):
            async with harness.device(store=store, token="bob") as other:
                with pytest.raises(SetupError, match="alice"):
                    await other.wait_synced()
                assert list(other.set_aside) == [damaged]
        assert not await harness.machine.state("bob")
        async with harness.device(store=store) as laptop:
            await laptop.flush()
        assert [item.msg_id for item in await harness.state()] == ["n"]


async def test_owner_of_a_store_of_an_earlier_version_survives_a_damaged_cursor() -> None:
    store = MemoryStore()
    store.records = {("device", ""): b'{"device_id":"laptop","uid":"alice","cursor":"1e"}'}
    async with offline_client(store, "laptop") as laptop:
        assert (laptop.uid, laptop.replica.cursor) == ("alice", 0)
    store.records = {("device", ""): b'{"device_id":"laptop","uid":"alice","cursor":9}'}
    for _ in range(2):  # the second time, the store names the owner twice
        async with offline_client(store, "laptop") as laptop:
            assert laptop.uid == "alice"
        store.records["device", ""] = b"{"


def damage(path: Path, kind: str, name: str, record: bytes) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "UPDATE records SET json = CAST(? AS TEXT) WHERE (kind, name) = (?, ?)",
            (record, kind, name),
        )
    connection.close()


# Whatever is accepted can be read back

texts = st.text(max_size=5) | st.sampled_from(["", "a\0", "\ud83d", "x" * 300, "."])
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
times = values | st.sampled_from(["1s", "0s", "P1D", "90s", "2027-01-01T00:00:00Z", "-1h"])
some_ids = st.lists(st.sampled_from(["m1", "m2", 7]) | values, max_size=3)
writes = st.one_of(
    st.tuples(st.just("create"), st.tuples(texts, values), st.fixed_dictionaries(
        {}, optional={
            "starts": times, "expires": times, "device_id": values, "msg_id": values})),
    st.tuples(st.just("put"), st.tuples(texts, values), st.fixed_dictionaries(
        {}, optional={"key": texts, "starts": times, "expires": times, "this_device": values})),
    st.tuples(st.just("snooze"), st.tuples(st.sampled_from(["m1", "m2"]) | values, times),
        st.just({})),
    st.tuples(st.just("dismiss"), some_ids, st.just({})),
    st.tuples(st.just("hide"), st.tuples(values), st.just({})),
    st.tuples(st.just("dismiss_category"), st.tuples(texts | values), st.fixed_dictionaries(
        {}, optional={"prefix": values, "end_time": times, "skip_msg_ids": some_ids | values})),
    st.tuples(st.just("dismiss_key"), st.lists(texts, max_size=2), st.fixed_dictionaries(
        {}, optional={"end_time": times})),
    st.tuples(st.just("write"), st.tuples(strategies.messages() | values), st.just({})),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(writes, max_size=6))
def test_law_whatever_is_accepted_is_read_back(
    written: list[tuple[str, Sequence[Any], dict[str, Any]]],
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(_write_and_reopen(Path(folder, "device.db"), written))


async def _write_and_reopen(
    path: Path, written: list[tuple[str, Sequence[Any], dict[str, Any]]]
) -> None:
    async with offline_client(SQLiteStore(path)) as client:
        for method, arguments, options in written:
            with suppress(InvalidMessage, TooLarge, Conflict):
                await getattr(client, method)(*arguments, **options)
        before = client.replica
    async with offline_client(SQLiteStore(path)) as client:
        assert client.replica.outbox == before.outbox
        assert client.replica.hidden == before.hidden
        assert not client.set_aside
        assert [item.body for item in client.state()] == [
            item.body for item in before.state(client.state().as_of)
        ]


UNREADABLE_BODIES = {
    "not JSON": b"{bad",
    "NaN": b'{"n":[NaN]}',
    "two values": b"1 2",
    "not text": b'"\xff"',
    "nothing": b"",
}


@pytest.mark.parametrize("body", UNREADABLE_BODIES.values(), ids=UNREADABLE_BODIES)
async def test_message_that_could_not_be_read_back_is_refused(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    unreadable = InBandMessage("u", "bad", creation=Creation("notes", Raw(body)))
    async with offline_client(SQLiteStore(path)) as client:
        with pytest.raises(InvalidMessage):
            await client.write(unreadable)
        await client.create("notes", msg_id="good")
    async with offline_client(SQLiteStore(path)) as client:
        assert [message.msg_id for message in client.replica.unsent()] == ["good"]
        assert not client.set_aside


# Records and changes


async def test_only_changed_records_are_saved() -> None:
    replica = Replica("laptop")
    for n in range(100):
        replica = replica.write(_message(n), n)
    changes = changed_records(replica, replica.write(_message(100), 100))
    assert list(changes) == [("outbox", "m100")]


def _message(n: int) -> InBandMessage:
    return create("u", "mail", n, msg_id=f"m{n}")


# The file


async def test_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    path.write_bytes(b"this is a text file, and not a database\n" * 100)
    with pytest.raises(SetupError, match="not an SQLite database"):
        async with SQLiteStore(path):
            pass


async def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(SetupError, match="another program"):
        async with SQLiteStore(path):
            pass


async def test_file_of_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", "a"): b"1"})
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(SetupError, match="schema 99"):
        async with SQLiteStore(path):
            pass


async def test_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", f"{n}"): b'"%d"' % n * 50 for n in range(2_000)})
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 9] = random.Random(1).randbytes(4096 * 6)
    path.write_bytes(content)
    with pytest.raises(SetupError, match="damaged"):
        async with SQLiteStore(path) as store:
            await store.load()


async def test_file_that_is_already_open_is_refused(tmp_path: Path) -> None:
    async with SQLiteStore(tmp_path / "device.db"):
        with pytest.raises(SetupError, match="open in another process"):
            async with SQLiteStore(tmp_path / "device.db"):
                pass


async def test_path_may_contain_spaces_and_special_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b%20c?d#e é.db"
    async with SQLiteStore(path) as store:
        await store.save({("item", "a"): b"1"})
    assert path.exists()


# Crashes

WRITER_PROGRAM = """
import asyncio, os, random, sys
from gregor.client import Client, Disconnected, SQLiteStore

async def unreachable():
    raise Disconnected(0, "there is no network")

async def write(path):
    store = SQLiteStore(path)
    async with Client("http://x", "a", device_id="d", store=store, connect=unreachable) as client:
        while True:
            written = await asyncio.gather(*(client.create("mail", n) for n in range(3)))
            print(*written, flush=True)

folder, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
for round in range(rounds):
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write_end, 1)
        asyncio.run(write(f"{folder}/{round}.db"))
    os.close(write_end)
    with open(read_end) as lines, open(f"{folder}/{round}.accepted", "w") as accepted:
        for _ in range(rng.randrange(1, 40)):
            accepted.write(lines.readline())
        os.kill(child, 9)
        accepted.writelines(line for line in lines if line.endswith("\\n"))
    os.waitpid(child, 0)
"""


async def test_accepted_offline_writes_survive_kill_9(tmp_path: Path) -> None:
    rounds, seed = 20, random.randrange(1_000_000)
    arguments = ["-c", WRITER_PROGRAM, str(tmp_path), str(rounds), str(seed)]
    writer = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    assert await writer.wait() == 0
    for number in range(rounds):
        accepted = (tmp_path / f"{number}.accepted").read_text().split()
        async with SQLiteStore(tmp_path / f"{number}.db") as store:
            replica = load_replica(await store.load(), "d")
        assert accepted, f"seed {seed}: nothing was written"
        assert set(accepted) <= set(replica.outbox), f"seed {seed}"


SCHEMA_1 = Path(__file__).parents[1] / "stores" / "schema_0002" / "device.sqlite.gz"
DAY = 86_400_000_000


async def test_file_of_schema_1_keeps_replica_outbox_and_rejected_writes(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    path.write_bytes(gzip.decompress(SCHEMA_1.read_bytes()))
    for _ in range(2):  # the second time, the file has the current schema
        async with SQLiteStore(path) as store:
            replica = load_replica(await store.load(), "laptop")
        outbox = dict(replica.outbox)
        expiries = {
            id_: entry.message.creation and entry.message.creation.expires
            for id_, entry in outbox.items()
        }
        assert expiries == {
            "unsent-offset": TimeOrOffset(offset=3650 * DAY),
            "unsent-time": TimeOrOffset(time=4_102_444_800_000_000),
            "unsent-plain": None,
            "acked": TimeOrOffset(offset=3650 * DAY),
            "told": TimeOrOffset(offset=3650 * DAY),
            "replaced": TimeOrOffset(offset=365 * DAY),
        }
        unsent = outbox["unsent-offset"].message.creation
        assert unsent is not None
        assert bytes(unsent.raw_body) == b'{"dtime":{"offset":1}}'
        assert [id_ for id_, entry in outbox.items() if not entry.echoed] == ["replaced"]
        assert outbox["acked"].message.ctime == 1_767_225_600_003_000
        rejected = {
            entry.message.msg_id: (entry.error.code, entry.error.action)
            for entry in replica.rejected_entries()
        }
        assert rejected == {
            "refused": ("forbidden", Action.STOP),
            "refused-too": ("unauthenticated", Action.REAUTHENTICATE),
        }
        assert set(replica.facts.items) == {"plain", "offset", "time", "trap", "both", "told"}
        assert dict(replica.hidden) == {"plain": True}


async def test_file_of_schema_2_forgets_its_tombstones(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    item = b'{"msg_id":"m","ctime":5,"category":"a","body":1}'
    device = b'{"device_id":"laptop","uid":"alice","cursor":9}'
    async with SQLiteStore(path) as store:
        await store.save(
            {
                ("device", ""): device,
                ("item", "m"): item,
                ("dismissed_id", "x"): b"7",
                ("range", "r"): b'{"end":99,"ctime":7,"category":"a"}',
            }
        )
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    async with SQLiteStore(path) as store:
        assert await store.load() == {("device", ""): device, ("item", "m"): item}


OF_SCHEMA_3 = {
    ("device", ""): b'{"device_id":"laptop","uid":"alice","cursor":1600000000000000}',
    ("owner", ""): b'{"device_id":"laptop","uid":"alice"}',
    ("item", "r1"): b'{"msg_id":"r1","ctime":1600000000000000,"category":"theme","body":"dark"}',
    ("outbox", "r2"): (
        b'{"number":1,"written":1600000000000000,"message":{"uid":"self","msg_id":"r2",'
        b'"creation":{"category":"theme","body":"light","expires":{"offset":3153600000000000}},'
        b'"dismissal":{"ranges":[{"category":"theme","skip_msg_ids":["r2"]}]}}}'
    ),
    ("outbox", "r3"): (
        b'{"number":2,"written":1600000000000000,"message":{"uid":"self","msg_id":"r3",'
        b'"creation":{"category":"theme","body":"blue"},'
        b'"dismissal":{"ranges":[{"category":"theme","skip_msg_ids":["r3"]}]}}}'
    ),
    ("hidden", "r1"): b"true",
}


async def test_file_of_schema_3_keeps_a_setting_that_was_replaced_offline(tmp_path: Path) -> None:
    """It was written with a range that spares the own item; a key does the same now."""
    path = tmp_path / "device.sqlite"
    async with SQLiteStore(path) as store:
        await store.save(OF_SCHEMA_3)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    async with client_harness() as harness:
        await harness.inject(
            create("alice", "theme", "dark", msg_id="r1").stamp(1_600_000_000_000_000, 0)
        )
        async with harness.device(store=SQLiteStore(path)) as laptop:
            assert not laptop.set_aside
            assert [item.body for item in laptop.state()] == ["blue"]
            await laptop.flush()
            await laptop.wait_synced()
            assert [item.body for item in await harness.state()] == ["blue"]
            assert laptop.rejected() == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (5,)
    connection.close()
