"""A message with too many parts is rejected by itself, before it is read."""

import time
from typing import Any

import msgspec
import pytest
from msgspec import Raw, structs
from msgspec.json import encode

from gregor.core.message import InBandMessage
from gregor.errors import Action, InvalidMessage, LimitExceeded
from gregor.interfaces import Rejected
from gregor.limits import NO_LIMITS, Limits
from gregor.protocol.counts import CountCheck
from gregor.protocol.entries import read_addressed, read_entries

FEW = Limits(ranges=2, msg_ids=2, keys=2, skip_msg_ids=3)


def dismissal(**parts: Any) -> Raw:
    return Raw(encode({"uid": "u", "msg_id": "m", "dismissal": parts}))


def ids(number: int) -> list[str]:
    return [f"id{n}" for n in range(number)]


def ranges(*skipped: int) -> list[dict[str, Any]]:
    return [{"category": "c", "skip_msg_ids": ids(number)} for number in skipped]


AT_THE_LIMIT = {
    "ranges": dismissal(ranges=ranges(0, 0)),
    "msg_ids": dismissal(msg_ids=ids(2)),
    "keys": dismissal(keys=[{"key": "a"}, {"key": "b"}]),
    "skip_msg_ids": dismissal(ranges=ranges(1, 2)),
}
ABOVE = {
    "ranges": dismissal(ranges=ranges(0, 0, 0)),
    "msg_ids": dismissal(msg_ids=ids(3)),
    "keys": dismissal(keys=[{"key": "a"}, {"key": "b"}, {"key": "c"}]),
    "skip_msg_ids": dismissal(ranges=ranges(2, 2)),
}


@pytest.mark.parametrize("name", ABOVE)
def test_one_part_too_many_rejects_this_message_alone(name: str) -> None:
    good = Raw(encode({"creation": {"category": "c", "body": 1}}))
    before, rejected, at_limit = read_entries(
        [good, ABOVE[name], AT_THE_LIMIT[name]], lambda _: True, uid="u", limits=FEW
    )
    assert isinstance(before, InBandMessage)
    assert isinstance(at_limit, InBandMessage)
    assert isinstance(rejected, Rejected)
    assert isinstance(rejected.error, LimitExceeded)
    assert (rejected.error.limit, rejected.error.action) == (name, Action.STOP)
    assert rejected.error.maximum == getattr(FEW, name)
    assert rejected.error.field is not None
    assert rejected.error.field.endswith(name)


@pytest.mark.parametrize("name", ABOVE)
def test_message_to_many_users_is_counted_once_for_all(name: str) -> None:
    parts = msgspec.json.decode(ABOVE[name])["dismissal"]
    message = Raw(encode({"msg_id": "m", "dismissal": parts}))
    with pytest.raises(LimitExceeded):
        read_addressed(message, [Raw(b'"u"')], lambda _: True, limits=FEW)


@pytest.mark.parametrize("name", ABOVE)
def test_zero_is_no_limit(name: str) -> None:
    CountCheck(NO_LIMITS).check(ABOVE[name])
    CountCheck(structs.replace(FEW, **{name: 0})).check(ABOVE[name])


@pytest.mark.parametrize(
    "json",
    [
        b'{"dismissal": {"ranges": 1, "msg_ids": {"a": 1}, "keys": [1, null]}}',
        b'{"dismissal": {"ranges": [1, {"skip_msg_ids": 5}]}}',
        b'{"dismissal": [1, 2, 3, 4, 5, 6, 7]}',
        b"[1, 2, 3, 4, 5, 6, 7, 8, 9]",
    ],
)
def test_what_has_another_shape_is_left_to_the_reader(json: bytes) -> None:
    CountCheck(FEW).check(Raw(json))
    (entry,) = read_entries([Raw(json)], lambda _: True, limits=FEW)
    assert isinstance(entry, Rejected)
    assert isinstance(entry.error, InvalidMessage)


def test_counting_a_large_message_costs_less_than_reading_it() -> None:
    large = dismissal(ranges=[{"category": "c", "skip_msg_ids": ids(40_000)}])
    start = time.process_time()
    (entry,) = read_entries([large], lambda _: True)
    counting = time.process_time() - start
    start = time.process_time()
    read_entries([large], lambda _: True, limits=NO_LIMITS)
    reading = time.process_time() - start
    assert isinstance(entry, Rejected)
    assert counting < reading
