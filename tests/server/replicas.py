"""Devices that write and receive while a server runs, and checks that compare what was
acknowledged to them with what is stored."""

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from gregor import InBandMessage, create, dismiss, put
from gregor.core.facts import Facts
from gregor.core.message import dismiss_category
from gregor.protocol.client_session import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    Deferred,
    Effect,
    Reconnect,
    Replace,
)
from gregor.protocol.effects import Send
from tests.timeouts import TIMEOUT_SECONDS

CONNECTION_ERRORS = (ConnectionClosed, InvalidHandshake, OSError)
LOG_QUERY = "SELECT uid, ctime, prev, msg_id FROM messages ORDER BY uid, ctime"


class RawReplica:
    """A device that writes and receives while it is connected, and keeps its state between
    connections.

    `outbox` holds the messages without an ack; `acked` the ctimes of acknowledged messages.
    """

    def __init__(self, uid: str, device_id: str, rng: random.Random) -> None:
        self.uid = uid
        self.device_id = device_id
        self.facts = Facts()
        self.cursor = 0
        self.outbox: list[InBandMessage] = []
        self.acked: dict[str, int] = {}
        self.mismatches = 0
        self.goaways = 0
        self.hash_compared = asyncio.Event()
        self._rng = rng
        self._message_count = 0
        self._in_flight: list[InBandMessage] = []
        self._deferred = False

    async def run_connection(self, url: str) -> None:
        """Connect once, and write and receive until the connection ends."""
        self.hash_compared.clear()
        session = ClientSession(self.uid, self.device_id, self.cursor)
        self._in_flight = []
        self._deferred = False
        try:
            async with connect(
                url,
                compression=None,
                proxy=None,
                open_timeout=TIMEOUT_SECONDS,
                close_timeout=1,
            ) as device:
                effects = session.opened()
                while True:
                    for frame in [*self._apply_all(effects, session), *self._write(session)]:
                        # If the connection ends here, frames that have arrived still count.
                        with suppress(ConnectionClosed):
                            await device.send(frame.text)
                    effects = session.receive(await device.recv())
        except CONNECTION_ERRORS:
            pass

    def _apply_all(self, effects: list[Effect], session: ClientSession) -> list[Send]:
        return [send for effect in effects for send in self._apply(effect, session)]

    def _apply(self, effect: Effect, session: ClientSession) -> list[Send]:
        match effect:
            case Send():
                return [effect]
            case Apply(messages, cursor):
                self.facts, self.cursor = self.facts.replay_all(messages), cursor
            case Replace(snapshot, cursor):
                self.facts, self.cursor = snapshot.facts(), cursor
            case Compare(as_of, hash_):
                equal = self.facts.hash(self.device_id, as_of) == hash_
                self.mismatches += not equal
                self.hash_compared.set()
                return [e for e in session.hash_compared(equal) if isinstance(e, Send)]
            case Acked(results):
                for message, result in zip(self._in_flight, results, strict=True):
                    assert result.status in ("stored", "duplicate"), result
                    assert result.ctime is not None
                    self.acked[message.msg_id] = result.ctime
                    self.outbox.remove(message)
                self._in_flight = []
            case Deferred():
                self._deferred = True  # retry on the next connection
            case Reconnect():
                self.goaways += 1
        return []

    def _write(self, session: ClientSession) -> list[Send]:
        if self._deferred or not session.may_consume:
            return []
        while len(self.outbox) < self._rng.randint(1, 5):
            self.outbox.append(self._new_message())
        self._in_flight = self.outbox[:5]
        return [e for e in session.consume(self._in_flight) if isinstance(e, Send)]

    def _new_message(self) -> InBandMessage:
        self._message_count += 1
        msg_id = f"{self.device_id}-{self._message_count}"
        category = self._rng.choice(["a", "a.b", "c"])
        match self._rng.randrange(6):
            case 0 if self.acked:
                return dismiss(self.uid, self._rng.choice(list(self.acked)), msg_id=msg_id)
            case 1:
                return dismiss_category(self.uid, category, prefix=True, msg_id=msg_id)
            case 2:
                return put(self.uid, category, self._message_count, msg_id=msg_id)
            case _:
                return create(self.uid, category, self._message_count, msg_id=msg_id)


def replicas(rng: random.Random) -> list[RawReplica]:
    return [RawReplica(f"u{user}", f"u{user}d{n}", rng) for user in range(3) for n in range(2)]


def check_log(rows: Iterable[Sequence[object]], devices: list[RawReplica]) -> int:
    """Assert that each acknowledged message is stored exactly once, with its acknowledged ctime,
    and that each `prev` is the ctime of the user's message before. `rows` are those of LOG_QUERY.
    Returns how many messages are stored."""
    log = list(rows)
    ctimes = {(uid, msg_id): ctime for uid, ctime, _, msg_id in log}
    assert len(ctimes) == len(log)
    clocks: dict[object, object] = {}
    for uid, ctime, prev, _ in log:
        assert prev == clocks.get(uid, 0)
        clocks[uid] = ctime
    for device in devices:
        for msg_id, ctime in device.acked.items():
            assert ctimes.get((device.uid, msg_id)) == ctime, (device.uid, msg_id)
    return len(log)


async def converge(url: str, devices: list[RawReplica]) -> None:
    """Reconnect each device from its cursor, and assert that its state hash is the server's."""
    async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as tasks:
        for device in devices:
            connection = tasks.create_task(device.run_connection(url))
            await device.hash_compared.wait()
            connection.cancel()
    assert [device.mismatches for device in devices] == [0] * len(devices)
