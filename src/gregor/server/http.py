"""Gregor over HTTP: messages in, states out, each in one request."""

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

from gregor.core.instant import MAX_TIME, TimeOrOffset, parse_time_or_offset
from gregor.core.message import (
    MAX_BATCH,
    UID,
    DeviceID,
    Message,
    check_text,
    field_of,
    new_msg_id,
    parse_message,
)
from gregor.errors import (
    Forbidden,
    GregorError,
    InvalidMessage,
    Malformed,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from gregor.protocol.answers import (
    CountAnswer,
    MessagesAnswer,
    ProblemDocument,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.protocol.frames import Problem, Result
from gregor.server.auth import Identity
from gregor.server.readiness import PARTS
from gregor.server.service import Service
from gregor.server.sse import EventStream

MAX_REQUEST = 8 * 1024 * 1024
MAX_USERS = 10_000
RETRY_AFTER_SECONDS = 1

T = TypeVar("T")
Entry: TypeAlias = Message | Result
Answer: TypeAlias = Callable[[Service, Request, Identity], Awaitable[ASGIApp]]
OpenAnswer: TypeAlias = Callable[[Service, Request], Awaitable[ASGIApp]]
Endpoint: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]


class Batch(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 500 messages, each taken or rejected on its own."""

    messages: tuple[Raw, ...]


class ToMany(Struct, frozen=True, forbid_unknown_fields=True):
    """One message for up to 10,000 users, under one msg_id."""

    uids: tuple[UID, ...]
    message: Raw


# In


async def post_messages(service: Service, request: Request, identity: Identity) -> Response:
    """Inject one message, several, or one for many users."""
    body = await _body(request)
    shape = _decode(body, dict[str, Raw])
    if "messages" in shape:
        entries = _read_batch(_decode(body, Batch), identity)
    elif "uids" in shape:
        entries = _read_to_many(_decode(body, ToMany), identity)
    else:
        entries = [_read_one(body, identity, service)]
    return _json(Results(tuple(await service.inject(entries))))


def _read_one(body: bytes, identity: Identity, service: Service) -> Message:
    try:
        message = parse_message(body)
        identity.require(message.uid)
        return message
    except GregorError:
        service.metrics.refused(1)
        raise


def _read_batch(batch: Batch, identity: Identity) -> list[Entry]:
    if not 1 <= len(batch.messages) <= MAX_BATCH:
        raise TooLarge(
            f"`messages` takes 1 to {MAX_BATCH} messages, not {len(batch.messages)}",
            field="messages",
        )
    return [_read(json, identity) for json in batch.messages]


def _read(json: Raw, identity: Identity) -> Entry:
    try:
        message = parse_message(json)
        identity.require(message.uid)
        return message
    except (InvalidMessage, TooLarge, Forbidden) as error:
        return Result("rejected", error=Problem.of(error))


def _read_to_many(many: ToMany, identity: Identity) -> list[Entry]:
    if not 1 <= len(many.uids) <= MAX_USERS:
        raise TooLarge(f"`uids` takes 1 to {MAX_USERS} users, not {len(many.uids)}", field="uids")
    for uid in many.uids:
        identity.require(uid)
    first = parse_message(many.message, uid=many.uids[0])
    if first.uid != many.uids[0]:
        raise InvalidMessage("leave out the `uid`, which is each of `uids`", field="message.uid")
    return [msgspec.structs.replace(first, uid=uid) for uid in many.uids]


# Out


async def get_state(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"device_id", "at", "prefix"})
    at = _time(request, "at")
    state = await service.node.state_machine.state(uid, _device(request), at)
    shown = state.with_prefix(request.query_params.get("prefix", ""))
    return _json(StateAnswer(shown.items, shown.as_of, shown.hash()))


async def get_count(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"device_id", "prefix"})
    state = await service.node.state_machine.state(uid, _device(request))
    prefixes = request.query_params.getlist("prefix") or [""]
    return _json(CountAnswer({prefix: state.count(prefix) for prefix in prefixes}, state.as_of))


async def get_messages(service: Service, request: Request, identity: Identity) -> Response:
    uid = _user(request, identity, {"since", "device_id"})
    since = _time(request, "since") or TimeOrOffset(time=0)
    # The clock is read first: what is stored meanwhile comes twice rather than never.
    clock = (await service.node.state_machine.ctimes([uid]))[uid]
    messages = await service.node.state_machine.in_band_messages_since(uid, _device(request), since)
    return _json(MessagesAnswer(tuple(messages), clock))


async def get_events(service: Service, request: Request, identity: Identity) -> ASGIApp:
    uid = _user(request, identity, {"device_id", "cursor"})
    cursor = request.headers.get("last-event-id") or request.query_params.get("cursor", "0")
    if not (re.fullmatch("[0-9]{1,16}", cursor) and int(cursor) <= MAX_TIME):
        raise InvalidMessage("the cursor is a ctime, which is a number", field="cursor")
    if service.draining:
        raise Unavailable("this server is stopping")
    device_id = _device(request) or f"events-{new_msg_id()}"
    return EventStream(service, uid, device_id, int(cursor), identity.expires_at)


# Health


async def get_health(service: Service, request: Request) -> Response:
    """The process is alive."""
    return Response("alive\n", media_type="text/plain")


async def get_ready(service: Service, request: Request) -> Response:
    """Whether this server can do its work; if not, why.

    With `exclude=pubsub` it is ready while the pub/sub is away: what other servers store reaches
    the devices here a few seconds late then, and nothing is lost. A load balancer had better send
    them here than nowhere.
    """
    excluded = request.query_params.getlist("exclude")
    for part in excluded:
        if part not in PARTS:
            raise InvalidMessage(f"`exclude` is one of {', '.join(PARTS)}", field="exclude")
    await service.readiness.look()
    troubles = service.readiness.troubles(excluded)
    if troubles:
        return problem(Unavailable("; ".join(troubles)), troubles=troubles)
    return _json(ReadyAnswer(True, tuple(service.readiness.noted())))


async def get_metrics(service: Service, request: Request) -> Response:
    page = await service.page()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


# Around each request


def endpoint(service: Service, answer: Answer) -> Endpoint:
    """Find out who asks, have the question answered, and say what went wrong."""

    async def respond(request: Request) -> ASGIApp:
        try:
            identity = service.authenticator.identify(_token(request))
            return await answer(service, request, identity)
        except GregorError as error:
            return problem(error)
        except ClientDisconnect:
            return Response()  # which nobody reads

    return respond


def open_endpoint(service: Service, answer: OpenAnswer) -> Endpoint:
    """The same for what everybody may see."""

    async def respond(request: Request) -> ASGIApp:
        try:
            return await answer(service, request)
        except GregorError as error:
            return problem(error)

    return respond


def problem(
    error: GregorError,
    headers: Mapping[str, str] | None = None,
    troubles: Sequence[str] = (),
) -> Response:
    """The error as a problem document."""
    status = HTTPStatus(error.status)
    document = ProblemDocument(
        f"urn:gregor:error:{error.code}",
        status.phrase,
        error.status,
        error.message,
        error.code,
        error.turn,
        error.field,
        tuple(troubles),
    )
    headers = dict(headers or {})
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    body = msgspec.json.encode(document)
    return Response(body, status, headers, media_type="application/problem+json")


async def on_http_exception(request: Request, exception: Exception) -> Response:
    """What the router could not place, in our words."""
    assert isinstance(exception, HTTPException)
    if exception.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error = MethodNotAllowed(f"{request.method} is not possible here")
        return problem(error, exception.headers)
    return problem(NotFound(f"there is nothing at {request.url.path}"))


async def on_exception(request: Request, exception: Exception) -> Response:
    """A defect of ours. It is also raised, for the log."""
    return problem(GregorError("this server has a defect; its log says more"))


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _user(request: Request, identity: Identity, allowed: set[str]) -> UID:
    uid: UID = request.path_params["uid"]
    check_text("uid", uid, 128)
    identity.require(uid)
    for name in request.query_params:
        if name not in allowed:
            known = ", ".join(sorted(allowed))
            raise InvalidMessage(f"unknown parameter `{name}`; known are {known}", field=name)
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
            raise TooLarge(f"a request takes up to {MAX_REQUEST} bytes; send several")
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
