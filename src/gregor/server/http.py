"""The HTTP API: inject messages, read states and erase users, one request at a time."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Set
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from msgspec import Raw, Struct
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
    Message,
    new_msg_id,
)
from gregor.core.state_page import PageStart, StateQuery
from gregor.core.sync import After, PageLimits, Since, Start
from gregor.errors import (
    GregorError,
    InvalidMessage,
    Malformed,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unavailable,
)
from gregor.interfaces import HOLDS_FOREVER, Caller, Rejected
from gregor.node.conversation import Admission, Resumption
from gregor.protocol.answers import (
    CountAnswer,
    EraseAnswer,
    MessagesAnswer,
    PruneAnswer,
    ReadyAnswer,
    Results,
    StateAnswer,
)
from gregor.protocol.entries import Addressed, read_addressed, read_entries
from gregor.protocol.frames import PAGE_BYTES, PAGE_ENTRIES, GoAway, Result, decode
from gregor.protocol.json_parts import array_elements, object_members
from gregor.protocol.requests import (
    EPOCH_HEADER,
    MAX_PREFIXES,
    MAX_REQUEST,
    MAX_STATE_ITEMS,
    MAX_USERS,
    ORDERS,
    BatchRequest,
    MultiUserRequest,
    PruneRequest,
)
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

CLIENT_GONE = 499  # as nginx counts a client that closed its connection before it was answered

Operation: TypeAlias = Callable[[Service, Request, Identity], Awaitable[ASGIApp]]
PublicOperation: TypeAlias = Callable[[Service, Request], Awaitable[ASGIApp]]
Endpoint: TypeAlias = Callable[[Request], Awaitable[ASGIApp]]


# Inject


async def post_messages(service: Service, request: Request, identity: Identity) -> Response:
    """Inject one message, a batch of messages, or one message for many users."""
    check_parameters(request, {"device_id"}, frozenset())
    body = await _body(request)
    fields = decode(object_members, body)
    sender, epoch = _sender(request, identity), request.state.epoch
    if "messages" in fields:
        entries = _read_batch(_fields_of(BatchRequest, fields), identity)
        outcomes = await service.inject(sender, entries, epoch)
    elif "uids" in fields:
        addressed = _read_multi_user(_fields_of(MultiUserRequest, fields), identity)
        outcomes = await service.inject(sender, addressed.entries, epoch)
        outcomes = addressed.outcomes_of_uids(outcomes)
    else:
        return _json(Results((await _inject_one(service, request, identity, body),)))
    return _json(Results(tuple(map(Result.of, outcomes))))


async def _inject_one(
    service: Service, request: Request, identity: Identity, body: bytes
) -> Result:
    """Inject a single message. Raises the error of one that is rejected."""
    entries = read_entries([Raw(body)], identity.may_access)
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


def _read_batch(fields: Mapping[str, Raw], identity: Identity) -> list[Message | Rejected]:
    messages = _list_in(fields, "messages")
    if not 1 <= len(messages) <= MAX_BATCH:
        raise TooLarge(
            f"`messages` takes 1 to {MAX_BATCH} messages, not {len(messages)}", field="messages"
        )
    return read_entries(messages, identity.may_access)


def _read_multi_user(fields: Mapping[str, Raw], identity: Identity) -> Addressed:
    uids = _list_in(fields, "uids")
    if not 1 <= len(uids) <= MAX_USERS:
        raise TooLarge(f"`uids` takes 1 to {MAX_USERS} users, not {len(uids)}", field="uids")
    return read_addressed(fields["message"], uids, identity.may_access)


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
    asked = StateRequest(uid, _state_query(request), _time(request, "at"))
    start = _page_start(request, asked)
    epoch = await _known_before(service, uid)
    # A later page is of the instant of the first one, and not of `at`, which may be an offset.
    at = asked.at if start is None else None
    page = await service.node.state_machine.state_page(uid, asked.query, at, start)
    next_page = None if page.next is None else asked.token_of(page.next)
    return _json(StateAnswer(page.items, page.as_of, page.hash, page.cursor, epoch, next_page))


async def _known_before(service: Service, uid: UID) -> Time:
    """The user's epoch, for the answer of a read that follows. If the user is erased between the
    two, the answer has nothing from before, and an epoch with which nothing can be written."""
    return (await service.node.state_machine.erasure(uid)).epoch


def _state_query(request: Request) -> StateQuery:
    prefixes = _prefixes(request)
    if len(prefixes) > MAX_PREFIXES:  # each item is compared with each
        raise InvalidMessage(
            f"give at most {MAX_PREFIXES} `prefix`, not {len(prefixes)}", field="prefix"
        )
    limit = _limit(request, MAX_STATE_ITEMS) if "limit" in request.query_params else None
    return StateQuery(_device(request), prefixes, _key(request), _newest_first(request), limit)


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


def _prefixes(request: Request) -> tuple[Category, ...]:
    """The prefixes of categories; the empty one is that of all."""
    prefixes = tuple(request.query_params.getlist("prefix"))
    for prefix in filter(None, prefixes):
        check_text("prefix", prefix, MAX_CATEGORY)
    return prefixes


async def get_count(service: Service, request: Request, identity: Identity) -> Response:
    uid = user_of(request, identity, {"device_id", "by"}, {"prefix"})
    prefixes = _prefixes(request) or ("",)
    machine, device_id = service.node.state_machine, _device(request)
    match request.query_params.get("by"), prefixes:
        case None, _:
            counts = await machine.count(uid, device_id, prefixes)
        case "segment", (prefix,):
            counts = await machine.count_by_segment(uid, device_id, prefix)
        case "segment", _:
            raise InvalidMessage("`by=segment` takes one `prefix`, not several", field="prefix")
        case _:
            raise InvalidMessage("`by` must be `segment`, or left out", field="by")
    return _json(CountAnswer(counts.by_prefix, counts.as_of))


async def get_messages(service: Service, request: Request, identity: Identity) -> Response:
    uid = user_of(request, identity, {"since", "after", "limit", "device_id"})
    start = _start(request, service.node.clock())
    limits = PageLimits(_limit(request, PAGE_ENTRIES), PAGE_BYTES)
    machine = service.node.state_machine
    epoch = await _known_before(service, uid)
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


async def get_events(service: Service, request: Request, identity: Identity) -> ASGIApp:
    uid = user_of(request, identity, {"device_id", "cursor", "epoch"})
    cursor = cursor_to_resume_from(request.headers, request.query_params)
    device_id = _device(request) or f"events-{new_msg_id()}"
    if service.draining:
        return only_event(GoAway(TRY_ANOTHER_AFTER_MS))
    service.descriptors.require_one_for_device()
    issued_at = identity.issued_at if identity.role is Role.DEVICE else HOLDS_FOREVER
    admission = Admission(uid, identity.accepted_until, issued_at)
    return EventStream(service, Resumption(admission, device_id, cursor, _epoch(request)))


async def get_item_history(service: Service, request: Request, identity: Identity) -> Response:
    """What became of one item, and why. The user's own devices see no names of services."""
    uid, msg_id = user_of(request, identity, set()), request.path_params["msg_id"]
    check_text("msg_id", msg_id, MAX_MSG_ID)
    history = await service.node.state_machine.item_history(uid, msg_id)
    return _json(history if identity.role is Role.SERVICE else history.without_services())


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
    check_parameters(request, frozenset(), {"exclude"})
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


def authenticated_endpoint(
    service: Service, operation: Operation, refuse: Callable[[GregorError], Response] = problem
) -> Endpoint:
    """An endpoint that authenticates the caller, and reports errors: as problem documents, unless
    it is told otherwise. `request.state.epoch` is the epoch with which the caller may write."""

    async def respond(request: Request) -> ASGIApp:
        try:
            identity = await service.identify(_token(request))
            request.state.epoch = await service.current_epoch(identity, _epoch(request))
            return await operation(service, request, identity)
        except GregorError as error:
            return refuse(error)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)  # counted, and never sent

    return respond


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


def _epoch(request: Request) -> Time | None:
    """The epoch that the caller knows. Raises Malformed or InvalidMessage if it is none."""
    in_header, parameter = request.headers.getlist(EPOCH_HEADER), request.query_params.get("epoch")
    if in_header and not (len(in_header) == 1 and is_cursor(in_header[0])):
        raise Malformed(f"{EPOCH_HEADER} must be one ctime, an integer", field=EPOCH_HEADER)
    if in_header:
        return int(in_header[0])
    return None if parameter is None else _cursor(parameter, "epoch")


def user_of(
    request: Request, identity: Identity, once: set[str], repeatable: Set[str] = frozenset()
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
    names = Counter[str]()
    for name, value in parse_qsl(query.decode("latin-1"), True, encoding="latin-1"):
        _check_utf8(name, value.encode("latin-1"))
        names[name] += 1
    for name, times in names.items():
        if name not in once | repeatable:
            allowed = ", ".join(sorted(once | repeatable)) or "none"
            raise InvalidMessage(f"unknown parameter `{name}`; allowed are {allowed}", field=name)
        if times > 1 and name not in repeatable:
            raise InvalidMessage(f"give `{name}` once, not {times} times", field=name)


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
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= largest):
        raise InvalidMessage(f"`limit` is a number from 1 to {largest}", field="limit")
    return int(text)


def _time(request: Request, name: str) -> TimeOrOffset | None:
    return query_time(name, request.query_params.get(name))


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST:
            raise TooLarge(f"a request has at most {MAX_REQUEST} bytes; send several requests")
    return bytes(body)


def _json(answer: Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
