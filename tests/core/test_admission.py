"""What is surely a mistake is refused where it is sent, and nowhere else."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.admission import EARLIEST_TIME, SHORTEST_EXPIRY, check_text, check_texts
from gregor.core.arguments import query_time
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    Creation,
    Dismissal,
    InBandMessage,
    Message,
    OutOfBandMessage,
    Range,
    create,
    dismiss,
    dismiss_category,
    parse_message,
    raw,
)
from gregor.errors import InvalidMessage

YEAR_2100 = 4_102_444_800
seconds = st.integers(EARLIEST_TIME // SECOND, YEAR_2100)
"""Times of this century, in seconds."""


def created(expires: TimeOrOffset) -> InBandMessage:
    return InBandMessage("u", "m", creation=Creation("a", raw(1), expires))


def dismissed(end_time: TimeOrOffset) -> InBandMessage:
    return InBandMessage("u", "m", dismissal=Dismissal(ranges=(Range("a", end_time),)))


def refused_field(action: Callable[[], object]) -> str | None:
    with pytest.raises(InvalidMessage) as raised:
        action()
    return raised.value.field


@given(seconds, st.sampled_from([1, 1_000]))
def test_seconds_and_milliseconds_taken_for_microseconds_are_refused(time: int, unit: int) -> None:
    instant = TimeOrOffset(time=time * unit)
    refusals = {
        "creation.expires": lambda: parse_message(msgspec.json.encode(created(instant))),
        "dismissal.ranges[0].end_time": lambda: parse_message(
            msgspec.json.encode(dismissed(instant))
        ),
        "expires": lambda: create("u", "a", expires=instant),
        "end_time": lambda: dismiss_category("u", "a", end_time=instant),
        "since": lambda: query_time("since", instant),
    }
    for field, refusal in refusals.items():
        assert refused_field(refusal) == field


@given(seconds)
def test_microseconds_are_admitted(time: int) -> None:
    instant = TimeOrOffset(time=time * SECOND)
    for message in (created(instant), dismissed(instant)):
        assert parse_message(msgspec.json.encode(message)) == message
    assert query_time("since", instant) == instant


@given(st.integers(-SHORTEST_EXPIRY, SHORTEST_EXPIRY - 1))
def test_expiry_under_a_second_is_refused_and_any_end_of_a_range_is_admitted(offset: int) -> None:
    instant = TimeOrOffset(offset=offset)
    assert refused_field(lambda: create("u", "a", expires=instant)) == "expires"
    if offset >= 0:
        json = msgspec.json.encode(created(instant))
        assert refused_field(lambda: parse_message(json)) == "creation.expires"
    assert parse_message(msgspec.json.encode(dismissed(instant))) == dismissed(instant)


def test_zero_is_the_beginning_in_every_unit() -> None:
    assert query_time("since", 0) == query_time("since", TimeOrOffset(time=0))
    assert refused_field(lambda: query_time("since", 1)) == "since"


@pytest.mark.parametrize("id_", [".", ".."])
@pytest.mark.parametrize("field", ["uid", "msg_id", "device_id"])
def test_dots_that_no_url_can_contain_are_no_ids(id_: str, field: str) -> None:
    arguments: dict[str, Any] = {"uid": "u", "msg_id": "m", "device_id": "d"} | {field: id_}
    creation = Creation("a", raw(1))
    json = msgspec.json.encode(InBandMessage(**arguments, creation=creation))
    assert refused_field(lambda: parse_message(json)) == field
    assert refused_field(lambda: create(category="a", **arguments)) == field


@pytest.mark.parametrize(
    "message",
    [
        created(TimeOrOffset(time=0)),
        created(TimeOrOffset(offset=0)),
        dismissed(TimeOrOffset(time=3600)),
        InBandMessage("..", ".", dismissal=Dismissal(("m",))),
        OutOfBandMessage(".", "system", raw(1)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_was_stored_before_the_rules_can_be_read_and_replayed(message: Message) -> None:
    assert parse_message(msgspec.json.encode(message), stamped=True) == message


def test_item_with_an_id_from_before_the_rules_can_be_dismissed() -> None:
    message = dismiss("u", ".", msg_id="m")
    assert parse_message(msgspec.json.encode(message)) == message


def refusal(check: Callable[[], None]) -> str | None:
    try:
        check()
    except InvalidMessage as error:
        return error.message
    return None


@given(st.lists(st.sampled_from(["a", "é" * 32, "x" * 64, "", "x" * 65, "é" * 33, "a\0"])))
def test_many_texts_are_admitted_if_each_of_them_is(values: list[str]) -> None:
    each = [refusal(partial(check_text, "ids", value, 64)) for value in values]
    together = refusal(lambda: check_texts("ids", tuple(values), 64))
    assert together == next(filter(None, each), None)
