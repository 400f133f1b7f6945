"""The client for backends: a small, blocking producer of messages, over HTTP.

Every in-band message has its msg_id before the first attempt, so retries are idempotent: a message
that is already stored is answered as a duplicate, which is a success.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

import httpx
import msgspec
from msgspec import Struct

from gregor.core import message as factory
from gregor.core.message import (
    JSON,
    MAX_BATCH,
    UID,
    Category,
    DeviceID,
    InBandMessage,
    Message,
    MsgID,
    OutOfBandMessage,
    System,
    When,
)
from gregor.errors import Action, GregorError, Unavailable, error_from_code
from gregor.protocol.answers import ProblemDocument, Results
from gregor.protocol.frames import Result

MAX_USERS = 10_000  # in one request
MAX_REQUEST_BYTES = 4 * 1024 * 1024
MAX_ATTEMPTS = 6
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.25, 10.0
MAX_RETRY_AFTER_SECONDS = 60.0
RETRYABLE_STATUSES = (429, 500, 502, 503, 504)


class _BatchRequest(Struct, frozen=True):
    messages: Sequence[Message]


class _MultiUserRequest(Struct, frozen=True):
    uids: Sequence[UID]
    message: Message


class _Retryable(NamedTuple):
    """An attempt that failed and may be retried, after `retry_after` seconds or later.
    `not_processed`: the server has certainly done nothing."""

    error: GregorError
    retry_after: float
    not_processed: bool


class Producer:
    """Injects messages, and returns when they are durable. Thread-safe.

    Connection errors and the statuses 429, 500, 502, 503 and 504 are retried with exponential
    backoff and the server's Retry-After, up to `max_attempts` in all; then the last error is
    raised, which is Unavailable for a connection error. A request with out-of-band messages is
    retried only if the server has not processed it. Other errors are raised at once, as the
    GregorError that the server names. `timeout` is in seconds, for each attempt. Use a Producer in
    a `with` block, or `close` it.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 10.0,
        max_attempts: int = MAX_ATTEMPTS,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._jitter = jitter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # One message: returns its result, or raises the error that it was rejected with

    def create(
        self,
        uid: UID,
        category: Category,
        body: JSON = None,
        *,
        expires: When = None,
        device_id: DeviceID | None = None,
        msg_id: MsgID | None = None,
    ) -> Result:
        """Create an item."""
        return self.send_one(
            factory.create(uid, category, body, expires=expires, device_id=device_id, msg_id=msg_id)
        )

    def dismiss(self, uid: UID, *msg_ids: MsgID, msg_id: MsgID | None = None) -> Result:
        """Dismiss items by their ids."""
        return self.send_one(factory.dismiss(uid, *msg_ids, msg_id=msg_id))

    def dismiss_category(
        self,
        uid: UID,
        category: Category,
        prefix: bool = False,
        *,
        end_time: When = None,
        skip_msg_ids: Sequence[MsgID] = (),
        msg_id: MsgID | None = None,
    ) -> Result:
        """Dismiss all items of a category; with `prefix`, of all categories that begin with it."""
        return self.send_one(
            factory.dismiss_category(
                uid,
                category,
                prefix=prefix,
                end_time=end_time,
                skip_msg_ids=skip_msg_ids,
                msg_id=msg_id,
            )
        )

    def replace(
        self,
        uid: UID,
        category: Category,
        body: JSON,
        *,
        expires: When = None,
        device_id: DeviceID | None = None,
        msg_id: MsgID | None = None,
    ) -> Result:
        """Make this the only item of its category: the last write wins."""
        return self.send_one(
            factory.replace(
                uid, category, body, expires=expires, device_id=device_id, msg_id=msg_id
            )
        )

    def out_of_band(self, uid: UID, system: System, body: JSON = None) -> Result:
        """Send an out-of-band message to the user's devices that are connected now, at most once.
        Raises Unavailable, and does not retry, if it may have been delivered."""
        return self.send_one(factory.out_of_band(uid, system, body))

    def send_one(self, message: Message) -> Result:
        """Inject a message that the caller has built. Raises the error that it is rejected with."""
        (result,) = self._post(message, idempotent=isinstance(message, InBandMessage))
        if result.error is not None:
            raise error_from_code(
                result.error.code, result.error.message, result.error.field, result.error.action
            )
        return result

    # Many messages: a result for each, in order

    def send(self, messages: Iterable[Message]) -> list[Result]:
        """Inject messages, in order, in as many requests as they need. A rejected message has an
        `error` in its result, and does not affect the others."""
        return [
            result
            for batch in _batches(messages)
            for result in self._post(
                _BatchRequest(batch),
                idempotent=not any(isinstance(m, OutOfBandMessage) for m in batch),
            )
        ]

    def send_to(self, uids: Iterable[UID], message: Message) -> list[Result]:
        """Inject one message for each of these users, under one msg_id. The uid of the message
        itself is ignored."""
        results: list[Result] = []
        remaining = iter(uids)
        while batch := list(islice(remaining, MAX_USERS)):
            # The server accepts a uid in the message only if it is the first one of `uids`.
            addressed = msgspec.structs.replace(message, uid=batch[0])
            results += self._post(
                _MultiUserRequest(batch, addressed), idempotent=isinstance(message, InBandMessage)
            )
        return results

    # Requests with retries

    def _post(self, request: Struct, *, idempotent: bool) -> Sequence[Result]:
        content = msgspec.json.encode(request)
        for attempt in range(1, self._max_attempts + 1):
            answer = self._attempt(content)
            if not isinstance(answer, _Retryable):
                # Some users' shards may not answer. A retry is a duplicate for the stored messages.
                if attempt == self._max_attempts or not (
                    idempotent and any(result.should_retry for result in answer)
                ):
                    return answer
                answer = _Retryable(Unavailable("not all messages were stored"), 0.0, False)
            if attempt == self._max_attempts or not (idempotent or answer.not_processed):
                raise answer.error
            ceiling = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2.0**attempt)
            self._sleep(answer.retry_after + self._jitter() * ceiling)
        raise AssertionError("a producer makes at least one attempt")

    def _attempt(self, content: bytes) -> "Sequence[Result] | _Retryable":
        """The results, or the error if a retry may help. Raises other errors."""
        try:
            response = self._http.post(
                "/v1/messages", content=content, headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError as failure:
            not_processed = isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout)
            return _Retryable(
                Unavailable(str(failure) or type(failure).__name__), 0.0, not_processed
            )
        if response.status_code == httpx.codes.OK:
            return msgspec.json.decode(response.content, type=Results).results
        error = _error_from(response)
        if response.status_code not in RETRYABLE_STATUSES:
            raise error
        not_processed = response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        return _Retryable(error, _retry_after_seconds(response), not_processed)


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        message_bytes = len(msgspec.json.encode(message))
        if batch and (len(batch) == MAX_BATCH or size + message_bytes > MAX_REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += message_bytes
    if batch:
        yield batch


def _error_from(response: httpx.Response) -> GregorError:
    try:
        problem = msgspec.json.decode(response.content, type=ProblemDocument)
    except (msgspec.MsgspecError, UnicodeError):
        text = f"the server answered {response.status_code} {response.reason_phrase}"
        action = Action.RETRY if response.status_code in RETRYABLE_STATUSES else Action.STOP
        return error_from_code(
            "unavailable" if action is Action.RETRY else "unexpected", text, None, action
        )
    return error_from_code(problem.code, problem.detail, problem.field, problem.action)


def _retry_after_seconds(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isdigit() else 0.0
