"""The description of the HTTP API, made from the types that answer it."""

from importlib.metadata import version
from typing import Any

import msgspec

from gregor.core.message import InBandMessage, OutOfBandMessage
from gregor.protocol.answers import (
    CountAnswer,
    MessagesAnswer,
    ProblemDocument,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.server.http import Batch, ToMany
from gregor.server.readiness import PARTS

JSONObject = dict[str, Any]

_ERRORS = {
    400: "Not the JSON that belongs here",
    401: "No token, or one that does not hold",
    403: "The token is another user's",
    413: "Too much at once",
    422: "A field breaks a rule; `field` names it",
    503: "Not now; send it again after `Retry-After` seconds",
}


def describe() -> JSONObject:
    """The OpenAPI 3.1 document."""
    types = (
        InBandMessage,
        OutOfBandMessage,
        Batch,
        ToMany,
        Results,
        StateAnswer,
        CountAnswer,
        MessagesAnswer,
        ReadyAnswer,
        ProblemDocument,
    )
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    _loosen(components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gregor",
            "version": version("gregor-sync"),
            "summary": "Replicated, per-user state and notifications.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": _paths(),
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _loosen(components: JSONObject) -> None:
    """A sender leaves out what the server sets."""
    message = components["InBandMessage"]
    message["required"] = ["uid"]
    for name in ("ctime", "prev"):
        message["properties"][name]["readOnly"] = True


def _paths() -> JSONObject:
    one_of = ("InBandMessage", "OutOfBandMessage", "Batch", "ToMany")
    post = _operation("Inject one message, up to 500, or one for up to 10,000 users", "Results")
    post["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"anyOf": [_ref(name) for name in one_of]}}},
    }
    user = "/v1/users/{uid}"
    device = _query("device_id", "What this device shows; without it, all devices together")
    prefix = _query("prefix", "Categories that begin like this, byte for byte")
    at = _query("at", "A time (microseconds or RFC 3339) or an offset from now (-90s, P1D)")
    since = _query("since", "The same; messages from then on, that instant included")
    return {
        "/v1/messages": {"post": post},
        f"{user}/state": {"get": _operation("The live items", "StateAnswer", device, at, prefix)},
        f"{user}/count": {
            "get": _operation("How many live items, per prefix", "CountAnswer", device, prefix)
        },
        f"{user}/messages": {
            "get": _operation("What brings a replica up to date", "MessagesAnswer", since, device)
        },
        f"{user}/events": {"get": _stream(device)},
        "/healthz": {"get": _plain("Whether the process lives")},
        "/readyz": {"get": _ready()},
        "/metrics": {"get": _plain("Prometheus metrics")},
    }


def _operation(summary: str, answer: str, *parameters: JSONObject) -> JSONObject:
    responses = {"200": _answer(summary, answer), **_problems()}
    operation: JSONObject = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = [_uid(), *parameters]
    return operation


def _answer(description: str, answer: str, kind: str = "application/json") -> JSONObject:
    return {"description": description, "content": {kind: {"schema": _ref(answer)}}}


def _problems() -> JSONObject:
    return {
        str(status): _answer(text, "ProblemDocument", "application/problem+json")
        for status, text in _ERRORS.items()
    }


def _stream(device: JSONObject) -> JSONObject:
    cursor = _query("cursor", "Where to resume; the header Last-Event-ID goes before it")
    success = {
        "description": "`sync`, then `messages` and `out_of_band`; the event id is the cursor",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        "summary": "What a device would hear, as server-sent events",
        "parameters": [_uid(), device, cursor],
        "responses": {"200": success, **_problems()},
    }


def _ready() -> JSONObject:
    problem, kind = "ProblemDocument", "application/problem+json"
    responses = {
        "200": _answer("It is ready", "ReadyAnswer"),
        "422": _answer("There is nothing of that name to exclude", problem, kind),
        "503": _answer("It is not, for these `troubles`", problem, kind),
    }
    exclude = _query("exclude", "A part whose troubles do not count; can be repeated")
    exclude["schema"] = {"type": "string", "enum": list(PARTS)}
    exclude["description"] += (
        ". Without the `pubsub`, devices hear a few seconds late what other servers have stored, "
        "and nothing is lost: a load balancer may still send them here"
    )
    return {
        "summary": "Whether it can serve",
        "security": [],
        "parameters": [exclude],
        "responses": responses,
    }


def _plain(summary: str) -> JSONObject:
    return {"summary": summary, "security": [], "responses": {"200": {"description": summary}}}


def _uid() -> JSONObject:
    return {"name": "uid", "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, description: str) -> JSONObject:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}


def _ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}
