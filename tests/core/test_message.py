"""Parsing of messages: what is accepted, what is rejected, and which field the error names."""

from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given

from gregor.core.instant import SECOND
from gregor.core.message import (
    MAX_BODY,
    Dismissal,
    InBandMessage,
    OutOfBandMessage,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    parse_message,
    put,
)
from gregor.errors import GregorError, InvalidMessage, TooLarge
from gregor.testing.strategies import messages


def parse(**fields: object) -> InBandMessage | OutOfBandMessage:
    return parse_message(msgspec.json.encode({"uid": "u", **fields}))


def parse_error(**fields: object) -> GregorError:
    with pytest.raises((InvalidMessage, TooLarge)) as raised:
        parse(**fields)
    return raised.value


HOUR = 3600 * SECOND
CREATION = {"category": "a", "body": 1}


@given(messages())
def test_law_message_survives_a_round_trip_through_json(message: InBandMessage) -> None:
    assert parse_message(msgspec.json.encode(message), stamped=True) == message
    stamped = message.stamp(7, 3)
    assert parse_message(msgspec.json.encode(stamped), stamped=True) == stamped
    assert message.same_contents(stamped)


def test_message_without_an_id_gets_a_new_one() -> None:
    first, second = parse(creation=CREATION), parse(creation=CREATION)
    assert isinstance(first, InBandMessage)
    assert isinstance(second, InBandMessage)
    assert len(first.msg_id) == len(second.msg_id) == 32
    assert first.msg_id != second.msg_id


def test_body_is_kept_byte_for_byte() -> None:
    body = b'{ "z" : [1.0, 1e2],\n"a":"\\u00e9" }'
    message = parse_message(b'{"uid":"u","creation":{"category":"a","body":%s}}' % body)
    assert isinstance(message, InBandMessage)
    assert message.creation is not None
    assert bytes(message.creation.raw_body) == body
    assert message.creation.body == {"z": [1.0, 100.0], "a": "é"}


def test_missing_uid_defaults_to_that_of_the_session() -> None:
    json = msgspec.json.encode({"creation": CREATION})
    assert parse_message(json, uid="default").uid == "default"
    with pytest.raises(InvalidMessage, match="uid"):
        parse_message(json)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, None),
        ({"creation": {"category": "a"}}, "creation.body"),
        ({"creation": CREATION, "typo": 1}, "typo"),
        ({"creation": {**CREATION, "typo": 1}}, "creation.typo"),
        ({"creation": CREATION, "ctime": 5}, "ctime"),
        ({"creation": CREATION, "prev": 5}, "ctime"),
        ({"creation": CREATION, "msg_id": ""}, "msg_id"),
        ({"creation": CREATION, "msg_id": "é" * 33}, "msg_id"),
        ({"creation": CREATION, "msg_id": "a\0b"}, "msg_id"),
        ({"creation": CREATION, "device_id": "x" * 129}, "device_id"),
        ({"creation": CREATION, "uid": "x" * 129}, "uid"),
        ({"creation": {**CREATION, "category": "x" * 256}}, "creation.category"),
        ({"creation": {**CREATION, "expires": {"offset": -1}}}, "creation.expires"),
        ({"creation": {**CREATION, "expires": {}}}, "creation.expires.time"),
        ({"creation": {**CREATION, "expires": {"time": 1, "offset": 1}}}, "creation.expires.time"),
        ({"creation": {**CREATION, "expires": {"time": "yesterday"}}}, "creation.expires.time"),
        ({"creation": {**CREATION, "key": ""}}, "creation.key"),
        ({"creation": {**CREATION, "key": "é" * 128}}, "creation.key"),
        ({"creation": {**CREATION, "key": 7}}, "creation.key"),
        ({"creation": {**CREATION, "starts": {"offset": -1}}}, "creation.starts"),
        ({"creation": {**CREATION, "starts": 1_900_000_000_000_000}}, "creation.starts"),
        (
            {"creation": {**CREATION, "starts": {"offset": 9}, "expires": {"offset": 9}}},
            "creation.starts",
        ),
        (
            {
                "creation": {
                    **CREATION,
                    "starts": {"time": "2031-01-01T00:00:00Z"},
                    "expires": {"time": "2030-01-01T00:00:00Z"},
                }
            },
            "creation.starts",
        ),
        ({"creation": {**CREATION, "starts": {"time": 1_900_000_000}}}, "creation.starts"),
        ({"dismissal": {"keys": [{}]}}, "dismissal.keys[0].key"),
        ({"dismissal": {"keys": [{"key": ""}]}}, "dismissal.keys[0].key"),
        ({"dismissal": {"keys": ["k"]}}, "dismissal.keys[0]"),
        (
            {"dismissal": {"keys": [{"key": "k", "end_time": {"time": 1_900_000_000}}]}},
            "dismissal.keys[0].end_time",
        ),
        ({"dismissal": {}}, None),
        ({"dismissal": {"msg_ids": [""]}}, "dismissal.msg_ids[0]"),
        ({"dismissal": {"ranges": [{}]}}, "dismissal.ranges[0].category"),
        ({"creation": CREATION, "body": 1}, "body"),
        ({"system": "s"}, "body"),
        ({"system": "s", "body": 1, "msg_id": "m"}, "msg_id"),
        ({"system": "", "body": 1}, "system"),
    ],
)
def test_invalid_message_is_rejected_with_the_name_of_its_field(
    fields: dict[str, object], field: str | None
) -> None:
    error = parse_error(**fields)
    assert (error.code, error.field) == ("invalid", field)


@pytest.mark.parametrize(
    "json", ["", "{", "[]", "7", "null", '{"uid":"u"}x', "[" * 100_000, '{"uid":"\\ud800"}']
)
def test_text_that_is_not_a_json_object_is_rejected(json: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_message(json, uid="u")


def test_body_over_the_limit_is_rejected_as_too_large() -> None:
    fits = {"category": "a", "body": "x" * (MAX_BODY - 2)}
    assert isinstance(parse(creation=fits), InBandMessage)
    error = parse_error(creation={"category": "a", "body": "x" * (MAX_BODY - 1)})
    assert (error.code, error.field) == ("too-large", "creation.body")
    assert parse_error(system="s", body="x" * MAX_BODY).code == "too-large"


def test_device_id_scopes_the_creation_but_not_the_dismissal() -> None:
    creation = create("u", "a", device_id="d1")
    assert creation.addressed_to("d1") == creation.addressed_to(None) == creation
    assert creation.addressed_to("d2") is None
    update = msgspec.structs.replace(put("u", "a", 1, device_id="d1"), dismissal=Dismissal(("m",)))
    reduced = update.addressed_to("d2")
    assert reduced is not None
    assert (reduced.creation, reduced.dismissal) == (None, update.dismissal)
    assert dismiss("u", "m").addressed_to("d2") is not None


def test_start_is_before_the_expiry_when_the_message_is_stored() -> None:
    """Only the ctime decides between a time and an offset. A replay stays as it is."""
    message = create("u", "a", starts="2h", expires="2030-01-01T00:00:00Z")
    assert message.creation is not None
    assert message.creation.expires is not None
    expires_at = message.creation.expires.after(0)
    stored = message.stamp_new(expires_at - 2 * HOUR - 1, 0)
    assert (stored.starts_at, stored.expires_at) == (expires_at - 1, expires_at)
    with pytest.raises(InvalidMessage) as raised:
        message.stamp_new(expires_at - 2 * HOUR, 0)
    assert raised.value.field == "creation.starts"
    assert message.stamp(expires_at, 0).starts_at == expires_at + 2 * HOUR


@pytest.mark.parametrize("starts", [1, 1.5, True])
def test_start_as_a_number_is_refused(starts: Any) -> None:
    with pytest.raises(InvalidMessage) as raised:
        put("u", "a", starts=starts)
    assert raised.value.field == "starts"


def test_contents_include_key_start_and_keys() -> None:
    known = [
        create("u", "a", 1, msg_id="m"),
        put("u", "a", 1, msg_id="m"),
        put("u", "a", 1, key="k", msg_id="m"),
        put("u", "a", 1, starts="1h", msg_id="m"),
        dismiss_key("u", "a", msg_id="m"),
        dismiss_key("u", "a", end_time="0s", msg_id="m"),
        dismiss_key("u", "b", msg_id="m"),
        dismiss_category("u", "a", msg_id="m"),
        dismiss_category("u", "a", scheduled=True, msg_id="m"),
    ]
    for first, second in product(known, repeat=2):
        assert first.same_contents(second) == (first is second)
