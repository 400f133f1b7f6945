"""Devices that write and listen for as long as a server lives, and how what they were told is
compared with what was stored."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from gregor import InBandMessage, create, dismiss
from gregor.core.message import dismiss_category
from gregor.core.state import Facts
from gregor.protocol.client import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    Deferred,
    Effect,
    Reconnect,
    Replace,
)
from gregor.protocol.server import Send

GONE = (ConnectionClosed, InvalidHandshake, OSError)
LOG = "SELECT uid, ctime, prev, msg_id FROM messages ORDER BY uid, ctime"


class Replica:
    """A device that writes and listens as long as it is connected, and outlives its connections.

    `outbox` is what it has not heard back of; `acked` what was acknowledged, with its ctime.
    """

    def __init__(self, uid: str, device_id: str, seed: random.Random) -> None:
        self.uid = uid
        self.device_id = device_id
        self.facts = Facts()
        self.cursor = 0
        self.outbox: list[InBandMessage] = []
        self.acked: dict[str, int] = {}
        self.mismatches = 0
        self.sent_away = 0
        self.agreed = asyncio.Event()
        self._random = seed
        self._numbers = 0
        self._sending: list[InBandMessage] = []
        self._leaving = False

    async def live(self, url: str) -> None:
        """One connection, from its beginning to its end."""
        self.agreed.clear()
        session = ClientSession(self.uid, self.device_id, self.cursor)
        self._sending = []
        self._leaving = False
        try:
            async with connect(url, compression=None, proxy=None, close_timeout=1) as device:
                effects = session.opened()
                while True:
                    for frame in [*self._take_all(effects, session), *self._write(session)]:
                        # What has arrived before the end still counts when we cannot write on.
                        with suppress(ConnectionClosed):
                            await device.send(frame.text)
                    effects = session.receive(await device.recv())
        except GONE:
            pass

    def _take_all(self, effects: list[Effect], session: ClientSession) -> list[Send]:
        return [send for effect in effects for send in self._take(effect, session)]

    def _take(self, effect: Effect, session: ClientSession) -> list[Send]:
        match effect:
            case Send():
                return [effect]
            case Apply(messages, cursor):
                self.facts, self.cursor = self.facts.replay_all(messages), cursor
            case Replace(snapshot, cursor):
                self.facts, self.cursor = snapshot.facts(), cursor
            case Compare(as_of, hash_):
                equal = self.facts.state(self.device_id, as_of).hash() == hash_
                self.mismatches += not equal
                self.agreed.set()
                return [e for e in session.compared(equal) if isinstance(e, Send)]
            case Acked(results):
                for message, result in zip(self._sending, results, strict=True):
                    assert result.status in ("stored", "duplicate"), result
                    assert result.ctime is not None
                    self.acked[message.msg_id] = result.ctime
                    self.outbox.remove(message)
                self._sending = []
            case Deferred():
                self._leaving = True  # it takes nothing now; to be sent again elsewhere
            case Reconnect():
                self.sent_away += 1
        return []

    def _write(self, session: ClientSession) -> list[Send]:
        if self._leaving or not session.may_consume:
            return []
        while len(self.outbox) < self._random.randint(1, 5):
            self.outbox.append(self._compose())
        self._sending = self.outbox[:5]
        return [e for e in session.consume(self._sending) if isinstance(e, Send)]

    def _compose(self) -> InBandMessage:
        self._numbers += 1
        msg_id = f"{self.device_id}-{self._numbers}"
        category = self._random.choice(["a", "a.b", "c"])
        match self._random.randrange(6):
            case 0 if self.acked:
                return dismiss(self.uid, self._random.choice(list(self.acked)), msg_id=msg_id)
            case 1:
                return dismiss_category(self.uid, category, prefix=True, msg_id=msg_id)
            case _:
                return create(self.uid, category, self._numbers, msg_id=msg_id)


def replicas(seed: random.Random) -> list[Replica]:
    return [Replica(f"u{user}", f"u{user}d{n}", seed) for user in range(3) for n in range(2)]


def check_log(rows: Iterable[Sequence[object]], devices: list[Replica]) -> int:
    """Everything acknowledged is in the LOG, once, where it was said to be, and each message
    knows the one before. Returns how many there are."""
    log = list(rows)
    ctimes = {(uid, msg_id): ctime for uid, ctime, _, msg_id in log}
    assert len(ctimes) == len(log)
    before: dict[object, object] = {}
    for uid, ctime, prev, _ in log:
        assert prev == before.get(uid, 0)
        before[uid] = ctime
    for device in devices:
        for msg_id, ctime in device.acked.items():
            assert ctimes.get((device.uid, msg_id)) == ctime, (device.uid, msg_id)
    return len(log)


async def converge(url: str, devices: list[Replica]) -> None:
    """Each comes back from its cursor, and agrees with the server."""
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        for device in devices:
            lives = tasks.create_task(device.live(url))
            await device.agreed.wait()
            lives.cancel()
    assert [device.mismatches for device in devices] == [0] * len(devices)
