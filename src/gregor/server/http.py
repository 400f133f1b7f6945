"""The HTTP API: inject messages and read states, one request at a time."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Raw, Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gregor.core.admission import check_text
from gregor.core.instant import MAX_TIME, TimeOrOffset, parse_time_or_offset
from gregor.core.message import (
    MAX_BATCH,
    UID,
    DeviceID,
    Message,
    field_of,
    new_msg_id,
    parse_message,
)
from gregor.errors import (
    GregorError,
    InvalidMessage,
    Malformed,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import Caller, Rejected
from gregor.node.conversation import Admission, Resumption
from gregor.protocol.answers import (
    CountAnswer,
    MessagesAnswer,
    ProblemDocument,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.protocol.entries import read_entries
from gregor.protocol.frames import Result
from gregor.protocol.requests import MAX_REQUEST, MAX_USERS, BatchRequest, MultiUserRequest
from gregor.server.auth import Identity
from gregor.server.readiness import PARTS
from gregor.server.service import Service
from gregor.server.sse import EventStream

RETRY_AFTER_SECONDS = 1

T = TypeVar("T")
Operation: TypeAlias = Callable[[Service, Request, Identity], Awaitable[ASGIApp]]
PublicOperation: TypeAlias = Callable[[Service, Request], Awaitable[ASGIApp]]
Endpoint: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]


# Inject


async def post_messages(service: Service, request: Request, identity: Identity) -> Response:
    """Inject one message, a batch of messages, or one message for many users."""
    body = await _body(request)
    fields = _decode(body, dict[str, Raw])
    if "messages" in fields:
        entries = _read_batch(_decode(body, BatchRequest), identity)
    elif "uids" in fields:
        entries = _read_multi_user(_decode(body, MultiUserRequest), identity)
    else:
        return _json(Results((await _inject_one(service, identity, body),)))
    outcomes = await service.inject(Caller(identity.uid), entries)
    return _json(Results(tuple(map(Result.of, outcomes))))


async def _inject_one(service: Service, identity: Identity, body: bytes) -> Result:
    """Inject a single message. Raises the error of one that is invalid or forbidden."""
    entries = read_entries([Raw(body)], identity.may_access)
    (outcome,) = await service.inject(Caller(identity.uid), entries)
    if isinstance(outcome, Rejected) and outcome.message is None:
        raise outcome.error
    return Result.of(outcome)


def _read_batch(request: BatchRequest, identity: Identity) -> list[Message | Rejected]:
    if not 1 <= len(request.messages) <= MAX_BATCH:
        raise TooLarge(
            f"`messages` takes 1 to {MAX_BATCH} messages, not {len(request.messages)}",
            field="messages",
        )
    return read_entries(request.messages, identity.may_access)


def _read_multi_user(request: MultiUserRequest, identity: Identity) -> list[Message | Rejected]:
    uids = request.uids
    if not 1 <= len(uids) <= MAX_USERS:
        raise TooLarge(f"`uids` takes 1 to {MAX_USERS} users, not {len(uids)}", field="uids")
    for uid in uids:
        identity.require_access(uid)
    message = parse_message(request.message, uid=uids[0])
    if message.uid != uids[0]:
        raise InvalidMessage(
            "leave out the `uid` of the message; `uids` replaces it", field="message.uid"
        )
    return [msgspec.structs.replace(message, uid=uid) for uid in uids]


# Read


async def get_state(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"device_id", "at", "prefix"})
    at = _time(request, "at")
    state = await service.node.state_machine.state(uid, _device(request), at)
    selected = state.with_prefix(request.query_params.get("prefix", ""))
    return _json(StateAnswer(selected.items, selected.as_of, selected.hash()))


async def get_count(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"device_id", "prefix"})
    state = await service.node.state_machine.state(uid, _device(request))
    prefixes = request.query_params.getlist("prefix") or [""]
    return _json(CountAnswer({prefix: state.count(prefix) for prefix in prefixes}, state.as_of))


async def get_messages(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"since", "device_id"})
    since = _time(request, "since") or TimeOrOffset(time=0)
    # The cursor is read first: a message that is stored in between is then read twice rather
    # than missed.
    cursor = await service.node.state_machine.ctime(uid)
    messages = await service.node.state_machine.in_band_messages_since(uid, _device(request), since)
    return _json(MessagesAnswer(tuple(messages), cursor))


async def get_events(service: Service, request: Request, identity: Identity) -> ASGIApp:
    uid = _user(request, identity, {"device_id", "cursor"})
    cursor = request.headers.get("last-event-id") or request.query_params.get("cursor", "0")
    if not (re.fullmatch("[0-9]{1,16}", cursor) and int(cursor) <= MAX_TIME):
        raise InvalidMessage("the cursor must be a ctime, which is an integer", field="cursor")
    if service.draining:
        raise Unavailable("this server is stopping; retry with another server")
    device_id = _device(request) or f"events-{new_msg_id()}"
    admission = Admission(uid, identity.expires_at)
    return EventStream(service, Resumption(admission, device_id, int(cursor)))


# Health


async def get_health(service: Service, request: Request) -> Response:
    """Liveness: the process responds."""
    return Response("alive\n", media_type="text/plain")


async def get_ready(service: Service, request: Request) -> Response:
    """Readiness: whether this server can do its work, and the problems if it cannot.

    With `exclude=pubsub` it stays ready while the pub/sub is down: devices then receive messages
    from other servers a few seconds late, and none is lost. A load balancer should use this, so
    that it does not remove all servers when the pub/sub fails.
    """
    excluded = request.query_params.getlist("exclude")
    for part in excluded:
        if part not in PARTS:
            raise InvalidMessage(f"`exclude` must be one of {', '.join(PARTS)}", field="exclude")
    await service.readiness.check()
    problems = service.readiness.problems(excluded)
    if problems:
        return problem(Unavailable("; ".join(problems)), problems=problems)
    return _json(ReadyAnswer(True, tuple(service.readiness.all_problems())))


async def get_metrics(service: Service, request: Request) -> Response:
    page = await service.metrics_page()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


# Endpoints and errors


def authenticated_endpoint(service: Service, operation: Operation) -> Endpoint:
    """An endpoint that authenticates the caller, and reports errors as problem documents."""

    async def respond(request: Request) -> ASGIApp:
        try:
            identity = await service.identify(_token(request))
            return await operation(service, request, identity)
        except GregorError as error:
            return problem(error)
        except ClientDisconnect:
            return Response()  # never sent: the client is gone

    return respond


def public_endpoint(service: Service, operation: PublicOperation) -> Endpoint:
    """An endpoint that needs no token."""

    async def respond(request: Request) -> ASGIApp:
        try:
            return await operation(service, request)
        except GregorError as error:
            return problem(error)

    return respond


def problem(
    error: GregorError,
    headers: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
) -> Response:
    """The error as a problem document."""
    status = HTTPStatus(error.status)
    document = ProblemDocument(
        f"urn:gregor:error:{error.code}",
        status.phrase,
        error.status,
        error.message,
        error.code,
        error.action,
        error.field,
        tuple(problems),
    )
    headers = dict(headers or {})
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    body = msgspec.json.encode(document)
    return Response(body, status, headers, media_type="application/problem+json")


async def on_http_exception(request: Request, exception: Exception) -> Response:
    """The router's errors (404 and 405) as problem documents."""
    assert isinstance(exception, HTTPException)
    if exception.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error = MethodNotAllowed(f"{request.url.path} does not support {request.method}")
        return problem(error, exception.headers)
    return problem(NotFound(f"no resource at {request.url.path}"))


async def on_exception(request: Request, exception: Exception) -> Response:
    """An unexpected exception: a bug in Gregor. Starlette raises it again, so it is logged."""
    return problem(GregorError("internal error; the server's log has the traceback"))


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _user(request: Request, identity: Identity, allowed: set[str]) -> UID:
    uid: UID = request.path_params["uid"]
    check_text("uid", uid, 128)
    identity.require_access(uid)
    for name in request.query_params:
        if name not in allowed:
            names = ", ".join(sorted(allowed))
            raise InvalidMessage(f"unknown parameter `{name}`; allowed are {names}", field=name)
    return uid


def _device(request: Request) -> DeviceID | None:
    device_id = request.query_params.get("device_id")
    if device_id is not None:
        check_text("device_id", device_id, 128)
    return device_id


def _time(request: Request, name: str) -> TimeOrOffset | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        return parse_time_or_offset(text)
    except ValueError as error:
        raise InvalidMessage(f"`{name}`: {error}", field=name) from error


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST:
            raise TooLarge(f"a request has at most {MAX_REQUEST} bytes; send several requests")
    return bytes(body)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Malformed(str(error), field=field_of(error)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(f"the request is not JSON: {error}") from error


def _json(answer: Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
