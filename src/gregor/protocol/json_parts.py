"""Reads the parts of JSON each by itself: the members of an object, the elements of an array.

A decoder stops at the first error, so one bad element would spoil all others. Here the parts are
cut by brackets, quotes and commas alone if they cannot be decoded together. Whatever a part
contains that is not JSON (NaN, half of a surrogate pair, a thousand brackets) stays in that part.
Only one whose own brackets or quotes are not closed cannot be told from its neighbours.
"""

import re
from collections.abc import Iterator

import msgspec
from msgspec import DecodeError, Raw

MAX_STEPS = 200_000  # about 0.2 s of work; 500 messages with 100 nested containers each need less

# A string that is not closed extends to the end, so nothing in it is taken for a part.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_FLAT = rb'(?:[\[{](?:[^]["{}]++|' + _STRING + rb")*+[\]}])"  # a container of no other container
_BRACKETS = rb"[\[{]++|[\]}]++"
_STEP = re.compile(
    rb'(?:[^][",{}]++|' + _STRING + b"|" + _FLAT + rb")*+(,|" + _BRACKETS + rb"|\Z)", re.DOTALL
)
_DEEP_STEP = re.compile(
    rb'(?:[^]["{}]++|' + _STRING + b"|" + _FLAT + rb")*+(" + _BRACKETS + rb"|\Z)", re.DOTALL
)
_SPACE = b" \t\r\n"
_MEMBER = re.compile(rb"(" + _STRING + rb")\s*:(.*)", re.DOTALL)

_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_array_decoder = msgspec.json.Decoder(tuple[Raw, ...])


def object_members(json: bytes) -> dict[str, Raw]:
    """The members of an object by name. Raises DecodeError if it is not an object, or if it cannot
    be cut into members."""
    try:
        return _object_decoder.decode(json)
    except msgspec.ValidationError:
        raise
    except (DecodeError, UnicodeError, RecursionError):
        return dict(_members(json))


def array_elements(json: Raw) -> tuple[Raw, ...]:
    """The elements of an array. Raises DecodeError if it is not an array, or if it cannot be cut
    into elements."""
    try:
        return _array_decoder.decode(json)
    except msgspec.ValidationError:
        raise
    except (DecodeError, RecursionError):
        return tuple(map(Raw, _parts(bytes(json), b"[")))


def members_before_error(json: bytes) -> Iterator[tuple[str, Raw]]:
    """The members of what may begin like an object, as far as it can be cut into members."""
    try:
        yield from _members(json)
    except DecodeError:
        return


def _members(json: bytes) -> Iterator[tuple[str, Raw]]:
    for part in _parts(json, b"{"):
        member = _MEMBER.fullmatch(part)
        if member is None:
            raise DecodeError("a member of an object is a name, a colon and a value")
        yield _name(member[1]), Raw(member[2].strip(_SPACE))


def _name(json: bytes) -> str:
    try:
        return msgspec.json.decode(json, type=str)
    except UnicodeError as error:
        raise DecodeError(f"the name of a member is not UTF-8: {error}") from error


def _parts(json: bytes, opening: bytes) -> Iterator[bytes]:
    """What stands between the commas of an object or array, without the space around it."""
    json = json.strip(_SPACE)
    if not json.startswith(opening):
        raise DecodeError(f"expected `{opening.decode()}`")
    begin = 1
    for comma in _commas(json):
        yield json[begin:comma].strip(_SPACE)
        begin = comma + 1
    last = json[begin:-1].strip(_SPACE)
    if last or begin > 1:
        yield last


def _commas(json: bytes) -> Iterator[int]:
    """The places of the commas between the parts of an object or array."""
    depth, place = 1, 1
    for _ in range(MAX_STEPS):
        step = (_STEP if depth == 1 else _DEEP_STEP).match(json, place)
        assert step is not None  # it matches everywhere
        kind, place = step[1][:1], step.end()
        match kind:
            case b",":
                yield place - 1
            case b"[" | b"{":
                depth += len(step[1])
            case b"]" | b"}":
                depth -= len(step[1])
        if depth <= 0 or not kind:
            break
    if depth != 0 or place != len(json):
        raise DecodeError("a bracket or a quote is not closed, or there are too many")
