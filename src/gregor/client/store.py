"""Where a device keeps its replica: records by key, and every change in one transaction.

A store knows nothing of messages. A replica is written as records, and a change as the few of
them that differ, so that what it costs does not grow with the state.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import msgspec
from immutables import Map
from msgspec import Struct
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

from gregor.client.replica import Outbound, Refused, Replica
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID
from gregor.core.state import DismissedRange, Facts, Item
from gregor.errors import SetupError
from gregor.storage.database import StorageBroken
from gregor.storage.sqlite import SQLiteDatabase

T = TypeVar("T")

Key: TypeAlias = tuple[str, str]
"""What kind of record it is, and which."""

Records: TypeAlias = Mapping[Key, bytes]
Alterations: TypeAlias = Mapping[Key, bytes | None]
"""Records to be put, and with None those to be removed."""


class ClientStore(Protocol):
    """Keeps the records of one device. Opened with `async with`, by one client at a time; a
    second one that could corrupt it is refused with a SetupError."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc_info: Any) -> None: ...

    async def load(self) -> Records:
        """All records, as they were last saved; none for a new device.

        Raises SetupError if they are damaged, or of a version that this one does not read.
        """
        ...

    async def save(self, alterations: Alterations) -> None:
        """Put and remove records, all of them or none.

        When it returns, they are as durable as this store ever makes them. When it raises
        StorageUnavailable nothing has changed, and the same may be saved again. Cancelling the
        caller leaves it open which of the two it is.
        """
        ...


class MemoryStore:
    """A ClientStore whose durability is that of this object. One client after another may open
    it, as if the device had restarted."""

    def __init__(self) -> None:
        self.records: dict[Key, bytes] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    async def load(self) -> Records:
        return dict(self.records)

    async def save(self, alterations: Alterations) -> None:
        for key, record in alterations.items():
            if record is None:
                self.records.pop(key, None)
            else:
                self.records[key] = record


SCHEMA = 1
APPLICATION = 0x67726567  # "greg": what `file` and a foreign program see

_PUT = text("INSERT OR REPLACE INTO records (kind, name, json) VALUES (:kind, :name, :json)")
_REMOVE = text("DELETE FROM records WHERE kind = :kind AND name = :name")
_ALL = text("SELECT kind, name, json FROM records")
_TABLE = """
CREATE TABLE records (
    kind TEXT NOT NULL, name TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (kind, name)
) WITHOUT ROWID
"""


class SQLiteStore:
    """A ClientStore in an SQLite file, which is made when it is not there. What `save` has taken
    survives `kill -9` and a power cut. One process holds the file at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        url = URL.create("sqlite", database=str(self.path))
        self._database = SQLiteDatabase(url, self._prepare)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._database.__aexit__(*exc_info)

    async def load(self) -> Records:
        try:
            return await self._database.read(self._load)
        except StorageBroken as error:
            raise self._damaged(error.message) from error

    async def save(self, alterations: Alterations) -> None:
        await self._database.write(lambda connection: _save(connection, alterations))

    def _load(self, connection: Connection) -> Records:
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise self._damaged(verdict)
        return {(kind, name): json.encode() for kind, name, json in connection.execute(_ALL)}

    def _prepare(self, connection: Connection) -> None:
        if connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one() == 0:
            connection.exec_driver_sql(_TABLE)
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION}")
            connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
        if connection.exec_driver_sql("PRAGMA application_id").scalar_one() != APPLICATION:
            raise SetupError(f"{self.path} is another program's file; choose another")
        schema = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if schema != SCHEMA:
            raise SetupError(
                f"{self.path} has schema {schema}, and this version reads {SCHEMA};"
                " use the version of Gregor that wrote it, or a later one"
            )

    def _damaged(self, how: str) -> SetupError:
        return SetupError(f"{self.path} is damaged ({how}); move it away and start anew")


def _save(connection: Connection, alterations: Alterations) -> None:
    put = [(key, record) for key, record in alterations.items() if record is not None]
    removed = [key for key, record in alterations.items() if record is None]
    if put:
        rows = [{"kind": k, "name": n, "json": record.decode()} for (k, n), record in put]
        connection.execute(_PUT, rows)
    if removed:
        connection.execute(_REMOVE, [{"kind": kind, "name": name} for kind, name in removed])


# A replica as records


class _Device(Struct, frozen=True):
    """The record of which there is one."""

    device_id: DeviceID
    uid: UID | None
    cursor: Time


_DEVICE: Key = ("device", "")


def restored(records: Records, device_id: DeviceID) -> Replica:
    """The replica that was saved; a new one if none was. SetupError if it is another device's."""
    if _DEVICE not in records:
        return Replica(device_id)
    try:
        device = msgspec.json.decode(records[_DEVICE], type=_Device)
        replica = _restored(records, device)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise SetupError(
            f"the client's store is damaged ({error}); start with a new one"
        ) from error
    if device.device_id != device_id:
        raise SetupError(
            f"this store is the device {device.device_id!r}'s, not {device_id!r}'s;"
            " give each device a store of its own"
        )
    return replica


def _restored(records: Records, device: _Device) -> Replica:
    ranges = Map(_read(records, "range", DismissedRange))
    outbox = Map(_read(records, "outbox", Outbound))
    rejected = Map(_read(records, "rejected", Refused))
    facts = Facts(
        items=Map(_read(records, "item", Item)),
        ids=Map(_read(records, "dismissed_id", int)),
    )
    for range_ in sorted(ranges.values(), key=lambda range_: range_.end):
        facts = facts.join(Facts(ranges=(range_,)))
    return Replica(
        device.device_id,
        device.uid,
        device.cursor,
        device.cursor,
        facts,
        outbox,
        Map(_read(records, "hidden", bool)),
        rejected,
        max((waiting.number for waiting in (*outbox.values(), *rejected.values())), default=0),
    )


def _read(records: Records, kind: str, type_: type[T]) -> Iterator[tuple[str, T]]:
    for (of_kind, name), record in records.items():
        if of_kind == kind:
            yield name, msgspec.json.decode(record, type=type_)


def alterations(before: Replica | None, after: Replica) -> Alterations:
    """What has to be saved so that the store has `after`, if it has `before`, or nothing yet."""
    altered: dict[Key, bytes | None] = {}
    known = {} if before is None else dict(_kinds(before))
    for kind, new in _kinds(after):
        old = known.get(kind, {})
        if old is not new:
            altered.update(_altered(kind, old, new))
    return altered


def _kinds(replica: Replica) -> Iterator[tuple[str, Mapping[str, object]]]:
    yield "device", {"": _Device(replica.device_id, replica.uid, replica.cursor)}
    # What is dead only serves questions about the past, which start anew with each process.
    kept = replica.facts.forget(replica.cursor)
    yield "item", kept.items
    yield "dismissed_id", kept.ids
    yield "range", {msgspec.json.encode(range_).decode(): range_ for range_ in kept.ranges}
    yield "outbox", replica.outbox
    yield "hidden", replica.hidden
    yield "rejected", replica.rejected


def _altered(
    kind: str, before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[Key, bytes | None]]:
    changed = [name for name, value in after.items() if before.get(name) is not value]
    for name in changed:
        if before.get(name) != after[name]:
            yield (kind, name), msgspec.json.encode(after[name])
    new = sum(name not in before for name in changed)
    if len(before) + new > len(after):
        yield from (((kind, name), None) for name in before if name not in after)
