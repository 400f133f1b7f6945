"""Each public parameter, times values of each wrong type: refused at the call, by name.

The calls are found by their signatures, so a new parameter without a row in KINDS fails here.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime
from enum import IntEnum, StrEnum
from fractions import Fraction
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest
from msgspec import Raw

import gregor
from gregor.client import AsyncProducer, Client, Inbox, Producer, SQLiteStore
from gregor.core import message as values
from gregor.core.instant import TimeOrOffset
from gregor.core.message import MAX_BODY, InBandMessage, OutOfBandMessage, create
from gregor.errors import GregorError, InvalidMessage, SetupError, TooLarge
from tests.client.test_store import unreachable
from tests.steps import python_steps

SURROGATE = "cut \ud83d"


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def circular() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


class Wrong(NamedTuple):
    """A value, and the kinds of parameters that take it all the same."""

    value: Any
    taken_by: frozenset[str] = frozenset()


def wrong(value: object, *taken_by: str) -> Wrong:
    return Wrong(value, frozenset(taken_by))


OPTIONAL = ("optional id", "optional text", "body", "time", "query time", "optional")
TEXT = ("id", "optional id", "ids", "text", "optional text", "prefix", "body", "URL", "token",
        "path", "topic")  # fmt: skip
NO_DOT = ("id", "optional id", "topic")
WRONG = {
    "None": wrong(None, *OPTIONAL),
    "True": wrong(True, "flag", "body"),
    "False": wrong(False, "flag", "body"),
    "an integer": wrong(7, "id", "optional id", "ids", "body", "count", "seconds", "cursor"),
    "zero": wrong(0, "id", "optional id", "ids", "body", "query time", "cursor"),
    "seconds": wrong(
        1_700_000_000, "id", "optional id", "ids", "body", "count", "seconds", "cursor"
    ),
    "a long integer": wrong(10**5_000),
    "a float": wrong(1.5, "body", "seconds"),
    "NaN": wrong(float("nan")),
    "infinity": wrong(float("inf")),
    "bytes": wrong(b"abc"),
    "a list": wrong(["a"], "body", "id list", "text list", "list"),
    "a list of ints in a list": wrong([["a"]], "body"),
    "a dict": wrong({"a": 1}, "body", "notification"),
    "a dict with other keys": wrong({1: "a"}),
    "a set": wrong({1.5}),
    "an object": wrong(object()),
    "a date": wrong(date(2026, 1, 1)),
    "a naive datetime": wrong(datetime(2026, 1, 1)),
    "a lone surrogate": wrong(SURROGATE, "URL"),
    "NUL": wrong("a\0b", "body", "URL"),
    "empty text": wrong("", "body", "prefix", "URL"),
    "text": wrong("abc", *TEXT),
    "text that is too long": wrong("x" * 10_000, "body", "URL"),
    "digits": wrong("3600", *TEXT),
    "a dot": wrong(".", *(kind for kind in TEXT if kind not in NO_DOT)),
    "not JSON": wrong(Raw(b"{bad")),
    "NaN as JSON": wrong(Raw(b"[NaN]")),
    "too deep": wrong(nested(200)),
    "circular": wrong(circular()),
    "a function": wrong(lambda: None, "function", "token function"),
}

# What each parameter takes; * is a call's own meaning of a name that another call has as well.
KINDS = {
    "uid": "id",
    "uids": "uids",
    "device_id": "optional id",
    "msg_id": "optional id",
    "new_msg_id": "optional id",
    "msg_ids": "ids",
    "skip_msg_ids": "id list",
    "category": "text",
    "topic": "topic",
    "undo": "undo",
    "system": "text",
    "body": "body",
    "expires": "time",
    "starts": "time",
    "until": "required time",
    "key": "text",
    "keys": "text",
    "scheduled": "flag",
    "order": "order",
    "page": "optional text",
    "end_time": "time",
    "at": "query time",
    "since": "query time",
    "after": "cursor",
    "limit": "count",
    "prefix": "prefix",
    "prefixes": "prefix",
    "this_device": "flag",
    "message": "message",
    "messages": "list",
    "url": "URL",
    "token": "token",
    "timeout": "seconds",
    "max_attempts": "count",
    "sleep": "function",
    "jitter": "function",
    "clock": "function",
    "connect": "optional",
    "store": "optional",
    "transport": "optional",
    "path": "path",
}
EXCEPTIONS = {
    ("put", "key"): "optional text",
    ("notify", "key"): "optional text",
    ("notify", "body"): "notification",
    ("state", "prefixes"): "text list",
    ("state_pages", "prefixes"): "text list",
    ("dismiss_category", "prefix"): "flag",
    ("Client", "device_id"): "id",
    ("Client", "uid"): "optional id",
    ("Client", "token"): "token or function",
    ("Client.hide", "msg_id"): "ids",
    ("snooze", "msg_id"): "ids",
}
ALSO_TAKEN = {
    "connect": {"a function"},
    "token or function": {"text", "digits", "a dot", "a function"},
    "uids": {"a list"},
}
VALID: dict[str, Any] = {
    "uid": "u",
    "uids": ["u"],
    "device_id": "d",
    "msg_id": "m",
    "category": "a",
    "system": "s",
    "body": {"n": 1},
    "topic": "likes",
    "message": create("u", "a"),
    "messages": [create("u", "a")],
    "url": "http://127.0.0.1:1",
    "token": "t",
    "path": "unused.db",
    "key": "k",
    "until": "1h",
}


class PublicCall(NamedTuple):
    """A public function, method or class, and one of its parameters."""

    name: str
    parameter: inspect.Parameter

    @property
    def kind(self) -> str:
        name = self.parameter.name
        method = self.name.rpartition(".")[2]
        return EXCEPTIONS.get((self.name, name)) or EXCEPTIONS.get((method, name)) or KINDS[name]

    def takes(self, label: str) -> bool:
        accepted = ALSO_TAKEN.get(self.parameter.name, set()) | ALSO_TAKEN.get(self.kind, set())
        return label in accepted or self.kind in WRONG[label].taken_by

    def arguments(self, function: Callable[..., Any], value: Any) -> tuple[list[Any], Any]:
        """Valid arguments, and the value in the place of the parameter."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            given = value if parameter.name == self.parameter.name else VALID.get(parameter.name)
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += [given] if parameter.name == self.parameter.name else ["x"]
            elif parameter.name == self.parameter.name or parameter.default is parameter.empty:
                if parameter.kind is parameter.KEYWORD_ONLY:
                    named[parameter.name] = given
                else:
                    positional.append(given)
        return positional, named


FUNCTIONS = {
    name: getattr(gregor, name)
    for name in ("create", "put", "dismiss", "dismiss_key", "dismiss_category", "out_of_band")
}
CLASSES = {"Client": Client, "Producer": Producer, "AsyncProducer": AsyncProducer,
           "SQLiteStore": SQLiteStore}  # fmt: skip
# These are between the parts of a client; their arguments are functions of ours.
INTERNAL = {
    *("change", "emit", "perform", "node_told_time", "read_pages", "send_after", "send_together")
}


def methods(class_: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, method in inspect.getmembers(class_, inspect.isfunction):
        if not name.startswith("_") and name not in INTERNAL:
            yield name, method


def calls(name: str, function: Callable[..., Any]) -> Iterator[PublicCall]:
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "self":
            yield PublicCall(name, parameter)


ALL_CALLS = [
    *(call for name, function in FUNCTIONS.items() for call in calls(name, function)),
    *(call for name, class_ in CLASSES.items() for call in calls(name, class_)),
    *(
        call
        for class_ in (Client, Inbox, Producer, AsyncProducer)
        for name, method in methods(class_)
        for call in calls(f"{class_.__name__}.{name}", method)
    ),
]


def no_request(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was asked")


async def perform(call: PublicCall, value: Any) -> None:
    """Make the call with the value; nothing must leave this process."""
    owner, _, method = call.name.partition(".")
    if not method:
        function = FUNCTIONS.get(owner) or CLASSES[owner]
        positional, named = call.arguments(function, value)
        function(*positional, **named)
        return
    transport = httpx.MockTransport(no_request)
    match owner:
        case "Client" | "Inbox":
            async with Client("http://unused", "u", device_id="d", connect=unreachable) as client:
                target = client if owner == "Client" else client.inbox
                await _perform_method(target, method, call, value)
        case "Producer":
            with Producer("http://unused", transport=transport) as producer:
                await _perform_method(producer, method, call, value)
        case _:
            async with AsyncProducer("http://unused", transport=transport) as async_producer:
                await _perform_method(async_producer, method, call, value)


async def _perform_method(target: object, method: str, call: PublicCall, value: Any) -> None:
    function = getattr(target, method)
    positional, named = call.arguments(function, value)
    result = function(*positional, **named)
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize("call", ALL_CALLS, ids=lambda call: f"{call.name}-{call.parameter.name}")
def test_wrong_type_of_each_public_parameter_is_refused_by_name(call: PublicCall) -> None:
    refused = 0
    for label, (value, _) in WRONG.items():
        if call.takes(label) or (call.parameter.default is None and value is None):
            continue
        assert error_of(call, value) == call.parameter.name, label
        refused += 1
    assert refused > 5


def error_of(call: PublicCall, value: object) -> str | None:
    """The parameter that the refusal names; "taken" if the value is not refused."""
    try:
        asyncio.run(perform(call, value))
    except (InvalidMessage, TooLarge) as error:
        return error.field
    return "taken"


def test_every_public_method_is_tried() -> None:
    names = {call.name for call in ALL_CALLS}
    assert {"Client.write", "Client.hide", "Producer.send_to", "AsyncProducer.messages"} <= names
    assert names >= {f"Producer.{name}" for name in FUNCTIONS}


class Color(StrEnum):
    RED = "red"


class Key(IntEnum):
    FIRST = 1


@pytest.mark.parametrize(
    ("id_", "text"),
    [
        (7, "7"),
        (-7, "-7"),
        (0, "0"),
        (Key.FIRST, "1"),
        (Color.RED, "red"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ],
)
def test_integers_and_uuids_are_taken_as_ids(id_: Any, text: str) -> None:
    created = create(id_, "a", msg_id=id_, device_id=id_)
    assert (created.uid, created.msg_id, created.device_id) == (text, text, text)
    dismissed = values.dismiss_category("u", "a", skip_msg_ids=[id_]).dismissal
    assert dismissed is not None
    assert dismissed.ranges[0].skip_msg_ids == (text,)
    assert values.dismiss("u", id_).dismissal == values.Dismissal((text,))


def test_empty_id_is_not_replaced_by_a_random_one() -> None:
    with pytest.raises(InvalidMessage, match="msg_id"):
        create("u", "a", msg_id="")


def test_bare_number_as_a_time_is_refused_with_a_hint() -> None:
    for number in (3600, 1.5, 1_767_225_600_000_000):
        with pytest.raises(InvalidMessage, match=r"`expires`.*unit.*datetime.*timedelta.*90s"):
            create("u", "a", expires=number)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        *(True, 1.5, b"1", [], {}, object(), date(2026, 1, 1), Fraction(1, 2)),
        *(SURROGATE, "", "²", "9" * 400, "9" * 400 + "s", "9" * 5_000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_time_or_offset_of_a_wrong_type_is_refused_by_name(value: Any) -> None:
    for name in ("time", "offset"):
        with pytest.raises(InvalidMessage) as raised:
            TimeOrOffset(**{name: value})
        assert raised.value.field == name


@pytest.mark.parametrize(
    "name", ["uid", "msg_id", "device_id", "creation", "dismissal", "ctime", "prev"]
)
def test_message_made_of_wrong_parts_is_refused_by_name(name: str) -> None:
    parts: dict[str, Any] = {"uid": "u", "msg_id": "m", "creation": create("u", "a").creation}
    for value in (True, 1.5, b"a", ["a"], object()):
        with pytest.raises(InvalidMessage) as raised:
            InBandMessage(**(parts | {name: value}))
        assert raised.value.field == name


def test_parts_of_a_message_of_wrong_types_are_refused_by_name() -> None:
    body, wrong_parts = values.raw(1), (True, 7, 1.5, b"a", ["a"], object())
    for value in wrong_parts:
        makers: dict[str, Callable[[Any], object]] = {
            "category": lambda v: values.Creation(v, body),
            "body": lambda v: OutOfBandMessage("u", "s", v),
            "expires": lambda v: values.Creation("a", body, v),
            "end_time": lambda v: values.Range("a", v),
            "skip_msg_ids": lambda v: values.Range("a", None, v),
            "msg_ids": lambda v: values.Dismissal(v),
            "ranges": lambda v: values.Dismissal((), v),
            "system": lambda v: OutOfBandMessage("u", v, body),
        }
        for name, make in makers.items():
            with pytest.raises(InvalidMessage) as raised:
                make(value)
            assert raised.value.field == name
    for value in (1, "chat.", None):
        with pytest.raises(InvalidMessage, match="prefix"):
            values.Range("a", prefix=value)  # type: ignore[arg-type]


def doubled(levels: int) -> list[Any]:
    """A list that is in a list twice, and so on: 2^levels lists as JSON."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value, value]
    return value


def doubly_circular() -> list[Any]:
    value: list[Any] = []
    value += [value, value]
    return value


class Endless(Mapping[str, int]):
    """A mapping whose keys never end."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return map(str, count())

    def __getitem__(self, key: str) -> int:
        return 1


EXPLOSIVE: dict[str, tuple[Any, type[GregorError]]] = {
    "lists in lists, twice each": (doubled(100), TooLarge),
    "lists that contain themselves twice": (doubly_circular(), InvalidMessage),
    "a long text, many times": (["x" * 100_000] * 1_000_000, TooLarge),
    "a long key, many times": ([{"x" * 60_000: 1}] * 1_000_000, TooLarge),
    "a mapping without an end": (Endless(), TooLarge),
}


@pytest.mark.parametrize("name", EXPLOSIVE)
def test_body_that_stands_for_more_json_than_there_is_memory_is_refused_in_few_steps(
    name: str,
) -> None:
    body, error = EXPLOSIVE[name]

    def refused() -> None:
        with pytest.raises(error) as raised:
            create("u", "a", body)
        assert raised.value.field == "body"

    assert python_steps(refused) < 20_000_000


def test_body_that_repeats_a_text_is_refused_before_it_is_expanded() -> None:
    def refused() -> None:
        with pytest.raises(TooLarge):
            create("u", "a", ["x" * 1_000] * 20_000)

    assert python_steps(refused) < 100_000


def test_body_at_the_limit_is_taken_whatever_it_consists_of() -> None:
    for body in ("x" * (MAX_BODY - 2), [1] * (MAX_BODY // 2 - 1), {"": "é" * 32_000}):
        assert create("u", "a", body).creation is not None


def test_device_and_this_device_together_are_refused() -> None:
    async def create_for_both() -> None:
        async with Client("http://unused", "u", device_id="d", connect=unreachable) as client:
            await client.create("a", device_id="other", this_device=True)

    with pytest.raises(InvalidMessage, match="not both"):
        asyncio.run(create_for_both())


def test_text_that_is_no_url_is_a_setup_error() -> None:
    for url in ("", "nonsense", "a\0b", SURROGATE, "x" * 10_000):
        with pytest.raises(SetupError):
            Producer(url)
        with pytest.raises(SetupError):
            Client(url, "t", device_id="d")
