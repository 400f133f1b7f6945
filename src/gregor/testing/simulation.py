"""A seeded world of nodes, devices and a store, on a virtual clock.

Real Nodes, real server connections and real Clients run on an event loop whose time is a number.
Everything between them misbehaves by the seed: connections break; frames are delayed, repeated
and overtake one another; the store answers late, refuses, or stores and then fails to say so;
the pub/sub drops, repeats, reorders and goes deaf; nodes crash between store and acknowledgement;
devices are killed and come back with what their store had saved; clocks differ and jump back.

Then the faults end, and all must agree: every replica with the store, hash and items; everything
acknowledged is stored once; everything that a device accepted was stored, or rejected in words;
nothing that was dismissed is shown again.

    python -m gregor.testing.simulation --seeds 2000
    python -m gregor.testing.simulation --seed 17 --trace
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import (
    UID,
    DeviceID,
    InBandMessage,
    MsgID,
    create,
    dismiss,
    dismiss_category,
    replace,
)
from gregor.core.state import State, Sync
from gregor.errors import Unavailable
from gregor.interfaces import Outcome
from gregor.node import Node
from gregor.pubsub.interface import Event, Interrupted
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server.auth import OpenAuthenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics
from gregor.server.service import Service
from gregor.server.websocket import Connection
from gregor.state_machines.memory import MemoryStateMachine
from gregor.testing import virtual_time

USERS = ("ann", "bob")
CATEGORIES = ("mail", "mail.work", "chat", "theme")


class Disagreement(AssertionError):
    """The world did not come out as it must. The seed replays it."""


class LateStore:
    """A state machine of record that answers late and in any order, and sometimes not at all:
    before it has stored, or, worse, after."""

    def __init__(self, machine: MemoryStateMachine, world: "World") -> None:
        self._machine = machine
        self._world = world

    async def consume_message(self, message: Any) -> Any:
        return await self._machine.consume_message(message)

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        await self._trouble("before storing")
        outcomes = await self._machine.consume_messages(messages)
        await self._trouble("after storing")
        return outcomes

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        return await self._machine.state(uid, device_id, at)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        return await self._machine.in_band_messages_since(uid, device_id, since)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        await self._trouble("before reading")
        sync = await self._machine.sync(uid, device_id, cursor)
        await self._world.delay()
        return sync

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        await self._trouble("before reading clocks")
        return await self._machine.ctimes(uids)

    async def _trouble(self, when: str) -> None:
        await self._world.delay()
        if self._world.happens(0.05):
            self._world.note("store", f"fails {when}")
            raise Unavailable(f"the store fails {when}")


class LossyPubSub(MemoryPubSub):
    """A pub/sub that loses, repeats, delays and reorders, and now and then goes deaf; sometimes
    it says so afterwards, and sometimes not."""

    def __init__(self, exchange: Exchange, world: "World") -> None:
        super().__init__(exchange)
        self._world = world
        self._deaf = False

    def take(self, event: Event) -> None:
        if self._deaf or self._world.happens(0.2):
            return
        for _ in range(2 if self._world.happens(0.1) else 1):
            asyncio.get_running_loop().call_later(self._world.lag(), super().take, event)

    def go_deaf(self) -> None:
        self._deaf = True

    def hear_again(self) -> None:
        self._deaf = False
        if self._world.happens(0.5):
            super().take(Interrupted())
