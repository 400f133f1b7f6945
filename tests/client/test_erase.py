"""A device whose user was erased keeps nothing of the user, and cannot bring the user back."""

import asyncio
import logging
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.client import Client, Disconnected, MemoryStore, SQLiteStore
from gregor.client.connection import Transport
from gregor.client.replica import Replica
from gregor.client.store import (
    DEVICE_KEY,
    OWNER_KEY,
    changed_records,
    load_replica,
    replaced_records,
)
from gregor.core.instant import SECOND, Time
from gregor.core.message import InBandMessage, MsgID, create
from gregor.core.state_hash import hash_of
from gregor.core.sync import Snapshot
from gregor.errors import Action, Erased, InvalidMessage
from gregor.interfaces import Caller
from gregor.limits import Limits
from gregor.protocol.frames import (
    Error,
    Problem,
    Result,
    SyncPage,
    UserErased,
    Welcome,
    encode,
)
from gregor.testing import strategies, virtual_time
from gregor.testing.transport import MemoryTransport
from tests.client.harness import (
    ClientHarness,
    categories,
    client_harness,
    event_summaries,
    on_virtual_time,
)
from tests.client.test_client import StoreOnFullDisk
from tests.client.test_connection import FixedFramesTransport

DAY = 86_400 * SECOND
OF_THE_DEVICE = {DEVICE_KEY, OWNER_KEY}


async def erase(harness: ClientHarness) -> Time:
    """Erase the user on the server. Returns the epoch."""
    return (await harness.node.erase(Caller("backend"), "alice")).erasure.epoch


def backup(harness: ClientHarness) -> Callable[[], None]:
    """Back up the server. Returns what restores it, as often as it is called."""
    kept = deepcopy(vars(harness.machine))

    def restore() -> None:
        vars(harness.machine).update(deepcopy(kept))
        harness.server.cut_all()

    return restore


async def go_offline(harness: ClientHarness) -> None:
    harness.server.reachable = False
    harness.server.cut_all()
    await asyncio.sleep(0.01)


async def hears_of(epoch: Time, client: Client) -> None:
    """Wait until the client has heard of this erase."""
    events = client.events()
    async with asyncio.timeout(300):
        while client.failure is None:
            await anext(events)
    assert isinstance(client.failure, Erased)
    assert client.failure.epoch == epoch


async def fill(harness: ClientHarness, laptop: Client) -> None:
    """Let the device have at least one record of each kind, and be offline."""
    await harness.inject(create("alice", "mail", msg_id="m"), create("alice", "x", msg_id="r"))
    await laptop.wait_synced()
    await laptop.hide("m")
    await laptop.hide("awaited")
    await laptop.create("conflicting", msg_id="r")
    await laptop.create("sent", msg_id="s")
    await laptop.flush()
    await asyncio.sleep(0.01)
    await go_offline(harness)
    await laptop.create("unsent", msg_id="u")


KINDS = {"item", "outbox", "hidden", "awaited", "rejected", "device", "owner"}


@on_virtual_time
async def test_nothing_of_an_erased_user_is_left_on_a_device() -> None:
    store = MemoryStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await fill(harness, laptop)
        store.records |= {("set_aside", "item/x"): b"?", ("of a later version", "x"): b"?"}
        assert {kind for kind, _ in store.records} >= KINDS
        epoch = await erase(harness)
        events = laptop.events()
        harness.server.reachable = True
        await hears_of(epoch, laptop)
        assert store.records.keys() == OF_THE_DEVICE
        kept = load_replica(store.records, "laptop")
        assert kept == Replica("laptop", "alice", epoch, erased=True)
        assert (list(laptop.state()), laptop.rejected(), laptop.set_aside) == ([], [], {})
        assert laptop.replica.facts.hash("laptop", virtual_time.clock()) == hash_of(())
        await asyncio.sleep(0.01)
        assert event_summaries(events) == [
            *("dismissed x", "dismissed sent", "dismissed unsent"),
            *("erased", "offline"),
        ]
        status = laptop.status
        assert (status.online, status.unsent, status.retry_at) == (False, 0, None)
        assert status.last_error is not None
        assert (status.last_error.code, status.last_error.epoch) == ("erased", epoch)
        await asyncio.sleep(3600)
        assert harness.server.connected == 2


@on_virtual_time
async def test_device_that_is_connected_hears_of_an_erase_at_once() -> None:
    async with client_harness() as harness, harness.device() as laptop, harness.device("b") as b:
        await harness.inject(create("alice", "mail"))
        await laptop.wait_synced()
        await b.wait_synced()
        epoch = await erase(harness)
        await asyncio.sleep(0.01)
        for client in (laptop, b):
            assert isinstance(client.failure, Erased)
            assert client.failure.epoch == epoch
            assert not client.state()


Call = Callable[[Client], Awaitable[object]]
WRITES: dict[str, Call] = {
    "create": lambda client: client.create("a"),
    "put": lambda client: client.put("a"),
    "dismiss": lambda client: client.dismiss("m"),
    "dismiss_category": lambda client: client.dismiss_category("a"),
    "dismiss_key": lambda client: client.dismiss_key("a"),
    "snooze": lambda client: client.snooze("m", "1h"),
    "write": lambda client: client.write(create("alice", "a")),
    "write_all": lambda client: client.write_all([create("alice", "a")]),
    "hide": lambda client: client.hide("m"),
    "out_of_band": lambda client: client.out_of_band("typing"),
    "flush": lambda client: client.flush(),
    "wait_synced": lambda client: client.wait_synced(),
}


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
@on_virtual_time
async def test_erased_client_refuses_writes_until_a_new_life_begins(call: Call) -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        epoch = await erase(harness)
        await hears_of(epoch, laptop)
        with pytest.raises(Erased):
            await call(laptop)
        laptop.reconnect()
        await laptop.create("note", msg_id="m")
        await laptop.wait_synced()
        await call(laptop)
        await laptop.flush()
        assert laptop.replica.epoch == epoch


@pytest.mark.parametrize("begins_again", [False, True])
@on_virtual_time
async def test_what_waits_for_an_unsent_write_raises_erased(begins_again: bool) -> None:
    """Also if the app begins a new life before what waits could look."""

    async def begin_again(client: Client) -> None:
        async for event in client.events():
            if begins_again and isinstance(event, Erased):
                client.reconnect()

    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        beginning = asyncio.create_task(begin_again(laptop))
        await go_offline(harness)
        await laptop.create("note")
        flushing = asyncio.create_task(laptop.flush())
        await asyncio.sleep(1)
        await erase(harness)
        harness.server.reachable = True
        with pytest.raises(Erased):
            await flushing
        if begins_again:
            await laptop.wait_synced()
        assert not await harness.state()
        beginning.cancel()


@on_virtual_time
async def test_out_of_band_message_under_way_fails_with_erased() -> None:
    welcome = encode(Welcome("alice", "laptop", 1, Limits(), 0))
    synced = encode(SyncPage("snapshot", 0, 10, 1, hash_of(())))
    transport = FixedFramesTransport(welcome, synced)

    async def connect() -> Transport:
        return transport

    async with client_harness() as harness, harness.device(connect=connect) as laptop:
        await laptop.wait_synced()
        sending = asyncio.create_task(laptop.out_of_band("typing"))
        await asyncio.sleep(0.01)
        assert '"typing"' in transport.sent[-1]
        transport.add(encode(UserErased(50)))
        with pytest.raises(Erased):
            await sending


# A new life


@on_virtual_time
async def test_new_life_begins_with_the_new_epoch_and_lives_as_any_other() -> None:
    store = MemoryStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await fill(harness, laptop)
        epoch = await erase(harness)
        harness.server.reachable = True
        await hears_of(epoch, laptop)
        await harness.inject(create("alice", "of the new life"))
        laptop.reconnect()
        await laptop.create("written at once")
        await laptop.flush()
        await laptop.wait_synced()
        assert sorted(categories(laptop.state())) == ["of the new life", "written at once"]
        assert laptop.failure is None
        await go_offline(harness)
        await laptop.create("written offline")
        harness.server.reachable = True
        await laptop.flush()
        assert len(await harness.state()) == 3
        assert load_replica(store.records, "laptop").epoch == epoch
        second = await erase(harness)
        await hears_of(second, laptop)
        assert second > epoch
        assert store.records.keys() == OF_THE_DEVICE


@on_virtual_time
async def test_erase_is_told_again_after_a_restart_and_waits_for_the_app() -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            epoch = await erase(harness)
            await hears_of(epoch, laptop)
        for _ in range(2):
            async with harness.device(store=store) as laptop:
                events = laptop.events()
                with pytest.raises(Erased):
                    await laptop.create("note")
                await hears_of(epoch, laptop)
                await asyncio.sleep(3600)
                assert event_summaries(events) == ["erased", "offline"]
        assert harness.server.connected == 1
        async with harness.device(store=store) as laptop:
            laptop.reconnect()
            await laptop.wait_synced()
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()


@on_virtual_time
async def test_device_that_never_had_a_welcome_keeps_what_it_has_written() -> None:
    async with client_harness() as harness:
        epoch = await erase(harness)
        harness.server.reachable = False
        async with harness.device() as laptop:
            await laptop.create("written before the first connection")
            assert laptop.replica.epoch is None
            harness.server.reachable = True
            await laptop.flush()
            assert len(await harness.state()) == 1
            assert laptop.replica.epoch == epoch


# How a device hears of it

TOLD_IN: dict[str, str] = {
    "a frame": encode(UserErased(50)),
    "a welcome": encode(Welcome("alice", "laptop", 1, Limits(), 50)),
    "an error": encode(Error("erased", "the user was erased", Action.STOP)),
}


@pytest.mark.parametrize("frame", TOLD_IN.values(), ids=TOLD_IN)
@on_virtual_time
async def test_device_is_wiped_however_it_hears_of_an_erase(frame: str) -> None:
    await is_wiped_by(FixedFramesTransport(frame))


class ClosingTransport(FixedFramesTransport):
    """A Transport that ends with the close code of an erase, and no frame before it."""

    async def receive(self) -> str:
        raise Disconnected(Erased.close_code, "erased")


@on_virtual_time
async def test_device_that_hears_of_no_epoch_takes_that_of_the_next_welcome() -> None:
    await is_wiped_by(ClosingTransport())


async def is_wiped_by(transport: Transport) -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        async with harness.device(store=store) as laptop:
            await fill(harness, laptop)

        async def connect() -> Transport:
            return transport

        async with harness.device(store=store, connect=connect) as laptop:
            with pytest.raises(Erased):
                await laptop.flush()
            assert store.records.keys() == OF_THE_DEVICE
        harness.server.reachable = True
        async with harness.device(store=store) as laptop:
            laptop.reconnect()
            await laptop.wait_synced()
            assert laptop.replica.epoch == 0


@on_virtual_time
async def test_old_notice_of_an_erase_is_ignored() -> None:
    """It may come late; so may the close that follows it."""

    class LateNotice(FixedFramesTransport):
        async def receive(self) -> str:
            if self._frames.empty():
                raise Disconnected(Erased.close_code, "erased")
            return await super().receive()

    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        epoch = await erase(harness)
        await hears_of(epoch, laptop)
        await go_offline(harness)
        transports: list[Transport] = [
            LateNotice(encode(UserErased(epoch))),
            LateNotice(encode(UserErased(epoch - 1))),
        ]

        async def connect() -> Transport:
            return transports.pop() if transports else await harness.server.connect()

        laptop._connection._connect = connect
        laptop.reconnect()
        await laptop.create("of the new life")
        harness.server.reachable = True
        await laptop.flush()
        assert not transports
        assert categories(await harness.state()) == ["of the new life"]


# The store


@on_virtual_time
async def test_device_whose_store_fails_is_wiped_when_it_works_again() -> None:
    store = StoreOnFullDisk()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await fill(harness, laptop)
        epoch = await erase(harness)
        before = dict(store.records)
        store.is_full = True
        harness.server.reachable = True
        await asyncio.sleep(100)
        assert store.records == before
        assert laptop.failure is None
        store.is_full = False
        await hears_of(epoch, laptop)
        assert store.records.keys() == OF_THE_DEVICE


KILLED_PROGRAM = """
import asyncio, os, shutil, sqlite3, sys
from gregor.client import Client, Disconnected, SQLiteStore
from gregor.errors import Erased

class Transport:
    async def send(self, text): pass
    async def receive(self): return '{"type":"erased","epoch":50}'
    async def close(self): pass

async def connect():
    return Transport()

async def be_killed(path, number):
    \"\"\"With the statement of this number, counted from the connection on.\"\"\"
    store = SQLiteStore(path)
    async with store:
        pass

    def trace(text):
        nonlocal number
        number -= 1
        if number == 0:
            os.kill(os.getpid(), 9)

    async def connect_and_count():
        store._database._driver.set_trace_callback(trace)
        return Transport()

    async with Client(
        "http://x", "alice", device_id="d", store=store, connect=connect_and_count
    ) as client:
        try:
            await client.flush()
        except Erased:
            sys.stdout.write("wiped")
            sys.stdout.flush()
            os.kill(os.getpid(), 9)

template, folder = sys.argv[1:]
for number in range(1, 100):
    path = f"{folder}/{number}.db"
    shutil.copy(template, path)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write_end, 1)
        asyncio.run(be_killed(path, number))
    os.close(write_end)
    os.waitpid(child, 0)
    with open(read_end) as output:
        if output.read():
            break
print(number)
"""


async def test_kill_9_at_each_statement_of_the_wipe_leaves_all_or_nothing(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    async with SQLiteStore(template) as store:
        before = full_replica()
        await store.save(changed_records(None, before))
    arguments = ["-c", KILLED_PROGRAM, str(template), str(tmp_path)]
    killer = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await killer.communicate()
    statements = int(output)
    assert 3 < statements < 99
    wiped = before.wiped(50)
    seen = []
    for number in range(1, statements + 1):
        async with SQLiteStore(tmp_path / f"{number}.db") as store:
            records = await store.load()
        assert records in (changed_records(None, before), changed_records(None, wiped)), number
        seen.append(records == changed_records(None, wiped))
    assert seen == sorted(seen)
    assert {False, True} == set(seen)


def full_replica() -> Replica:
    """A replica with records of all kinds, which knows of no erase."""
    replica = Replica("d", "alice", 0)
    item = create("alice", "mail", msg_id="m").stamp(10, 0)
    replica = replica.apply([item], 10).hide("m").hide("awaited")
    for msg_id in ("u", "refused"):
        replica = replica.write(create("alice", "note", msg_id=msg_id), 20)
    error = Problem("conflict", "why", Action.STOP)
    refused = replica.outbox.values()
    (message,) = [entry.message for entry in refused if entry.message.msg_id == "refused"]
    result = Result("rejected", "alice", "refused", error=error)
    return replica.apply_results([(message, result)])


async def test_no_byte_of_an_erased_user_is_left_in_the_file(tmp_path: Path) -> None:
    """Neither at once, nor after a restart of a client that was killed before it could scrub."""
    path = tmp_path / "device.db"
    secrets = [f"{msg_id}-what-nobody-may-read" for msg_id in ("first", "second")]

    async def erased() -> Transport:
        return FixedFramesTransport(encode(UserErased(50)))

    async def write_secrets() -> None:
        async with client_harness() as harness, harness.device(store=SQLiteStore(path)) as laptop:
            laptop.reconnect()
            await laptop.wait_synced()
            for secret in secrets:
                await laptop.create("notes", secret, msg_id=secret)
            await laptop.flush()
            await laptop.create("notes", secrets[0])

    def bytes_left() -> list[str]:
        content = b"".join(file.read_bytes() for file in path.parent.glob("device.db*"))
        return [secret for secret in secrets if secret.encode() in content]

    await write_secrets()
    assert bytes_left() == secrets
    async with (
        client_harness() as harness,
        harness.device(store=SQLiteStore(path), connect=erased) as laptop,
    ):
        await hears_of(50, laptop)
        laptop.reconnect()
        await laptop.hide("x")  # the next change comes when the bytes are overwritten
        assert bytes_left() == []
    await write_secrets()
    async with SQLiteStore(path) as store:
        replica = load_replica(await store.load(), "laptop")
        await store.save(replaced_records(await store.load(), replica.wiped(60)))
    async with client_harness() as harness, harness.device(store=SQLiteStore(path)):
        assert bytes_left() == []


@given(st.lists(strategies.messages(), max_size=6, unique_by=lambda m: m.msg_id), st.integers(1, 9))
def test_law_wiped_replica_is_a_new_one_and_stays_wiped(
    messages: list[InBandMessage], epoch: Time
) -> None:
    replica = full_replica().with_clock_offset(7 * SECOND)
    for message in messages:
        try:
            replica = replica.write(message, 30)
        except InvalidMessage:
            continue
    wiped = replica.wiped(epoch)
    new = Replica("d", "alice", epoch, erased=True, clock_offset=7 * SECOND)
    before = dict.fromkeys(changed_records(None, replica), b"") | {("set_aside", "x"): b""}
    changes = replaced_records(before, wiped)
    assert changes.keys() == before.keys()
    after = {key: record for key, record in changes.items() if record is not None}
    assert load_replica(after, "d") == new
    assert changed_records(new, wiped) == {}
    assert wiped.changed == replica.recorded_ids()
    assert not wiped.visible(30)
    # The same erase again changes nothing, also in the new life; another one does.
    assert wiped.wiped(epoch) is wiped
    living = wiped.in_new_life().write(create("alice", "note", msg_id="new"), 40)
    assert living.wiped(epoch) is living
    assert living.wiped(epoch + 1).recorded_ids() == frozenset()
    assert living.wiped(None).epoch is None


# What an earlier version has stored


@pytest.mark.parametrize("times", [0, 1])
async def test_replica_of_an_earlier_version_belongs_to_the_life_before_any_erase(
    times: int, tmp_path: Path
) -> None:
    path = tmp_path / "device.db"
    async with SQLiteStore(path) as store:
        await store.save(
            {
                DEVICE_KEY: b'{"device_id":"laptop","uid":"alice","cursor":9,"clock_offset":0}',
                OWNER_KEY: b'{"device_id":"laptop","uid":"alice"}',
                ("outbox", "u"): (
                    b'{"number":1,"written":9,"message":{"uid":"self","msg_id":"u",'
                    b'"creation":{"category":"unsent","body":1}}}'
                ),
            }
        )
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 4")
    connection.close()
    async with client_harness() as harness:
        for _ in range(times):
            await erase(harness)
        async with harness.device(store=SQLiteStore(path)) as laptop:
            assert laptop.replica.epoch == 0
            if times:
                with pytest.raises(Erased):
                    await laptop.flush()
                assert not await harness.state()
            else:
                await laptop.flush()
                assert categories(await harness.state()) == ["unsent"]


@pytest.mark.parametrize("damaged", [DEVICE_KEY, OWNER_KEY])
@on_virtual_time
async def test_device_with_an_unreadable_record_still_knows_its_epoch(
    damaged: tuple[str, str],
) -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            first = await erase(harness)
            await hears_of(first, laptop)
            laptop.reconnect()
            await laptop.wait_synced()
            await go_offline(harness)
            await laptop.create("unsent")
        second = await erase(harness)
        harness.server.reachable = True
        store.records[damaged] = b"[1.5]"
        async with harness.device(store=store) as laptop:
            assert laptop.replica.epoch == first
            await hears_of(second, laptop)
            assert not await harness.state()
            assert store.records.keys() == OF_THE_DEVICE


# Restored backups, and nodes of earlier versions


@on_virtual_time
async def test_restored_backup_from_before_an_erase_keeps_the_outbox() -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        await harness.inject(create("alice", "of the first life"))
        restore = backup(harness)
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            await hears_of(await erase(harness), laptop)
            laptop.reconnect()
            await harness.inject(create("alice", "of the second life"))
            await laptop.wait_synced()
            await go_offline(harness)
            await laptop.create("unsent")
            restore()
            harness.server.reachable = True
            await laptop.flush()
            await laptop.wait_synced()
            await asyncio.sleep(0.01)
            assert sorted(categories(laptop.state())) == ["of the first life", "unsent"]
            assert laptop.state().items == (await harness.state()).items
            assert laptop.replica.epoch == 0
            assert laptop.mismatches == 0
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()


def test_lower_epoch_is_taken_together_with_the_snapshot() -> None:
    """A device that is killed between the two says the higher one again, and gets a snapshot."""
    replica = full_replica()._with(epoch=50)
    welcomed = replica.welcomed("alice", 30)
    assert (welcomed.epoch, welcomed.cursor, welcomed.outbox) == (50, 10, replica.outbox)
    restored = welcomed.apply_snapshot(Snapshot(), 5, 30)
    assert (restored.epoch, restored.cursor, len(restored.facts.items)) == (30, 5, 0)
    assert [message.msg_id for message in restored.unsent()] == ["u"]


class TransportToAnOldNode:
    """To a node of a version without epochs: it refuses a hello that has one."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport
        self._refuses = False

    async def send(self, text: str) -> None:
        if '"type":"hello"' in text and "epoch" in msgspec.json.decode(text):
            self._refuses = True
        else:
            await self._transport.send(text)

    async def receive(self) -> str:
        if self._refuses:
            return encode(Error("protocol", "Object contains unknown field", Action.STOP))
        frame: dict[str, Any] = msgspec.json.decode(await self._transport.receive())
        frame.pop("epoch", None)
        return msgspec.json.encode(frame).decode()

    async def close(self) -> None:
        await self._transport.close()


@on_virtual_time
async def test_device_works_with_nodes_without_epochs_and_keeps_its_own() -> None:
    """As while a fleet is upgraded: now it meets a node of one version, now of the other."""
    store = MemoryStore()
    async with client_harness() as harness:
        is_old = False

        async def connect() -> Transport:
            transport = await harness.server.connect()
            return TransportToAnOldNode(transport) if is_old else transport

        async with harness.device(store=store, connect=connect) as laptop:
            await laptop.wait_synced()
            epoch = await erase(harness)
            await hears_of(epoch, laptop)
            laptop.reconnect()
            for version in ("new", "old", "old", "new", "old", "new"):
                is_old = version == "old"
                await laptop.wait_synced()
                await go_offline(harness)
                await laptop.create("note")
                harness.server.reachable = True
                await laptop.flush()
                await laptop.wait_synced()
                assert laptop.replica.epoch == epoch
            assert len(await harness.state()) == 6
            await go_offline(harness)
            await laptop.create("unsent")
            second = await erase(harness)
            harness.server.reachable = True
            is_old = False  # the hello before was without an epoch: the welcome decides
            await hears_of(second, laptop)
            assert not await harness.state()


# Unsent writes that are older than the ids that a node keeps


@pytest.mark.parametrize(("days", "is_reported"), [(2, False), (4, True)])
@on_virtual_time
async def test_unsent_write_that_may_be_stored_twice_is_sent_and_reported(
    days: int, is_reported: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "gregor.client")
    limits = Limits(ids_days=3)
    welcome = Welcome("alice", "laptop", 0, limits, 0)
    async with client_harness() as harness:

        async def connect() -> Transport:
            if virtual_time.clock() < virtual_time.START + days * DAY:
                raise Disconnected(0, "there is no network")
            return FixedFramesTransport(
                encode(msgspec.structs.replace(welcome, now=virtual_time.clock()))
            )

        async with harness.device(connect=connect) as laptop:
            assert laptop.limits is None
            await laptop.create("note")
            await asyncio.sleep((days * DAY) / SECOND + 61)
            assert laptop.limits == limits
            assert laptop.unsent_count == 1
    assert ("unsent messages are so old" in caplog.text) == is_reported


# The law


class FlakyDevice:
    """One device of the law, with a network of its own."""

    def __init__(self, harness: ClientHarness, name: str) -> None:
        self.name = name
        self.store = MemoryStore()
        self.is_up = True
        self._harness = harness
        self._transport: MemoryTransport | None = None
        self._client: Client | None = None

    async def start(self) -> None:
        device = self._harness.device(self.name, store=self.store, connect=self._connect)
        self._client = await device.__aenter__()

    async def stop(self) -> None:
        await self.client.__aexit__(None, None, None)

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    async def _connect(self) -> Transport:
        if not self.is_up:
            raise Disconnected(0, "there is no network")
        self._transport = await self._harness.server.connect()
        return self._transport

    def go_offline(self) -> None:
        self.is_up = False
        if self._transport is not None:
            self._transport.cut()

    async def settle(self) -> None:
        """Be online, and begin a new life if the old one has ended, until all is sent."""
        self.is_up = True
        while True:
            self.client.reconnect()
            try:
                await self.client.wait_synced()
                await self.client.flush()
                return
            except Erased:
                continue


class Lives:
    """The lives of one user, and who has written what in which of them."""

    def __init__(self, harness: ClientHarness) -> None:
        self.harness = harness
        self.devices = [FlakyDevice(harness, name) for name in ("laptop", "phone")]
        self.epoch: Time = 0
        self.written_in: dict[MsgID, Time | None] = {}  # None: before the first welcome

    async def step(self, step: tuple[str, int]) -> None:
        what, number = step
        device = self.devices[number]
        msg_id = f"m{len(self.written_in)}"
        match what:
            case "write":
                with suppress(Erased):
                    self.written_in[msg_id] = device.client.replica.epoch
                    await device.client.create(device.name, msg_id=msg_id)
            case "hide":
                with suppress(Erased):
                    for item in device.client.state().items[-1:]:
                        await device.client.hide(item.msg_id)
            case "inject":
                await self.harness.inject(create("alice", "backend", msg_id=msg_id))
                self.written_in[msg_id] = self.epoch
            case "erase":
                self.epoch = await erase(self.harness)
            case "offline":
                device.go_offline()
            case "online":
                device.is_up = True
                device.client.reconnect()
            case "restart":
                await device.stop()
                await device.start()
            case "wait":
                await asyncio.sleep(0.3)
            case "lose the ack":
                self.harness.lose_frame("ack")
            case "lose the notice":
                self.harness.lose_frame("erased")

    async def check(self) -> None:
        """What was written in an earlier life is nowhere."""
        for _ in range(2):  # what one device sends, the other gets
            for device in self.devices:
                await device.settle()
            await asyncio.sleep(0.1)
        gone = {
            msg_id
            for msg_id, epoch in self.written_in.items()
            if epoch is not None and epoch < self.epoch
        }
        stored = {message.msg_id for message in self.harness.machine.log("alice")}
        assert not stored & gone
        state = await self.harness.state()
        for device in self.devices:
            replica = device.client.replica
            assert replica.epoch == self.epoch
            assert not replica.outbox.by_id
            assert not {name for _, name in device.store.records} & gone
            shown = device.client.state().items
            assert shown == tuple(i for i in state.items if i.msg_id not in replica.hidden)
            assert device.client.mismatches == 0


steps = st.tuples(
    st.sampled_from(
        ["write", "write", "hide", "inject", "erase", "offline", "online", "restart", "wait",
         "wait", "lose the ack", "lose the notice"]
    ),
    st.integers(0, 1),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=25))
def test_law_what_was_written_before_an_erase_never_comes_back(
    history: list[tuple[str, int]],
) -> None:
    async def play() -> None:
        async with client_harness() as harness:
            lives = Lives(harness)
            for device in lives.devices:
                await device.start()
            for step in history:
                await lives.step(step)
            await lives.check()
            for device in lives.devices:
                await device.stop()

    virtual_time.run(play())
