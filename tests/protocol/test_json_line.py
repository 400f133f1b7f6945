"""JSON on one line has the same value, whatever white space stood between its tokens."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gregor.protocol.json_line import json_line

SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v) | st.dictionaries(st.text(), v))
SPACE = st.text(" \t\r\n", max_size=3)


@st.composite
def spaced_json(draw: st.DrawFn) -> str:
    return spaced(draw(VALUES), draw)


def spaced(value: Any, draw: st.DrawFn) -> str:
    """The value as JSON with space between all tokens."""
    match value:
        case dict():
            members = [
                f"{draw(SPACE)}{json.dumps(name)}{draw(SPACE)}:{spaced(member, draw)}"
                for name, member in value.items()
            ]
            text = "{" + (",".join(members) or draw(SPACE)) + "}"
        case list():
            text = "[" + (",".join(spaced(element, draw) for element in value) or draw(SPACE)) + "]"
        case _:
            text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return f"{draw(SPACE)}{text}{draw(SPACE)}"


@given(spaced_json())
def test_json_line_is_one_line_with_the_same_value(spaced: str) -> None:
    line = json_line(spaced)
    assert len(f"{line}|".splitlines()) == 1
    assert json.loads(line) == json.loads(spaced)


def test_numbers_and_strings_stay_as_they_were_written() -> None:
    assert json_line('{\n"a" : 1.10,\r\n"b":"x \\n  y" }') == '{"a":1.10,"b":"x \\n  y"}'
    assert json_line('{"a" : 1}') == '{"a" : 1}'
