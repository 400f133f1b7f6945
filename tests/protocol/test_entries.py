"""Each message of a request is read by itself: it is accepted, or rejected in its place."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core.message import InBandMessage
from gregor.errors import InvalidMessage
from gregor.interfaces import Rejected
from gregor.protocol.entries import read_addressed, read_entries
from gregor.protocol.frames import Consume, decode_device_frame
from gregor.protocol.json_parts import array_elements, object_members
from tests.protocol.bad_entries import NOT_JSON, bad_entries

VALID = {"uid": "u", "msg_id": "m", "creation": {"category": "a", "body": 1}}
FORBIDDEN = {**VALID, "uid": "other"}
INVALID = {"uid": "u", "creation": {}}
CODES = {"valid": None, "forbidden": "forbidden", "invalid": "invalid"}
ENTRIES = {"valid": VALID, "forbidden": FORBIDDEN, "invalid": INVALID}


GOOD = object()
PLACES = st.lists(bad_entries() | st.just(GOOD), min_size=2)


def joined(places: list[object], good: bytes) -> bytes:
    """An array with this entry in each good place."""
    return b"[" + b",".join(good if e is GOOD else e for e in places) + b"]"  # type: ignore[misc]


def may_write(uid: str) -> bool:
    return uid == "u"


@given(st.lists(st.sampled_from(sorted(ENTRIES))))
def test_each_entry_is_read_by_itself_and_keeps_its_place(kinds: list[str]) -> None:
    raw = [Raw(msgspec.json.encode(ENTRIES[kind])) for kind in kinds]
    entries = read_entries(raw, may_write)
    codes = [entry.error.code if isinstance(entry, Rejected) else None for entry in entries]
    assert codes == [CODES[kind] for kind in kinds]


def test_message_without_uid_gets_the_default() -> None:
    (message,) = read_entries([Raw(b'{"dismissal":{"msg_ids":["a"]}}')], may_write, uid="u")
    assert isinstance(message, InBandMessage)
    assert message.uid == "u"


@given(PLACES)
def test_exactly_the_bad_messages_of_a_batch_are_rejected(places: list[object]) -> None:
    batch = b'{"messages":' + joined(places, msgspec.json.encode(VALID)) + b"}"
    entries = read_entries(array_elements(object_members(batch)["messages"]), may_write)
    assert [isinstance(e, Rejected) for e in entries] == [place is not GOOD for place in places]


@given(PLACES)
def test_exactly_the_bad_messages_of_a_consume_are_rejected(places: list[object]) -> None:
    messages = joined(places, msgspec.json.encode(VALID))
    frame = decode_device_frame(b'{"type":"consume","n":7,"messages":' + messages + b"}")
    assert isinstance(frame, Consume)
    entries = read_entries(frame.messages, may_write)
    assert frame.n == 7
    assert [isinstance(e, Rejected) for e in entries] == [place is not GOOD for place in places]


@given(PLACES)
def test_exactly_the_bad_uids_are_rejected_in_their_places(places: list[object]) -> None:
    request = b'{"message":' + msgspec.json.encode({"creation": VALID["creation"]})
    request += b',"uids":' + joined(places, b'"u"') + b"}"
    fields = object_members(request)
    addressed = read_addressed(fields["message"], array_elements(fields["uids"]), may_write)
    rejected = [e.error.field for e in addressed.entries if isinstance(e, Rejected)]
    assert rejected == [f"uids[{n}]" for n, place in enumerate(places) if place is not GOOD]


@pytest.mark.parametrize("defect", NOT_JSON)
def test_bad_body_costs_its_own_message(defect: str) -> None:
    bad = b'{"uid":"u","creation":{"category":"c","body":' + NOT_JSON[defect] + b"}}"
    raw = array_elements(Raw(b"[%b,%b]" % (bad, msgspec.json.encode(VALID))))
    rejected, message = read_entries(raw, may_write)
    assert isinstance(rejected, Rejected)
    assert isinstance(rejected.error, InvalidMessage)
    assert isinstance(message, InBandMessage)


@pytest.mark.parametrize(
    "uid", ["", "x" * 129, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 100, "a\0b"]
)
def test_invalid_or_forbidden_uid_costs_itself(uid: str) -> None:
    uids = [Raw(msgspec.json.encode(name)) for name in ("u", uid, "u", "other", "u")]
    addressed = read_addressed(Raw(b'{"system":"s","body":1}'), uids, may_write)
    entries = [addressed.entries[place] for place in addressed.places]
    errors = {n: e.error for n, e in enumerate(entries) if isinstance(e, Rejected)}
    assert {n: (e.code, e.field) for n, e in errors.items()} == {
        1: ("invalid", "uids[1]"),
        3: ("forbidden", "uids[3]"),
    }


@given(st.lists(st.sampled_from(["u", "v", "w", ""]), min_size=1))
def test_each_user_is_addressed_once_however_often_it_is_named(names: list[str]) -> None:
    uids = [Raw(msgspec.json.encode(name)) for name in names]
    addressed = read_addressed(Raw(b'{"system":"s","body":1}'), uids, lambda uid: True)
    messages = [e for e in addressed.entries if not isinstance(e, Rejected)]
    assert [message.uid for message in messages] == [uid for uid in dict.fromkeys(names) if uid]
    named = [addressed.entries[place] for place in addressed.places]
    assert ["" if isinstance(e, Rejected) else e.uid for e in named] == names


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (rb'"cut \ud83d"', "surrogate"),
        (rb'"\ud83dabc"', "surrogate"),
        (rb'"\uDE00"', "surrogate"),
        (rb'["\ud83d\ude00", NaN]', "NaN"),
        (b"-Infinity", "Infinity"),
    ],
)
def test_error_names_what_other_encoders_write(body: bytes, hint: str) -> None:
    raw = b'{"uid":"u","creation":{"category":"c","body":' + body + b"}}"
    (rejected,) = read_entries([Raw(raw)], may_write)
    assert isinstance(rejected, Rejected)
    assert hint in rejected.error.message
    assert ("surrogate" in rejected.error.message) == (hint == "surrogate")
