"""Migrations of a device's store: they convert its records to the next schema."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeAlias

import msgspec
from msgspec import Raw, Struct

from gregor.core.renamed_fields import with_expires

Records: TypeAlias = Mapping[tuple[str, str], bytes]
Changes: TypeAlias = Mapping[tuple[str, str], bytes | None]


class _OldOutboxEntry(Struct, rename={"echoed": "told"}):
    number: int
    written: int
    message: Raw
    echoed: bool = False


class _OutboxEntry(Struct, omit_defaults=True):
    number: int
    written: int
    message: Raw
    echoed: bool = False


class _OldProblem(Struct, rename={"action": "turn"}):
    code: str
    message: str
    action: str
    field: str | None = None


class _Problem(Struct, omit_defaults=True):
    code: str
    message: str
    action: str
    field: str | None = None


class _OldRejectedEntry(Struct):
    number: int
    message: Raw
    error: _OldProblem


class _RejectedEntry(Struct):
    number: int
    message: Raw
    error: _Problem


def _changes_to_schema_2(records: Records) -> Changes:
    """Schema 2 renames some fields of records. One that cannot be read stays as it is, and is set
    aside when the records are loaded."""
    changed: dict[tuple[str, str], bytes | None] = {}
    for (kind, name), record in records.items():
        with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
            match kind:
                case "outbox":
                    changed[kind, name] = _outbox_entry(record)
                case "rejected":
                    changed[kind, name] = _rejected_entry(record)
    return changed


def _outbox_entry(record: bytes) -> bytes:
    old = msgspec.json.decode(record, type=_OldOutboxEntry)
    message = Raw(with_expires(old.message))
    return msgspec.json.encode(_OutboxEntry(old.number, old.written, message, old.echoed))


def _rejected_entry(record: bytes) -> bytes:
    old = msgspec.json.decode(record, type=_OldRejectedEntry)
    error = old.error
    action = "reauthenticate" if error.action == "re-authenticate" else error.action
    problem = _Problem(error.code, error.message, action, error.field)
    return msgspec.json.encode(_RejectedEntry(old.number, Raw(with_expires(old.message)), problem))


def _changes_to_schema_3(records: Records) -> Changes:
    """Schema 3 has no tombstones: no node sends a creation that is dead."""
    return {key: None for key in records if key[0] in ("dismissed_id", "range")}


def _no_changes_to_schema_4(records: Records) -> Changes:
    """Schema 4 has keys and starts, which the code of earlier schemas does not know."""
    return {}


def _no_changes_to_schema_5(records: Records) -> Changes:
    """Schema 5 has the user's epoch. The code of earlier schemas would forget it, and then be taken
    for a device that has not heard of the erase. A record without one says that there was none."""
    return {}


MIGRATIONS: Mapping[int, Callable[[Records], Changes]] = {
    1: _changes_to_schema_2,
    2: _changes_to_schema_3,
    3: _no_changes_to_schema_4,
    4: _no_changes_to_schema_5,
}
"""By schema: the records to save again (None: to remove) for the next schema."""
