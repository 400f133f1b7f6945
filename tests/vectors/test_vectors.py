"""spec/vectors/session.json and replica.json are current, and true of this client."""

import asyncio
import re
from pathlib import Path

import msgspec
import pytest

from gregor.client import (
    Client,
    Created,
    Disconnected,
    Dismissed,
    Event,
    MemoryStore,
    Offline,
    Online,
    OutOfBandReceived,
    Synced,
    WriteRejected,
)
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import InBandMessage
from gregor.errors import Conflict, Erased, HistoryForgotten, InvalidMessage
from gregor.testing import virtual_time
from tests.vectors import FILES, SPEC
from tests.vectors.device import DEVICE, TOKEN
from tests.vectors.encoding import JSON, Case, VectorFile, frame_text, in_band, plain, text_of
from tests.vectors.session import SessionRun

PROTOCOL = (SPEC.parent / "protocol.md").read_text()
TASK_SWITCHES = 100  # within one step, until every task of a client waits again


def cases(name: str) -> list[Case]:
    return msgspec.json.decode((SPEC / name).read_bytes(), type=VectorFile).cases


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_file_is_what_make_vectors_writes(path: Path) -> None:
    assert path.read_text() == text_of(FILES[path]()), "run `make vectors`"


@pytest.mark.parametrize("case", cases("session.json"), ids=lambda case: case.name)
def test_session_has_the_effects_of_the_vector(case: Case) -> None:
    run = SessionRun()
    for step in case.steps:
        assert run.feed(step.input) == step.output


@pytest.mark.parametrize("name", ["session.json", "replica.json"])
def test_inputs_and_outputs_are_those_listed_in_the_spec(name: str) -> None:
    """spec/protocol.md lists every key that a step may have."""
    listed = set(re.findall(r"`(\w+)`", PROTOCOL.partition("## 11. ")[2]))
    for case in cases(name):
        for step in case.steps:
            outputs = step.output if isinstance(step.output, list) else [step.output]
            for key in [*step.input, *(key for output in outputs for key in output)]:
                assert key in listed, f"{key} of {case.name}"


@pytest.mark.parametrize("case", cases("replica.json"), ids=lambda case: case.name)
def test_client_shows_keeps_reports_and_sends_what_the_vector_says(case: Case) -> None:
    async def play() -> None:
        run = ClientRun()
        try:
            await run.open()
            for step in case.steps:
                assert await run.feed(step.input) == step.output
        finally:
            await run.close()

    virtual_time.run(play())


class ScriptedTransport:
    """A Transport whose other end is a list of steps."""

    def __init__(self) -> None:
        self.sent: list[JSON] = []
        self.received: asyncio.Queue[str | Disconnected] = asyncio.Queue()

    async def send(self, text: str) -> None:
        self.sent.append(msgspec.json.decode(text))

    async def receive(self) -> str:
        frame = await self.received.get()
        if isinstance(frame, Disconnected):
            raise frame
        return frame

    async def close(self) -> None:
        pass


class ClientRun:
    """A real Client that is fed the inputs of a vector, on virtual time."""

    def __init__(self) -> None:
        self._store = MemoryStore()
        self._transport = ScriptedTransport()
        self._may_connect = asyncio.Event()
        self._client: Client | None = None

    async def open(self) -> None:
        self._may_connect.clear()
        self._client = await Client(
            "http://nowhere",
            TOKEN,
            device_id=DEVICE,
            store=self._store,
            connect=self._connect,
            clock=virtual_time.clock,
            jitter=lambda: 0.0,
        ).__aenter__()
        self._events = self._client.events()

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.__aexit__(None, None, None)

    async def _connect(self) -> ScriptedTransport:
        await self._may_connect.wait()
        self._may_connect.clear()
        self._transport = ScriptedTransport()
        return self._transport

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    async def feed(self, given: JSON) -> JSON:
        await asyncio.sleep((given["now"] - virtual_time.clock()) / SECOND)
        answer = await self._carry_out({k: v for k, v in given.items() if k != "now"})
        for _ in range(TASK_SWITCHES):
            await asyncio.sleep(0)
        events = [event_json(event) for event in self._events.take_pending()]
        sent, self._transport.sent = self._transport.sent, []
        return {
            **answer,
            "visible": [[item.ctime, item.msg_id] for item in self.client.state()],
            "outbox": [message.msg_id for message in self.client.replica.unsent()],
            "cursor": self.client.replica.cursor,
            **({"events": events} if events else {}),
            **({"sent": sent} if sent else {}),
        }

    async def _carry_out(self, given: JSON) -> dict[str, JSON]:
        match given:
            case {"write": message}:
                try:
                    await self.client.write(in_band(message))
                except (Conflict, InvalidMessage, Erased) as error:
                    return {"error": error.code}
            case {"dismiss_category": message}:
                return await self._dismiss_category(in_band(message))
            case {"dismiss_key": message}:
                return await self._dismiss_key(in_band(message))
            case {"snooze": {"msg_id": msg_id, "until": until, "new_msg_id": new_id}}:
                try:
                    at = TimeOrOffset(time=until)
                    await self.client.snooze(msg_id, at, new_msg_id=new_id)
                except (InvalidMessage, Erased) as error:
                    return {"error": error.code}
            case {"get": key}:
                item = self.client.get(key)
                return {"item": None if item is None else item.msg_id}
            case {"hide": msg_id}:
                try:
                    await self.client.hide(msg_id)
                except Erased as error:
                    return {"error": error.code}
            case {"discard": msg_ids}:
                await self.client.discard(*msg_ids)
            case {"state": at}:
                try:
                    state = self.client.state(TimeOrOffset(time=at))
                    return {"state": [item.msg_id for item in state]}
                except HistoryForgotten as error:
                    return {"state": error.code}
            case {"begin_again": {}}:
                self.client.reconnect()
            case {"connect": {}}:
                self._may_connect.set()
            case {"disconnect": {}}:
                self._transport.received.put_nowait(Disconnected(1006, "the network is gone"))
            case {"restart": {}}:
                await self.close()
                await self.open()
            case {"frame": frame}:
                self._transport.received.put_nowait(frame_text(frame))
        return {}

    async def _dismiss_category(self, message: InBandMessage) -> dict[str, JSON]:
        assert message.dismissal is not None
        (range_,) = message.dismissal.ranges
        try:
            await self.client.dismiss_category(
                range_.category,
                range_.prefix,
                scheduled=range_.scheduled,
                skip_msg_ids=range_.skip_msg_ids,
                msg_id=message.msg_id,
            )
        except (Conflict, Erased) as error:
            return {"error": error.code}
        return {}

    async def _dismiss_key(self, message: InBandMessage) -> dict[str, JSON]:
        assert message.dismissal is not None
        keys = [named.key for named in message.dismissal.keys]
        try:
            await self.client.dismiss_key(*keys, msg_id=message.msg_id)
        except (Conflict, Erased) as error:
            return {"error": error.code}
        return {}


def event_json(event: Event) -> JSON:
    match event:
        case Created(item):
            return {"created": plain(item)}
        case Dismissed(item, why):
            return {"dismissed": {"msg_id": item.msg_id, "why": why}}
        case OutOfBandReceived(system, body):
            return {"out_of_band": {"system": system, "body": body}}
        case WriteRejected(message, error):
            return {"rejected": {"msg_id": message.msg_id, "code": error.code}}
        case Online():
            return {"online": {}}
        case Offline():
            return {"offline": {}}
        case Synced():
            return {"synced": {}}
        case Erased(epoch=epoch):
            return {"erased": {"epoch": epoch}}
        case _:
            raise AssertionError(f"no replica vector has {event}")
