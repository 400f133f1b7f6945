"""The OpenAPI description of the HTTP API, generated from the request and response types."""

from importlib.metadata import version

import msgspec

from gregor.core.item_history import ItemHistory
from gregor.core.message import MAX_KEY, InBandMessage, OutOfBandMessage
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.protocol.answers import (
    CountAnswer,
    EraseAnswer,
    ImportAnswer,
    MessagesAnswer,
    ProblemDocument,
    PruneAnswer,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.protocol.frames import PAGE_ENTRIES
from gregor.protocol.requests import (
    EPOCH_HEADER,
    JSON_LINES,
    MAX_STATE_ITEMS,
    ORDERS,
    SQLITE_FILE,
    BatchRequest,
    MultiUserRequest,
    PruneRequest,
)
from gregor.server import schemas
from gregor.server.readiness import PARTS
from gregor.server.schemas import JSONObject, ref

_FORGOTTEN = "What happened then is forgotten; read the state as of now"
_ERASED = "The user was erased, at the `epoch`, after what the device knows; nothing was stored"

_ERRORS = {
    400: "Not JSON, or JSON of the wrong type, or the `page` of another request",
    401: "The token is missing, invalid or expired",
    403: "The token belongs to another user",
    413: "The request, a message or a list is too large",
    422: "A field is invalid, and `field` names it; or more of something than the `limit` allows",
    429: "A rate is used up, or there are too many connections; retry after `Retry-After` seconds",
    503: "Temporarily unavailable; retry after `Retry-After` seconds",
}


def describe(limits: Limits = DEFAULT_LIMITS) -> JSONObject:
    """The OpenAPI 3.1 document of a server with these limits."""
    types = (
        InBandMessage,
        OutOfBandMessage,
        BatchRequest,
        MultiUserRequest,
        Results,
        StateAnswer,
        CountAnswer,
        MessagesAnswer,
        ItemHistory,
        EraseAnswer,
        ImportAnswer,
        PruneRequest,
        PruneAnswer,
        Limits,
        ReadyAnswer,
        ProblemDocument,
    )
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schemas.state_limits(components, limits)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gregor",
            "version": version("gregor-sync"),
            "summary": "Replicated, per-user state and notifications.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(limits),
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _paths(limits: Limits) -> JSONObject:
    bodies = ("InBandMessage", "OutOfBandMessage", "BatchRequest", "MultiUserRequest")
    post = _operation(
        "Inject one message, up to 500 messages, or one message for many users", "Results"
    )
    post["responses"]["409"] = _problem(
        "The msg_id of the single message is known otherwise; or the epoch is not the user's yet"
    )
    post["responses"]["410"] = _problem(_ERASED)
    sender = _query(
        "device_id", "The device that sends, for the history of its items", schemas.DEVICE_ID
    )
    post["parameters"] = [_epoch_header(), sender]
    post["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": [ref(name) for name in bodies]}}},
    }
    user = "/v1/users/{uid}"
    device = _query(
        "device_id",
        "Only what is visible on this device; by default, on any device",
        schemas.DEVICE_ID,
    )
    prefixes = _query(
        "prefix",
        "Only categories that begin with this prefix, compared as bytes; can be repeated",
        {"type": "array", "items": schemas.PREFIX, **schemas.at_most(limits.prefixes)},
    )
    by = _query(
        "by",
        "`segment`: the counts of the categories below one prefix, each cut before the first dot"
        " after the prefix",
        {"type": "string", "enum": ["segment"]},
    )
    at = _query(
        "at",
        "A time (microseconds or RFC 3339) or an offset from now (-90s, P1D)",
        schemas.INSTANT,
    )
    state = _operation(
        "The visible items, in order of their time: the later of creation and start",
        "StateAnswer",
        device,
        at,
        prefixes,
        *_selections(),
    )
    since = _query(
        "since",
        "A time or offset like `at`: messages from this instant on, inclusive. Not with `after`",
        schemas.INSTANT,
    )
    after = _query(
        "after",
        "A cursor, instead of `since`: messages after it, exclusive. If it is ahead of the user's"
        " clock, because the server's store is a restored backup, the answer is 409 `resync`: read"
        " the state, and go on after its cursor",
        schemas.CURSOR,
    )
    limit = _limit(
        f"At most so many messages in the answer; by default {PAGE_ENTRIES}", PAGE_ENTRIES
    )
    messages = _operation(
        "The messages that bring a replica up to date, in pages",
        "MessagesAnswer",
        since,
        after,
        limit,
        device,
    )
    messages["responses"]["409"] = _problem("The cursor cannot be continued")
    for operation in (state, messages):
        operation["responses"]["410"] = _problem(_FORGOTTEN)
    erase = _operation("Erase a user, known or not: delete everything of the user", "EraseAnswer")
    erase["parameters"] = [_uid()]
    erase["responses"]["403"] = _problem("The token is not that of a service")
    return {
        "/v1/messages": {"post": post},
        "/v1/limits": {"get": _limits()},
        user: {"delete": erase},
        "/v1/prune": {"post": _prune()},
        "/v1/export": {"get": _export("All users, for services")},
        f"{user}/export": {"get": _export("One user, also for a device of that user", _uid())},
        "/v1/import": {"post": _import()},
        "/v1/backup": {"get": _backup()},
        f"{user}/state": {"get": state},
        f"{user}/count": {
            "get": _operation(
                "Counts of visible items, per prefix", "CountAnswer", device, prefixes, by
            )
        },
        f"{user}/messages": {"get": messages},
        f"{user}/items/{{msg_id}}/history": {"get": _item_history()},
        f"{user}/events": {"get": _stream(device)},
        "/healthz": {"get": _public("Liveness: the process responds")},
        "/readyz": {"get": _ready()},
        "/metrics": {"get": _public("Prometheus metrics, at the admin address only")},
    }


def _limits() -> JSONObject:
    return _operation("What the server accepts, as it tells devices; 0: no limit", "Limits")


def _prune() -> JSONObject:
    prune = _operation(
        "Forget now what is past, of all users; for services. Answers when it is done, which may"
        " take minutes. After a time-out, or while another server prunes (503), try again: it goes"
        " on where it was",
        "PruneAnswer",
    )
    prune["requestBody"] = {"content": {"application/json": {"schema": ref("PruneRequest")}}}
    return prune


def _export(summary: str, *parameters: JSONObject) -> JSONObject:
    success = {
        "description": "The lines of an export, as in spec/export.md. One that was broken off has"
        " no line of the `end`",
        "content": {JSON_LINES: {"schema": {"type": "string"}}},
    }
    operation: JSONObject = {
        "summary": f"{summary}: everything that the store knows, as JSON Lines",
        "responses": {"200": success, **_problems()},
    }
    if parameters:
        operation["parameters"] = [*parameters]
    return operation


def _import() -> JSONObject:
    operation = _operation(
        "Take the lines of an export into the store, for services. Idempotent. Answers when it is"
        " done; each line that was refused is named",
        "ImportAnswer",
    )
    operation["requestBody"] = {
        "required": True,
        "content": {JSON_LINES: {"schema": {"type": "string"}}},
    }
    return operation


def _backup() -> JSONObject:
    success = {
        "description": "The file, as of one instant",
        "content": {SQLITE_FILE: {"schema": {"type": "string", "format": "binary"}}},
    }
    return {
        "summary": "A copy of the SQLite file of the store, for services",
        "responses": {
            "200": success,
            **_problems(),
            "404": _problem("The store is not one SQLite file"),
        },
    }


def _item_history() -> JSONObject:
    msg_id = {
        "name": "msg_id",
        "in": "path",
        "required": True,
        "schema": schemas.MSG_ID,
    }
    return _operation(
        "What became of an item, and why: which messages made and ended it, when, by which rule,"
        " and who sent them. Devices see `service` for each service. An id that is not known, or"
        " that creates no item, is `unknown`",
        "ItemHistory",
        msg_id,
    )


def _epoch_header() -> JSONObject:
    return {
        "name": EPOCH_HEADER,
        "in": "header",
        "description": "The epoch that a device knows. Nothing is stored if its user was erased "
        "since",
        "schema": schemas.CURSOR,
    }


def _selections() -> tuple[JSONObject, ...]:
    """Which items of a state are answered, in which order and how many."""
    key = _query(
        "key", "Only the items of this key: one for each scope that is seen", schemas.text(MAX_KEY)
    )
    order = _query(
        "order",
        "Which items come first; by default the oldest",
        {"type": "string", "enum": list(ORDERS)},
    )
    limit = _limit(
        "At most so many items in the answer, fewer if they are large; by default all",
        MAX_STATE_ITEMS,
    )
    page = _query(
        "page",
        "The `next_page` of an answer: the items that follow, as of the same instant. Repeat the"
        " request of that answer with it, unchanged but for `page` and `limit`. What is not the"
        " `next_page` of such an answer is refused",
        {"type": "string"},
    )
    return key, order, limit, page


def _limit(description: str, largest: int) -> JSONObject:
    schema = {"type": "integer", "minimum": 1, "maximum": largest}
    return _query("limit", description, schema)


def _operation(summary: str, schema: str, *parameters: JSONObject) -> JSONObject:
    responses = {"200": _response(summary, schema), **_problems()}
    operation: JSONObject = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = [_uid(), *parameters]
    return operation


def _response(description: str, schema: str, media_type: str = "application/json") -> JSONObject:
    return {"description": description, "content": {media_type: {"schema": ref(schema)}}}


def _problem(description: str) -> JSONObject:
    return _response(description, "ProblemDocument", "application/problem+json")


def _problems() -> JSONObject:
    return {str(status): _problem(description) for status, description in _ERRORS.items()}


def _stream(device: JSONObject) -> JSONObject:
    cursor = _query(
        "cursor",
        "The cursor to resume from. The header Last-Event-ID takes precedence; one that is no "
        "cursor means 0",
        schemas.CURSOR,
    )
    epoch = _query("epoch", "The epoch that the device knows, as in a hello", schemas.CURSOR)
    success = {
        "description": "`welcome`, `sync`, then `messages` and `out_of_band`, with one line of "
        "`data` each; the event id is the cursor; `retry` says when to come back. An `error` that "
        "passes is an event too, and so is `erased`, if the user was erased since the `epoch`",
        "content": {"text/event-stream": {"schema": schemas.EVENT}},
    }
    return {
        "summary": "The frames that a device would receive, as server-sent events",
        "parameters": [_uid(), device, cursor, epoch],
        "responses": {"200": success, **_problems()},
    }


def _ready() -> JSONObject:
    responses = {
        "200": _response("The server is ready", "ReadyAnswer"),
        "422": _problem("`exclude` names an unknown part"),
        "503": _problem("The server is not ready, because of these `problems`"),
    }
    exclude = _query(
        "exclude",
        "A part whose problems are ignored; can be repeated. While the `pubsub` is down, devices"
        " receive messages from other servers a few seconds late, and none is lost: a load balancer"
        " may still send devices to this server",
        {"type": "array", "items": {"type": "string", "enum": list(PARTS)}},
    )
    return {
        "summary": "Readiness: whether the server can do its work. At the public address the answer"
        " is `ready` or `not ready`, as text",
        "security": [],
        "parameters": [exclude],
        "responses": responses,
    }


def _public(summary: str) -> JSONObject:
    return {"summary": summary, "security": [], "responses": {"200": {"description": summary}}}


def _uid() -> JSONObject:
    return {"name": "uid", "in": "path", "required": True, "schema": schemas.UID}


def _query(name: str, description: str, schema: JSONObject) -> JSONObject:
    return {"name": name, "in": "query", "description": description, "schema": schema}
