"""Frames of later versions: unknown parts are ignored, the rest is kept byte for byte."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core.message import InBandMessage
from gregor.errors import Malformed
from gregor.protocol.client_session import ClientSession
from gregor.protocol.frames import Frame, Messages, SyncPage, encode
from gregor.protocol.later_versions import decode_node_frame
from gregor.testing.strategies import histories

HASH = "0" * 64


def with_unknown_fields(value: Any, name: str) -> Any:
    """The JSON with one more field in every object, except in bodies, which are opaque."""
    match value:
        case dict():
            known = {
                key: inner if key == "body" else with_unknown_fields(inner, name)
                for key, inner in value.items()
            }
            return {**known, name: {"anything": [1, None]}}
        case list():
            return [with_unknown_fields(inner, name) for inner in value]
        case _:
            return value


def frames_of(history: tuple[InBandMessage, ...]) -> list[Frame]:
    return [
        Messages(0, history, 9),
        SyncPage("changes", 0, 9, 9, HASH, messages=history),
    ]


@given(histories(), st.sampled_from(["x", "priority", "remind"]))
def test_unknown_fields_are_ignored_at_every_depth(
    history: tuple[InBandMessage, ...], name: str
) -> None:
    for frame in frames_of(history):
        later = json.dumps(with_unknown_fields(json.loads(encode(frame)), name))
        decoded = decode_node_frame(later)
        assert decoded is not None
        assert json.loads(encode(decoded)) == json.loads(encode(frame))
        assert type(decoded) is type(frame)


def test_values_decoded_from_a_later_frame_equal_those_of_this_version() -> None:
    frame = Messages(0, (message_with_all_fields(),), 9)
    later = json.dumps(with_unknown_fields(json.loads(encode(frame)), "x"))
    assert decode_node_frame(later) == decode_node_frame(encode(frame))


def message_with_all_fields() -> InBandMessage:
    frame = decode_node_frame(
        '{"type":"messages","prev":0,"cursor":9,"messages":[{"uid":"u","msg_id":"m","ctime":9,'
        '"device_id":"d","creation":{"category":"c","body":[1],"expires":{"offset":5},'
        '"starts":{"offset":4},"key":"k"},'
        '"dismissal":{"msg_ids":["a"],"ranges":[{"category":"c","end_time":{"time":3},'
        '"skip_msg_ids":["b"],"prefix":true,"scheduled":true}],'
        '"keys":[{"key":"k","end_time":{"offset":-1}}]}}]}'
    )
    assert isinstance(frame, Messages)
    return frame.messages[0]


def test_body_of_a_later_message_is_kept_byte_for_byte() -> None:
    frame = decode_node_frame(
        '{"type":"messages","prev":0,"cursor":9,"messages":[{"uid":"u","msg_id":"m","ctime":9,'
        '"new":1,"creation":{"category":"c","body":{"a":  2.50, "x":1e400}}}]}'
    )
    assert isinstance(frame, Messages)
    (message,) = frame.messages
    assert message.creation is not None
    assert bytes(message.creation.raw_body) == bytes(Raw(b'{"a":  2.50, "x":1e400}'))


def test_message_without_known_parts_is_dropped_and_the_cursor_advances() -> None:
    frame = decode_node_frame(
        '{"type":"messages","prev":0,"cursor":9,"messages":[{"uid":"u","msg_id":"m","ctime":9,'
        '"dismissal":{"patterns":[{"glob":"k*"}]}}]}'
    )
    assert frame == Messages(0, (), 9)


def test_frame_of_an_unknown_type_is_ignored() -> None:
    assert decode_node_frame('{"type":"renewed","token":"t"}') is None
    assert ClientSession("t", "d", 0).receive('{"type":"renewed"}') == []


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"messages","prev":"x","cursor":9,"messages":[],"new":1}',
        '{"type":"messages","prev":0,"cursor":9,"messages":[{"uid":"u","new":1}]}',
        '{"type":"goaway"}',
        '{"no":"type"}',
        "[]",
        "no JSON",
    ],
)
def test_text_that_is_not_a_frame_of_any_version_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        decode_node_frame(text)
