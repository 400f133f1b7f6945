"""The limits of texts, times and parts of a message as JSON Schema, for the OpenAPI document.

The types of messages say most of it. What they check by themselves is said here: which characters a
text has, which times are meant, what a message needs. Not said, because no schema can say it, are
lengths in bytes (`maxLength` counts characters, which may take several) and what compares two
fields, such as a start with an expiry. The server takes more notations than a pattern describes,
such as fractions (`1.5h`).
"""

from typing import Any

from gregor.core.admission import EARLIEST_TIME, SHORTEST_EXPIRY
from gregor.core.instant import MAX_TIME
from gregor.core.message import MAX_BATCH, MAX_CATEGORY, MAX_DEVICE_ID, MAX_MSG_ID, MAX_UID
from gregor.limits import Limits

JSONObject = dict[str, Any]

NO_NUL = r"^[^\u0000]*$"
_NOT_DOTS: JSONObject = {"not": {"enum": [".", ".."]}}  # which clients resolve in a URL

_MICROSECONDS: JSONObject = {"type": "integer", "maximum": MAX_TIME}
CURSOR: JSONObject = {**_MICROSECONDS, "minimum": 0}
TIME: JSONObject = {**_MICROSECONDS, "minimum": EARLIEST_TIME}

EVENT: JSONObject = {
    "type": "object",
    "description": "Each event of the stream: a frame, named by its type",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": "application/json"},
        "id": {"type": "string", "pattern": "^[0-9]{1,16}$"},
        "retry": {"type": "integer", "minimum": 0},
    },
}

_YEAR = r"(20(0[1-9]|[1-9][0-9])|21[0-9]{2}|22[0-4][0-9])"
_DAY_OF_MONTH = (
    r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
RFC3339_TIME: JSONObject = {
    "type": "string",
    "pattern": rf"^{_YEAR}-{_DAY_OF_MONTH}T{_CLOCK}(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$",
    "examples": ["2026-01-31T12:00:00Z"],
}
_UNITS = ("w", "d", "h", "m", "s", "ms", "us")
_N = r"[1-9][0-9]{0,3}"
_HOURS = rf"T({_N}H({_N}M)?({_N}S)?|{_N}M({_N}S)?|{_N}S)"
_ISO_8601 = rf"P({_N}D({_HOURS})?|{_HOURS})"


def _duration(sign: str = "", *, units: int = len(_UNITS)) -> JSONObject:
    """A duration of at least one of the first `units`; the longest unit comes first."""
    forms = (
        f"{_N}{unit}" + "".join(rf"([0-9]{{1,4}}{less})?" for less in _UNITS[n + 1 :])
        for n, unit in enumerate(_UNITS[:units])
    )
    return {
        "type": "string",
        "pattern": rf"^{sign}({'|'.join(forms)}|{_ISO_8601})$",
        "examples": ["90s", "1h30m", "P1D"],
    }


DURATION = _duration()
OFFSET = _duration("-?")
_OF_A_SECOND = _duration(units=_UNITS.index("s") + 1)

INSTANT: JSONObject = {"anyOf": [{"const": 0}, TIME, RFC3339_TIME, OFFSET]}
"""A time that is asked for: 0 is the beginning."""


def text(longest: int, *, shortest: int = 1) -> JSONObject:
    """Text of so many bytes at most."""
    return {
        "type": "string",
        "minLength": shortest,
        "maxLength": longest,
        "pattern": NO_NUL,
    }


UID: JSONObject = {**text(MAX_UID), **_NOT_DOTS}
DEVICE_ID: JSONObject = {**text(MAX_DEVICE_ID), **_NOT_DOTS}
MSG_ID: JSONObject = text(MAX_MSG_ID)
PREFIX: JSONObject = text(MAX_CATEGORY, shortest=0)


def at_most(limit: int) -> JSONObject:
    """The bound of a list; 0: none."""
    return {"maxItems": limit} if limit else {}


def state_limits(schemas: JSONObject, limits: Limits) -> None:
    """Say in the schemas of messages and requests, as they are generated, what their types do not
    say. The counts are those of a server with these limits."""
    for schema in schemas.values():
        _exclude_nul(schema)
    _state_times(schemas)
    _state_counts(schemas, limits)
    in_band, out_of_band = schemas["InBandMessage"], schemas["OutOfBandMessage"]
    _state_needs(in_band)
    for message in (in_band, out_of_band):
        _exclude_dots(message)
    to_many = schemas["MultiUserRequest"]["properties"]
    to_many["message"] = {"anyOf": [_without_uid(in_band), _without_uid(out_of_band)]}
    to_many["uids"]["items"] = {}  # each of them is accepted or rejected
    schemas["PruneRequest"]["properties"]["older_than"]["anyOf"][0] = DURATION


def _exclude_nul(schema: Any) -> None:
    """Every text that has a longest length is one that stores keep."""
    match schema:
        case {"type": "string", "maxLength": _}:
            schema["pattern"] = NO_NUL
        case dict():
            for part in schema.values():
                _exclude_nul(part)
        case list():
            for part in schema:
                _exclude_nul(part)


def _state_times(schemas: JSONObject) -> None:
    """Exactly one of `time` and `offset`. An expiry is a second away or more."""
    any_offset = {"anyOf": [{**_MICROSECONDS, "minimum": -MAX_TIME}, OFFSET]}
    later = {"anyOf": [{**_MICROSECONDS, "minimum": SHORTEST_EXPIRY}, _OF_A_SECOND]}
    description = schemas["TimeOrOffset"]["description"]
    for name, offset in (("TimeOrOffset", any_offset), ("Expiry", later)):
        one_of = [_object(time={"anyOf": [TIME, RFC3339_TIME]}), _object(offset=offset)]
        schemas[name] = {"title": name, "description": description, "oneOf": one_of}
    schemas["Creation"]["properties"]["expires"]["anyOf"][0] = ref("Expiry")


def _state_counts(schemas: JSONObject, limits: Limits) -> None:
    """A batch is what a service may send; the rate of a device may allow fewer messages."""
    for schema, field, most, fewest in (
        ("BatchRequest", "messages", MAX_BATCH, 1),
        ("MultiUserRequest", "uids", limits.uids, 1),
        ("Dismissal", "ranges", limits.ranges, 0),
        ("Dismissal", "msg_ids", limits.msg_ids, 0),
        ("Dismissal", "keys", limits.keys, 0),
        ("Range", "skip_msg_ids", limits.skip_msg_ids, 0),
    ):
        parts = schemas[schema]["properties"][field]
        parts.update(at_most(most))
        if fewest:
            parts["minItems"] = fewest


def _state_needs(message: JSONObject) -> None:
    """What a sender must give, and what the server sets."""
    message["required"] = ["uid"]
    for name in ("ctime", "prev"):
        message["properties"][name]["readOnly"] = True
    message["anyOf"] = [
        {"required": ["creation"], "properties": {"creation": ref("Creation")}},
        {"required": ["dismissal"], "properties": {"dismissal": _SOMETHING}},
    ]


_SOMETHING: JSONObject = {
    "anyOf": [
        {"required": [name], "properties": {name: {"minItems": 1}}}
        for name in ("msg_ids", "ranges", "keys")
    ],
    "type": "object",
}


def _exclude_dots(message: JSONObject) -> None:
    for name in {"uid", "device_id", "msg_id"} & message["properties"].keys():
        message["properties"][name] = {**message["properties"][name], **_NOT_DOTS}


def _without_uid(message: JSONObject) -> JSONObject:
    properties = {name: part for name, part in message["properties"].items() if name != "uid"}
    required = [name for name in message["required"] if name != "uid"]
    return {**message, "properties": properties, "required": required}


def _object(**properties: JSONObject) -> JSONObject:
    """An object with these members and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}
