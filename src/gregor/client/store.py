"""The store of a device's replica: records by key, with each change in one transaction.

A store does not know what the records mean. A replica is saved as records, and a change as the
records that differ, so that the size of a write does not grow with the state.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import msgspec
from immutables import Map
from msgspec import Struct

from gregor.client.outbox import Outbox, OutboxEntry
from gregor.client.replica import RejectedEntry, Replica
from gregor.client.store_migrations import MIGRATIONS
from gregor.core import arguments
from gregor.core.admission import check_type
from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, MsgID
from gregor.core.state import Item
from gregor.errors import GregorError, SetupError
from gregor.stores.sql.database import DatabaseConnection, StorageBroken
from gregor.stores.sql.sqlite import SQLiteDatabase, transact
from gregor.stores.sql.statements import BulkStatement, Statement, no_row

T = TypeVar("T")

RecordKey: TypeAlias = tuple[str, str]
"""The kind of a record, and its name among the records of that kind."""

Records: TypeAlias = Mapping[RecordKey, bytes]
RecordChanges: TypeAlias = Mapping[RecordKey, bytes | None]
"""Records to put; a record that is None is removed."""


@runtime_checkable
class ClientStore(Protocol):
    """Keeps the records of one device. Opened with `async with`, by one client at a time: opening
    it raises SetupError if another client has it open and could corrupt it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: Any) -> None: ...

    async def load(self) -> Records:
        """Return all records as they were last saved; none for a new device.

        Raises SetupError if they are damaged, or were written by an unsupported version.
        """
        ...

    async def save(self, changes: RecordChanges) -> None:
        """Put and remove records, in one transaction. Idempotent.

        When this returns, the changes are as durable as this store can make them. When it raises
        StorageUnavailable, nothing has changed, and the save may be retried. If the caller is
        cancelled, the changes may be saved or not.
        """
        ...


@runtime_checkable
class ScrubbedStore(ClientStore, Protocol):
    """A ClientStore that keeps bytes of removed records until it is told to overwrite them."""

    async def scrub(self) -> None:
        """Overwrite what was removed. Idempotent. When this returns, no byte of it is left."""
        ...


class MemoryStore:
    """A ClientStore that lives as long as this object. Clients may open it one after another, as
    after a restart of the device."""

    def __init__(self) -> None:
        self.records: dict[RecordKey, bytes] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    async def load(self) -> Records:
        return dict(self.records)

    async def save(self, changes: RecordChanges) -> None:
        for key, record in changes.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record


MAX_PATH = 4096
SCHEMA_VERSION = 5
APPLICATION_ID = 0x67726567  # "greg": marks the file as ours, for `file` and other programs


class _Record(NamedTuple):
    kind: str
    name: str
    json: str


class _StoredRecord(NamedTuple):
    kind: str
    name: str
    json: bytes


class _Key(NamedTuple):
    kind: str
    name: str


_UPSERT = BulkStatement(
    "INSERT OR REPLACE INTO records (kind, name, json) SELECT kind, name, json FROM input",
    _Record,
    no_row,
)
_DELETE = BulkStatement(
    "DELETE FROM records WHERE (kind, name) IN (SELECT kind, name FROM input)", _Key, no_row
)
# As bytes, so that a record that is not valid text costs only itself.
_SELECT_ALL = Statement(
    "SELECT kind, name, CAST(json AS BLOB) AS json FROM records", _StoredRecord._make
)
_CREATE_TABLE = """
CREATE TABLE records (
    kind TEXT NOT NULL, name TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID
"""


class SQLiteStore:
    """A ScrubbedStore in an SQLite file, which is created if it does not exist. A change that
    `save` has returned from survives `kill -9` and a power cut. One process has the file open at a
    time; opening raises SetupError for a second one."""

    def __init__(self, path: str | Path) -> None:
        check_type("path", path, str, Path)
        self.path = Path(arguments.text("path", str(path), MAX_PATH))
        self._database = self._new_database()

    def _new_database(self) -> SQLiteDatabase:
        return SQLiteDatabase(
            str(self.path), lambda driver: transact(driver, "BEGIN IMMEDIATE", self._prepare)
        )

    async def __aenter__(self) -> Self:
        self._database = self._new_database()  # each can be opened once
        await self._database.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._database.__aexit__(*exc_info)

    async def load(self) -> Records:
        try:
            return await self._database.read(self._load)
        except StorageBroken as error:
            raise self._damaged(error.message) from error

    async def save(self, changes: RecordChanges) -> None:
        await self._database.write(lambda connection: _save(connection, changes))

    async def scrub(self) -> None:
        await self._database.scrub()

    def _load(self, connection: DatabaseConnection) -> Records:
        ((result,),) = connection.execute_sql("PRAGMA quick_check(1)")
        if result != "ok":
            raise self._damaged(result)
        return self._read_records(connection)

    def _read_records(self, connection: DatabaseConnection) -> Records:
        return {(r.kind, r.name): r.json for r in connection.execute(_SELECT_ALL)}

    def _prepare(self, connection: DatabaseConnection) -> None:
        if not connection.execute_sql("SELECT 1 FROM sqlite_schema LIMIT 1"):
            connection.execute_sql(_CREATE_TABLE)
            connection.execute_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if connection.execute_sql("PRAGMA application_id") != [(APPLICATION_ID,)]:
            raise SetupError(f"{self.path} is a database of another program; choose another path")
        ((schema,),) = connection.execute_sql("PRAGMA user_version")
        for older in range(schema, SCHEMA_VERSION):
            _save(connection, MIGRATIONS[older](self._read_records(connection)))
            schema = older + 1
            connection.execute_sql(f"PRAGMA user_version = {schema}")
        if schema != SCHEMA_VERSION:
            raise SetupError(
                f"{self.path} has schema {schema}, but this version reads {SCHEMA_VERSION};"
                " use the version of Gregor that wrote it, or a later one"
            )

    def _damaged(self, problem: str) -> SetupError:
        return SetupError(f"{self.path} is damaged ({problem}); move it away and restart")


def _save(connection: DatabaseConnection, changes: RecordChanges) -> None:
    put = [(key, record) for key, record in changes.items() if record is not None]
    removed = [key for key, record in changes.items() if record is None]
    if put:
        # Only a record that is set aside can be invalid text.
        texts = [_Record(*key, record.decode(errors="backslashreplace")) for key, record in put]
        connection.execute_rows(_UPSERT, texts)
    if removed:
        connection.execute_rows(_DELETE, [_Key(*key) for key in removed])


# Conversion between a replica and records


class _OwnerRecord(Struct, frozen=True):
    """The single record of the kind `owner`. It repeats what the one of the kind `device` says, so
    that no unreadable record lets another user have what this one wrote, or takes what was written
    before an erase for what was written after it. A store of an earlier version knows of no
    erase."""

    device_id: DeviceID
    uid: UID | None
    epoch: Time | None = 0
    erased: bool = False


class _DeviceRecord(_OwnerRecord, frozen=True, kw_only=True):
    """The single record of the kind `device`."""

    cursor: Time
    clock_offset: int = 0


DEVICE_KEY: RecordKey = ("device", "")
OWNER_KEY: RecordKey = ("owner", "")
_TYPES: Mapping[str, Any] = {
    "owner": _OwnerRecord,
    "device": _DeviceRecord,
    "item": Item,
    "outbox": OutboxEntry,
    "hidden": bool,
    "awaited": int,
    "rejected": RejectedEntry,
}
"""What each kind of record is decoded as."""

_ASIDE = "set_aside"
_UNREADABLE = (msgspec.MsgspecError, GregorError, UnicodeError, RecursionError)


def set_aside(records: Records) -> RecordChanges:
    """The changes that set aside the records that cannot be read: they are kept, under another
    kind, and the others can be loaded without them. Raises SetupError if the records do not say
    whose they are."""
    changes: dict[RecordKey, bytes | None] = {}
    for (kind, name), record in records.items():
        if kind in _TYPES and not _is_readable(kind, record):
            changes |= {(kind, name): None, (_ASIDE, f"{kind}/{name}"): record}
    if DEVICE_KEY in changes:
        changes[OWNER_KEY] = msgspec.json.encode(_remaining_owner(records))
    return changes


def _remaining_owner(records: Records) -> _OwnerRecord:
    """The owner in records of which that of the device cannot be read. What an earlier version
    wrote has no other record of it, but often only the cursor is damaged."""
    for key in (OWNER_KEY, DEVICE_KEY):
        with suppress(KeyError, *_UNREADABLE):
            return msgspec.json.decode(records[key], type=_OwnerRecord)
    raise SetupError(
        "no record of the client's store can be read that says to which user it belongs, so its"
        " unsent messages may be another user's; nothing was changed: keep it, and use a new one"
    )


def records_aside(records: Records) -> dict[RecordKey, bytes]:
    """The records that have been set aside, by their former keys."""
    return {
        (former_kind, former_name): record
        for (kind, name), record in records.items()
        if kind == _ASIDE
        for former_kind, _, former_name in [name.partition("/")]
    }


def _is_readable(kind: str, record: bytes) -> bool:
    try:
        msgspec.json.decode(record)  # with the bodies, which the next line leaves undecoded
        msgspec.json.decode(record, type=_TYPES[kind])
    except _UNREADABLE:
        return False
    return True


def load_replica(records: Records, device_id: DeviceID) -> Replica:
    """The saved replica, without its derived fields; a new one if there are no records. Without
    the record of the device itself, its cursor is 0, so the first sync is a snapshot. Raises
    SetupError if a record cannot be read, or if they belong to another device."""
    try:
        device = _device_record(records, _owner_record(records, device_id))
        replica = _replica_from(records, device)
    except _UNREADABLE as error:
        raise SetupError(f"the client's store is damaged ({error}); use a new one") from error
    if device.device_id != device_id:
        raise SetupError(
            f"this store belongs to the device {device.device_id!r}, not to {device_id!r};"
            " use one store per device"
        )
    return replica


def _owner_record(records: Records, device_id: DeviceID) -> _OwnerRecord:
    if OWNER_KEY not in records:
        return _OwnerRecord(device_id, None, None)
    return msgspec.json.decode(records[OWNER_KEY], type=_OwnerRecord)


def _device_record(records: Records, owner: _OwnerRecord) -> _DeviceRecord:
    if DEVICE_KEY not in records:
        return _DeviceRecord(owner.device_id, owner.uid, owner.epoch, owner.erased, cursor=0)
    return msgspec.json.decode(records[DEVICE_KEY], type=_DeviceRecord)


def _replica_from(records: Records, device: _DeviceRecord) -> Replica:
    outbox = Outbox.of(entry for _, entry in _decode(records, "outbox", OutboxEntry))
    rejected = Map(_decode(records, "rejected", RejectedEntry))
    awaited = Map(_decode(records, "awaited", int))
    numbers = [entry.number for entry in (*outbox.values(), *rejected.values())]
    return Replica(
        device.device_id,
        device.uid,
        device.epoch,
        device.erased,
        cursor=device.cursor,
        known_since=device.cursor,
        facts=Facts.of(item for _, item in _decode(records, "item", Item)),
        outbox=outbox,
        hidden=Map(_decode(records, "hidden", bool)),
        awaited=awaited,
        rejected=rejected,
        last_number=max([0, *numbers, *awaited.values()]),
        clock_offset=device.clock_offset,
    )


def _decode(records: Records, kind: str, type_: type[T]) -> Iterator[tuple[str, T]]:
    for (record_kind, name), record in records.items():
        if record_kind == kind:
            yield name, msgspec.json.decode(record, type=type_)


def missing_records(records: Records, replica: Replica) -> RecordChanges:
    """What to save so that a store says to which device and user it belongs, as this replica does.
    It lacks that when it is new, was written by an earlier version, or has a record set aside."""
    wanted = {key: msgspec.json.encode(value) for key, value in _device(replica).items()}
    return {key: record for key, record in wanted.items() if records.get(key) != record}


def changed_records(
    before: Replica | None, after: Replica, changed: Iterable[MsgID] | None = None
) -> RecordChanges:
    """The changes to save so that a store with `before` (None: an empty store) holds `after`. The
    records that may differ are those of the ids in `changed`; by default, all may."""
    if before is None:
        before = Replica("")  # its records of the device differ from those of any device
    if changed is None:
        changed = before.recorded_ids() | after.recorded_ids()
    changes = dict(_differences(_device(before), _device(after)))
    for msg_id in changed:
        changes.update(_differences(_values(before, msg_id), _values(after, msg_id)))
    return changes


def replaced_records(records: Records, replica: Replica) -> RecordChanges:
    """The changes to save so that a store with these records holds this replica and nothing else,
    also none of what no version could read."""
    return dict.fromkeys(records) | dict(changed_records(None, replica))


def _device(replica: Replica) -> dict[RecordKey, object]:
    owner = _OwnerRecord(replica.device_id, replica.uid, replica.epoch, replica.erased)
    device = _DeviceRecord(
        *msgspec.structs.astuple(owner), cursor=replica.cursor, clock_offset=replica.clock_offset
    )
    return {OWNER_KEY: owner, DEVICE_KEY: device}


def _values(replica: Replica, msg_id: MsgID) -> dict[RecordKey, object]:
    """What is recorded for an id."""
    values = {
        "item": replica.facts.items.get(msg_id),
        "outbox": replica.outbox.get(msg_id),
        "hidden": replica.hidden.get(msg_id),
        "awaited": replica.awaited.get(msg_id),
        "rejected": replica.rejected.get(msg_id),
    }
    return {(kind, msg_id): value for kind, value in values.items() if value is not None}


def _differences(
    before: Mapping[RecordKey, object], after: Mapping[RecordKey, object]
) -> Iterator[tuple[RecordKey, bytes | None]]:
    for key, value in after.items():
        if before.get(key) is not value and before.get(key) != value:
            yield key, msgspec.json.encode(value)
    yield from ((key, None) for key in before if key not in after)
