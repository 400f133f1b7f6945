"""Reads the messages that a caller sends: each is accepted or rejected by itself."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import DecodeError, Raw

from gregor.core.admission import check_id
from gregor.core.message import UID, Message, for_user, parse_message
from gregor.errors import Forbidden, GregorError, InvalidMessage, LimitExceeded, TooLarge
from gregor.interfaces import Outcome, Rejected
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.protocol.counts import CountCheck
from gregor.protocol.json_parts import object_members

_NO_JSON = {
    "half of a surrogate pair, as of a cut emoji": re.compile(
        rb"\\ud[89ab]..(?!\\ud[c-f])|(?<!\\ud[89ab]..)\\ud[c-f]..", re.IGNORECASE
    ),
    "NaN or Infinity": re.compile(rb"(?:[:,\[]|^)\s*-?(?:NaN|Infinity)\b"),
}

MayWrite: TypeAlias = Callable[[UID], bool]
"""Says whether the caller may write for a user."""

_ANY_UID: UID = "any"  # until each of the `uids` takes its place

_uid = msgspec.json.Decoder(UID)


def read_entries(
    raw: Iterable[Raw],
    may_write: MayWrite,
    *,
    uid: UID | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Message | Rejected]:
    """The messages in order; in the place of an invalid or forbidden one, or of one that exceeds a
    limit, its rejection. `uid` is the default for messages without one."""
    counts = CountCheck(limits)
    return [_read_entry(json, may_write, uid, counts) for json in raw]


def _read_entry(
    json: Raw, may_write: MayWrite, uid: UID | None, counts: CountCheck
) -> Message | Rejected:
    try:
        counts.check(json)
        message = parse_message(json, uid=uid)
    except (TooLarge, LimitExceeded) as error:
        return Rejected(None, error.as_value())
    except InvalidMessage as error:
        return Rejected(None, _explained(error, bytes(json)).as_value())
    if not may_write(message.uid):
        return Rejected(None, Forbidden("this token belongs to another user", field="uid"))
    return message


def _explained(error: InvalidMessage, json: bytes) -> InvalidMessage:
    """The error, with what other encoders write that is no JSON; a decoder names only the byte."""
    if type(error.__cause__) is not DecodeError:
        return error
    found = [name for name, pattern in _NO_JSON.items() if pattern.search(json)]
    hint = f" (it contains {' and '.join(found)})" if found else ""
    return InvalidMessage(error.message + hint, field=error.field)


class Addressed(NamedTuple):
    """One message for each of several users, or the rejection of a uid. A user who is named again
    is the same entry: `places` are those of the entries of the uids, in the order of these."""

    entries: list[Message | Rejected]
    places: list[int]

    def outcomes_of_uids(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """The outcome of each uid, given those of the entries."""
        return [outcomes[place] for place in self.places]


def read_addressed(
    json: Raw, uids: Sequence[Raw], may_write: MayWrite, *, limits: Limits = DEFAULT_LIMITS
) -> Addressed:
    """One message for each of the users, in order; in the place of an invalid or forbidden uid,
    its rejection, whose field is that place. Raises InvalidMessage, TooLarge or LimitExceeded if
    the message is invalid."""
    CountCheck(limits).check(json)
    template = parse_message(_without_uid(json, uids[0]), uid=_ANY_UID)
    addressed, known = Addressed([], []), dict[UID, int]()
    for n, uid in enumerate(uids):
        entry = _address(template, uid, f"uids[{n}]", may_write)
        place = len(addressed.entries)
        if not isinstance(entry, Rejected):
            place = known.setdefault(entry.uid, place)
        if place == len(addressed.entries):
            addressed.entries.append(entry)
        addressed.places.append(place)
    return addressed


def _without_uid(json: Raw, first: Raw) -> Raw:
    """The message without its uid, which may only be the first one of `uids`."""
    try:
        fields = object_members(bytes(json))
    except DecodeError:
        return json  # parse_message says what is wrong with it
    if fields.pop("uid", first) != first:
        raise InvalidMessage(
            "leave out the `uid` of the message; `uids` replaces it", field="message.uid"
        )
    return Raw(msgspec.json.encode(fields))


def _address(template: Message, json: Raw, place: str, may_write: MayWrite) -> Message | Rejected:
    try:
        uid = _uid.decode(json)
        check_id("uid", uid)
        message = for_user(uid, template)
    except (GregorError, DecodeError, UnicodeError, RecursionError) as error:
        return Rejected(None, InvalidMessage(f"not a uid: {error}", field=place))
    if not may_write(uid):
        return Rejected(None, Forbidden("this token belongs to another user", field=place))
    return message
