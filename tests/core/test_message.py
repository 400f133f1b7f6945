"""Messages as senders write them: what is taken, what is refused, and which field is named."""

import msgspec
import pytest
from hypothesis import given

from gregor.core.message import (
    MAX_BODY,
    InBandMessage,
    OutOfBandMessage,
    create,
    dismiss,
    parse_message,
    replace,
)
from gregor.errors import GregorError, InvalidMessage, TooLarge
from gregor.testing.strategies import messages


def parse(**fields: object) -> InBandMessage | OutOfBandMessage:
    return parse_message(msgspec.json.encode({"uid": "u", **fields}))


def refusal(**fields: object) -> GregorError:
    with pytest.raises((InvalidMessage, TooLarge)) as refused:
        parse(**fields)
    return refused.value


CREATION = {"category": "a", "body": 1}


@given(messages())
def test_what_is_written_is_read_as_it_was(message: InBandMessage) -> None:
    assert parse_message(msgspec.json.encode(message)) == message
    stamped = message.stamp(7, 3)
    assert parse_message(msgspec.json.encode(stamped), stamped=True) == stamped
    assert message.same_contents(stamped)


def test_a_sender_who_chooses_no_id_is_given_a_new_one() -> None:
    one, two = parse(creation=CREATION), parse(creation=CREATION)
    assert isinstance(one, InBandMessage)
    assert isinstance(two, InBandMessage)
    assert len(one.msg_id) == len(two.msg_id) == 32
    assert one.msg_id != two.msg_id


def test_a_body_is_carried_verbatim() -> None:
    written = b'{ "z" : [1.0, 1e2],\n"a":"\\u00e9" }'
    message = parse_message(b'{"uid":"u","creation":{"category":"a","body":%s}}' % written)
    assert isinstance(message, InBandMessage)
    assert message.creation is not None
    assert bytes(message.creation.raw_body) == written
    assert message.creation.body == {"z": [1.0, 100.0], "a": "é"}


def test_the_uid_of_a_session_stands_in_for_one_that_is_left_out() -> None:
    json = msgspec.json.encode({"creation": CREATION})
    assert parse_message(json, uid="mine").uid == "mine"
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
        ({"creation": {**CREATION, "dtime": {"offset": -1}}}, "dtime"),
        ({"creation": {**CREATION, "dtime": {}}}, "creation.dtime"),
        ({"creation": {**CREATION, "dtime": {"time": 1, "offset": 1}}}, "creation.dtime"),
        ({"creation": {**CREATION, "dtime": {"time": "yesterday"}}}, "creation.dtime"),
        ({"dismissal": {}}, None),
        ({"dismissal": {"msg_ids": [""]}}, "dismissal.msg_ids[0]"),
        ({"dismissal": {"ranges": [{}]}}, "dismissal.ranges[0].category"),
        ({"creation": CREATION, "body": 1}, "body"),
        ({"system": "s"}, "body"),
        ({"system": "s", "body": 1, "msg_id": "m"}, "msg_id"),
        ({"system": "", "body": 1}, "system"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_the_name_of_its_field(
    fields: dict[str, object], field: str | None
) -> None:
    error = refusal(**fields)
    assert (error.code, error.field) == ("invalid", field)


@pytest.mark.parametrize(
    "json", ["", "{", "[]", "7", "null", '{"uid":"u"}x', "[" * 100_000, '{"uid":"\\ud800"}']
)
def test_what_is_no_json_object_is_refused(json: str) -> None:
    with pytest.raises(InvalidMessage):
        parse_message(json, uid="u")


def test_a_body_has_a_largest_size() -> None:
    fits = {"category": "a", "body": "x" * (MAX_BODY - 2)}
    assert isinstance(parse(creation=fits), InBandMessage)
    error = refusal(creation={"category": "a", "body": "x" * (MAX_BODY - 1)})
    assert (error.code, error.field) == ("too-large", "body")
    assert refusal(system="s", body="x" * MAX_BODY).code == "too-large"


def test_a_message_for_one_device_is_for_no_other_but_dismisses_everywhere() -> None:
    creation = create("u", "a", device_id="d1")
    assert creation.addressed_to("d1") == creation.addressed_to(None) == creation
    assert creation.addressed_to("d2") is None
    update = replace("u", "a", 1, device_id="d1")
    reduced = update.addressed_to("d2")
    assert reduced is not None
    assert (reduced.creation, reduced.dismissal) == (None, update.dismissal)
    assert dismiss("u", "m").addressed_to("d2") is not None
