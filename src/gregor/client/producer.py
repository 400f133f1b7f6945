"""The way in for backends: a small, blocking producer of messages, over HTTP.

Every message has its msg_id before the first attempt, so an attempt may be repeated as often as
it takes: what was stored already is answered as a duplicate, which is a success.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Self

import httpx
import msgspec
from msgspec import Struct

from gregor.core import message as making
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
from gregor.errors import GregorError, Turn, Unavailable, named
from gregor.protocol.answers import ProblemDocument, Results
from gregor.protocol.frames import Result

MAX_USERS = 10_000
MAX_REQUEST = 4 * 1024 * 1024
TRIES = 6
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
PASSING_FAILURES = (429, 500, 502, 503, 504)


class _Batch(Struct, frozen=True):
    messages: Sequence[Message]


class _ToMany(Struct, frozen=True):
    uids: Sequence[UID]
    message: Message


class _NotNow(NamedTuple):
    """An attempt that failed, and may be repeated. `untouched`: the server has done nothing."""

    error: GregorError
    retry_after: float
    untouched: bool


class Producer:
    """Injects messages, and returns when they are durable. Threads may share one.

    Connection errors and "not now" are tried again, with growing random pauses and as the server
    asks, `tries` times in all; then Unavailable is raised. Other errors are raised at once, as the
    GregorError that the server names. Use it in a `with` block, or `close` it.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 10.0,
        tries: int = TRIES,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )
        self._tries = tries
        self._sleep = sleep
        self._jitter = jitter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # One message: its result, or the error that it was rejected with

    def create(
        self,
        uid: UID,
        category: Category,
        body: JSON = None,
        *,
        dtime: When = None,
        device_id: DeviceID | None = None,
        msg_id: MsgID | None = None,
    ) -> Result:
        """Create an item."""
        return self.send_one(
            making.create(uid, category, body, dtime=dtime, device_id=device_id, msg_id=msg_id)
        )

    def dismiss(self, uid: UID, *msg_ids: MsgID, msg_id: MsgID | None = None) -> Result:
        """Dismiss items by their ids."""
        return self.send_one(making.dismiss(uid, *msg_ids, msg_id=msg_id))

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
        """Dismiss everything of a category; with `prefix` also what is below it."""
        return self.send_one(
            making.dismiss_category(
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
        dtime: When = None,
        device_id: DeviceID | None = None,
        msg_id: MsgID | None = None,
    ) -> Result:
        """Let the category hold this one value: the last write wins."""
        return self.send_one(
            making.replace(uid, category, body, dtime=dtime, device_id=device_id, msg_id=msg_id)
        )

    def out_of_band(self, uid: UID, system: System, body: JSON = None) -> Result:
        """Say something to the user's devices that are connected now. At most once: where it is
        unknown whether it went, Unavailable is raised and it is not sent again."""
        return self.send_one(making.out_of_band(uid, system, body))

    def send_one(self, message: Message) -> Result:
        """Inject a message of one's own making."""
        (result,) = self._post(message, repeatable=isinstance(message, InBandMessage))
        if result.error is not None:
            raise named(
                result.error.code, result.error.message, result.error.field, result.error.turn
            )
        return result

    # Many messages: a result for each, in order

    def send(self, messages: Iterable[Message]) -> list[Result]:
        """Inject messages, in order, in as many requests as they need. A rejected one has an
        `error` in its result, and keeps no other from being stored."""
        return [
            result
            for batch in _batches(messages)
            for result in self._post(
                _Batch(batch), repeatable=not any(isinstance(m, OutOfBandMessage) for m in batch)
            )
        ]

    def send_to(self, uids: Iterable[UID], message: Message) -> list[Result]:
        """Inject one message for each of these users, under one msg_id. Its own uid is left
        aside."""
        results: list[Result] = []
        remaining = iter(uids)
        while some := list(islice(remaining, MAX_USERS)):
            theirs = msgspec.structs.replace(message, uid=some[0])
            results += self._post(
                _ToMany(some, theirs), repeatable=isinstance(message, InBandMessage)
            )
        return results

    # Asking until there is an answer

    def _post(self, request: Struct, *, repeatable: bool) -> Sequence[Result]:
        content = msgspec.json.encode(request)
        for attempt in range(1, self._tries + 1):
            answer = self._attempt(content)
            if not isinstance(answer, _NotNow):
                # Some may belong to a shard that does not answer; whoever was taken stays so.
                if attempt == self._tries or not (
                    repeatable and any(result.to_repeat for result in answer)
                ):
                    return answer
                answer = _NotNow(Unavailable("not all was taken"), 0.0, False)
            if attempt == self._tries or not (repeatable or answer.untouched):
                raise answer.error
            ceiling = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0**attempt)
            self._sleep(answer.retry_after + self._jitter() * ceiling)
        raise AssertionError("a producer tries at least once")

    def _attempt(self, content: bytes) -> "Sequence[Result] | _NotNow":
        """The results, or why there are none yet. Raises what no repetition would mend."""
        try:
            response = self._http.post(
                "/v1/messages", content=content, headers={"Content-Type": "application/json"}
            )
        except httpx.TransportError as error:
            untouched = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return _NotNow(Unavailable(str(error) or type(error).__name__), 0.0, untouched)
        if response.status_code == httpx.codes.OK:
            return msgspec.json.decode(response.content, type=Results).results
        problem = _problem(response)
        if response.status_code not in PASSING_FAILURES:
            raise problem
        untouched = response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        return _NotNow(problem, _retry_after(response), untouched)


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    batch: list[Message] = []
    size = 0
    for message in messages:
        more = len(msgspec.json.encode(message))
        if batch and (len(batch) == MAX_BATCH or size + more > MAX_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += more
    if batch:
        yield batch


def _problem(response: httpx.Response) -> GregorError:
    try:
        problem = msgspec.json.decode(response.content, type=ProblemDocument)
    except (msgspec.MsgspecError, UnicodeError):
        words = f"the server answered {response.status_code} {response.reason_phrase}"
        turn = Turn.RETRY if response.status_code in PASSING_FAILURES else Turn.STOP
        return named("unavailable" if turn is Turn.RETRY else "unexpected", words, None, turn)
    return named(problem.code, problem.detail, problem.field, problem.turn)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), 60.0) if text.isdigit() else 0.0
