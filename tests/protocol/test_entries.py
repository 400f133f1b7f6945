"""Each message of a request is read by itself: it is accepted, or rejected in its place."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core.message import InBandMessage
from gregor.interfaces import Rejected
from gregor.protocol.entries import read_entries

VALID = {"uid": "u", "msg_id": "m", "creation": {"category": "a", "body": 1}}
FORBIDDEN = {**VALID, "uid": "other"}
INVALID = {"uid": "u", "creation": {}}
CODES = {"valid": None, "forbidden": "forbidden", "invalid": "invalid"}
ENTRIES = {"valid": VALID, "forbidden": FORBIDDEN, "invalid": INVALID}


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
