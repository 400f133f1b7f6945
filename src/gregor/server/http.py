"""The HTTP API: inject messages, read states and erase users, one request at a time."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from functools import partial
from http import HTTPStatus
from typing import TypeAlias, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Raw, Struct
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from gregor.core.admission import check_id, check_text
from gregor.core.arguments import duration, query_time
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    MAX_BATCH,
    MAX_CATEGORY,
    MAX_KEY,
    MAX_MSG_ID,
    UID,
    Category,
    DeviceID,
    Key,
    new_msg_id,
)
from gregor.core.state import Counts
from gregor.core.state_page import PageStart, StateQuery
from gregor.core.sync import After, PageLimits, Since, Start
from gregor.errors import (
    GregorError,
    InvalidMessage,
    LimitExceeded,
    Malformed,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import HOLDS_FOREVER, Caller, Outcome, Rejected, StateMachineOfRecord
from gregor.node.conversation import Admission, Resumption
from gregor.node.limiter import Limiter
from gregor.protocol.answers import (
    CountAnswer,
    EraseAnswer,
    MessagesAnswer,
    PruneAnswer,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.protocol.counts import check_count
from gregor.protocol.entries import read_addressed, read_entries
from gregor.protocol.frames import PAGE_BYTES, PAGE_ENTRIES, GoAway, Result, decode
from gregor.protocol.json_parts import array_elements, object_members
from gregor.protocol.requests import (
    EPOCH_HEADER,
    MAX_REQUEST,
    MAX_STATE_ITEMS,
    ORDERS,
    BatchRequest,
    MultiUserRequest,
    PruneRequest,
)
from gregor.server.aside import Aside
from gregor.server.auth import Identity, Role
from gregor.server.page_token import StateRequest
from gregor.server.problems import problem
from gregor.server.readiness import PARTS
from gregor.server.service import Service
from gregor.server.sse import (
    TRY_ANOTHER_AFTER_MS,
    EventStream,
    cursor_to_resume_from,
    is_cursor,
    only_event,
)
from gregor.server.whole_state import STATE_BYTES, WholeState

PAUSE_SECONDS = 0.1  # before the answer to a request beyond a limit, or without a valid token

CLIENT_GONE = 499  # as nginx counts a client that closed its connection before it was answered

EVENT_PARAMETERS = frozenset({"device_id", "cursor", "epoch"})

T = TypeVar("T")

_aside = Aside()  # of all servers of this process

Admit: TypeAlias = Callable[[Service, Request, Identity], None]
Operation: TypeAlias = Callable[[Service, Request, Identity], Awaitable[ASGIApp]]
PublicOperation: TypeAlias = Callable[[Service, Request], Awaitable[ASGIApp]]
Endpoint: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]


# Inject


async def post_messages(service: Service, request: Request, identity: Identity) -> Response:
    """Inject one message, a batch of messages, or one message for many users."""
    check_parameters(request, {"device_id"}, frozenset())
    body = await _body(request, partial(_take_bytes, service, identity))
    fields = await _aside.run(identity.caller, len(body), lambda: decode(object_members, body))
    if "messages" in fields:
        batch = _fields_of(BatchRequest, fields)
        outcomes = await _inject_batch(service, request, identity, batch, len(body))
    elif "uids" in fields:
        to_many = _fields_of(MultiUserRequest, fields)
        outcomes = await _inject_for_many(service, request, identity, to_many, len(body))
    else:
        return _json(Results((await _inject_one(service, request, identity, body),)))
    return await _aside.run(
        identity.caller, len(body), lambda: _json(Results(tuple(map(Result.of, outcomes))))
    )


async def _inject_batch(
    service: Service, request: Request, identity: Identity, fields: Mapping[str, Raw], size: int
) -> Sequence[Outcome]:
    """Inject messages. Those of a device beyond its rate are rejected, the last ones: then what is
    stored is what came first."""
    limiter, sender = service.limiter, _sender(request, identity)
    messages = await _aside.run(identity.caller, size, lambda: _list_in(fields, "messages"))
    if not 1 <= len(messages) <= MAX_BATCH:
        raise TooLarge(
            f"`messages` takes 1 to {MAX_BATCH} messages, not {len(messages)}", field="messages"
        )
    taken, error = _take_messages(limiter, identity, len(messages))
    entries = await _aside.run(
        identity.caller,
        size,
        lambda: read_entries(messages[:taken], identity.may_access, limits=limiter.limits),
    )
    if error is not None:
        entries += [Rejected(None, error)] * (len(messages) - taken)
    return await service.inject(sender, entries, request.state.epoch)


async def _inject_for_many(
    service: Service, request: Request, identity: Identity, fields: Mapping[str, Raw], size: int
) -> Sequence[Outcome]:
    """Inject a message once for each user. The outcomes are those of the `uids`, in order."""
    limiter, sender = service.limiter, _sender(request, identity)
    uids = await _aside.run(identity.caller, size, lambda: _list_in(fields, "uids"))
    if not uids:
        raise TooLarge("`uids` takes 1 user or more, not 0", field="uids")
    with limiter.reporting():
        check_count("uids", len(uids), limiter.limits, "uids")
    _take_messages(limiter, identity, 1)  # a device has one user
    with limiter.reporting():
        addressed = await _aside.run(
            identity.caller,
            size,
            lambda: read_addressed(
                fields["message"], uids, identity.may_access, limits=limiter.limits
            ),
        )
    outcomes = await service.inject(sender, addressed.entries, request.state.epoch)
    return addressed.outcomes_of_uids(outcomes)


async def _inject_one(
    service: Service, request: Request, identity: Identity, body: bytes
) -> Result:
    """Inject a single message. Raises the error of one that is rejected."""
    _take_messages(service.limiter, identity, 1)
    entries = read_entries([Raw(body)], identity.may_access, limits=service.limiter.limits)
    (outcome,) = await service.inject(_sender(request, identity), entries, request.state.epoch)
    if isinstance(outcome, Rejected):
        raise outcome.error
    return Result.of(outcome)


def _sender(request: Request, identity: Identity) -> Caller:
    """Who sends. A device may say which one it is; its token says only whose."""
    device_id = _device(request)
    if device_id is not None and identity.role is Role.SERVICE:
        raise InvalidMessage("only a device has a `device_id`", field="device_id")
    return identity.caller._replace(device_id=device_id)


def _take_messages(
    limiter: Limiter, identity: Identity, count: int
) -> tuple[int, LimitExceeded | None]:
    """How many of the messages of a caller may be stored now, and what stands against those after
    them. Raises LimitExceeded if there are none."""
    if identity.role is Role.SERVICE:
        return count, None
    taken, error = limiter.take_some(identity.uid, count)
    if error is not None and not taken:
        raise error
    return taken, error


def _take_bytes(service: Service, identity: Identity, size: int, came: int | None) -> None:
    """Take bytes of a caller's body: all, or the next ones, with which so many have come. Raises
    LimitExceeded."""
    if came is None:
        take(service, identity, bytes_per_second=size)
    elif identity.role is not Role.SERVICE:
        error = service.limiter.take_part(identity.uid, size, came)
        if error is not None:
            raise error


def _fields_of(kind: type[Struct], fields: Mapping[str, Raw]) -> Mapping[str, Raw]:
    """The fields of a request of this kind. Raises Malformed if one is unknown or missing."""
    for name in fields:
        if name not in kind.__struct_fields__:
            raise Malformed(f"unknown field `{name}`", field=name)
    for name in kind.__struct_fields__:
        if name not in fields:
            raise Malformed(f"the field `{name}` is missing", field=name)
    return fields


def _list_in(fields: Mapping[str, Raw], name: str) -> tuple[Raw, ...]:
    try:
        return decode(array_elements, fields[name])
    except Malformed as error:
        raise Malformed(f"`{name}`: {error.message}", field=name) from error


# Erase


async def delete_user(service: Service, request: Request, identity: Identity) -> Response:
    """Erase a user. An unknown one is erased as well."""
    uid = user_of(request, identity, set())
    identity.require_service("erase its user")
    erasure, pending = await service.erase(identity.caller, uid)
    return _json(EraseAnswer(uid, erasure.epoch, pending))


# Prune


async def post_prune(service: Service, request: Request, identity: Identity) -> Response:
    """Forget now what is past, of all users. Answers when it is done."""
    identity.require_service("prune")
    check_parameters(request, frozenset(), frozenset())
    asked = decode(_prune_request.decode, await _body(request) or b"{}")
    older_than = None if asked.older_than is None else duration("older_than", asked.older_than)
    return _json(PruneAnswer(*await service.prune(older_than)))


_prune_request = msgspec.json.Decoder(PruneRequest)


# Read


async def get_state(service: Service, request: Request, identity: Identity) -> Response:
    """The visible items that are asked for, all or in pages. The pages are of one instant: what
    happens between them changes none."""
    once = {"device_id", "at", "key", "limit", "order", "page"}
    uid = user_of(request, identity, once, {"prefix"})
    take(service, identity, syncs_per_second=1)
    query = _state_query(request, _prefixes(request, service.limiter))
    asked = StateRequest(uid, query, _time(request, "at"))
    start = _page_start(request, asked)
    if query.limit is None:
        return await WholeState(service, asked, start).answer()
    # A later page is of the instant of the first one, and not of `at`, which may be an offset.
    at = asked.at if start is None else None
    async with service.turn_to_read(uid):
        page = await service.node.state_machine.state_page(uid, query, at, start)
    next_page = None if page.next is None else asked.token_of(page.next)
    return _json(StateAnswer.of(page, next_page))


async def _known_before(service: Service, uid: UID) -> Time:
    """The user's epoch, for the answer of a read that follows. If the user is erased between the
    two, the answer has nothing from before, and an epoch with which nothing can be written."""
    return (await service.node.state_machine.erasure(uid)).epoch


def _state_query(request: Request, prefixes: tuple[Category, ...]) -> StateQuery:
    limit = _limit(request, MAX_STATE_ITEMS) if "limit" in request.query_params else None
    newest_first, key = _newest_first(request), _key(request)
    max_bytes = None if limit is None else STATE_BYTES
    return StateQuery(_device(request), prefixes, key, newest_first, limit, max_bytes)


def _page_start(request: Request, asked: StateRequest) -> PageStart | None:
    token = request.query_params.get("page")
    return None if token is None else asked.start_of(token)


def _newest_first(request: Request) -> bool:
    order = request.query_params.get("order", "oldest")
    if order not in ORDERS:
        raise InvalidMessage("`order` must be `oldest` or `newest`, or left out", field="order")
    return order == "newest"


def _key(request: Request) -> Key | None:
    key = request.query_params.get("key")
    if key is not None:
        check_text("key", key, MAX_KEY)
    return key


def _prefixes(request: Request, limiter: Limiter) -> tuple[Category, ...]:
    """The prefixes of categories; the empty one is that of all."""
    prefixes = tuple(request.query_params.getlist("prefix"))
    with limiter.reporting():  # each item is compared with each
        check_count("prefixes", len(prefixes), limiter.limits, "prefix")
    for prefix in filter(None, prefixes):
        check_text("prefix", prefix, MAX_CATEGORY)
    return prefixes


async def get_count(service: Service, request: Request, identity: Identity) -> Response:
    uid = user_of(request, identity, {"device_id", "by"}, {"prefix"})
    prefixes = _prefixes(request, service.limiter) or ("",)
    async with service.turn_to_read(uid):
        counts = await _counts(request, service.node.state_machine, uid, prefixes)
    return _json(CountAnswer(counts.by_prefix, counts.as_of))


async def _counts(
    request: Request, machine: StateMachineOfRecord, uid: UID, prefixes: Sequence[Category]
) -> Counts:
    device_id = _device(request)
    match request.query_params.get("by"), prefixes:
        case None, _:
            return await machine.count(uid, device_id, prefixes)
        case "segment", (prefix,):
            return await machine.count_by_segment(uid, device_id, prefix)
        case "segment", _:
            raise InvalidMessage("`by=segment` takes one `prefix`, not several", field="prefix")
        case _:
            raise InvalidMessage("`by` must be `segment`, or left out", field="by")


async def get_messages(service: Service, request: Request, identity: Identity) -> Response:
    uid = user_of(request, identity, {"since", "after", "limit", "device_id"})
    start = _start(request, service.node.clock())
    take(service, identity, syncs_per_second=1)
    limits = PageLimits(_limit(request, PAGE_ENTRIES), PAGE_BYTES)
    machine = service.node.state_machine
    epoch = await _known_before(service, uid)
    async with service.turn_to_read(uid):
        page = await machine.messages_page(uid, _device(request), start, limits)
    return _json(MessagesAnswer(page.messages, page.cursor, page.more, epoch))


def _start(request: Request, now: Time) -> Start:
    since, after = _time(request, "since"), request.query_params.get("after")
    if after is None:
        return Since(0 if since is None else max(since.after(now), 0))
    if since is not None:
        raise InvalidMessage(
            "give `after`, a cursor, or `since`, an instant, but not both", field="after"
        )
    return After(_cursor(after, "after"))


def admit_stream(service: Service, request: Request, identity: Identity) -> None:
    """Admit a request for events: raises also if there is no place for one stream more."""
    admit_request(service, request, identity)
    uid = user_of(request, identity, EVENT_PARAMETERS)
    if not service.draining:  # then it is sent to another server
        _require_place_for_stream(service, uid)


def _require_place_for_stream(service: Service, uid: UID) -> None:
    service.open_connections.require_room_for_device()
    service.limiter.require_place(uid, is_stream=True)


async def get_events(service: Service, request: Request, identity: Identity) -> ASGIApp:
    uid = user_of(request, identity, EVENT_PARAMETERS)
    if has_body(request.headers):
        raise Malformed("a request for events has no body")
    cursor = cursor_to_resume_from(request.headers, request.query_params)
    device_id = _device(request) or f"events-{new_msg_id()}"
    if service.draining:
        return only_event(GoAway(TRY_ANOTHER_AFTER_MS))
    _require_place_for_stream(service, uid)  # others may have come since the request was admitted
    take(service, identity, syncs_per_second=1)
    issued_at = identity.issued_at if identity.role is Role.DEVICE else HOLDS_FOREVER
    admission = Admission(uid, identity.accepted_until, issued_at)
    return EventStream(service, Resumption(admission, device_id, cursor, _epoch(request)))


async def get_item_history(service: Service, request: Request, identity: Identity) -> Response:
    """What became of one item, and why. The user's own devices see no names of services."""
    uid, msg_id = user_of(request, identity, set()), request.path_params["msg_id"]
    check_text("msg_id", msg_id, MAX_MSG_ID)
    history = await service.node.state_machine.item_history(uid, msg_id)
    return _json(history if identity.role is Role.SERVICE else history.without_services())


async def get_limits(service: Service, request: Request, identity: Identity) -> Response:
    """What this server accepts, as it tells devices in their welcome."""
    check_parameters(request, frozenset(), frozenset())
    return _json(service.limiter.limits)


# Health


async def get_health(service: Service, request: Request) -> Response:
    """Liveness: the process responds."""
    return Response("alive\n", media_type="text/plain")


async def get_ready(service: Service, request: Request) -> Response:
    """Readiness: whether this server can do its work, and no word more. Many callers cost no more
    than one."""
    excluded = _excluded(request)
    await service.readiness.check_unless_fresh()
    ready = not service.readiness.problems(excluded)
    return Response(
        "ready\n" if ready else "not ready\n",
        HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE,
        media_type="text/plain",
    )


async def get_readiness(service: Service, request: Request) -> Response:
    """Readiness as found out now, with the problems: for operators."""
    excluded = _excluded(request)
    await service.readiness.check()
    problems = service.readiness.problems(excluded)
    if problems:
        return problem(Unavailable("; ".join(problems)), problems=problems)
    return _json(ReadyAnswer(True, tuple(service.readiness.all_problems())))


def _excluded(request: Request) -> list[str]:
    """The parts whose problems do not count.

    With `exclude=pubsub` the server stays ready while the pub/sub is down: devices then receive
    messages from other servers a few seconds late, and none is lost. A load balancer should use
    this, so that it does not remove all servers when the pub/sub fails.
    """
    check_parameters(request, frozenset(), {"exclude"})
    excluded: list[str] = request.query_params.getlist("exclude")
    for part in excluded:
        if part not in PARTS:
            raise InvalidMessage(f"`exclude` must be one of {', '.join(PARTS)}", field="exclude")
    return excluded


async def get_metrics(service: Service, request: Request) -> Response:
    page = await service.metrics_page()
    return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")


# Endpoints and errors


def admit_request(service: Service, request: Request, identity: Identity) -> None:
    """Raise LimitExceeded if this request is one too many of the caller's."""
    is_service = identity.role is Role.SERVICE
    error = service.limiter.take_request(identity.uid, is_service=is_service)
    if error is not None:
        raise error


def authenticated_endpoint(
    service: Service,
    operation: Operation,
    admit: Admit = admit_request,
    refuse: Callable[[GregorError], Response] = problem,
) -> Endpoint:
    """An endpoint that authenticates the caller, admits the request before anything is read for it,
    and reports errors: as problem documents, unless it is told otherwise. `request.state.epoch` is
    the epoch with which the caller may write."""

    async def respond(request: Request) -> ASGIApp:
        try:
            identity = await service.identify(_token(request))
            admit(service, request, identity)
            request.state.epoch = await service.current_epoch(identity, _epoch(request))
            return await operation(service, request, identity)
        except GregorError as error:
            if isinstance(error, LimitExceeded | Unauthenticated):
                # Who takes no notice, and asks again in a loop, would take the server's whole time.
                await asyncio.sleep(PAUSE_SECONDS)
            return refuse(error.as_value())
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)  # counted, and never sent

    return respond


def take(service: Service, identity: Identity, **amounts: int) -> None:
    """Take so much of the rates of the caller's user. Raises LimitExceeded if it is used up. A
    service has none of these."""
    if identity.role is Role.SERVICE:
        return
    error = service.limiter.take(identity.uid, **amounts)
    if error is not None:
        raise error


def public_endpoint(service: Service, operation: PublicOperation) -> Endpoint:
    """An endpoint that needs no token."""

    async def respond(request: Request) -> ASGIApp:
        try:
            return await operation(service, request)
        except GregorError as error:
            return problem(error)

    return respond


async def on_http_exception(request: Request, exception: Exception) -> Response:
    """The router's errors (404 and 405) as problem documents."""
    assert isinstance(exception, HTTPException)
    path = request.scope["path"]  # not of `request.url`, which also needs a Host that is one
    if exception.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error = MethodNotAllowed(f"{path} does not support {request.method}")
        return problem(error, exception.headers)
    return problem(NotFound(f"no resource at {path}"))


async def on_exception(request: Request, exception: Exception) -> Response:
    """An unexpected exception: a bug in Gregor. Starlette raises it again, so it is logged."""
    return problem(GregorError("internal error; the server's log has the traceback"))


def _token(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _epoch(request: Request) -> Time | None:
    """The epoch that the caller knows. Raises Malformed or InvalidMessage if it is none."""
    in_header, parameter = request.headers.getlist(EPOCH_HEADER), request.query_params.get("epoch")
    if in_header and not (len(in_header) == 1 and is_cursor(in_header[0])):
        raise Malformed(f"{EPOCH_HEADER} must be one ctime, an integer", field=EPOCH_HEADER)
    if in_header:
        return int(in_header[0])
    return None if parameter is None else _cursor(parameter, "epoch")


def user_of(
    request: Request, identity: Identity, once: Set[str], repeatable: Set[str] = frozenset()
) -> UID:
    """The user in the path. Raises InvalidMessage if a parameter is not one of these."""
    uid: UID = request.path_params["uid"]
    _check_utf8("uid", unquote_to_bytes(request.scope.get("raw_path") or b""))
    check_text("uid", uid, 128)
    check_id("uid", uid)
    identity.require_access(uid)
    check_parameters(request, once, repeatable)
    return uid


def check_parameters(request: Request, once: Set[str], repeatable: Set[str]) -> None:
    query: bytes = request.scope["query_string"]
    names = set[str]()
    for parameter in query.decode("latin-1").split("&"):  # the first one that is wrong is the last
        for name, value in parse_qsl(parameter, True, encoding="latin-1"):
            _check_utf8(name, value.encode("latin-1"))
            if name not in once | repeatable:
                allowed = ", ".join(sorted(once | repeatable)) or "none"
                message = f"unknown parameter `{name}`; allowed are {allowed}"
                raise InvalidMessage(message, field=name)
            if name in names and name not in repeatable:
                raise InvalidMessage(f"give `{name}` once, not several times", field=name)
            names.add(name)


def _check_utf8(name: str, value: bytes) -> None:
    """Raise InvalidMessage unless it is UTF-8. (Servers replace what is not, and so would answer
    about another user.)"""
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"`{name}` is not UTF-8", field=name) from error


def _device(request: Request) -> DeviceID | None:
    device_id = request.query_params.get("device_id")
    if device_id is not None:
        check_text("device_id", device_id, 128)
        check_id("device_id", device_id)
    return device_id


def _cursor(text: str, name: str) -> Time:
    if not is_cursor(text):
        raise InvalidMessage(f"`{name}` must be a ctime, which is an integer", field=name)
    return int(text)


def _limit(request: Request, largest: int) -> int:
    text = request.query_params.get("limit", str(largest))
    if re.fullmatch("[0-9]{1,9}", text) is None or not 1 <= int(text) <= largest:
        raise InvalidMessage(f"`limit` is a number from 1 to {largest}", field="limit")
    return int(text)


def _time(request: Request, name: str) -> TimeOrOffset | None:
    return query_time(name, request.query_params.get(name))


async def _body(
    request: Request, take: Callable[[int, int | None], None] = lambda size, came: None
) -> bytes:
    """The body. `take` may refuse bytes: if the client says how many there are, all at once before
    they are read, and otherwise as they come, with how many have come."""
    length = request.headers.get("content-length", "")
    announced = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    if announced is not None:
        _check_size(announced)
        take(announced, None)
    chunks, size = list[bytes](), 0
    async for chunk in request.stream():
        size += len(chunk)
        _check_size(size)
        if announced is None:
            take(len(chunk), size)
        chunks.append(chunk)
    return b"".join(chunks)


def has_body(headers: Headers) -> bool:
    """Whether a body comes with the head of a request."""
    return headers.get("content-length", "0").strip("0") != "" or "transfer-encoding" in headers


def _check_size(body: int) -> None:
    if body > MAX_REQUEST:
        raise TooLarge(f"a request has at most {MAX_REQUEST} bytes; send several requests")


def _json(answer: Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
