"""A device without I/O: a session and a replica, which are fed calls and frames. And a node for it.

The device does what `gregor.client` does, one step after another; `test_vectors.py` plays the same
steps to a real Client. The node is a real session over a state machine in memory.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Raw, structs

from gregor.client.events import Created, Dismissed
from gregor.client.replica import Replica, events_between, new_rejections
from gregor.client.store import RecordKey, changed_records, load_replica
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import InBandMessage, Message, MsgID
from gregor.core.state import Item
from gregor.errors import Conflict, Erased, HistoryForgotten, InvalidMessage
from gregor.interfaces import HOLDS_FOREVER, Outcome, Rejected, Relayed, Stored
from gregor.protocol.client_session import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    DeliverOutOfBand,
    Effect,
    Replace,
    Welcomed,
    Wipe,
)
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import PAGE_BYTES, Result, encode
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import Authenticate, CatchUp, ReadItems, ServerSession
from gregor.protocol.server_session import Store as StoreRequest
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock
from tests.vectors.encoding import JSON, frame_text, in_band, plain

USER, DEVICE, TOKEN = "alice", "phone", "t"


class DeviceRun:
    """One device under test: `feed` takes one input at a time, and says what came of it."""

    def __init__(self) -> None:
        self.replica = Replica(DEVICE)
        # What the device's store holds.
        self._records = _records(changed_records(None, self.replica))
        self._session: ClientSession | None = None
        self._welcomed = False
        self._online = False
        self._offline = False  # and it has been reported
        self._max_messages = 1
        self._window: Sequence[InBandMessage] = ()
        self._visible: dict[MsgID, Item] = {}
        self._now: Time = 0
        self._sent: list[JSON] = []
        self._events: list[JSON] = []

    def feed(self, given: JSON) -> JSON:
        """The output after one input, as section 11 of spec/protocol.md describes it."""
        self._sent, self._events = [], []
        self._wait_until(given["now"])
        answer = self._carry_out_input({k: v for k, v in given.items() if k != "now"})
        self._send_window()
        return {
            **answer,
            "visible": [[item.ctime, item.msg_id] for item in self.replica.state(self._now)],
            "outbox": [message.msg_id for message in self.replica.unsent()],
            "cursor": self.replica.cursor,
            **({"events": self._events} if self._events else {}),
            **({"sent": self._sent} if self._sent else {}),
        }

    def _wait_until(self, now: Time) -> None:
        """What begins or expires until then is reported at its time."""
        while (due := self.replica.next_change(self._now)) is not None and due <= now:
            self._now = due
            self._refresh(())
        self._now = now

    def _carry_out_input(self, given: JSON) -> dict[str, JSON]:
        match given:
            case {"write": message}:
                return self._write(in_band(message))
            case {"dismiss_category": message} | {"dismiss_key": message}:
                return self._dismiss_seen(in_band(message))
            case {"snooze": {"msg_id": msg_id, "until": until, "new_msg_id": new_id}}:
                return self._snooze(msg_id, TimeOrOffset(time=until), new_id)
            case {"get": key}:
                item = self.replica.with_key(key, self._now)
                return {"item": None if item is None else item.msg_id}
            case {"hide": msg_id}:
                return self._hide(msg_id)
            case {"discard": msg_ids}:
                self._change(self.replica.discard(msg_ids))
            case {"state": at}:
                return {"state": self._state_at(at)}
            case {"connect": {}}:
                self._connect()
            case {"disconnect": {}}:
                self._disconnect()
            case {"begin_again": {}}:
                self._change(self.replica.in_new_life())
            case {"restart": {}}:
                self._restart()
            case {"wait": {}}:
                pass
            case {"frame": frame}:
                assert self._session is not None
                self._carry_out(self._session.receive(frame_text(frame)))
            case _:
                raise AssertionError(f"not an input: {given}")
        return {}

    def _write(self, message: InBandMessage) -> dict[str, JSON]:
        try:
            self._change(self.replica.write(message, self._now), [message])
        except (Conflict, InvalidMessage, Erased) as error:
            return {"error": error.code}
        return {}

    def _dismiss_seen(self, message: InBandMessage) -> dict[str, JSON]:
        try:
            self._change(self.replica.dismiss_seen(message, self._now), [message])
        except (Conflict, Erased) as error:
            return {"error": error.code}
        return {}

    def _snooze(self, msg_id: MsgID, until: TimeOrOffset, new_id: MsgID) -> dict[str, JSON]:
        try:
            message = self.replica.snoozed(msg_id, until, self._now)
        except (InvalidMessage, Erased) as error:
            return {"error": error.code}
        return self._write(structs.replace(message, msg_id=new_id))

    def _hide(self, msg_id: MsgID) -> dict[str, JSON]:
        try:
            self._change(self.replica.hide(msg_id))
        except Erased as error:
            return {"error": error.code}
        return {}

    def _state_at(self, at: Time) -> JSON:
        try:
            return [item.msg_id for item in self.replica.state_at(at)]
        except HistoryForgotten as error:
            return error.code

    def _connect(self) -> None:
        replica = self.replica
        if not replica.erased:
            self._session = ClientSession(
                TOKEN, DEVICE, replica.cursor, replica.epoch, uid=replica.uid
            )
            self._carry_out(self._session.opened())

    def _disconnect(self) -> None:
        if self._session is not None and not self._offline:
            self._events.append({"offline": {}})
            self._offline = True
        self._session, self._welcomed, self._online, self._window = None, False, False, ()

    def _restart(self) -> None:
        """The app ends, and starts again with what its store has kept. Subscribers start again."""
        self._disconnect()
        self._events, self._offline = [], False
        self.replica = load_replica(self._records, DEVICE).derived()
        self._visible = self.replica.visible(self._now)
        if self.replica.erased:
            self._events += [{"erased": {"epoch": self.replica.epoch}}, {"offline": {}}]

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(frame=frame):
                    self._sent.append(plain(frame))
                case Welcomed(uid, limits, _, epoch):
                    self._change(self.replica.welcomed(uid, epoch))
                    self._welcomed, self._max_messages = True, limits.messages
                case Apply(messages, cursor):
                    self._change(self.replica.apply(messages, cursor), messages)
                case Replace(snapshot, cursor, epoch):
                    self._change(self.replica.apply_snapshot(snapshot, cursor, epoch))
                case Compare(as_of, hash_):
                    self._compare(as_of, hash_)
                case Acked(results):
                    self._acknowledge(results)
                case DeliverOutOfBand(system, body):
                    self._events.append({"out_of_band": {"system": system, "body": plain(body)}})
                case Wipe(epoch):
                    self._wipe(epoch)
                case _:
                    raise AssertionError(f"no replica vector has {effect}")

    def _compare(self, as_of: Time, hash_: str) -> None:
        assert self._session is not None
        self._carry_out(self._session.hash_compared(self.replica.hash_matches(as_of, hash_)))
        if self._session.is_up_to_date:
            self._change(self.replica.synced(as_of))
            self._events += [{"synced": {}}] if self._online else [{"online": {}}, {"synced": {}}]
            self._online, self._offline = True, False

    def _acknowledge(self, results: Sequence[Result]) -> None:
        pairs = list(zip(self._window, results, strict=True))
        self._window = ()
        self._change(self.replica.apply_results(pairs), [message for message, _ in pairs])

    def _wipe(self, epoch: Time | None) -> None:
        self._change(self.replica.wiped(epoch))
        self._events.append({"erased": {"epoch": self.replica.epoch}})
        self._offline = False  # that it is for good is reported in any case
        self._disconnect()

    def _change(self, replica: Replica, messages: Sequence[InBandMessage] = ()) -> None:
        changes = changed_records(self.replica, replica)
        self._records = _records({**self._records, **changes})
        before, self.replica = self.replica, replica
        if replica is not before:
            self._refresh(messages)
            self._events += [
                {"rejected": {"msg_id": event.message.msg_id, "code": event.error.code}}
                for event in new_rejections(before, replica)
            ]

    def _refresh(self, messages: Sequence[InBandMessage]) -> None:
        before, self._visible = self._visible, self.replica.visible(self._now)
        for event in events_between(before, self._visible, self._now, messages):
            match event:
                case Created(item):
                    self._events.append({"created": plain(item)})
                case Dismissed(item, why):
                    self._events.append({"dismissed": {"msg_id": item.msg_id, "why": why}})

    def _send_window(self) -> None:
        if self._session is None or not (self._welcomed and self._session.may_consume):
            return
        self._window = self.replica.window(self._max_messages, PAGE_BYTES)
        self._carry_out(self._session.consume(self._window))


def _records(changes: Mapping[RecordKey, bytes | None]) -> dict[RecordKey, bytes]:
    return {key: record for key, record in changes.items() if record is not None}


class NodeRun:
    """A node with one user: `frames` is what it sends to the device, in order."""

    def __init__(self, now: Time) -> None:
        self.clock = ManualClock(now)
        self.machine = MemoryStateMachine(self.clock)
        self._session: ServerSession | None = None

    def connect(self) -> None:
        self._session = ServerSession()

    def disconnect(self) -> None:
        self._session = None

    async def receive(self, frame: JSON) -> None:
        """A frame of the device."""
        assert self._session is not None
        match self._session.receive(msgspec.json.encode(frame).decode()):
            case Authenticate():
                self._session.reading()
                sync = await self.machine.sync(USER, DEVICE, self._session.cursor)
                self._session.opened(USER, sync, self.clock.now, HOLDS_FOREVER)
            case StoreRequest(n, entries):
                self._session.stored(n, [await self._store(entry) for entry in entries])

    async def _store(self, entry: Message | Rejected) -> Outcome:
        match entry:
            case InBandMessage():
                (outcome,) = await self.machine.consume_messages([entry])
                if isinstance(outcome, Stored):
                    self._publish(outcome)
                return outcome
            case Rejected():
                return entry
            case message:
                return Relayed(message)

    async def inject(self, *messages: InBandMessage) -> None:
        """A backend, or another device, writes."""
        for outcome in await self.machine.consume_messages(messages):
            if isinstance(outcome, Stored):
                self._publish(outcome)

    async def erase(self) -> None:
        epoch = (await self.machine.erase(USER)).erasure.epoch
        if self._session is not None:
            self._session.erased(epoch)

    def _publish(self, stored: Stored) -> None:
        if self._session is not None:
            self._session.publish(Publication.of(stored))

    async def frames(self) -> list[JSON]:
        """All that the node has to send now."""
        sent: list[JSON] = []
        while self._session is not None and (effect := self._session.next()) is not None:
            match effect:
                case Send(frame=frame):
                    sent.append(plain(Raw(encode(frame).encode())))
                case CatchUp(cursor):
                    self._session.synced(await self.machine.sync(USER, DEVICE, cursor))
                case ReadItems(ctimes):
                    self._session.items_read(await self.machine.items(USER, ctimes))
                case Close(code=Erased.close_code):
                    self.disconnect()
                case _:
                    raise AssertionError(f"the node closes: {effect}")
        return sent
