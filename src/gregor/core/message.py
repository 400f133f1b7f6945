"""Messages: in-band ones change a user's state, out-of-band ones are stored nowhere.

A message is a frozen value. The same value goes from the decoder to the database and to every
device; only the state machine of record adds to it, with `ctime` and `prev`.
"""

import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from hashlib import sha256
from types import NoneType
from typing import Annotated, TypeAlias, TypeVar
from uuid import UUID, uuid4

import msgspec
from msgspec import Meta, Raw, Struct, field

from gregor.core import arguments
from gregor.core.admission import (
    check_expiry,
    check_id,
    check_text,
    check_texts,
    check_time,
    check_type,
    kind_of,
)
from gregor.core.arguments import MAX_DEPTH
from gregor.core.instant import MAX_TIME, Time, TimeOrOffset
from gregor.errors import InvalidMessage, TooLarge
from gregor.limits import DEFAULT_LIMITS

MAX_UID = MAX_DEVICE_ID = 128
MAX_MSG_ID = 64
MAX_CATEGORY = MAX_KEY = MAX_SYSTEM = 255

UID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_UID)]
DeviceID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_DEVICE_ID)]
MsgID: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_MSG_ID)]
Category: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_CATEGORY)]
Key: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_KEY)]
System: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SYSTEM)]
Ctime: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TIME)]
Digest: TypeAlias = str
"""22 characters, base64url of 16 bytes."""

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
When: TypeAlias = TimeOrOffset | str | datetime | timedelta | None
"""A time or a duration. A bare number is neither, since it does not say its unit."""
AnyID: TypeAlias = str | int | UUID
"""An id as callers have it, such as the primary key of a user. It is stored as text."""

MAX_BODY = DEFAULT_LIMITS.body_bytes
MAX_MESSAGE = DEFAULT_LIMITS.message_bytes
MAX_BATCH = DEFAULT_LIMITS.messages


def new_msg_id() -> MsgID:
    """The default msg_id: a random UUID as 32 hex digits."""
    return uuid4().hex


class Creation(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Creates one item. It begins to be visible at `starts`, if given, and expires at `expires`.
    With a `key`, it takes the place of the item of this key and scope that was created before."""

    category: Category
    raw_body: Raw = field(name="body")
    expires: TimeOrOffset | None = None
    starts: TimeOrOffset | None = None
    key: Key | None = None

    def __post_init__(self) -> None:
        check_text("category", self.category, MAX_CATEGORY)
        _check_body(self.raw_body)
        if self.key is not None:
            check_text("key", self.key, MAX_KEY)
        if self.expires is not None:
            _check_instant("expires", self.expires)
        if self.starts is not None:
            _check_instant("starts", self.starts)
        if self.starts is not None and self.expires is not None:
            _check_order(self.starts, self.expires)

    @property
    def body(self) -> JSON:
        """The body as a Python value, decoded on each access."""
        return value_of(self.raw_body)

    def starts_at(self, ctime: Time) -> Time | None:
        return None if self.starts is None else self.starts.after(ctime)

    def expires_at(self, ctime: Time) -> Time | None:
        return None if self.expires is None else self.expires.after(ctime)


def _check_instant(name: str, instant: object) -> None:
    check_type(name, instant, TimeOrOffset)
    if isinstance(instant, TimeOrOffset) and instant.is_negative_offset:
        raise InvalidMessage(f"an offset of `{name}` must not be negative", field=name)


def _check_order(starts: TimeOrOffset, expires: TimeOrOffset) -> None:
    """Raises InvalidMessage for a start that is not before the expiry, whatever the ctime."""
    if (starts.offset is None) == (expires.offset is None):  # they can be compared
        _check_begins("starts", starts.after(0), expires.after(0))


def _check_begins(name: str, starts_at: Time, expires_at: Time) -> None:
    if starts_at >= expires_at:
        raise InvalidMessage(
            f"`{name}` is not before the expiry, so the item would never be visible", field=name
        )


class Range(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All items of a category (with `prefix`: of all categories that begin with it) whose *time*,
    the later of ctime and start, is up to `end_time` inclusive, except those in `skip_msg_ids`.
    `end_time` defaults to the ctime of the message, and counts as that if it is later. With
    `scheduled`, the ctime alone is compared, so items that have not begun are included."""

    category: Category
    end_time: TimeOrOffset | None = None
    skip_msg_ids: tuple[MsgID, ...] = ()
    prefix: bool = False
    scheduled: bool = False

    def __post_init__(self) -> None:
        check_text("category", self.category, MAX_CATEGORY)
        check_type("end_time", self.end_time, TimeOrOffset, NoneType)
        check_type("prefix", self.prefix, bool)
        check_type("scheduled", self.scheduled, bool)
        check_type("skip_msg_ids", self.skip_msg_ids, tuple)
        check_texts("skip_msg_ids", self.skip_msg_ids, MAX_MSG_ID)


class KeyDismissal(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All items with a key that were created up to `end_time` inclusive, begun or not. `end_time`
    is as in a Range."""

    key: Key
    end_time: TimeOrOffset | None = None

    def __post_init__(self) -> None:
        check_text("key", self.key, MAX_KEY)
        check_type("end_time", self.end_time, TimeOrOffset, NoneType)


class Dismissal(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dismisses items: by msg_id, all in the ranges, and all with the keys. The last `added` of the
    ids were not sent: a store added them to an old message (decision 20)."""

    msg_ids: tuple[MsgID, ...] = ()
    ranges: tuple[Range, ...] = ()
    keys: tuple[KeyDismissal, ...] = ()
    added: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        check_type("msg_ids", self.msg_ids, tuple)
        check_type("ranges", self.ranges, tuple)
        check_type("keys", self.keys, tuple)
        check_texts("msg_ids", self.msg_ids, MAX_MSG_ID)
        for range_ in self.ranges:
            check_type("ranges", range_, Range)
        for key in self.keys:
            check_type("keys", key, KeyDismissal)

    def as_sent(self) -> "Dismissal":
        """The dismissal as its sender wrote it."""
        sent = len(self.msg_ids) - self.added
        return Dismissal(self.msg_ids[:sent], self.ranges, self.keys)

    def __bool__(self) -> bool:
        return bool(self.msg_ids or self.ranges or self.keys)


class InBandMessage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message that changes one user's state: a creation, a dismissal, or both (an update).

    `ctime` is 0 until a state machine of record has stamped the message. `prev` is the ctime of
    the user's clock before it, 0 for the first message. `device_id` scopes the creation to that
    device. The dismissal applies on every device; but with a `device_id`, its ranges and keys reach
    only items that this device sees. They never reach the item that the message itself creates.
    """

    uid: UID
    msg_id: MsgID
    ctime: Ctime = 0
    prev: Ctime = 0
    device_id: DeviceID | None = None
    creation: Creation | None = None
    dismissal: Dismissal | None = None

    def __post_init__(self) -> None:
        check_text("uid", self.uid, MAX_UID)
        check_text("msg_id", self.msg_id, MAX_MSG_ID)
        if self.device_id is not None:
            check_text("device_id", self.device_id, MAX_DEVICE_ID)
        check_type("ctime", self.ctime, int)
        check_type("prev", self.prev, int)
        check_type("creation", self.creation, Creation, NoneType)
        check_type("dismissal", self.dismissal, Dismissal, NoneType)
        if self.creation is None and not self.dismissal:
            raise InvalidMessage("an in-band message needs a `creation` or a `dismissal`, or both")

    @property
    def stamped(self) -> bool:
        return self.ctime > 0

    @property
    def key(self) -> Key | None:
        """The key of its item; None if it has none, or creates none."""
        return None if self.creation is None else self.creation.key

    @property
    def starts_at(self) -> Time | None:
        """When the item of this stamped message begins; None if it does with its ctime, or creates
        none."""
        return None if self.creation is None else self.creation.starts_at(self.ctime)

    @property
    def expires_at(self) -> Time | None:
        """When the item of this stamped message expires; None if it does not, or creates none."""
        return None if self.creation is None else self.creation.expires_at(self.ctime)

    def stamp(self, ctime: Time, prev: Time) -> "InBandMessage":
        stamped = _copy(self)
        msgspec.structs.force_setattr(stamped, "ctime", ctime)
        msgspec.structs.force_setattr(stamped, "prev", prev)
        return stamped

    def stamp_new(self, ctime: Time, prev: Time) -> "InBandMessage":
        """The same for a message that is not a replay. Raises InvalidMessage if its item would not
        begin before it expires."""
        creation = self.creation
        if creation is not None and creation.starts is not None and creation.expires is not None:
            starts_at, expires_at = creation.starts.after(ctime), creation.expires.after(ctime)
            _check_begins("creation.starts", starts_at, expires_at)
        return self.stamp(ctime, prev)

    def addressed_to(self, device_id: DeviceID | None) -> "InBandMessage | None":
        """The part of this message that concerns the device; None if nothing does.
        A creation for another device is left out; the dismissal in the same message is kept."""
        if self.creation is None or seen_on(self.device_id, device_id):
            return self
        return self.reduced(None, self.dismissal)

    def reduced(
        self, creation: Creation | None, dismissal: Dismissal | None
    ) -> "InBandMessage | None":
        """The message with only these parts; None if nothing is left."""
        if creation is self.creation and dismissal is self.dismissal:
            return self
        if creation is None and not dismissal:
            return None
        return _with(self, creation=creation, dismissal=dismissal or None)

    def same_contents(self, other: "InBandMessage") -> bool:
        """Whether another message with this msg_id is a retry of this one (and not a conflict)."""
        return self.contents() == other.contents()

    def contents(self) -> bytes:
        """Canonical bytes of what the sender chose: equal for equal JSON of any whitespace."""
        creation = self.creation and (
            self.creation.category,
            self.creation.body,
            self.creation.expires,
            self.creation.starts,
            self.creation.key,
        )
        dismissal = self.dismissal and self.dismissal.as_sent()
        return canonical((self.device_id, creation, dismissal or None))

    def contents_digest(self) -> Digest:
        """What is kept of the contents when they are forgotten: equal for equal contents."""
        return urlsafe_b64encode(sha256(self.contents()).digest()[:16]).rstrip(b"=").decode()


class OutOfBandMessage(Struct, frozen=True, forbid_unknown_fields=True):
    """A message to the devices that are connected now: delivered at most once, stored nowhere."""

    uid: UID
    system: System
    raw_body: Raw = field(name="body")

    def __post_init__(self) -> None:
        check_text("uid", self.uid, MAX_UID)
        check_text("system", self.system, MAX_SYSTEM)
        _check_body(self.raw_body)

    @property
    def body(self) -> JSON:
        return value_of(self.raw_body)


Message: TypeAlias = InBandMessage | OutOfBandMessage

M = TypeVar("M", bound=Message)


def for_user(uid: UID, message: Message) -> Message:
    """The same message for another user. Raises InvalidMessage if the uid is none."""
    check_text("uid", uid, MAX_UID)
    return _with(message, uid=uid)


def _with(message: M, **parts: object) -> M:
    """A copy with other parts, which were checked when they were made."""
    changed = _copy(message)
    for name, part in parts.items():
        msgspec.structs.force_setattr(changed, name, part)
    return changed


def _copy(message: M) -> M:
    copied: M = message.__copy__()  # type: ignore[union-attr]  # in a third of the time of `copy`
    return copied


def seen_on(scope: DeviceID | None, device_id: DeviceID | None) -> bool:
    """Whether `device_id` (None: all devices) sees items of this scope (None: unscoped)."""
    return scope is None or device_id is None or scope == device_id


# Building messages


def create(
    uid: AnyID,
    category: Category,
    body: JSON = None,
    *,
    starts: When = None,
    expires: When = None,
    device_id: AnyID | None = None,
    msg_id: AnyID | None = None,
) -> InBandMessage:
    """A message that creates one item."""
    return _message(
        uid, msg_id, device_id, creation=_creation(category, body, starts, expires, key=None)
    )


def put(
    uid: AnyID,
    category: Category,
    body: JSON = None,
    *,
    key: Key | None = None,
    starts: When = None,
    expires: When = None,
    device_id: AnyID | None = None,
    msg_id: AnyID | None = None,
) -> InBandMessage:
    """A message that creates one item in place of the one with its key, which is the category by
    default: the last write wins."""
    key = category if key is None else key
    return _message(
        uid, msg_id, device_id, creation=_creation(category, body, starts, expires, key)
    )


def dismiss(
    uid: AnyID, *msg_ids: AnyID, device_id: AnyID | None = None, msg_id: AnyID | None = None
) -> InBandMessage:
    """A message that dismisses items by their ids."""
    if not msg_ids:
        raise InvalidMessage("`msg_ids` names no item to dismiss", field="msg_ids")
    ids = arguments.known_ids("msg_ids", msg_ids, MAX_MSG_ID)
    return _message(uid, msg_id, device_id, dismissal=Dismissal(ids))


def dismiss_category(
    uid: AnyID,
    category: Category,
    *,
    prefix: bool = False,
    scheduled: bool = False,
    end_time: When = None,
    skip_msg_ids: Iterable[AnyID] = (),
    device_id: AnyID | None = None,
    msg_id: AnyID | None = None,
) -> InBandMessage:
    """A message that dismisses all items of a category up to `end_time` inclusive; with
    `scheduled`, also those that have not begun. With `device_id`, only what that device sees."""
    range_ = Range(
        arguments.text("category", category, MAX_CATEGORY),
        arguments.time("end_time", end_time),
        arguments.known_ids("skip_msg_ids", skip_msg_ids, MAX_MSG_ID),
        arguments.flag("prefix", prefix),
        arguments.flag("scheduled", scheduled),
    )
    return _message(uid, msg_id, device_id, dismissal=Dismissal(ranges=(range_,)))


def dismiss_key(
    uid: AnyID,
    *keys: Key,
    end_time: When = None,
    device_id: AnyID | None = None,
    msg_id: AnyID | None = None,
) -> InBandMessage:
    """A message that dismisses the items with these keys that were created up to `end_time`
    inclusive, begun or not. With `device_id`, only what that device sees."""
    if not keys:
        raise InvalidMessage("`keys` names no key to dismiss", field="keys")
    end = arguments.time("end_time", end_time)
    named = tuple(KeyDismissal(arguments.text("keys", key, MAX_KEY), end) for key in keys)
    return _message(uid, msg_id, device_id, dismissal=Dismissal(keys=named))


def out_of_band(uid: AnyID, system: System, body: JSON = None) -> OutOfBandMessage:
    """An out-of-band message."""
    return OutOfBandMessage(
        arguments.identifier("uid", uid, MAX_UID),
        arguments.text("system", system, MAX_SYSTEM),
        arguments.body("body", body, MAX_BODY),
    )


def _message(
    uid: AnyID,
    msg_id: AnyID | None,
    device_id: AnyID | None,
    *,
    creation: Creation | None = None,
    dismissal: Dismissal | None = None,
) -> InBandMessage:
    return InBandMessage(
        arguments.identifier("uid", uid, MAX_UID),
        _own_id(msg_id),
        device_id=arguments.optional_identifier("device_id", device_id, MAX_DEVICE_ID),
        creation=creation,
        dismissal=dismissal,
    )


def _creation(
    category: Category, body: JSON, starts: When, expires: When, key: Key | None
) -> Creation:
    return Creation(
        arguments.text("category", category, MAX_CATEGORY),
        arguments.body("body", body, MAX_BODY),
        arguments.expiry("expires", expires),
        arguments.time("starts", starts),
        None if key is None else arguments.text("key", key, MAX_KEY),
    )


def _own_id(msg_id: AnyID | None) -> MsgID:
    if msg_id is None:
        return new_msg_id()
    return arguments.identifier("msg_id", msg_id, MAX_MSG_ID)


# Parsing messages


def as_message(name: str, value: object) -> Message:
    """The value, which is a message. Raises InvalidMessage if it is none."""
    if isinstance(value, InBandMessage | OutOfBandMessage):
        return value
    raise InvalidMessage(f"`{name}` must be a message, not {kind_of(value)}", field=name)


def parse_message(
    json: bytes | str | Raw, *, uid: UID | None = None, stamped: bool = False
) -> Message:
    """Parse a sender's message; it gets a new msg_id if it has none.

    `uid` is the default for a message without one, such as the session's. `stamped` accepts a
    message of any size that carries a ctime, which a sender may not set. Raises InvalidMessage or
    TooLarge, which name the field if there is one.
    """
    if not stamped:
        _check_size(json)
    draft = _decode(json)
    if not stamped and (draft.ctime, draft.prev) != (None, None):
        raise InvalidMessage("only the server sets `ctime` and `prev`", field="ctime")
    if not stamped and draft.dismissal is not None and draft.dismissal.added:
        raise InvalidMessage("only the server sets `added`", field="dismissal.added")
    uid = draft.uid if draft.uid is not None else uid
    if uid is None:
        raise InvalidMessage("the field `uid` is missing", field="uid")
    message = draft.in_band(uid) if draft.system is None else draft.out_of_band(uid)
    if not stamped:
        check_admission(message)
    return message


def check_admission(message: Message) -> None:
    """Raise InvalidMessage if a sender must not write this, though the core accepts it."""
    check_id("uid", message.uid)
    if isinstance(message, OutOfBandMessage):
        return
    check_id("msg_id", message.msg_id)
    check_id("device_id", message.device_id)
    if message.creation is not None:
        check_expiry("creation.expires", message.creation.expires)
        check_time("creation.starts", message.creation.starts)
    if message.dismissal is not None:
        for number, range_ in enumerate(message.dismissal.ranges):
            check_time(f"dismissal.ranges[{number}].end_time", range_.end_time)
        for number, key in enumerate(message.dismissal.keys):
            check_time(f"dismissal.keys[{number}].end_time", key.end_time)


class _Draft(Struct, frozen=True, forbid_unknown_fields=True):
    """A decoded message before its uid and its kind are known."""

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
            raise InvalidMessage("`body` needs a `system`, or belongs in `creation`", field="body")
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
        # The decoder skips Raw without a check; a body that no replica can read is rejected here.
        body = draft.creation.raw_body if draft.creation is not None else draft.raw_body
        if body:
            msgspec.json.decode(body)
    except msgspec.ValidationError as error:
        raise _placed(error) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise InvalidMessage(f"not the JSON of a message: {error}") from error
    except RecursionError as error:
        raise InvalidMessage("the JSON is nested too deeply", field="body") from error
    return draft


def canonical(value: object) -> bytes:
    """JSON bytes that are equal for equal values."""
    return _canonical.encode(value)


def _placed(error: msgspec.ValidationError) -> InvalidMessage | TooLarge:
    """The error of a rule of the data model, or of the decoder, with the path of its field."""
    match error.__cause__:
        case InvalidMessage(message=reason) | TooLarge(message=reason) as broken:
            return type(broken)(reason, field=field_of(error))
        case _:
            return InvalidMessage(str(error), field=field_of(error))


def field_of(error: msgspec.ValidationError) -> str | None:
    """The dotted path of the field that a validation error names."""
    reason, _, location = str(error).partition(" - at `$")
    path = location.rstrip("`").lstrip(".")
    match error.__cause__:
        case InvalidMessage(field=name) | TooLarge(field=name):  # within the object at the path
            pass
        case _:
            named = reason.partition("field `")[2]  # it is missing or unknown in the object
            name = named.partition("`")[0]
    return ".".join(filter(None, (path, name))) or None


def _check_size(json: bytes | str | Raw) -> None:
    # Smaller than MAX_FRAME (1 MiB), so that every message can be sent to every device.
    size = len(json) if isinstance(json, str) else len(memoryview(json))
    if size > MAX_MESSAGE:
        raise TooLarge(f"a message is at most {MAX_MESSAGE} bytes of JSON, not {size}; split it")


def _check_body(body: Raw) -> None:
    check_type("body", body, Raw)
    size = len(memoryview(body))
    if size > MAX_BODY:
        raise TooLarge(f"`body` is {size} bytes of JSON; the limit is {MAX_BODY}", field="body")
    # Whether deeply nested JSON can be parsed depends on the depth of the reader's call stack.
    if _depth(bytes(body)) > MAX_DEPTH:
        raise InvalidMessage(f"`body` is nested more than {MAX_DEPTH} levels deep", field="body")


def _depth(json: bytes) -> int:
    """The nesting depth of the JSON, or an upper bound of it that is within MAX_DEPTH."""
    upper_bound = json.count(b"[") + json.count(b"{")
    if upper_bound <= MAX_DEPTH:
        return upper_bound
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", json)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(depth, deepest)
    return deepest


def value_of(json: Raw) -> JSON:
    """The decoded JSON."""
    value: JSON = msgspec.json.decode(json)
    return value


def raw(value: JSON) -> Raw:
    """The value as JSON, which is carried byte for byte; a Raw is returned unchanged."""
    return arguments.body("body", value, MAX_BODY)
