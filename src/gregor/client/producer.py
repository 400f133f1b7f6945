"""The clients for backends: a blocking and an asynchronous producer of messages, over HTTP.

Every in-band message has its msg_id before the first attempt, so retries are idempotent: a message
that is already stored is answered as a duplicate, which is a success.
"""

import asyncio
import random
import time
from abc import abstractmethod
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from functools import partial
from types import NoneType
from typing import Any, Generic, Self, TypeAlias, TypeVar, overload

import httpx

from gregor.client import calls
from gregor.client.calls import (
    LIMITS,
    MAX_ATTEMPTS,
    Attempts,
    Call,
    Pause,
    authorization,
    server_url,
)
from gregor.client.notifier import Notifier
from gregor.client.outside import described, random_numbers
from gregor.client.per_process import PerProcess
from gregor.core import arguments
from gregor.core import message as factory
from gregor.core.admission import check_type
from gregor.core.instant import Time
from gregor.core.item_history import ItemHistory
from gregor.core.message import (
    JSON,
    AnyID,
    Category,
    InBandMessage,
    Key,
    Message,
    System,
    When,
)
from gregor.core.state import Item
from gregor.errors import LimitExceeded, SetupError, Unavailable
from gregor.protocol.answers import CountAnswer, EraseAnswer, MessagesAnswer, StateAnswer
from gregor.protocol.frames import Result
from gregor.protocol.requests import MAX_STATE_ITEMS, Order

T = TypeVar("T")
OneResult = TypeVar("OneResult")
ManyResults = TypeVar("ManyResults")
AState = TypeVar("AState")
StatePages = TypeVar("StatePages")
AnItem = TypeVar("AnItem")
ACount = TypeVar("ACount")
SomeMessages = TypeVar("SomeMessages")
AnErase = TypeVar("AnErase")
AHistory = TypeVar("AHistory")

Awaited: TypeAlias = Coroutine[Any, Any, T]


def _check_parts(timeout: object, max_attempts: object, sleep: object, jitter: object) -> None:
    """Raise InvalidMessage for a part of the wrong type."""
    arguments.positive_number("timeout", timeout, float)
    arguments.positive_number("max_attempts", max_attempts, int)
    arguments.function("sleep", sleep)
    arguments.function("jitter", jitter)


def _made(connect: Callable[[], T]) -> T:
    """New connections. The environment has a say in them, by proxies and certificates; raises
    SetupError if it is wrong."""
    try:
        return connect()
    except Exception as error:
        raise SetupError(
            f"no HTTP connections can be made ({described(error)}); look at the environment:"
            " HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR"
        ) from error


def _require_open(http: httpx.Client | httpx.AsyncClient) -> None:
    if http.is_closed:
        raise Unavailable("the producer is closed; make a new one")


class BaseProducer(
    Notifier[OneResult],
    Generic[
        OneResult,
        ManyResults,
        AState,
        StatePages,
        AnItem,
        ACount,
        SomeMessages,
        AHistory,
        AnErase,
    ],
):
    """What a Producer and an AsyncProducer promise. The type parameters are what their methods
    return: the answer, or something to await.

    An injected message is durable when its result is returned. Connection errors and the statuses
    429, 500, 502, 503 and 504 are retried with exponential backoff and the server's Retry-After,
    up to `max_attempts` in all; then the last error is raised, which is Unavailable for a
    connection error. A request with out-of-band messages is retried only if the server has not
    processed it. An answer that cannot be read, or is not that to the request (its number of
    results, their uids and msg_ids), is retried like a connection error: what is returned as stored
    is stored. Other errors are raised at once, as the GregorError that the server names; one that
    is not a Gregor server's is an UnexpectedAnswer. `timeout` is in seconds, for each
    attempt. A `url` that is not a server's raises SetupError. Arguments are checked when they are
    given: InvalidMessage names the parameter, and nothing is sent.
    """

    # One message: returns its result, or raises the error that it was rejected with

    def create(
        self,
        uid: AnyID,
        category: Category,
        body: JSON = None,
        *,
        starts: When = None,
        expires: When = None,
        device_id: AnyID | None = None,
        msg_id: AnyID | None = None,
    ) -> OneResult:
        """Create an item. It is visible from `starts` on, and until it `expires` or is
        dismissed."""
        return self.send_one(
            factory.create(
                uid,
                category,
                body,
                starts=starts,
                expires=expires,
                device_id=device_id,
                msg_id=msg_id,
            )
        )

    def put(
        self,
        uid: AnyID,
        category: Category,
        body: JSON = None,
        *,
        key: Key | None = None,
        starts: When = None,
        expires: When = None,
        device_id: AnyID | None = None,
        msg_id: AnyID | None = None,
    ) -> OneResult:
        """Create the item of a key, which is the category unless it is given. It takes the place
        of the item that the key has, of the same scope: the last write wins."""
        return self.send_one(
            factory.put(
                uid,
                category,
                body,
                key=key,
                starts=starts,
                expires=expires,
                device_id=device_id,
                msg_id=msg_id,
            )
        )

    def snooze(self, uid: AnyID, msg_id: AnyID, until: When) -> OneResult:
        """Hide a visible item until later: a new message creates it again, as it is now, to begin
        then. The user's state is read first. An `until` that has passed, or is not before the
        expiry of the item, is refused."""
        return self.send_after(*calls.snooze(uid, msg_id, until))

    def dismiss(self, uid: AnyID, *msg_ids: AnyID, msg_id: AnyID | None = None) -> OneResult:
        """Dismiss items by their ids."""
        return self.send_one(factory.dismiss(uid, *msg_ids, msg_id=msg_id))

    def dismiss_key(
        self,
        uid: AnyID,
        *keys: Key,
        end_time: When = None,
        device_id: AnyID | None = None,
        msg_id: AnyID | None = None,
    ) -> OneResult:
        """Dismiss the items of keys, begun or not, that were created up to `end_time` (by default:
        now). With `device_id`, only those that this device sees."""
        return self.send_one(
            factory.dismiss_key(uid, *keys, end_time=end_time, device_id=device_id, msg_id=msg_id)
        )

    def dismiss_category(
        self,
        uid: AnyID,
        category: Category,
        prefix: bool = False,
        *,
        scheduled: bool = False,
        end_time: When = None,
        skip_msg_ids: Iterable[AnyID] = (),
        device_id: AnyID | None = None,
        msg_id: AnyID | None = None,
    ) -> OneResult:
        """Dismiss all items of a category that have begun; with `prefix`, of all categories that
        begin with it; with `scheduled`, also those that have not begun; with `device_id`, only
        those that this device sees."""
        return self.send_one(
            factory.dismiss_category(
                uid,
                category,
                prefix=prefix,
                scheduled=scheduled,
                end_time=end_time,
                skip_msg_ids=skip_msg_ids,
                device_id=device_id,
                msg_id=msg_id,
            )
        )

    def out_of_band(self, uid: AnyID, system: System, body: JSON = None) -> OneResult:
        """Send an out-of-band message to the user's devices that are connected now, at most once.
        Raises Unavailable, and does not retry, if it may have been delivered."""
        return self.send_one(factory.out_of_band(uid, system, body))

    @abstractmethod
    def send_one(self, message: Message) -> OneResult:
        """Inject a message that the caller has built. Raises the error that it is rejected with."""

    @abstractmethod
    def send_after(
        self, call: Call[StateAnswer], message_of: Callable[[StateAnswer], Message]
    ) -> OneResult:
        """Read a state, and inject the message that is made of it."""

    # Many messages: a result for each, in order

    @abstractmethod
    def send(self, messages: Iterable[Message]) -> ManyResults:
        """Inject messages, in order, in as many requests as they need, also with the token of a
        device, of which a server takes less at once. All are read and checked before the first is
        sent: send a stream that is long or never ends in parts. A rejected message has an `error`
        in its result, and does not affect the others, unless its result says `should_retry`: the
        user's shard did not answer, or a rate is used up, at the last attempt too. Then no later
        request has messages of that user. They are rejected with the same error: send it and them
        again, in order, before anything else of the user. Other users' messages are sent. If a
        request fails altogether, its error is raised, and those before it are stored: send the same
        messages again, which stores none of them twice."""

    @abstractmethod
    def send_to(self, uids: Iterable[AnyID], message: Message) -> ManyResults:
        """Inject one message for each of these users, under one msg_id, in as many requests as they
        need. The uid of the message itself is ignored. All uids are read and checked before the
        first request. If a request fails altogether, its error is raised, as by `send`."""

    # Reading: with `device_id`, what that device sees

    def state(
        self,
        uid: AnyID,
        device_id: AnyID | None = None,
        *,
        at: When = None,
        prefixes: Iterable[Category] = (),
        order: Order = "oldest",
        limit: int | None = None,
        page: str | None = None,
    ) -> AState:
        """The user's visible items now, or at a stated time (an offset counts from now); with
        `prefixes`, those whose category begins with one of them; with `limit`, the first so many of
        them. The same call with `page`, which is the answer's `next_page`, has the next ones, as of
        the same instant. `messages` after the answer's cursor continue the state."""
        return self.perform(
            calls.state(
                uid, device_id, at=at, prefixes=prefixes, order=order, limit=limit, page=page
            )
        )

    def state_pages(
        self,
        uid: AnyID,
        device_id: AnyID | None = None,
        *,
        at: When = None,
        prefixes: Iterable[Category] = (),
        order: Order = "oldest",
        limit: int = MAX_STATE_ITEMS,
    ) -> StatePages:
        """An iterator over the pages of a state, all as of one instant, whatever happens meanwhile:
        each item is in one of them, once. Each page is read when it is asked for."""
        arguments.positive_number("limit", limit, int)
        return self.read_pages(
            calls.state(uid, device_id, at=at, prefixes=prefixes, order=order, limit=limit)
        )

    def get(self, uid: AnyID, key: Key, device_id: AnyID | None = None) -> AnItem:
        """The visible item of a key, or None. Of two, it is that of the device's own scope; without
        a device it is the one that all devices see."""
        return self.perform(calls.item(uid, key, device_id))

    def count(self, uid: AnyID, *prefixes: Category, device_id: AnyID | None = None) -> ACount:
        """How many visible items have a category that begins with each prefix; without prefixes,
        how many there are, under the prefix ""."""
        return self.perform(calls.count(uid, prefixes, device_id))

    def count_by_segment(
        self, uid: AnyID, prefix: Category = "", *, device_id: AnyID | None = None
    ) -> ACount:
        """How many visible items there are of the categories that begin with the prefix, each cut
        before the first dot that follows it: below "inbox.", `inbox.likes.photo7` counts as
        `inbox.likes`."""
        return self.perform(calls.count_by_segment(uid, prefix, device_id))

    def messages(
        self,
        uid: AnyID,
        device_id: AnyID | None = None,
        *,
        since: When = None,
        after: Time | None = None,
        limit: int | None = None,
    ) -> SomeMessages:
        """A page of messages, at most `limit`, each reduced to what still matters: those after a
        cursor, which is exclusive, or from the instant `since` on, inclusive; by default, from the
        beginning. To go on, ask `after` the answer's cursor: at once if there are `more`, later for
        news. After a cursor that the server cannot continue, because its store is a restored
        backup, or because a replay has come behind the user's clock, raises Resync: read the state,
        and go on after its cursor."""
        return self.perform(calls.messages(uid, device_id, since, after, limit))

    def history(self, uid: AnyID, msg_id: AnyID) -> AHistory:
        """What became of an item up to now, and why: which messages made and ended it, when, by
        which rule, and who sent them. With the token of a service, services have names."""
        return self.perform(calls.item_history(uid, msg_id))

    # Erasing

    def erase(self, uid: AnyID) -> AnErase:
        """Delete everything of a user for good, known or not. Devices forget it too: at once if
        they are connected, otherwise when they come back. It needs the token of a service. The
        answer's `epoch` is the ctime of the erase: nothing that a device wrote before it knew of it
        is stored after it. `pending` names the shards that were away: what they still have of the
        user is removed before they serve again. Tokens that the user's devices have do not hold any
        more; make new ones from the next second on, if the user is to come back."""
        return self.perform(calls.erase(uid))

    # Requests with retries

    @overload
    @abstractmethod
    def perform(self, call: Call[StateAnswer]) -> AState: ...
    @overload
    @abstractmethod
    def perform(self, call: Call[Item | None]) -> AnItem: ...
    @overload
    @abstractmethod
    def perform(self, call: Call[CountAnswer]) -> ACount: ...
    @overload
    @abstractmethod
    def perform(self, call: Call[MessagesAnswer]) -> SomeMessages: ...
    @overload
    @abstractmethod
    def perform(self, call: Call[ItemHistory]) -> AHistory: ...
    @overload
    @abstractmethod
    def perform(self, call: Call[EraseAnswer]) -> AnErase: ...
    @abstractmethod
    def perform(self, call: Any) -> Any:
        """Make a call, with retries."""

    @abstractmethod
    def read_pages(self, call: Call[StateAnswer]) -> StatePages:
        """Make the call, and those for the pages that follow its answer."""


class Producer(
    BaseProducer[
        Result,
        list[Result],
        StateAnswer,
        Iterator[StateAnswer],
        Item | None,
        CountAnswer,
        MessagesAnswer,
        ItemHistory,
        EraseAnswer,
    ]
):
    """Injects messages and reads states, and returns when that is done. Thread-safe. A forked
    process makes its own connections. Use it in a `with` block, or `close` it. BaseProducer states
    the promises."""

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
        _check_parts(timeout, max_attempts, sleep, jitter)
        check_type("transport", transport, httpx.BaseTransport, NoneType)
        connect = partial(
            httpx.Client,
            base_url=server_url(url),
            headers=authorization(token),
            timeout=timeout,
            limits=LIMITS,
            transport=transport,
        )
        self._connections = PerProcess(partial(_made, connect), may_be_made_again=transport is None)
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._jitter = random_numbers(jitter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        if (http := self._connections.made()) is not None:
            http.close()

    def send_one(self, message: Message) -> Result:
        return calls.first_result(self.perform(calls.inject(message)))

    def send_together(self, messages: Sequence[InBandMessage]) -> Result:
        return calls.first_result(self.perform(calls.inject_together(messages)))

    def send_after(
        self, call: Call[StateAnswer], message_of: Callable[[StateAnswer], Message]
    ) -> Result:
        return self.send_one(message_of(self.perform(call)))

    def send(self, messages: Iterable[Message]) -> list[Result]:
        return self._perform_all(calls.MessageBatches(messages))

    def send_to(self, uids: Iterable[AnyID], message: Message) -> list[Result]:
        return self._perform_all(calls.UserBatches(uids, message))

    def perform(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._max_attempts)
        while isinstance(step := attempts.after(self._respond(call), self._jitter()), Pause):
            self._sleep(step.seconds)
        return step

    def _perform_all(self, batches: calls.Batches) -> list[Result]:
        while (call := batches.next_call()) is not None:
            try:
                batches.answered(self.perform(call))
            except LimitExceeded as error:
                batches.refused(error)
        return batches.results()

    def read_pages(self, call: Call[StateAnswer]) -> Iterator[StateAnswer]:
        following: Call[StateAnswer] | None = call
        while following is not None:
            yield (page := self.perform(following))
            following = calls.next_page(following, page)

    def _respond(self, call: Call[Any]) -> httpx.Response | Exception:
        http = self._connections.get()
        _require_open(http)
        request = call.request(http)
        try:
            return http.send(request)
        except Exception as failure:  # noqa: BLE001 (a transport may be anybody's)
            return failure


class _LoopConnections(httpx.AsyncClient):
    """Connections that belong to the event loop in which they are first used."""

    _loop: asyncio.AbstractEventLoop | None = None

    def in_this_loop(self) -> Self:
        """Raises RuntimeError in another event loop, in which it would wait forever."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError(
                "this AsyncProducer is used in another event loop; create one in each event loop"
            )
        return self


class AsyncProducer(
    BaseProducer[
        Awaited[Result],
        Awaited[list[Result]],
        Awaited[StateAnswer],
        AsyncIterator[StateAnswer],
        Awaited[Item | None],
        Awaited[CountAnswer],
        Awaited[MessagesAnswer],
        Awaited[ItemHistory],
        Awaited[EraseAnswer],
    ]
):
    """A Producer whose methods are awaited, all in one event loop: that of the first call; in
    another one they raise RuntimeError. Use it in an `async with` block, or `close` it.
    BaseProducer states the promises."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 10.0,
        max_attempts: int = MAX_ATTEMPTS,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        _check_parts(timeout, max_attempts, sleep, jitter)
        check_type("transport", transport, httpx.AsyncBaseTransport, NoneType)
        connect = partial(
            _LoopConnections,
            base_url=server_url(url),
            headers=authorization(token),
            timeout=timeout,
            limits=LIMITS,
            transport=transport,
        )
        self._connections = PerProcess(partial(_made, connect), may_be_made_again=transport is None)
        self._max_attempts = max_attempts
        self._sleep = sleep
        self._jitter = random_numbers(jitter)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.close()

    async def close(self) -> None:
        if (connections := self._connections.made()) is not None:
            await connections.in_this_loop().aclose()

    async def send_one(self, message: Message) -> Result:
        return calls.first_result(await self.perform(calls.inject(message)))

    async def send_together(self, messages: Sequence[InBandMessage]) -> Result:
        return calls.first_result(await self.perform(calls.inject_together(messages)))

    async def send_after(
        self, call: Call[StateAnswer], message_of: Callable[[StateAnswer], Message]
    ) -> Result:
        return await self.send_one(message_of(await self.perform(call)))

    async def send(self, messages: Iterable[Message]) -> list[Result]:
        return await self._perform_all(calls.MessageBatches(messages))

    async def send_to(self, uids: Iterable[AnyID], message: Message) -> list[Result]:
        return await self._perform_all(calls.UserBatches(uids, message))

    async def perform(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._max_attempts)
        while isinstance(step := attempts.after(await self._respond(call), self._jitter()), Pause):
            await self._sleep(step.seconds)
        return step

    async def _perform_all(self, batches: calls.Batches) -> list[Result]:
        while (call := batches.next_call()) is not None:
            try:
                batches.answered(await self.perform(call))
            except LimitExceeded as error:
                batches.refused(error)
        return batches.results()

    async def read_pages(self, call: Call[StateAnswer]) -> AsyncIterator[StateAnswer]:
        following: Call[StateAnswer] | None = call
        while following is not None:
            yield (page := await self.perform(following))
            following = calls.next_page(following, page)

    async def _respond(self, call: Call[Any]) -> httpx.Response | Exception:
        http = self._connections.get().in_this_loop()
        _require_open(http)
        request = call.request(http)
        try:
            return await http.send(request)
        except Exception as failure:  # noqa: BLE001 (a transport may be anybody's)
            return failure
