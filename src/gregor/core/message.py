"""What travels: messages that change a user's state, and messages that only pass by.

A message is a frozen value and the same one all the way, from the decoder to the database and on
to every device. Only the state machine of record completes it, with `ctime` and `prev`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, TypeAlias
from uuid import uuid4

import msgspec
from msgspec import Meta, Raw, Struct, field

from gregor.core.instant import MAX_TIME, Time, TimeOrOffset, as_time_or_offset
from gregor.errors import InvalidMessage, TooLarge

UID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
DeviceID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
MsgID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Category: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
System: TypeAlias = Annotated[str, Meta(min_length=1, max_length=255)]
Ctime: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TIME)]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
When: TypeAlias = TimeOrOffset | Time | str | datetime | timedelta | None

MAX_BODY = 64 * 1024
MAX_MESSAGE = 512 * 1024
MAX_DEPTH = 128
MAX_BATCH = 500


def new_msg_id() -> MsgID:
    """The default msg_id: a random UUID as 32 hex digits."""
    return uuid4().hex


class Creation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item comes into being. It expires at `dtime`, if it has one."""

    category: Category
    raw_body: Raw = field(name="body")
    dtime: TimeOrOffset | None = None

    def __post_init__(self) -> None:
        check_text("category", self.category, 255)
        _check_body(self.raw_body)
        if self.dtime is not None and self.dtime.looks_back:
            raise InvalidMessage("an expiry's offset must not be negative", field="dtime")

    @property
    def body(self) -> JSON:
        """The body as a Python value, decoded anew at each call."""
        return value_of(self.raw_body)

    def expires_at(self, ctime: Time) -> Time | None:
        return None if self.dtime is None else self.dtime.after(ctime)


class Range(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All items of a category (with `prefix`: of all categories that begin like it) that were
    made no later than `end_time`, the end included, but for those in `skip_msg_ids`.
    Without `end_time` it ends at its own message's ctime."""

    category: Category
    end_time: TimeOrOffset | None = None
    skip_msg_ids: tuple[MsgID, ...] = ()
    prefix: bool = False

    def __post_init__(self) -> None:
        check_text("category", self.category, 255)
        for msg_id in self.skip_msg_ids:
            check_text("skip_msg_ids", msg_id, 64)


class Dismissal(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Items die: these, and all in these ranges."""

    msg_ids: tuple[MsgID, ...] = ()
    ranges: tuple[Range, ...] = ()

    def __post_init__(self) -> None:
        for msg_id in self.msg_ids:
            check_text("msg_ids", msg_id, 64)

    def __bool__(self) -> bool:
        return bool(self.msg_ids or self.ranges)


class InBandMessage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message that changes one user's state: a creation, a dismissal, or both (an update).

    `ctime` 0 says that no state machine of record has stamped it yet. `prev` is the ctime of the
    user's previous message, 0 for the first. `device_id` scopes the creation to that device; the
    dismissal concerns every device.
    """

    uid: UID
    msg_id: MsgID
    ctime: Ctime = 0
    prev: Ctime = 0
    device_id: DeviceID | None = None
    creation: Creation | None = None
    dismissal: Dismissal | None = None

    def __post_init__(self) -> None:
        check_text("uid", self.uid, 128)
        check_text("msg_id", self.msg_id, 64)
        if self.device_id is not None:
            check_text("device_id", self.device_id, 128)
        if self.creation is None and not self.dismissal:
            raise InvalidMessage("an in-band message needs a `creation` or a `dismissal`, or both")

    @property
    def stamped(self) -> bool:
        return self.ctime > 0

    def stamp(self, ctime: Time, prev: Time) -> "InBandMessage":
        return msgspec.structs.replace(self, ctime=ctime, prev=prev)

    def addressed_to(self, device_id: DeviceID | None) -> "InBandMessage | None":
        """What of this message concerns the device; None if nothing does.
        A creation for another device is left out, the dismissal beside it is not."""
        if self.creation is None or seen_on(self.device_id, device_id):
            return self
        return self.reduced(None, self.dismissal)

    def reduced(
        self, creation: Creation | None, dismissal: Dismissal | None
    ) -> "InBandMessage | None":
        """The same message with less in it; None if nothing is left."""
        if creation is None and not dismissal:
            return None
        return msgspec.structs.replace(self, creation=creation, dismissal=dismissal or None)

    def same_contents(self, other: "InBandMessage") -> bool:
        """Whether a second message of this id is this one sent again."""
        return self.contents() == other.contents()

    def contents(self) -> bytes:
        """Canonical bytes of all that the sender decided: equal for equal JSON, however spaced."""
        creation = self.creation and (
            self.creation.category,
            self.creation.body,
            self.creation.dtime,
        )
        return canonical((self.device_id, creation, self.dismissal or None))


class OutOfBandMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message that passes by: to the devices connected now, at most once, stored nowhere."""

    uid: UID
    system: System
    raw_body: Raw = field(name="body")

    def __post_init__(self) -> None:
        check_text("uid", self.uid, 128)
        check_text("system", self.system, 255)
        _check_body(self.raw_body)

    @property
    def body(self) -> JSON:
        return value_of(self.raw_body)


Message: TypeAlias = InBandMessage | OutOfBandMessage


def seen_on(scope: DeviceID | None, device_id: DeviceID | None) -> bool:
    """Whether something scoped to `scope` (None: to no device) concerns `device_id` (None: all)."""
    return scope is None or device_id is None or scope == device_id


# Making messages


def create(
    uid: UID,
    category: Category,
    body: JSON = None,
    *,
    dtime: When = None,
    device_id: DeviceID | None = None,
    msg_id: MsgID | None = None,
) -> InBandMessage:
    """A message that creates one item."""
    creation = Creation(category, raw(body), as_time_or_offset(dtime))
    return InBandMessage(uid, msg_id or new_msg_id(), device_id=device_id, creation=creation)


def dismiss(uid: UID, *msg_ids: MsgID, msg_id: MsgID | None = None) -> InBandMessage:
    """A message that dismisses items by their ids."""
    return InBandMessage(uid, msg_id or new_msg_id(), dismissal=Dismissal(msg_ids=msg_ids))


def dismiss_category(
    uid: UID,
    category: Category,
    *,
    prefix: bool = False,
    end_time: When = None,
    skip_msg_ids: Sequence[MsgID] = (),
    msg_id: MsgID | None = None,
) -> InBandMessage:
    """A message that dismisses everything of a category, up to and including `end_time`."""
    range_ = Range(category, as_time_or_offset(end_time), tuple(skip_msg_ids), prefix)
    return InBandMessage(uid, msg_id or new_msg_id(), dismissal=Dismissal(ranges=(range_,)))


def replace(
    uid: UID,
    category: Category,
    body: JSON,
    *,
    dtime: When = None,
    device_id: DeviceID | None = None,
    msg_id: MsgID | None = None,
) -> InBandMessage:
    """A message after which the category holds this one value: the last write wins."""
    msg_id = msg_id or new_msg_id()
    return InBandMessage(
        uid,
        msg_id,
        device_id=device_id,
        creation=Creation(category, raw(body), as_time_or_offset(dtime)),
        dismissal=Dismissal(ranges=(Range(category, skip_msg_ids=(msg_id,)),)),
    )


def out_of_band(uid: UID, system: System, body: JSON = None) -> OutOfBandMessage:
    """A message that only passes by."""
    return OutOfBandMessage(uid, system, raw(body))


# Reading messages


def parse_message(
    json: bytes | str | Raw, *, uid: UID | None = None, stamped: bool = False
) -> Message:
    """The message that a sender wrote, with a new msg_id if it chose none.

    `uid` is the session's: it may then be left out. `stamped` takes messages that carry a ctime,
    which otherwise only a state machine of record may set. Raises InvalidMessage or TooLarge,
    which name the field.
    """
    if not stamped:
        _check_size(json)
    draft = _decode(json)
    if not stamped and (draft.ctime, draft.prev) != (None, None):
        raise InvalidMessage("`ctime` and `prev` are the server's to set", field="ctime")
    uid = draft.uid if draft.uid is not None else uid
    if uid is None:
        raise InvalidMessage("the field `uid` is missing", field="uid")
    if draft.system is not None:
        return draft.out_of_band(uid)
    return draft.in_band(uid)


class _Draft(Struct, frozen=True, forbid_unknown_fields=True):
    """A message as it was written, before it is known whose it is and of which kind."""

    uid: UID | None = None
    msg_id: MsgID | None = None
    ctime: Ctime | None = None
    prev: Ctime | None = None
    device_id: DeviceID | None = None
    creation: Creation | None = None
    dismissal: Dismissal | None = None
    system: System | None = None
    raw_body: Raw = field(name="body", default=Raw())

    def in_band(self, uid: UID) -> InBandMessage:
        if self.raw_body:
            raise InvalidMessage("`body` belongs into `creation`, or beside `system`", field="body")
        return InBandMessage(
            uid=uid,
            msg_id=self.msg_id if self.msg_id is not None else new_msg_id(),
            ctime=self.ctime or 0,
            prev=self.prev or 0,
            device_id=self.device_id,
            creation=self.creation,
            dismissal=self.dismissal,
        )

    def out_of_band(self, uid: UID) -> OutOfBandMessage:
        for name in ("msg_id", "ctime", "prev", "device_id", "creation", "dismissal"):
            if getattr(self, name) is not None:
                raise InvalidMessage(f"an out-of-band message has no `{name}`", field=name)
        if not self.raw_body or self.system is None:
            raise InvalidMessage("an out-of-band message needs a `body`", field="body")
        return OutOfBandMessage(uid, self.system, self.raw_body)


_draft_decoder = msgspec.json.Decoder(_Draft)
_canonical = msgspec.json.Encoder(order="sorted")
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[][{}]")


def _decode(json: bytes | str | Raw) -> _Draft:
    try:
        draft = _draft_decoder.decode(json)
        # Raw is only skipped over so far; what no replica could read must not get in.
        body = draft.creation.raw_body if draft.creation is not None else draft.raw_body
        if body:
            msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise InvalidMessage(str(error), field=field_of(error)) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidMessage(f"not the JSON of a message: {error}") from error
    except RecursionError as error:
        raise InvalidMessage("the JSON is nested too deeply", field="body") from error
    return draft


def canonical(value: object) -> bytes:
    """JSON that is equal for equal values."""
    return _canonical.encode(value)


def field_of(error: msgspec.ValidationError) -> str | None:
    """The field that a validation error is about, as a dotted path."""
    reason, _, path = str(error).partition(" - at `$")
    named = path.rstrip("`").lstrip(".")
    if "field `" in reason:  # a missing or an unknown one
        inner = reason.split("field `", 1)[1].split("`", 1)[0]
        return f"{named}.{inner}" if named else inner
    return named or None


def _check_size(json: bytes | str | Raw) -> None:
    # Whoever takes frames of 1 MiB can be told of any message.
    size = len(json) if isinstance(json, str) else len(memoryview(json))
    if size > MAX_MESSAGE:
        raise TooLarge(f"a message takes up to {MAX_MESSAGE} bytes of JSON, not {size}; split it")


def check_text(name: str, value: str, limit: int) -> None:
    """Raises InvalidMessage unless the text has 1 to `limit` bytes and can be stored anywhere."""
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"`{name}` is not valid Unicode", field=name) from error
    if not 0 < size <= limit:
        raise InvalidMessage(f"`{name}` takes 1 to {limit} bytes of UTF-8, not {size}", field=name)
    if "\0" in value:
        raise InvalidMessage(f"`{name}` must not contain the character NUL", field=name)


def _check_body(body: Raw) -> None:
    size = len(memoryview(body))
    if size > MAX_BODY:
        raise TooLarge(f"`body` is {size} bytes of JSON; the limit is {MAX_BODY}", field="body")
    # What is nested deeply can be read or not according to how deep the reader's own stack is.
    if _depth(bytes(body)) > MAX_DEPTH:
        raise InvalidMessage(f"`body` is nested more than {MAX_DEPTH} levels deep", field="body")


def _depth(json: bytes) -> int:
    """How deeply arrays and objects lie in one another; for the ordinary body a bound will do."""
    brackets = json.count(b"[") + json.count(b"{")
    if brackets <= MAX_DEPTH:
        return brackets
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", json)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(depth, deepest)
    return deepest


def value_of(json: Raw) -> JSON:
    """The JSON as a Python value."""
    value: JSON = msgspec.json.decode(json)
    return value


def raw(value: JSON) -> Raw:
    """The value as the JSON that will be carried verbatim."""
    return value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))
