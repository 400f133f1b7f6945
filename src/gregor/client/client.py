"""A client on a device: its replica, outbox, connection and event subscriptions.

One task owns the replica. Each change is an operation in a queue. The operations that are queued
at the same time are saved in one transaction (group commit). A change is shown, sent and reported
to subscribers only after it is saved.
"""

import asyncio
import logging
import random
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple, Self

import msgspec

from gregor.client.connection import (
    STORE_TIMEOUT_SECONDS,
    Connect,
    Connection,
    Operation,
    Token,
)
from gregor.client.events import Event, Subscription, WriteRejected
from gregor.client.inbox import Inbox
from gregor.client.node_clock import DeviceClock
from gregor.client.outside import call_outside
from gregor.client.own_loop import OwnLoop
from gregor.client.replica import Replica, events_between, new_rejections
from gregor.client.status import Status
from gregor.client.store import (
    ClientStore,
    MemoryStore,
    RecordChanges,
    RecordKey,
    Records,
    ScrubbedStore,
    changed_records,
    load_replica,
    missing_records,
    records_aside,
    replaced_records,
    set_aside,
)
from gregor.client.writing import UNKNOWN_UID
from gregor.clock import now
from gregor.core import arguments
from gregor.core import message as factory
from gregor.core.admission import check_type
from gregor.core.instant import SECOND, Time
from gregor.core.message import (
    JSON,
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
    MsgID,
    System,
    When,
    parse_message,
)
from gregor.core.state import Counts, Item, State
from gregor.errors import (
    Erased,
    GregorError,
    InvalidMessage,
    SetupError,
    StorageUnavailable,
    Unavailable,
)
from gregor.log_event import LogEvent
from gregor.protocol.frames import MAX_TOKEN, Limits, Problem

log = logging.getLogger("gregor.client")

CLOCK_CHECK_SECONDS = 10.0  # how soon a jump of the wall clock, or a suspend, is noticed


class _Change(NamedTuple):
    """A queued operation, and the future that its caller awaits."""

    operation: Operation
    messages: Sequence[InBandMessage]
    done: "asyncio.Future[None]"


class Client:
    """One device of one user. Open it with `async with`; that works without a network too.

    The visible state is the server's state, minus the items hidden on this device, plus the
    messages written on it. A write returns when it is durable in the store, or raises
    StorageUnavailable and changes nothing; while the store does not answer, it waits, and after a
    few seconds `status` says that nothing is durable. A saved message is visible at once, and is
    sent as soon as there is a connection. Inside the block, background tasks keep the connection
    and reconnect without limit, whatever the network, the nodes and the functions of the host do:
    `status` says what is wrong. Items begin and expire by the node's clock, not by `clock`, which
    may show anything.

    `token` is a string, or a function that returns a fresh one; the function may fail. Only a
    string that a node refuses stops the client: `failure` is set, subscribers get Offline with
    `final`, `wait_synced` and `flush` raise the error, unsent messages stay in the store, and
    `reconnect` begins again. If `uid` is given and the store belongs to another user, opening
    raises SetupError.

    If the user is erased on the server, the client stops too, and nothing of the user is left: the
    replica, the outbox, hidden ids and rejected messages leave the store in one transaction,
    subscribers get Erased, and writes and what waits raise it. `reconnect` begins a new life; until
    then the client takes no writes and does not connect, also after a restart.

    Arguments are checked when they are given: InvalidMessage names the parameter. What is written
    can be read back after a restart.

    A client belongs to the event loop in which it is opened. Calls from another one, or from
    another thread, raise WrongEventLoop; what is read without waiting can be read from anywhere.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        device_id: AnyID,
        uid: AnyID | None = None,
        store: ClientStore | None = None,
        connect: Connect | None = None,
        clock: Callable[[], Time] = now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        _check_parts(url, token, store, connect, clock, jitter)
        self._device_id = arguments.identifier("device_id", device_id, MAX_DEVICE_ID)
        self._uid = arguments.optional_identifier("uid", uid, MAX_UID)
        self._store: ClientStore = MemoryStore() if store is None else store
        self._wall_clock = clock
        self._clock = DeviceClock(clock, time.monotonic)
        self._own_loop = OwnLoop()
        self._saving_fails = False
        self._saving: asyncio.Timeout | None = None  # limits the save that is going on
        self._connection = Connection(self, connect or _websocket(url), token, jitter)
        self._replica = Replica(self._device_id)
        self._set_aside: Mapping[RecordKey, bytes] = {}
        self._inbox = Inbox(self)
        self._visible: dict[MsgID, Item] = {}
        self._refreshed_at: Time = 0
        self._pending_changes: list[_Change] = []
        self._change_queued = asyncio.Event()
        self._condition_changed = asyncio.Event()
        self._erasure: Erased | None = None  # the last one
        self._timer: asyncio.TimerHandle | None = None
        self._subscriptions: list[weakref.ref[Subscription]] = []
        self._open = self._was_opened = False
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        if self._was_opened:
            raise SetupError("a client is opened once; make a new one")
        self._own_loop = OwnLoop()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._store)
            await self._restore()
            await self._tasks.__aenter__()
            self._was_opened = True
            self._stack = stack.pop_all()
        self._open = True
        self._tasks.create_task(self._apply_changes())
        self._connection_task = self._tasks.create_task(self._connection.run())
        return self

    async def _restore(self) -> None:
        records = await self._load_records()
        replica = load_replica(records, self._device_id)
        if self._uid is not None:
            replica = replica.owned_by(self._uid)
        missing = missing_records(records, replica)
        if missing:
            await self._store.save(missing)
        if replica.erased:
            await self._scrub()
        self._replica = replica.derived()
        self._connection.failure = self._erasure = replica.erasure()
        monotonic = asyncio.get_running_loop().time
        self._clock = DeviceClock(self._wall_clock, monotonic, replica.clock_offset)
        self._refresh_visible(self._replica.shown.items)

    async def _load_records(self) -> Records:
        """The records of the store, after those that cannot be read have been set aside."""
        records = await self._store.load()
        aside = set_aside(records)
        if aside:
            await self._store.save(aside)
            records = await self._store.load()
        self._set_aside = records_aside(records)
        for kind, name in self._set_aside:
            log.error(LogEvent("a record cannot be read, and is set aside", kind=kind, name=name))
        return records

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: Any) -> None:
        """Save the pending changes, then close. Unsent messages stay in the store. A store that
        does not answer is waited for a few seconds."""
        self._own_loop.require()
        self._connection_task.cancel()
        self._open = False
        if self._saving is not None:
            self._saving.reschedule(asyncio.get_running_loop().time() + STORE_TIMEOUT_SECONDS)
        self._change_queued.set()
        # Pass a cancellation to the task group, because only the group knows whether one of its own
        # tasks caused it. Any other exception is the caller's, and must leave the block unwrapped.
        if kind is None or issubclass(kind, Exception):
            kind, exc_info = None, (None, None)
        try:
            await self._tasks.__aexit__(kind, *exc_info)
        finally:
            self._close()
            await self._stack.aclose()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for change in self._pending_changes:
            _fail(change, Unavailable("the client was closed before this was saved"))
        for subscription in self._live_subscriptions():
            subscription.close()
        self._notify_waiters()

    # Writing. Each method returns the msg_id when the message is durable on this device.

    async def create(
        self,
        category: Category,
        body: JSON = None,
        *,
        starts: When = None,
        expires: When = None,
        device_id: AnyID | None = None,
        this_device: bool = False,
        msg_id: AnyID | None = None,
    ) -> MsgID:
        """Create an item on all devices of the user, or on one. It begins to be visible at
        `starts`, and expires at `expires`: times, or offsets from now."""
        return await self.write(
            factory.create(
                UNKNOWN_UID,
                category,
                body,
                starts=starts,
                expires=expires,
                device_id=self._scope(device_id, this_device),
                msg_id=msg_id,
            )
        )

    async def put(
        self,
        category: Category,
        body: JSON = None,
        *,
        key: Key | None = None,
        starts: When = None,
        expires: When = None,
        device_id: AnyID | None = None,
        this_device: bool = False,
        msg_id: AnyID | None = None,
    ) -> MsgID:
        """Create an item in place of the one with the same key (by default, the category) and
        scope: of all devices that put, the last one wins."""
        return await self.write(
            factory.put(
                UNKNOWN_UID,
                category,
                body,
                key=key,
                starts=starts,
                expires=expires,
                device_id=self._scope(device_id, this_device),
                msg_id=msg_id,
            )
        )

    async def snooze(self, msg_id: AnyID, until: When, *, new_msg_id: AnyID | None = None) -> MsgID:
        """Make a visible item begin again at a time, or after an offset from now, and return the id
        of the new item, which has the same key, category, scope, body and expiry. Until then no
        device shows it. Raises InvalidMessage if this device does not show the item, or if the time
        is not between now and its expiry."""
        id_ = arguments.known_id("msg_id", msg_id, MAX_MSG_ID)
        new_id = arguments.optional_identifier("new_msg_id", new_msg_id, MAX_MSG_ID)
        when = arguments.time("until", until)
        if new_id == id_:
            raise InvalidMessage("`new_msg_id` is that of the item itself", field="new_msg_id")
        if when is None:
            raise InvalidMessage("`until` must be a time or a duration, not None", field="until")
        written: list[InBandMessage] = []

        def snooze(replica: Replica, now: Time) -> Replica:
            message = replica.snoozed(id_, when, now)
            written.append(msgspec.structs.replace(message, msg_id=new_id or message.msg_id))
            return replica.write(written[0], now)

        await self.change(snooze, written)
        return written[0].msg_id

    async def dismiss(self, *msg_ids: AnyID, msg_id: AnyID | None = None) -> MsgID:
        """Dismiss items, on all devices."""
        return await self.write(
            factory.dismiss(UNKNOWN_UID, *msg_ids, device_id=self._device_id, msg_id=msg_id)
        )

    async def dismiss_category(
        self,
        category: Category,
        prefix: bool = False,
        *,
        scheduled: bool = False,
        end_time: When = None,
        skip_msg_ids: Iterable[AnyID] = (),
        msg_id: AnyID | None = None,
    ) -> MsgID:
        """Dismiss the items of a category that this device sees, on all devices. With `prefix`: of
        all categories that begin with it. With `scheduled`: also those that have not begun. Without
        `end_time`: all items that this device shows now or has shown, and none that it has not yet
        been told of. With `end_time="0s"`: all up to now, wherever they are."""
        return await self._dismiss(
            factory.dismiss_category(
                UNKNOWN_UID,
                category,
                prefix=prefix,
                scheduled=scheduled,
                end_time=end_time,
                skip_msg_ids=skip_msg_ids,
                device_id=self._device_id,
                msg_id=msg_id,
            ),
            end_time,
        )

    async def dismiss_key(
        self, *keys: Key, end_time: When = None, msg_id: AnyID | None = None
    ) -> MsgID:
        """Dismiss the items with these keys that this device sees, on all devices, also those that
        have not begun. `end_time` is as in `dismiss_category`."""
        message = factory.dismiss_key(
            UNKNOWN_UID, *keys, end_time=end_time, device_id=self._device_id, msg_id=msg_id
        )
        return await self._dismiss(message, end_time)

    async def _dismiss(self, message: InBandMessage, end_time: When) -> MsgID:
        if end_time is not None:
            return await self.write(message)
        await self.change(lambda replica, now: replica.dismiss_seen(message, now), [message])
        return message.msg_id

    async def write(self, message: InBandMessage) -> MsgID:
        """Put a message into the outbox. Offsets become instants, counted from now. Idempotent:
        writing the same message again changes nothing, as long as it is in the outbox, or this
        device has its item; to repeat it later than that, give times. Raises Conflict if the outbox
        has its msg_id with other contents, and InvalidMessage or TooLarge if no node can accept
        it."""
        message = _admitted(message)
        await self.change(lambda replica, now: replica.write(message, now), [message])
        return message.msg_id

    async def write_all(self, messages: Iterable[InBandMessage]) -> None:
        """Put messages into the outbox, in order, as `write` does: all of them in one transaction,
        or, if it raises, none."""
        given = arguments.many("messages", messages)
        admitted = [_admitted(message, "messages") for message in given]
        await self.change(lambda replica, now: replica.write_all(admitted, now), admitted)

    def _scope(self, device_id: AnyID | None, this_device: bool) -> AnyID | None:
        if not arguments.flag("this_device", this_device):
            return device_id
        if device_id is not None:
            raise InvalidMessage("give `device_id` or `this_device`, not both", field="device_id")
        return self._device_id

    async def hide(self, msg_id: AnyID) -> None:
        """Hide an item on this device only. Idempotent. An item that has not arrived yet is hidden
        when it comes: the last 1,000 such ids are kept. The hidden id is forgotten once the item no
        longer exists."""
        id_ = arguments.known_id("msg_id", msg_id, MAX_MSG_ID)
        await self.change(lambda replica, now: replica.hide(id_))

    async def out_of_band(self, system: System, body: JSON = None) -> None:
        """Send an out-of-band message to the devices that are connected now: at once, and at most
        once. Raises Unavailable if there is no connection, or if it breaks before the node has
        acknowledged (the message may have been delivered), and the node's error if it rejects the
        message."""
        self._own_loop.require()
        message = factory.out_of_band(self._replica.uid or UNKNOWN_UID, system, body)
        await self._connection.send_out_of_band(message)

    async def discard(self, *msg_ids: AnyID) -> None:
        """Remove rejected messages from `rejected()`. Idempotent."""
        ids = arguments.known_ids("msg_ids", msg_ids, MAX_MSG_ID)
        await self.change(lambda replica, now: replica.discard(ids))

    @property
    def inbox(self) -> Inbox:
        """The notifications of the user on this device."""
        return self._inbox

    # Reading

    def state(self, at: When = None) -> State:
        """The state visible on this device now, or at a stated time (an offset counts from now).
        Raises HistoryForgotten for a time before `replica.known_since`: when an item was dismissed
        that this device held, or the last sync."""
        now = self._now()
        instant = arguments.query_time("at", at)
        if instant is None:
            return self._replica.state(now)
        return self._replica.state_at(instant.after(now))

    def get(self, key: Key) -> Item | None:
        """The item with this key that is visible on this device; None if there is none. Of two, it
        is that of this device alone."""
        return self._replica.with_key(arguments.text("key", key, MAX_KEY), self._now())

    def count(self, prefix: Category = "") -> int:
        """How many visible items have a category that begins with `prefix`."""
        return self.state().count(arguments.prefix("prefix", prefix, MAX_CATEGORY))

    def count_by_segment(self, prefix: Category = "") -> dict[Category, int]:
        """How many visible items there are of the categories that begin with `prefix`, each cut
        before the first dot that follows it."""
        prefix = arguments.prefix("prefix", prefix, MAX_CATEGORY)
        state = self.state()
        by_category = ((item.category, 1) for item in state)
        return Counts.of_segments(by_category, prefix, state.as_of).by_prefix

    def rejected(self) -> list[WriteRejected]:
        """The messages that the node has rejected: the last 1,000, until they are discarded."""
        return [WriteRejected(e.message, e.error) for e in self._replica.rejected_entries()]

    @property
    def replica(self) -> Replica:
        return self._replica

    @property
    def uid(self) -> UID | None:
        """The user of this device; None until a node has reported it for the first time."""
        return self._replica.uid

    @property
    def device_id(self) -> DeviceID:
        return self._device_id

    @property
    def unsent_count(self) -> int:
        """How many written messages no node has acknowledged yet."""
        return self._replica.outbox.waiting_count

    @property
    def set_aside(self) -> Mapping[RecordKey, bytes]:
        """Records of the store that could not be read, by kind and name. They are kept in the
        store as they are, and have no effect; each is in the log when the client opens."""
        return self._set_aside

    @property
    def status(self) -> Status:
        """How this client is doing now. Its parts change one by one; Online, Offline and Synced say
        when to look again."""
        connection = self._connection
        return Status(
            connection.online,
            connection.synced,
            not (self._saving_fails or isinstance(self._store, MemoryStore)),
            self.unsent_count,
            self.last_error,
            connection.retry_at,
            len(self._set_aside),
        )

    @property
    def limits(self) -> Limits | None:
        """What the last node accepts; None before the first connection. An unsent message is sent
        again without being stored twice for `ids_days` after it was written (0: for ever); older
        ones are sent too, and reported in the log."""
        return self._connection.limits

    @property
    def online(self) -> bool:
        return self._connection.online

    @property
    def failure(self) -> GregorError | None:
        """Why the client has stopped trying to connect; None while it still tries."""
        return self._connection.failure

    @property
    def last_error(self) -> Problem | None:
        """Why the last connection ended, or could not be made; None after a sync."""
        return self._connection.last_error

    @property
    def mismatches(self) -> int:
        """How often the replica's state hash differed from the node's after a sync. The cause is
        a bug, or a backup that was restored."""
        return self._connection.mismatches

    def reconnect(self) -> None:
        """Connect now instead of at `status.retry_at`, also after a `failure`: for a button, and
        for an app that learns of a network. After Erased, this begins a new life of the user on
        this device. Without effect on a connection that is there."""
        self._own_loop.require()
        if self._replica.erased and self._open:
            change = self._queue(lambda replica, now: replica.in_new_life())
            change.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._connection.reconnect()

    # Waiting

    def events(self) -> Subscription:
        """Subscribe to the events from now on: `async for event in client.events()`."""
        self._own_loop.require()
        subscription = Subscription()
        self._subscriptions.append(weakref.ref(subscription))
        if not self._open:
            subscription.close()
        return subscription

    async def wait_synced(self) -> None:
        """Return when the replica is connected and synced. Raises `failure` if the client stops
        trying, Erased if the user is erased, and Unavailable if the client is closed."""
        await self._wait_until(lambda: self._connection.synced)

    async def flush(self) -> None:
        """Return when the outbox is empty: the node has acknowledged or rejected each message.
        Raises `failure` if the client stops trying, Erased if the user is erased, and Unavailable
        if the client is closed."""
        await self._wait_until(lambda: not self.unsent_count)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        self._own_loop.require()
        known = None if isinstance(self.failure, Erased) else self._erasure
        while True:
            if self._erasure is not None and self._erasure is not known:
                raise self._erasure
            if condition():
                return
            if self.failure is not None:
                raise self.failure
            if not self._open:
                raise Unavailable("the client is closed; open a new one")
            await self._condition_changed.wait()

    # What the connection needs

    @property
    def clock(self) -> DeviceClock:
        return self._clock

    def node_told_time(self, time: Time, asked: int | None = None) -> None:
        """A node has told its time, after it was asked at this time of the monotonic clock."""
        self._clock.told(time, asked)
        self._refresh_visible()

    # Changing the replica, in one task

    async def change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        """Replace the replica by the result of the operation, and return when that is saved.
        `messages` are those that may change the visible state. Raises what the operation raises,
        and StorageUnavailable if the change cannot be saved; then nothing has changed."""
        self._own_loop.require()
        if not self._open:
            raise Unavailable("the client is closed; open a new one")
        change = self._queue(operation, messages)
        try:
            await change.done
        except asyncio.CancelledError:
            with suppress(ValueError):  # it is being saved
                self._pending_changes.remove(change)
            raise

    def _queue(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> _Change:
        change = _Change(operation, messages, asyncio.get_running_loop().create_future())
        self._pending_changes.append(change)
        self._change_queued.set()
        return change

    async def _apply_changes(self) -> None:
        """Save and apply the pending changes, until the client closes."""
        while self._pending_changes or self._open:
            self._change_queued.clear()
            if not self._pending_changes:
                await self._change_queued.wait()
            changes, self._pending_changes = self._pending_changes, []
            try:
                await self._save_and_apply(changes)
            finally:
                for change in changes:
                    _fail(change, Unavailable("the client was closed before this was saved"))

    async def _save_and_apply(self, changes: Sequence[_Change]) -> None:
        results = self._run_operations(changes)
        if not results:
            return
        try:
            await self._save([replica for _, replica in results])
        except Unavailable as error:
            for change, _ in results:
                _fail(change, error)
            return
        before = self._replica
        for change, replica in results:
            self._set_replica(replica, change.messages)
            if not change.done.done():
                change.done.set_result(None)
        self._connection.wake()
        if self._replica.erased and not before.erased:
            await self._scrub()

    async def _scrub(self) -> None:
        """After a wipe, let no byte of the user stay in the store. What is removed is never loaded
        again in any case, and a scrub that fails is repeated with the next start."""
        if isinstance(self._store, ScrubbedStore):
            try:
                await call_outside("the client's store", self._store.scrub, STORE_TIMEOUT_SECONDS)
            except GregorError as error:
                reason = str(error)
                log.warning(LogEvent("bytes of an erased user may be left", reason=reason))

    async def _save(self, replicas: Sequence[Replica]) -> None:
        """Save the last of these replicas, which follow the present one. Raises StorageUnavailable
        if that fails."""
        try:
            records = await self._changes_to(replicas)
            if records:
                await self._save_records(records)
        except Exception as error:
            if not self._saving_fails:
                log.warning(LogEvent("the client cannot save changes", reason=str(error)))
            self._saving_fails = True
            reason = str(error)  # the application's own store: it may know what it is called
            raise StorageUnavailable(reason, reason) from error
        self._saving_fails = False

    async def _changes_to(self, replicas: Sequence[Replica]) -> RecordChanges:
        """What differs from the present replica; if one of them was wiped, all that there is."""
        if not self._replica.erased and any(replica.erased for replica in replicas):
            stored = await call_outside(
                "the client's store", self._store.load, STORE_TIMEOUT_SECONDS
            )
            return replaced_records(stored, replicas[-1])
        changed = {msg_id for replica in replicas for msg_id in replica.changed}
        return changed_records(self._replica, replicas[-1], changed)

    async def _save_records(self, records: RecordChanges) -> None:
        """Wait for the store, as long as the client is open: nobody knows whether a save that is
        given up has happened. Meanwhile the status says that nothing is durable."""
        seconds = None if self._open else STORE_TIMEOUT_SECONDS
        alarm = asyncio.get_running_loop().call_later(STORE_TIMEOUT_SECONDS, self._on_slow_save)
        try:
            async with asyncio.timeout(seconds) as self._saving:
                await call_outside("the client's store", lambda: self._store.save(records))
        except TimeoutError as error:
            raise StorageUnavailable("the store did not answer before the client closed") from error
        finally:
            self._saving = None
            alarm.cancel()

    def _on_slow_save(self) -> None:
        self._saving_fails = True
        log.warning(LogEvent("the client's store does not answer", seconds=STORE_TIMEOUT_SECONDS))

    def _run_operations(self, changes: Sequence[_Change]) -> list[tuple[_Change, Replica]]:
        """The replica after each operation that succeeds. A failed one is reported and left out."""
        now = self._now()
        replica = self._replica.with_clock_offset(self._clock.offset)
        results = []
        for change in changes:
            try:
                replica = change.operation(replica, now)
                results.append((change, replica))
            except Exception as error:  # noqa: BLE001 (the caller of the change gets it)
                _fail(change, error)
        return results

    def _set_replica(self, replica: Replica, messages: Sequence[InBandMessage]) -> None:
        before, self._replica = self._replica, replica
        erasure = None if before.erased else replica.erasure()
        if erasure is not None:
            self._set_aside, self._erasure = {}, erasure
            self._connection.stop(erasure)
        if replica is not before:
            self._refresh_visible(replica.changed, messages)
            self.emit(*new_rejections(before, replica))
        if erasure is not None:
            self.emit(erasure)

    # Notifying subscribers and waiters

    def emit(self, *events: Event) -> None:
        for subscription in self._live_subscriptions():
            subscription.put(events)
        self._notify_waiters()

    def _now(self) -> Time:
        """The node's time. Whatever has begun or expired by it is reported first, so that a state
        never differs from the events."""
        now = self._clock.now()
        due = self._replica.next_change(self._refreshed_at)
        is_due = due is not None and due <= now
        if is_due and self._timer is not None and self._own_loop.is_running_here:
            self._refresh_visible()
            return self._refreshed_at  # the clock has gone on, and more may have been reported
        return now

    def _refresh_visible(
        self, changed: Iterable[MsgID] = (), messages: Sequence[InBandMessage] = ()
    ) -> None:
        """Emit what has changed in the visible state: by the replica, for these ids, and by the
        time. Set the timer for the next start or expiry."""
        before, self._refreshed_at = self._refreshed_at, self._clock.now()
        now, items = self._refreshed_at, self._replica.shown.items
        msg_ids = {*changed, *self._replica.changed_by_time(before, now)}
        shown_before = {id_: self._visible.pop(id_) for id_ in msg_ids if id_ in self._visible}
        # An own item gets its time of expiry when it is stored, and may have expired with it.
        old = {msg_id: items.get(msg_id) or item for msg_id, item in shown_before.items()}
        new = self._replica.visible_among(msg_ids, now)
        self._visible.update(new)
        self.emit(*events_between(old, new, now, messages))
        self._set_timer(self._replica.next_change(now))

    def _set_timer(self, due: Time | None) -> None:
        seconds = CLOCK_CHECK_SECONDS
        if due is not None:
            seconds = min(seconds, (due - self._refreshed_at) / SECOND)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check_clock)

    def _check_clock(self) -> None:
        """Look for a jump of the wall clock, and for what has begun or expired."""
        if self._clock.was_suspended(self._connection.online):
            self._connection.restart("the device may have been suspended")
        self._refresh_visible()

    def _live_subscriptions(self) -> list[Subscription]:
        subscriptions = [reference() for reference in self._subscriptions]
        self._subscriptions = [
            reference
            for reference, subscription in zip(self._subscriptions, subscriptions, strict=True)
            if subscription
        ]
        return [subscription for subscription in subscriptions if subscription is not None]

    def _notify_waiters(self) -> None:
        """Wake the tasks in `_wait_until`, so that they check their conditions again."""
        self._condition_changed.set()
        self._condition_changed = asyncio.Event()


def _check_parts(
    url: object, token: object, store: object, connect: object, clock: object, jitter: object
) -> None:
    """Raise InvalidMessage for a part of the wrong type."""
    check_type("url", url, str)
    if not callable(token):
        arguments.text("token", token, MAX_TOKEN)
    if store is not None:
        check_type("store", store, ClientStore)
    if connect is not None:
        arguments.function("connect", connect)
    arguments.function("clock", clock)
    arguments.function("jitter", jitter)


def _admitted(message: object, name: str = "message") -> InBandMessage:
    """The message as a node reads it, which can be read back from the store as well. Raises what
    the node would reject it with."""
    if isinstance(message, InBandMessage):
        read = parse_message(msgspec.json.encode(message))
        if isinstance(read, InBandMessage):
            return read
    raise InvalidMessage(f"`{name}` must be an InBandMessage", field=name)


def _websocket(url: str) -> Connect:
    """The default transport. Its library takes as long to load as the rest of the client, which
    needs it only here."""
    from gregor.client.websocket import websocket

    return websocket(url)


def _fail(change: _Change, error: Exception) -> None:
    """Raise the error in the caller of the change, unless it is done or cancelled."""
    if not change.done.done():
        change.done.set_exception(error)
