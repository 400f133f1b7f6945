"""The vectors of the client's session: written cases, and random walks by seed."""

from collections.abc import Iterable
from random import Random

import msgspec

from gregor.client.reconnect import ReconnectPolicy
from gregor.errors import Malformed
from gregor.protocol.client_session import ClientSession
from tests.vectors.encoding import JSON, Case, Step, VectorFile, effect_json, frame_text, message_of

ABOUT = (
    "The client's side of a conversation (spec/protocol.md, section 11). Feed the inputs of a case "
    "in order to one session: each must give exactly the effects of `out`, in that order. "
    "`connected` begins a new session; the reconnect policy lives through all of a case."
)

HASH = "0" * 64
OTHER_HASH = "1" * 64
LIMITS = {"messages": 500, "message_bytes": 524288, "body_bytes": 65536, "frame_bytes": 1048576}


class SessionRun:
    """A session under test, and the reconnect policy beside it."""

    def __init__(self) -> None:
        self._policy = ReconnectPolicy()
        self._session: ClientSession | None = None

    def feed(self, given: JSON) -> JSON:
        """The effects of one input."""
        match given:
            case {"connected": {"token": token, "device_id": id_, "cursor": cursor} as known}:
                self._session = ClientSession(token, id_, cursor, known.get("epoch"))
                return [effect_json(effect) for effect in self._session.opened()]
            case {"disconnected": arguments}:
                return self._disconnect(arguments)
            case {"synced": {}}:
                self._policy.synced()
                return []
            case {"frame": frame, **rest}:
                return self._receive(frame, rest)
            case {"consume": {"messages": messages}}:
                sent = self.session.consume([message_of(message) for message in messages])
                return [effect_json(effect) for effect in sent]
            case {"verify": arguments}:
                return [effect_json(e) for e in self.session.verify(arguments.get("cursor"))]
            case {"compared": {"equal": bool(equal)}}:
                return [effect_json(effect) for effect in self.session.hash_compared(equal)]
            case _:
                raise AssertionError(f"not an input: {given}")

    def _disconnect(self, arguments: JSON) -> JSON:
        session, self._session = self._session, None
        code, retry_after = arguments.get("code", 1006), arguments.get("retry_after", 0.0)
        effects = [] if session is None else session.disconnected(code)
        seconds = self._policy.wait(arguments["now"], arguments["random"], retry_after)
        return [*map(effect_json, effects), {"wait": {"seconds": round(seconds, 6)}}]

    @property
    def session(self) -> ClientSession:
        assert self._session is not None
        return self._session

    def _receive(self, frame: JSON, arguments: JSON) -> JSON:
        try:
            effects = self.session.receive(frame_text(frame))
        except Malformed:
            return [{"malformed": {}}]
        if isinstance(frame, dict) and frame.get("type") == "goaway":
            self._policy.goaway(arguments["now"], arguments["random"], frame["reconnect_after_ms"])
        return [effect_json(effect) for effect in effects]


def connected(cursor: int = 0, **rest: JSON) -> JSON:
    return {"connected": {"token": "t", "device_id": "phone", "cursor": cursor, **rest}}


def frame(type_: str, **fields: JSON) -> JSON:
    return {"frame": {"type": type_, **fields}}


def welcome(epoch: int = 0) -> JSON:
    fields = {"uid": "alice", "device_id": "phone", "now": 1000, "limits": LIMITS, "epoch": epoch}
    return frame("welcome", **fields)


def welcome_without_epoch() -> JSON:
    """Of a node whose version is without epochs."""
    return frame("welcome", uid="alice", device_id="phone", now=1000, limits=LIMITS)


def erased(epoch: int) -> JSON:
    return frame("erased", epoch=epoch)


def changes(prev: int, cursor: int, messages: Iterable[JSON] = (), more: bool = False) -> JSON:
    fields: dict[str, JSON] = {"mode": "changes", "prev": prev, "cursor": cursor, "as_of": 1000}
    extra = {"more": True} if more else {}
    return frame("sync", **fields, hash=HASH, messages=list(messages), **extra)


def snapshot(cursor: int, items: Iterable[JSON] = (), more: bool = False) -> JSON:
    fields: dict[str, JSON] = {"mode": "snapshot", "prev": 0, "cursor": cursor, "as_of": 1000}
    extra = {"more": True} if more else {}
    return frame("sync", **fields, hash=HASH, items=list(items), **extra)


def created(msg_id: str, ctime: int, prev: int) -> JSON:
    creation = {"category": "chat", "body": {"n": ctime}}
    return {"uid": "alice", "msg_id": msg_id, "ctime": ctime, "prev": prev, "creation": creation}


def item(msg_id: str, ctime: int) -> JSON:
    return {"msg_id": msg_id, "ctime": ctime, "category": "chat", "body": None}


def messages(prev: int, *sent: JSON, cursor: int | None = None) -> JSON:
    cursor = sent[-1]["ctime"] if cursor is None else cursor
    return frame("messages", prev=prev, messages=list(sent), cursor=cursor)


def written(msg_id: str) -> JSON:
    return {"msg_id": msg_id, "creation": {"category": "notes", "body": msg_id}}


def ack(n: int, *results: JSON) -> JSON:
    return frame("ack", n=n, results=list(results))


def stored(msg_id: str, ctime: int) -> JSON:
    return {"status": "stored", "uid": "alice", "msg_id": msg_id, "ctime": ctime}


def error(code: str, action: str, **fields: JSON) -> JSON:
    return frame("error", code=code, message="why", action=action, **fields)


def disconnected(now: float, random: float, **rest: JSON) -> JSON:
    return {"disconnected": {"now": now, "random": random, **rest}}


EQUAL, DIFFERENT = {"compared": {"equal": True}}, {"compared": {"equal": False}}
LIVE = [connected(10), welcome(), changes(10, 20), EQUAL]

WRITTEN: dict[str, list[JSON]] = {
    "hello carries the token, the device and the cursor": [connected(7)],
    "sync in one page is applied and compared": [
        connected(10),
        welcome(),
        changes(10, 20, [created("m", 20, 10)]),
        EQUAL,
    ],
    "each page of changes continues the one before": [
        connected(10),
        welcome(),
        changes(10, 20, [created("a", 20, 10)], more=True),
        changes(20, 30, [created("b", 30, 20)]),
        EQUAL,
    ],
    "snapshot is replaced only when its last page has come": [
        connected(),
        welcome(),
        snapshot(30, [item("a", 20)], more=True),
        snapshot(30, [item("b", 30)]),
        EQUAL,
    ],
    "messages that continue the cursor are applied": [
        *LIVE,
        messages(20, created("m", 25, 20)),
        messages(25, cursor=40),
    ],
    "messages behind the cursor are ignored": [*LIVE, messages(10, created("m", 20, 10))],
    "gap is not applied: a verify asks for a sync": [
        *LIVE,
        messages(30, created("m", 40, 30)),
        messages(40, created("n", 50, 40)),
        changes(20, 50, [created("m", 40, 30), created("n", 50, 40)]),
        EQUAL,
    ],
    "messages during a sync leave the cursor alone, and are asked for afterwards": [
        connected(10),
        welcome(),
        messages(15, created("m", 25, 15)),
        changes(10, 20),
        EQUAL,
        changes(20, 25, [created("m", 25, 20)]),
        EQUAL,
    ],
    "sync that begins elsewhere is not applied": [
        *LIVE,
        changes(5, 15, [created("m", 15, 5)]),
        changes(30, 40, [created("n", 40, 30)]),
    ],
    "sync sent without a verify, from our cursor, is applied": [
        *LIVE,
        changes(20, 30, [created("m", 30, 20)]),
        EQUAL,
    ],
    "first sync of a connection may lead back to a restored backup": [
        connected(500),
        welcome(),
        snapshot(40, [item("a", 40)]),
        EQUAL,
    ],
    "later snapshot that is behind the cursor is ignored": [*LIVE, snapshot(15, [item("a", 15)])],
    "snapshot behind the cursor is ignored also after a different hash": [
        *LIVE[:-1],
        DIFFERENT,
        snapshot(15, [item("a", 15)]),
        messages(20, created("m", 25, 20)),
        snapshot(25, [item("a", 15), item("m", 25)]),
        EQUAL,
    ],
    "snapshot is collected while other frames come": [
        *LIVE,
        {"verify": {"cursor": 0}},
        snapshot(30, [item("a", 20)], more=True),
        messages(30, created("m", 35, 30)),
        frame("out_of_band", system="typing", body=1),
        snapshot(30, [item("b", 30)]),
        EQUAL,
        changes(30, 35, [created("m", 35, 30)]),
        EQUAL,
    ],
    "application asks for a sync": [*LIVE, {"verify": {}}, {"verify": {"cursor": 0}}],
    "page that begins elsewhere does not end a sync": [
        *LIVE,
        {"verify": {}},
        changes(30, 40, [created("n", 40, 30)]),
        messages(20, created("m", 25, 20)),
        changes(20, 30, [created("m", 25, 20)]),
        EQUAL,
    ],
    "different hash asks for a snapshot": [
        connected(10),
        welcome(),
        changes(10, 20),
        DIFFERENT,
        snapshot(20, [item("a", 20)]),
        EQUAL,
    ],
    "snapshot with a different hash does not ask again": [
        connected(),
        welcome(),
        snapshot(20, [item("a", 20)]),
        DIFFERENT,
    ],
    "one consume is in flight at a time": [
        *LIVE,
        {"consume": {"messages": [written("a"), written("b")]}},
        {"consume": {"messages": [written("c")]}},
        ack(1, stored("a", 21), stored("b", 22)),
        {"consume": {"messages": [written("c")]}},
    ],
    "nothing is sent before the welcome, nor for no messages": [
        connected(),
        {"consume": {"messages": [written("a")]}},
        welcome(),
        {"consume": {"messages": []}},
    ],
    "answer to another consume is ignored": [
        *LIVE,
        {"consume": {"messages": [written("a")]}},
        ack(7, stored("a", 21)),
        error("unavailable", "retry", n=7),
        ack(1, {"status": "duplicate", "uid": "alice", "msg_id": "a", "ctime": 5}),
    ],
    "consume that was not taken is deferred": [
        *LIVE,
        {"consume": {"messages": [written("a")]}},
        error("unavailable", "retry", n=1),
        {"consume": {"messages": [written("a")]}},
        ack(1, {"status": "rejected", "uid": "alice", "msg_id": "a",
                "error": {"code": "conflict", "message": "why", "action": "stop"}}),
    ],
    "consume that may be taken later keeps its number, and one that may not loses it": [
        *LIVE,
        {"consume": {"messages": [written("a")]}},
        ack(1, stored("a", 21)),
        {"consume": {"messages": [written("b"), written("c")]}},
        error("limit", "retry", n=2, limit="messages_per_second", maximum=1, retry_after_ms=500),
        {"consume": {"messages": [written("b"), written("c")]}},
        error("limit", "retry", n=2, limit="messages_per_second", maximum=1, retry_after_ms=250),
        {"consume": {"messages": [written("b"), written("c")]}},
        error("too-large", "stop", n=2),
        {"consume": {"messages": [written("b")]}},
        ack(3, stored("b", 22)),
    ],
    "out-of-band message is delivered, also during a sync": [
        connected(10),
        welcome(),
        frame("out_of_band", system="typing", body={"room": 7}),
        {"consume": {"messages": [{"system": "typing", "body": [1]}]}},
        ack(1, {"status": "relayed", "uid": "alice"}),
    ],
    "resync asks for a snapshot": [*LIVE, error("resync", "resync")],
    "error of the conversation says what to do": [
        connected(10),
        error("unauthenticated", "reauthenticate"),
        error("forbidden", "stop"),
        error("unavailable", "retry"),
        error("a-later-code", "stop", field="token"),
    ],
    "hello carries the epoch, once the device has one": [
        connected(7, epoch=0),
        connected(7, epoch=5),
    ],
    "first welcome brings the epoch": [connected(), welcome(5), snapshot(20), EQUAL],
    "erase of the user wipes the device": [connected(10, epoch=0), erased(50)],
    "erase during a connection wipes the device": [
        connected(10, epoch=30),
        welcome(30),
        changes(10, 20),
        EQUAL,
        {"consume": {"messages": [written("a")]}},
        erased(50),
        disconnected(100.0, 1.0, code=4010),
    ],
    "erase before the first welcome wipes the device": [connected(), erased(50)],
    "erase that the device knows of is ignored, and so is the end that it causes": [
        connected(10, epoch=50),
        welcome(50),
        erased(50),
        erased(40),
        disconnected(100.0, 1.0, code=4010),
    ],
    "later epoch in a welcome wipes the device": [connected(10, epoch=30), welcome(50)],
    "close code without an erased frame wipes the device": [
        *LIVE,
        disconnected(100.0, 1.0, code=4010),
    ],
    "other close codes wipe nothing": [
        *LIVE,
        disconnected(100.0, 1.0, code=4001),
        connected(20, epoch=0),
        disconnected(101.0, 1.0, code=410),
    ],
    "answer that the user was erased wipes the device, whatever it is about": [
        *LIVE,
        {"consume": {"messages": [written("a"), written("b")]}},
        ack(1, stored("a", 21), {"status": "rejected", "uid": "alice", "msg_id": "b", "error": {
            "code": "erased", "message": "why", "action": "stop"}}),
        *LIVE,
        {"consume": {"messages": [written("a")]}},
        error("erased", "stop", n=1),
        *LIVE,
        error("erased", "stop"),
    ],
    "earlier epoch is taken with the snapshot of the restored backup": [
        connected(60, epoch=50),
        welcome(30),
        snapshot(20, [item("a", 20)]),
        EQUAL,
        erased(40),
    ],
    "node without epochs changes none": [
        connected(60, epoch=50),
        welcome_without_epoch(),
        snapshot(70, [item("a", 20)]),
        EQUAL,
        connected(),
        welcome_without_epoch(),
        snapshot(70),
        EQUAL,
    ],
    "unknown frame types and fields are ignored": [
        *LIVE,
        frame("renewed", until=1),
        {"frame": {**messages(20, created("m", 25, 20))["frame"], "later": {"x": 1}}},
        messages(25, {**created("n", 30, 25), "later": 1, "creation": {
            "category": "chat", "body": {"later": 2}, "later": [3]}}),
        messages(30, {"uid": "alice", "msg_id": "o", "ctime": 40, "prev": 30, "later": 1}),
    ],
    "text that is no frame is malformed and changes nothing": [
        *LIVE,
        {"frame": "no JSON"},
        {"frame": []},
        {"frame": {"type": "messages", "prev": 20}},
        messages(20, created("m", 25, 20)),
    ],
    "delay before reconnecting doubles, but not beyond twice the outage": [
        connected(),
        disconnected(100.0, 1.0),
        disconnected(100.2, 1.0),
        disconnected(100.9, 1.0),
        disconnected(103.0, 1.0),
        disconnected(110.0, 0.5),
        disconnected(300.0, 1.0),
        disconnected(1000.0, 1.0),
        disconnected(9000.0, 0.25),
        {"synced": {}},
        disconnected(9100.0, 1.0),
    ],
    "quick attempts do not make the next delay long": [
        disconnected(0.0, 0.0),
        disconnected(0.1, 0.0),
        disconnected(0.2, 0.0),
        disconnected(0.3, 0.0),
        disconnected(0.4, 1.0),
    ],
    "delay is the least of three, times the random number": [
        disconnected(0.0, 0.5),
        disconnected(10.0, 0.5),
        disconnected(20.0, 0.5),
        disconnected(2000.0, 0.5),
    ],
    "server that asks for a delay gets it": [
        disconnected(0.0, 0.5, retry_after=3.0),
        disconnected(10.0, 0.0, retry_after=7.5),
    ],
    "goaway says within what time to connect again": [
        *LIVE,
        {"frame": {"type": "goaway", "reconnect_after_ms": 4000}, "now": 50.0, "random": 0.5},
        disconnected(50.5, 0.9),
        disconnected(60.0, 1.0),
        *LIVE,
        {"frame": {"type": "goaway", "reconnect_after_ms": 1000}, "now": 70.0, "random": 1.0},
        disconnected(75.0, 0.9),
    ],
}  # fmt: skip


def walk(rng: Random) -> list[JSON]:
    """Frames of one log over an unreliable transport: lost, repeated, late, in any order. Each
    comparison has its answer."""
    log = []
    ctime = 10
    for number in range(rng.randrange(3, 8)):
        prev, ctime = ctime, ctime + rng.randrange(1, 10)
        log.append(created(f"m{number}", ctime, prev))
    inputs: list[JSON] = []
    run = SessionRun()

    def feed(given: JSON) -> None:
        inputs.append(given)
        if any("compare" in effect for effect in run.feed(given)):
            feed(rng.choice([EQUAL, EQUAL, DIFFERENT]))

    feed(connected(10))
    feed(welcome())
    cursors = [10, *(message["ctime"] for message in log)]
    for _ in range(rng.randrange(6, 14)):
        start = rng.randrange(len(log))
        end = rng.randrange(start, len(log) + 1)
        sent, prev, cursor = log[start:end], cursors[start], cursors[end]
        match rng.choice(["messages", "messages", "changes", "page", "snapshot"]):
            case "messages":
                feed(messages(prev, *sent, cursor=cursor))
            case "changes":
                feed(changes(prev, cursor, sent))
            case "page":
                feed(changes(prev, cursor, sent, more=True))
            case _:
                items = [item(message["msg_id"], message["ctime"]) for message in log[:end]]
                feed(snapshot(cursor, items))
    return inputs


def vectors() -> VectorFile:
    """The file as it must be today."""
    cases = list(WRITTEN.items())
    cases += [(f"random walk {seed}", walk(Random(seed))) for seed in range(20)]
    return VectorFile(ABOUT, [_case(name, inputs) for name, inputs in cases])


def _case(name: str, inputs: list[JSON]) -> Case:
    run = SessionRun()
    # What goes into the file is what is read from it again.
    given = msgspec.json.decode(msgspec.json.encode(inputs))
    return Case(name, [Step(each, run.feed(each)) for each in given])
