"""A device: its replica, its outbox, its connection, and those who listen.

One task owns the replica. Whatever changes it is an operation that waits its turn; those that
wait together are saved in one transaction, and only what is saved is shown, sent or told.
"""

import asyncio
import random
import weakref
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

from gregor.client.connection import Connect, Connection, Operation, Token, websocket
from gregor.client.events import Event, Rejected, Subscription
from gregor.client.replica import Replica, events_between, rejections
from gregor.client.store import ClientStore, MemoryStore, alterations, restored
from gregor.clock import now
from gregor.core import message as making
from gregor.core.instant import SECOND, Time, as_time_or_offset
from gregor.core.message import (
    JSON,
    UID,
    Category,
    DeviceID,
    InBandMessage,
    MsgID,
    System,
    When,
)
from gregor.core.state import Item, State
from gregor.errors import GregorError, StorageUnavailable, Unavailable

NOBODY: UID = "self"
"""Stands for the uid in what is written before a node has said whose device this is."""


class _Change(NamedTuple):
    """An operation that waits for its turn, and whoever waits for it."""

    operation: Operation
    messages: Sequence[InBandMessage]
    done: "asyncio.Future[None]"


class Client:
    """One device of one user. Open it with `async with`; that works without a network too.

    What a person sees is the server's state, without what was hidden here, and with what was
    written here on top. A write returns when it is durable in the store; it is then shown, and
    sent as soon as there is a connection. Inside the block, background tasks hold the connection
    and come back for ever; should one of them fail by a defect, the block is cancelled.

    `token` is a string, or a function that returns a fresh one (and may raise Unavailable). Once
    it does not hold, or the node wants us no more, the client stops trying: `failure` is set,
    listeners get Offline with `final`, `wait_synced` and `flush` raise the error, and what is
    written waits in the store for a next client. `uid`, if given, is who the store must belong to.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        device_id: DeviceID,
        uid: UID | None = None,
        store: ClientStore | None = None,
        connect: Connect | None = None,
        clock: Callable[[], Time] = now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._device_id = device_id
        self._uid = uid
        self._store: ClientStore = MemoryStore() if store is None else store
        self._clock = clock
        self._connection = Connection(self, connect or websocket(url), token, jitter)
        self._replica = Replica(device_id)
        self._visible: dict[MsgID, Item] = {}
        self._waiting: list[_Change] = []
        self._arrival = asyncio.Event()
        self._turn = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        self._subscriptions: list[weakref.ref[Subscription]] = []
        self._open = False
        self._stack = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._store)
            await self._restore()
            await self._tasks.__aenter__()
            self._stack = stack.pop_all()
        self._open = True
        self._tasks.create_task(self._keep())
        self._connecting = self._tasks.create_task(self._connection.run())
        return self

    async def _restore(self) -> None:
        records = await self._store.load()
        replica = restored(records, self._device_id)
        if self._uid is not None:
            replica = replica.belonging_to(self._uid)
        saved = alterations(restored(records, self._device_id) if records else None, replica)
        if saved:
            await self._store.save(saved)
        self._replica = replica.settled()
        self._look()

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: Any) -> None:
        """What waits to be saved is saved first; what waits to be sent stays in the store."""
        self._connecting.cancel()
        self._open = False
        self._arrival.set()
        # Of a cancellation only the group knows whether a task of its own was the cause. What
        # else the block raises is the caller's own, and leaves as it is.
        if kind is None or issubclass(kind, Exception):
            kind, exc_info = None, (None, None)
        try:
            await self._tasks.__aexit__(kind, *exc_info)
        finally:
            self._close()
            await self._stack.aclose()

    def _close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        for change in self._waiting:
            _fail(change, Unavailable("the client was closed before this was saved"))
        for subscription in self._listeners():
            subscription.close()
        self._turned()

    # Writing. Each returns the msg_id when the message is durable here.

    async def create(
        self,
        category: Category,
        body: JSON = None,
        *,
        dtime: When = None,
        device_id: DeviceID | None = None,
        this_device: bool = False,
        msg_id: MsgID | None = None,
    ) -> MsgID:
        """Create an item, for all devices or for one."""
        scope = self._device_id if this_device else device_id
        return await self.write(
            making.create(NOBODY, category, body, dtime=dtime, device_id=scope, msg_id=msg_id)
        )

    async def dismiss(self, *msg_ids: MsgID, msg_id: MsgID | None = None) -> MsgID:
        """Dismiss items, on all devices."""
        return await self.write(making.dismiss(NOBODY, *msg_ids, msg_id=msg_id))

    async def dismiss_category(
        self,
        category: Category,
        prefix: bool = False,
        *,
        end_time: When = None,
        skip_msg_ids: Sequence[MsgID] = (),
        msg_id: MsgID | None = None,
    ) -> MsgID:
        """Dismiss everything of a category (with `prefix`: and below it), on all devices. Without
        an `end_time` that is everything which the server has when it gets this."""
        return await self.write(
            making.dismiss_category(
                NOBODY,
                category,
                prefix=prefix,
                end_time=end_time,
                skip_msg_ids=skip_msg_ids,
                msg_id=msg_id,
            )
        )

    async def replace(
        self,
        category: Category,
        body: JSON,
        *,
        dtime: When = None,
        device_id: DeviceID | None = None,
        this_device: bool = False,
        msg_id: MsgID | None = None,
    ) -> MsgID:
        """Let the category hold this one value: the last write wins."""
        scope = self._device_id if this_device else device_id
        return await self.write(
            making.replace(NOBODY, category, body, dtime=dtime, device_id=scope, msg_id=msg_id)
        )

    async def write(self, message: InBandMessage) -> MsgID:
        """Put a message of one's own making into the outbox. The same message twice is once;
        another one under its msg_id is a Conflict."""
        await self.change(lambda replica, now: replica.write(message, now), [message])
        return message.msg_id

    async def hide(self, msg_id: MsgID) -> None:
        """Show an item no more, on this device only. Forgotten when the item itself is gone."""
        await self.change(lambda replica, now: replica.hide(msg_id))

    async def out_of_band(self, system: System, body: JSON = None) -> None:
        """Say something to the devices that are connected now. It goes at once and at most once:
        Unavailable says that there is no connection, or that it broke before we knew."""
        message = making.out_of_band(self._replica.uid or NOBODY, system, body)
        await self._connection.pass_by(message)

    async def discard(self, *msg_ids: MsgID) -> None:
        """Forget rejected messages that have been looked at."""
        await self.change(lambda replica, now: replica.discard(msg_ids))

    # Reading

    def state(self, at: When = None) -> State:
        """What a person sees here now, or saw at a stated time (an offset counts from now).
        HistoryForgotten if that lies before what this device knows exactly."""
        now = self._clock()
        instant = as_time_or_offset(at)
        if instant is None:
            return self._replica.state(now)
        return self._replica.state_at(instant.after(now))

    def count(self, prefix: Category = "") -> int:
        """How many of the items now visible have a category that begins with `prefix`."""
        return self.state().count(prefix)

    def rejected(self) -> list[Rejected]:
        """What the node has refused for good: the last 1,000, until they are discarded."""
        return [Rejected(r.message, r.error) for r in self._replica.refused()]

    @property
    def replica(self) -> Replica:
        return self._replica

    @property
    def uid(self) -> UID | None:
        """Whose device this is; None until a node has said so for the first time."""
        return self._replica.uid

    @property
    def device_id(self) -> DeviceID:
        return self._device_id

    @property
    def outbox(self) -> int:
        """How many messages no node has acknowledged yet."""
        return len(self._replica.unsent())

    @property
    def online(self) -> bool:
        return self._connection.online

    @property
    def failure(self) -> GregorError | None:
        """Why the client has stopped trying to connect; None while it does try."""
        return self._connection.failure

    @property
    def mismatches(self) -> int:
        """How often the replica differed from the node's state after a sync. Each time is a
        defect, or a backup that was restored."""
        return self._connection.mismatches

    # Waiting

    def events(self) -> Subscription:
        """What happens from now on: `async for event in client.events()`."""
        subscription = Subscription()
        self._subscriptions.append(weakref.ref(subscription))
        if not self._open:
            subscription.close()
        return subscription

    async def wait_synced(self) -> None:
        """Return when the replica follows a node. Raises `failure`, should there be one."""
        await self._until(lambda: self._connection.synced)

    async def flush(self) -> None:
        """Return when the outbox is delivered. Raises `failure`, should there be one."""
        await self._until(lambda: not self.outbox)

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            if self._connection.failure is not None:
                raise self._connection.failure
            if not self._open:
                raise Unavailable("the client is closed")
            await self._turn.wait()

    # Changing, in one task

    async def change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        """Put the operation's replica in place of the present one, and return when that is saved.
        `messages` are those that may change what is seen. Raises what the operation raises, and
        StorageUnavailable if it cannot be saved; then nothing has changed."""
        if not self._open:
            raise Unavailable("the client is closed")
        change = _Change(operation, messages, asyncio.get_running_loop().create_future())
        self._waiting.append(change)
        self._arrival.set()
        await change.done

    async def _keep(self) -> None:
        """Carry out the changes that wait, until the client closes."""
        while self._waiting or self._open:
            self._arrival.clear()
            if not self._waiting:
                await self._arrival.wait()
            changes, self._waiting = self._waiting, []
            try:
                await self._carry_out(changes)
            finally:
                for change in changes:
                    _fail(change, Unavailable("the client was closed before this was saved"))

    async def _carry_out(self, changes: Sequence[_Change]) -> None:
        steps = self._steps(changes)
        if not steps:
            return
        last = steps[-1][1]
        try:
            altered = alterations(self._replica, last)
            if altered:
                await self._store.save(altered)
        except StorageUnavailable as error:
            for change, _ in steps:
                _fail(change, error)
            return
        for change, replica in steps:
            self._take(replica, change.messages)
            if not change.done.done():
                change.done.set_result(None)
        self._connection.wake()

    def _steps(self, changes: Sequence[_Change]) -> list[tuple[_Change, Replica]]:
        """What the replica will be after each change that is possible."""
        now = self._clock()
        replica = self._replica
        steps = []
        for change in changes:
            try:
                replica = change.operation(replica, now)
                steps.append((change, replica))
            except GregorError as error:
                _fail(change, error)
        return steps

    def _take(self, replica: Replica, messages: Sequence[InBandMessage]) -> None:
        before, self._replica = self._replica, replica
        if replica is not before:
            self._look(messages)
            self.tell(*rejections(before, replica))

    # Telling

    def tell(self, *events: Event) -> None:
        for subscription in self._listeners():
            subscription.tell(events)
        self._turned()

    def _look(self, messages: Sequence[InBandMessage] = ()) -> None:
        """Tell how what is seen has changed, and look again when the next item expires."""
        now = self._clock()
        before, self._visible = self._visible, self._replica.visible(now)
        self.tell(*events_between(before, self._visible, now, messages))
        if self._expiry is not None:
            self._expiry.cancel()
        expiries = [i.expires_at for i in self._visible.values() if i.expires_at is not None]
        if expiries:
            left = max(0, min(expiries) - now) / SECOND
            self._expiry = asyncio.get_running_loop().call_later(left, self._look)

    def _listeners(self) -> list[Subscription]:
        listeners = [subscription() for subscription in self._subscriptions]
        self._subscriptions = [
            s for s, listener in zip(self._subscriptions, listeners, strict=True) if listener
        ]
        return [listener for listener in listeners if listener is not None]

    def _turned(self) -> None:
        """Wake whoever waits for something to become true."""
        self._turn.set()
        self._turn = asyncio.Event()


def _fail(change: _Change, error: GregorError) -> None:
    """Tell whoever waits for the change, unless it is done or they have given up."""
    if not change.done.done():
        change.done.set_exception(error)
