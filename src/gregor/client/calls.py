"""The HTTP calls of a producer: what is sent, what an answer means, and when to try again.

Pure: a producer takes a Call, makes the requests, and asks `Attempts` after each what follows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Raw, Struct

from gregor.backoff import Backoff, retry_after
from gregor.client.outside import described
from gregor.client.snooze import snoozed
from gregor.core import arguments
from gregor.core.admission import check_type
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.item_history import ItemHistory
from gregor.core.message import (
    MAX_BATCH,
    MAX_CATEGORY,
    MAX_DEVICE_ID,
    MAX_KEY,
    MAX_MSG_ID,
    MAX_UID,
    UID,
    AnyID,
    Category,
    DeviceID,
    InBandMessage,
    Key,
    Message,
    MsgID,
    When,
    as_message,
)
from gregor.core.state import Item
from gregor.errors import (
    Action,
    GregorError,
    InvalidMessage,
    LimitExceeded,
    SetupError,
    Unavailable,
    error_from_code,
)
from gregor.protocol.answers import (
    CountAnswer,
    EraseAnswer,
    MessagesAnswer,
    ProblemDocument,
    Results,
    StateAnswer,
)
from gregor.protocol.frames import MAX_TOKEN, Problem, Result
from gregor.protocol.requests import (
    MAX_REQUEST,
    MAX_USERS,
    ORDERS,
    BatchRequest,
    MultiUserRequest,
    Order,
)

MAX_ATTEMPTS = 6
BACKOFF = Backoff(0.5, 10.0)
RETRYABLE_STATUSES = (429, 500, 502, 503, 504)
NOT_PROCESSED_STATUSES = (429, 503)  # the server has certainly done nothing
MAX_PAGE_TOKEN = 1_000  # no server gives a longer one
EMPTY_BATCH_BYTES = len(msgspec.json.encode(BatchRequest(())))

T = TypeVar("T")


# Shorter than servers keep an idle connection (uvicorn: 5 s, `gregor serve`: 75 s), because a
# request on a connection that is being closed may have been processed or not.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)


class UnexpectedAnswer(GregorError):
    """The answer is not that of a Gregor server. Check the URL."""

    code, action = "unexpected", Action.STOP


class MismatchedAnswer(Unavailable):
    """The answer is damaged, or is that to another request, so it is unknown what became of this
    one. Retry."""


class Call(Struct, Generic[T], frozen=True):
    """One request, and how the contents of its answer are read. One that is not `idempotent` is
    retried only if the server has certainly not processed it."""

    method: str
    path: str
    read: Callable[[bytes], T]
    parameters: Mapping[str, str | Sequence[str]] = {}
    content: bytes | None = None
    idempotent: bool = True

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        headers = {} if self.content is None else {"Content-Type": "application/json"}
        return http.build_request(
            self.method, self.path, params=self.parameters, content=self.content, headers=headers
        )


# Inject


class _ToSend(NamedTuple):
    """A message, with its place among all that are to be sent, and its JSON."""

    place: int
    message: Message
    json: Raw


def inject(message: Message) -> Call[Results]:
    return _post(msgspec.json.encode(as_message("message", message)), [_sent(message)])


class Batches(ABC):
    """Many messages, in as many requests as they need, in order: make each `next_call`, and say
    what its answer was. Requests become smaller when a server says that they have too much at
    once."""

    @abstractmethod
    def next_call(self) -> Call[Results] | None:
        """The next request; None: there is none."""

    @abstractmethod
    def answered(self, answer: Results) -> None:
        """The last request has these results."""

    @abstractmethod
    def refused(self, error: LimitExceeded) -> None:
        """The last request was refused with this error. If it had more at once than its sender is
        ever allowed, the same messages follow in smaller requests; otherwise it is raised."""

    @abstractmethod
    def results(self) -> list[Result]:
        """The result of each message, when no request is left."""


class MessageBatches(Batches):
    """Different messages, which are all checked at the beginning.

    Nothing of a user is sent past a message that may be retried: later requests leave this user's
    messages out. Other users do not wait for it, because order is only that of one user."""

    def __init__(self, messages: Iterable[Message]) -> None:
        given = arguments.many("messages", messages)
        self._messages = list(map(partial(as_message, "messages"), given))
        self._next = 0  # the place of the first message that no request has taken
        self._batch: Sequence[_ToSend] = ()  # of the last request
        self._most, self._most_bytes = MAX_BATCH, MAX_REQUEST
        self._results: dict[int, Result] = {}  # by the places of the messages
        self._waiting: dict[UID, Problem] = {}  # why, of the users who are left out

    def next_call(self) -> Call[Results] | None:
        self._batch = self._next_batch()
        return _post_batch(self._batch) if self._batch else None

    def answered(self, answer: Results) -> None:
        for (place, message, _), result in zip(self._batch, answer.results, strict=True):
            self._results[place] = result
            if result.error is not None and result.should_retry:
                self._waiting.setdefault(message.uid, result.error)
        self._next = self._batch[-1].place + 1

    def refused(self, error: LimitExceeded) -> None:
        if (error.action, error.limit) == (Action.STOP, "bytes_per_second") and self._batch[1:]:
            sent = sum(len(memoryview(encoded.json)) for encoded in self._batch)
            self._most_bytes = min(error.maximum, sent)
        else:
            self._most = _fewer(error, ("messages_per_second",), len(self._batch))

    def results(self) -> list[Result]:
        """Those that were not sent are rejected with the error of the message that they wait
        for."""
        return [
            self._results.get(place) or self._not_sent(message)
            for place, message in enumerate(self._messages)
        ]

    def _next_batch(self) -> Sequence[_ToSend]:
        """As many messages as fit in a request, at least one."""
        batch: list[_ToSend] = []
        size = EMPTY_BATCH_BYTES
        for place in range(self._next, len(self._messages)):
            message = self._messages[place]
            if message.uid in self._waiting:
                continue
            encoded = msgspec.json.encode(message)
            size += len(encoded) + len(",")
            if batch and (len(batch) == self._most or size > self._most_bytes):
                break
            batch.append(_ToSend(place, message, Raw(encoded)))
        return batch

    def _not_sent(self, message: Message) -> Result:
        uid, msg_id = _sent(message)
        return Result("rejected", uid, msg_id, error=self._waiting[uid])


class UserBatches(Batches):
    """One message for many users, who are all checked at the beginning."""

    def __init__(self, uids: Iterable[AnyID], message: Message) -> None:
        self._sent = _sent(as_message("message", message))
        self._json = _without_uid(message)
        self._uids = [
            arguments.identifier("uids", id_, MAX_UID) for id_ in arguments.many("uids", uids)
        ]
        self._most = MAX_USERS
        self._results: list[Result] = []

    def next_call(self) -> Call[Results] | None:
        batch = self._next_batch()
        if not batch:
            return None
        contents = MultiUserRequest(tuple(batch), self._json)
        return _post(msgspec.json.encode(contents), [self._sent._replace(uid=uid) for uid in batch])

    def answered(self, answer: Results) -> None:
        self._results += answer.results

    def refused(self, error: LimitExceeded) -> None:
        self._most = _fewer(error, ("uids", "messages_per_second"), len(self._next_batch()))

    def results(self) -> list[Result]:
        return self._results

    def _next_batch(self) -> Sequence[UID]:
        start = len(self._results)
        return self._uids[start : start + self._most]


def _fewer(error: LimitExceeded, limits: Collection[str], sent: int) -> int:
    """How many of those that were sent may be sent at once. Raises the error if it does not say
    that fewer may."""
    if error.action is Action.STOP and error.limit in limits and 0 < error.maximum < sent:
        return error.maximum
    raise error


def inject_together(messages: Sequence[Message]) -> Call[Results]:
    """One call with a few messages for one user."""
    call = MessageBatches(messages).next_call()
    assert call is not None
    return call


def first_result(results: Results) -> Result:
    """The result of the first message, or of the only one. Raises the error of the first that is
    rejected."""
    for result in results.results:
        if (error := result.error) is not None:
            raise error.error()
    return results.results[0]


class _Sent(NamedTuple):
    """What the result of a message must name; an out-of-band message has no msg_id."""

    uid: UID
    msg_id: MsgID | None


def _sent(message: Message) -> _Sent:
    return _Sent(message.uid, message.msg_id if isinstance(message, InBandMessage) else None)


def _without_uid(message: Message) -> Raw:
    fields = msgspec.json.decode(msgspec.json.encode(message), type=dict[str, Raw])
    del fields["uid"]
    return Raw(msgspec.json.encode(fields))


def _post_batch(batch: Sequence[_ToSend]) -> Call[Results]:
    contents = BatchRequest(tuple(encoded.json for encoded in batch))
    return _post(msgspec.json.encode(contents), [_sent(encoded.message) for encoded in batch])


def _post(content: bytes, sent: Sequence[_Sent]) -> Call[Results]:
    idempotent = all(message.msg_id is not None for message in sent)
    read = partial(_read_results, sent)
    return Call("POST", "/v1/messages", read, content=content, idempotent=idempotent)


def _read_results(sent: Sequence[_Sent], content: bytes) -> Results:
    answer = _results.decode(content)
    _require(len(answer.results) == len(sent))
    _require(all(map(_is_result_of, sent, answer.results)))
    return answer


def _is_result_of(sent: _Sent, result: Result) -> bool:
    match result.status:
        case "stored" | "duplicate":
            named = sent.msg_id is not None and result.ctime is not None
            return named and (result.uid, result.msg_id) == sent
        case "relayed":
            return sent.msg_id is None and result.uid == sent.uid
        case "rejected":  # one that the server could not read has no ids
            named = result.uid in (sent.uid, None) and result.msg_id in (sent.msg_id, None)
            return named and result.error is not None


def _require(matching: bool) -> None:
    if not matching:
        raise MismatchedAnswer("the server's answer is that to another request")


# Erase


def erase(uid: AnyID) -> Call[EraseAnswer]:
    return Call("DELETE", _address(uid), partial(_read_erased, _uid(uid)))


def _read_erased(uid: UID, content: bytes) -> EraseAnswer:
    answer = _erased.decode(content)
    _require(answer.uid == uid)
    return answer


# Read


def item_history(uid: AnyID, msg_id: AnyID) -> Call[ItemHistory]:
    id_ = arguments.identifier("msg_id", msg_id, MAX_MSG_ID)
    path = _user(uid, f"items/{quote(id_, safe='')}/history")
    return Call("GET", path, partial(_read_history, _uid(uid), id_))


def _read_history(uid: UID, msg_id: MsgID, content: bytes) -> ItemHistory:
    answer = _history.decode(content)
    _require((answer.uid, answer.msg_id) == (uid, msg_id))
    return answer


def state(
    uid: AnyID,
    device_id: AnyID | None,
    *,
    at: When = None,
    prefixes: Iterable[Category] = (),
    order: Order = "oldest",
    limit: int | None = None,
    page: str | None = None,
) -> Call[StateAnswer]:
    path = _user(uid, "state")
    given = _given(
        device_id=_device(device_id),
        at=_text("at", at),
        prefix=tuple(_prefix(p, "prefixes") for p in arguments.many("prefixes", prefixes)),
        order=_order(order),
        limit=_limit(limit),
        page=None if page is None else arguments.text("page", page, MAX_PAGE_TOKEN),
    )
    return Call("GET", path, _state.decode, given)


def next_page(call: Call[StateAnswer], answer: StateAnswer) -> Call[StateAnswer] | None:
    """The call for the page after this answer; None if it was the last."""
    if answer.next_page is None:
        return None
    return msgspec.structs.replace(call, parameters={**call.parameters, "page": answer.next_page})


def item(uid: AnyID, key: Key, device_id: AnyID | None) -> Call[Item | None]:
    """The visible item of this key: of two, that of the device's own scope. Without a device it is
    the unscoped one."""
    path, device = _user(uid, "state"), _device(device_id)
    given = _given(device_id=device, key=_key(key))
    return Call("GET", path, partial(_read_item, key, device), given)


def snooze(
    uid: AnyID, msg_id: AnyID, until: When
) -> tuple[Call[StateAnswer], Callable[[StateAnswer], Message]]:
    """The call that finds the item, and what makes the message of its answer. Raises InvalidMessage
    if there is no such item, or if `until` is no time at which it can begin."""
    instant = arguments.time("until", until)
    if instant is None:
        raise InvalidMessage("`until` must be a time or a duration, not None", field="until")
    id_ = arguments.known_id("msg_id", msg_id, MAX_MSG_ID)
    return state(uid, None), partial(_snoozed, _uid(uid), id_, instant)


def _snoozed(uid: UID, msg_id: MsgID, until: TimeOrOffset, answer: StateAnswer) -> Message:
    for item in answer.items:
        if item.msg_id == msg_id:
            return snoozed(uid, item, until, answer.as_of)
    raise InvalidMessage(
        "no visible item has this `msg_id`: it is dismissed, has expired, or has not begun",
        field="msg_id",
    )


def count(uid: AnyID, prefixes: Sequence[Category], device_id: AnyID | None) -> Call[CountAnswer]:
    path = _user(uid, "count")
    given = _given(
        device_id=_device(device_id), prefix=tuple(_prefix(p, "prefixes") for p in prefixes)
    )
    return Call("GET", path, partial(_read_count, prefixes or ("",)), given)


def count_by_segment(uid: AnyID, prefix: Category, device_id: AnyID | None) -> Call[CountAnswer]:
    path = _user(uid, "count")
    given = _given(device_id=_device(device_id), prefix=_prefix(prefix), by="segment")
    return Call("GET", path, partial(_read_segments, prefix), given)


def messages(
    uid: AnyID, device_id: AnyID | None, since: When, after: Time | None, limit: int | None
) -> Call[MessagesAnswer]:
    if since is not None and after is not None:
        raise InvalidMessage(
            "give `after`, a cursor, or `since`, an instant, but not both", field="after"
        )
    path = _user(uid, "messages")
    given = _given(
        device_id=_device(device_id),
        since=_text("since", since),
        after=None if after is None else str(arguments.cursor("after", after)),
        limit=_limit(limit),
    )
    return Call("GET", path, partial(_read_messages, _uid(uid)), given)


def _read_item(key: Key, device_id: DeviceID | None, content: bytes) -> Item | None:
    answer = _state.decode(content)
    _require(all(item.key == key for item in answer.items))
    by_scope = {item.device_id: item for item in answer.items}
    return by_scope.get(device_id) or by_scope.get(None)


def _read_count(prefixes: Sequence[Category], content: bytes) -> CountAnswer:
    answer = _count.decode(content)
    _require(answer.counts.keys() == set(prefixes))
    return answer


def _read_segments(prefix: Category, content: bytes) -> CountAnswer:
    answer = _count.decode(content)
    _require(all(category.startswith(prefix) for category in answer.counts))
    return answer


def _read_messages(uid: UID, content: bytes) -> MessagesAnswer:
    answer = _messages.decode(content)
    _require(all(message.uid == uid for message in answer.messages))
    return answer


def _user(uid: AnyID, resource: str) -> str:
    return f"{_address(uid)}/{resource}"


def _address(uid: AnyID) -> str:
    return f"/v1/users/{quote(_uid(uid), safe='')}"


def _uid(uid: AnyID) -> UID:
    return arguments.identifier("uid", uid, MAX_UID)


def _device(device_id: AnyID | None) -> DeviceID | None:
    return arguments.optional_identifier("device_id", device_id, MAX_DEVICE_ID)


def _prefix(prefix: object, name: str = "prefix") -> Category:
    return arguments.prefix(name, prefix, MAX_CATEGORY)


def _key(key: Key) -> Key:
    return arguments.text("key", key, MAX_KEY)


def _order(order: Order) -> Order | None:
    """What the request says; None for the order that an answer has anyway."""
    if order not in ORDERS:
        raise InvalidMessage("`order` must be 'oldest' or 'newest'", field="order")
    return None if order == "oldest" else order


def _limit(limit: int | None) -> str | None:
    return None if limit is None else str(arguments.positive_number("limit", limit, int))


def _given(**parameters: str | Sequence[str] | None) -> dict[str, str | Sequence[str]]:
    return {name: value for name, value in parameters.items() if value not in (None, ())}


def _text(name: str, when: When) -> str | None:
    instant = arguments.query_time(name, when)
    return None if instant is None else instant.text


_results = msgspec.json.Decoder(Results)
_state = msgspec.json.Decoder(StateAnswer)
_count = msgspec.json.Decoder(CountAnswer)
_messages = msgspec.json.Decoder(MessagesAnswer)
_history = msgspec.json.Decoder(ItemHistory)
_erased = msgspec.json.Decoder(EraseAnswer)


# Attempts and their answers


class Pause(NamedTuple):
    """The call is to be tried again, after so many seconds."""

    seconds: float


class FailedAttempt(NamedTuple):
    """An attempt that may be retried, after `delay` seconds or later. `not_processed`: the server
    has certainly done nothing."""

    error: GregorError
    delay: float = 0.0
    not_processed: bool = False
    cause: Exception | None = None


class Attempts(Generic[T]):
    """The attempts at one call so far: at most `limit`."""

    def __init__(self, call: Call[T], limit: int) -> None:
        self._call = call
        self._limit = limit
        self._made = 0

    def after(self, response: httpx.Response | Exception, random: float) -> T | Pause:
        """What follows an attempt with this response: the answer to the call, or a pause before
        the next attempt. Raises the error of an attempt that is not retried."""
        self._made += 1
        match _answer(self._call, response):
            case FailedAttempt() as failed if self._may_retry(failed.not_processed):
                return self._pause(failed.delay, random)
            case FailedAttempt() as failed:
                raise failed.error from failed.cause
            # Some users' shards did not answer, or a rate is used up. A retry is a duplicate for
            # the stored messages.
            case Results(should_retry=True) as results if self._may_retry(False):
                return self._pause(results.retry_after, random)
            case answer:
                return answer

    def _may_retry(self, not_processed: bool) -> bool:
        return self._made < self._limit and (self._call.idempotent or not_processed)

    def _pause(self, delay: float, random: float) -> Pause:
        return Pause(delay + BACKOFF.delay(self._made - 1, random))


def _answer(call: Call[T], response: httpx.Response | Exception) -> T | FailedAttempt:
    """The answer, or the error if a retry may help. Raises other errors."""
    if isinstance(response, Exception):
        is_expected = isinstance(response, httpx.RequestError) and str(response)
        reason = str(response) if is_expected else described(response)
        not_processed = isinstance(response, httpx.ConnectError | httpx.ConnectTimeout)
        return FailedAttempt(Unavailable(reason), not_processed=not_processed, cause=response)
    if response.status_code == httpx.codes.OK:
        return _read(call, response)
    error = _error_from(response)
    if response.status_code not in RETRYABLE_STATUSES:
        raise error
    not_processed = response.status_code in NOT_PROCESSED_STATUSES
    return FailedAttempt(error, retry_after(response.headers.get("Retry-After")), not_processed)


def _read(call: Call[T], response: httpx.Response) -> T | FailedAttempt:
    try:
        return call.read(response.content)
    except MismatchedAnswer as error:
        return FailedAttempt(error)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, GregorError) as error:
        return FailedAttempt(MismatchedAnswer(_not_gregor(response)), cause=error)


def _error_from(response: httpx.Response) -> GregorError:
    try:
        problem = msgspec.json.decode(response.content, type=ProblemDocument)
    except (msgspec.MsgspecError, UnicodeError):
        retryable = response.status_code in RETRYABLE_STATUSES
        return (Unavailable if retryable else UnexpectedAnswer)(_not_gregor(response))
    return error_from_code(
        problem.code,
        problem.detail,
        problem.field,
        problem.action,
        problem.epoch,
        limit=problem.limit,
        maximum=problem.maximum,
        retry_after_ms=problem.retry_after_ms,
    )


def _not_gregor(response: httpx.Response) -> str:
    status = f"{response.status_code} {response.reason_phrase}".strip()
    return f"the server answered {status}, but not as a Gregor server"


# The server


def server_url(url: str) -> httpx.URL:
    """Raises SetupError if it is not the URL of a server."""
    check_type("url", url, str)
    with suppress(httpx.InvalidURL, UnicodeError):
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            return parsed
    raise SetupError(f"{url!r} is not the URL of a server, such as http://127.0.0.1:9911")


def authorization(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not (arguments.text("token", token, MAX_TOKEN).isascii() and token.isprintable()):
        raise InvalidMessage("`token` has characters that no HTTP header takes", field="token")
    return {"Authorization": f"Bearer {token}"}
