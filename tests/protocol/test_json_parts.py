"""The parts of JSON are read each by itself, whatever the others contain."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError, Raw

from gregor.protocol.json_parts import (
    MAX_STEPS,
    array_elements,
    members_before_error,
    object_members,
)
from tests.protocol.bad_entries import bad_entries

SPACE = b" \t\r\n"


@given(st.lists(bad_entries()))
def test_elements_are_what_stands_between_the_commas(parts: list[bytes]) -> None:
    array = b" [ " + b" ,\n".join(parts) + b" ]\n"
    expected = [] if parts in ([], [b""]) else [part.strip(SPACE) for part in parts]
    assert [bytes(element).strip(SPACE) for element in array_elements(Raw(array))] == expected


@given(st.dictionaries(st.text(), bad_entries()))
def test_members_are_found_by_name(fields: dict[str, bytes]) -> None:
    names = {msgspec.json.encode(name): value for name, value in fields.items()}
    json = b"{" + b",".join(name + b" : " + value for name, value in names.items()) + b"}"
    found = {name: bytes(value).strip(SPACE) for name, value in object_members(json).items()}
    assert found == {name: value.strip(SPACE) for name, value in fields.items()}


@pytest.mark.parametrize(
    "json", [b"", b"NaN", b"[1}]", b"[1]]", b"[1", b'["', b'["\\', b"[[1]", b"[}"]
)
def test_array_that_is_not_closed_is_refused(json: bytes) -> None:
    with pytest.raises(DecodeError):
        array_elements(Raw(json + b"NaN" if json.startswith(b"[") else json))


def test_members_before_an_error_are_found() -> None:
    found = members_before_error(b'{"type":"consume","n":7,"messages":[{"a":"not closed}],"x":1}')
    assert dict(found) == {"type": Raw(b'"consume"'), "n": Raw(b"7")}


@pytest.mark.parametrize("json", [b'{"\xff":1}', b'{"a":NaN,"\xed\xa0\x80":1}'])
def test_name_that_is_not_utf8_is_refused(json: bytes) -> None:
    with pytest.raises(DecodeError):
        object_members(json)
    assert "a" in dict(members_before_error(b'{"a":1,' + json[1:]))


def test_string_that_is_not_closed_hides_no_entry() -> None:
    with pytest.raises(DecodeError):
        array_elements(Raw(b'["not closed, {"uid": "alice"}, NaN]'))


@pytest.mark.parametrize("part", [b"[[]]", b",", b'[""[]],', b"[{}"])
def test_work_on_one_request_is_bounded(part: bytes) -> None:
    """The parts alone, because the time of a test says little: no more steps than the limit."""
    with pytest.raises(DecodeError):
        array_elements(Raw(b"[NaN," + part * MAX_STEPS + b"]"))
