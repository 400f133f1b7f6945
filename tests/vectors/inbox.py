"""The vectors of the inbox: what a backend sends, and stories of one device without a node."""

import asyncio
from collections.abc import Sequence

import msgspec

from gregor.client.connection import Operation
from gregor.client.inbox import Device, Inbox
from gregor.client.replica import Replica
from gregor.core.inbox import Undo, notification
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, Key, MsgID, dismiss_key
from gregor.core.notification_body import valid_fields
from gregor.core.state import Item, State
from gregor.core.sync import Snapshot
from gregor.errors import GregorError, InvalidMessage
from gregor.testing import virtual_time
from tests.vectors.device import DEVICE, USER
from tests.vectors.encoding import JSON, Case, Step, VectorFile, plain

ABOUT = (
    "An inbox (spec/inbox.md, section 7). Feed the inputs of a case in order. `notify` is what a "
    "backend does; all others are done on one new device, `phone` of `alice`, whose clock shows "
    "`now`: what it writes and shows must be as in `out`."
)
START = virtual_time.START
HOUR = 3_600 * SECOND
BODY: JSON = {"title": "Ann liked your photo"}


class InboxRun:
    """The inbox of one device under test, and what was done to it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._inbox = Inbox(device)
        self._names: dict[MsgID, str] = {}
        self._undos: list[Undo] = []  # of each step

    async def feed(self, given: JSON) -> JSON:
        """The output after one input, as section 7 of spec/inbox.md describes it."""
        self._undos.append(Undo())
        try:
            self._undos[-1] = await self._carry_out(given) or Undo()
            return {"written": self._written(), **self._shown(given.get("list", {}))}
        except InvalidMessage as error:
            return {"error": error.field}

    def _shown(self, which: JSON) -> JSON:
        topic, limit = which.get("topic"), which.get("limit")
        return {
            "entries": [
                [entry.key, entry.unread] for entry in self._inbox.list(topic, limit=limit)
            ],
            "unread": self._inbox.unread_count(topic),
            "by_topic": self._inbox.unread_by_topic(),
        }

    async def _carry_out(self, given: JSON) -> Undo | None:
        match {name: value for name, value in given.items() if name != "now"}:
            case {"told": {"items": items, "cursor": cursor}}:
                await self._device.change(told(items, cursor))
            case {"list": _}:
                pass
            case {"read": keys}:
                return await self._inbox.read(*keys)
            case {"unread": keys}:
                await self._inbox.unread(*keys)
            case {"archive": keys}:
                return await self._inbox.archive(*keys)
            case {"read_all": which}:
                return await self._inbox.read_all(which.get("topic"))
            case {"snooze": {"key": key, "until": until}}:
                return await self._inbox.snooze(key, TimeOrOffset(**until))
            case {"undo": number}:
                await self._inbox.undo(self._undos[number])
            case _:
                raise AssertionError(f"not an input: {given}")
        return None

    def _written(self) -> list[JSON]:
        """The messages that are new in the outbox, with names for their random ids."""
        unsent = self._device.replica.unsent()
        new = [message for message in unsent if message.msg_id not in self._names]
        for message in new:
            self._names[message.msg_id] = f"#{len(self._names) + 1}"
        return [self._named(message) for message in new]

    def _named(self, message: InBandMessage) -> JSON:
        written = {name: value for name, value in plain(message).items() if name != "uid"}
        written["msg_id"] = self._names[message.msg_id]
        for ids in [written.get("dismissal", {}).get("msg_ids", [])]:
            ids[:] = [self._names.get(id_, id_) for id_ in ids]
        return written


def told(items: JSON, cursor: Time) -> Operation:
    """A node sends a snapshot."""
    snapshot = Snapshot(tuple(msgspec.json.decode(msgspec.json.encode(items), type=list[Item])))
    return lambda replica, _: replica.apply_snapshot(snapshot, cursor)


class ReplicaDevice:
    """A device without store, connection and events: a replica, and a clock that is set."""

    device_id = DEVICE

    def __init__(self) -> None:
        self.replica = Replica(DEVICE)
        self.now = START

    def state(self) -> State:
        return self.replica.state(self.now)

    async def dismiss_key(self, *keys: Key) -> MsgID:
        message = dismiss_key(USER, *keys, device_id=DEVICE)
        await self.change(lambda replica, now: replica.dismiss_seen(message, now))
        return message.msg_id

    async def write_all(self, messages: Sequence[InBandMessage]) -> None:
        for message in messages:
            self.replica = self.replica.write(message, self.now)

    async def change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        self.replica = operation(self.replica, self.now)


# What a backend sends


def sent(**given: JSON) -> JSON:
    """The messages of a notification, or the field of the error."""
    times = {name: TimeOrOffset(**given[name]) for name in ("starts", "expires") if name in given}
    arguments: JSON = {**given, **times}
    try:
        return {"messages": plain(notification(**arguments))}
    except GregorError as error:
        return {"error": error.field}


def notify(**given: JSON) -> Step:
    arguments = {"uid": USER, "topic": "likes", "body": BODY, "msg_id": "m1", **given}
    return Step({"notify": arguments}, sent(**arguments))


URLS = [
    *("https://example.com", "HTTP://example.com:8080/a?b#c", "https://[::1]/", "/orders/17"),
    *("orders/17", "?tab=unread", "#top", "/go?to=https://example.com", "/a:b", "/ö"),
]
NO_URLS = [
    *("", "javascript:alert(1)", "JavaScript:alert(1)", "java\nscript:alert(1)"),
    *("java\tscript:alert(1)", " javascript:alert(1)", "\x01javascript:alert(1)"),
    *("data:text/html,hello", "mailto:a@example.com", "//example.com", "/\\example.com"),
    *("\\\\example.com", "/with space", "/a\x7f", "https:", "https://", "https:///a", "https://?a"),
    *("https://@example.com", "http:example.com", "example.com:80/a", "/" + "x" * 2_048, None, 7),
]
ACTION: JSON = {"id": "open", "label": "Open"}

ACTIONS: list[JSON] = [
    [],
    [ACTION, {"label": "Show", "url": "/orders/17", "style": "primary"}],
    [{"id": f"{number}", "label": "x"} for number in range(8)],
    [{"id": f"{number}", "label": "x"} for number in range(9)],
    {},
    None,
    ["open"],
    [ACTION, {"label": "Show"}],
    [{"id": "open"}],
    [{"id": 7}],
    [{"id": "open", "label": ""}],
    [{"id": "open", "label": "x" * 256}],
    [{"id": "x" * 65, "label": "Open"}],
    [{"id": 7, "label": "Open"}],
    [ACTION, ACTION],
    [ACTION, {**ACTION, "id": "show", "url": "javascript:alert(1)"}],
]

SENT = {
    "a notification and its marker": [
        notify(),
        notify(key="photo7"),
        notify(topic="likes.photo7", device_id="phone"),
        notify(starts={"offset": HOUR}, expires={"offset": 2 * HOUR}),
        notify(starts={"time": START + HOUR}, expires={"time": START + 2 * HOUR}),
    ],
    "keys, ids and topics leave room for those of the marker": [
        notify(key="x" * 248),
        notify(key="ö" * 124),
        notify(key="x" * 249),
        notify(key="ö" * 125),
        notify(key=""),
        notify(key="unread:photo7"),
        notify(msg_id="x" * 57),
        notify(msg_id="x" * 58),
        notify(msg_id="unread:m1"),
        notify(topic="x" * 247),
        notify(topic="x" * 248),
        *(notify(topic=topic) for topic in ("", ".", ".likes", "likes.", "likes..photo7")),
    ],
    "a start lies before the expiry": [
        notify(starts={"offset": HOUR}, expires={"offset": HOUR}),
        notify(starts={"time": START}, expires={"time": START - 1}),
    ],
    "fields of the body": [
        notify(body={}),
        notify(body={"title": "x" * 1_024, "text": "x", "severity": "error", "photo": 7}),
        notify(body={"title": "x" * 1_025}),
        *(notify(body=body) for body in (None, "x", ["x"])),
        *(notify(body={name: value}) for name in ("title", "text") for value in ("", 7, None)),
        notify(body={"text": "x" * 16_384}),
        notify(body={"text": "x" * 16_385}),
        *(notify(body={"severity": each}) for each in ("info", "success", "warning")),
        *(notify(body={"severity": each}) for each in ("Info", "", None, ["info"])),
        notify(body={"title": "", "severity": "", "url": ""}),
    ],
    "URLs": [notify(body={"url": url}) for url in (*URLS, *NO_URLS)],
    "icons are URLs": [notify(body={"icon": url}) for url in ("/bell.png", "data:image/png,")],
    "actions": [notify(body={"actions": actions}) for actions in ACTIONS],
}

# What a device may show of bodies that others have written


def shown(body: JSON) -> Step:
    return Step({"body": body}, {"fields": valid_fields(body)})


BODIES = {
    "a device leaves out what is invalid": [
        *(shown(body) for body in (None, 7, "x", ["x"], {}, {"photo": 7, "Title": 7})),
        shown({"title": "", "text": "x", "severity": "loud", "url": "/", "photo": None}),
        *(shown({"title": "x", "url": url}) for url in ("//example.com", "javascript:alert(1)")),
        shown({"text": "x", "actions": [ACTION, {"label": "Show", "url": "javascript:alert(1)"}]}),
    ],
}


# What a device does


def item(key: str, ctime: Time, **fields: JSON) -> JSON:
    """A notification as a node sends it, `ctime` microseconds before or after START."""
    given = {"msg_id": key, "category": "inbox.likes", "body": BODY, "key": key, **fields}
    return {**given, "ctime": START + ctime}


def marker(key: str, ctime: Time, **fields: JSON) -> JSON:
    given = {"msg_id": f"unread:{key}", "category": "unread.likes", "body": None, **fields}
    return {**given, "key": f"unread:{key}", "ctime": START + ctime}


def unread(key: str, ctime: Time, topic: str = "likes", **fields: JSON) -> list[JSON]:
    """A notification that is unread: the item, and its marker a microsecond later."""
    msg_id = fields.pop("msg_id", key)
    return [
        item(key, ctime, category=f"inbox.{topic}", msg_id=msg_id, **fields),
        marker(key, ctime + 1, category=f"unread.{topic}", msg_id=f"unread:{msg_id}", **fields),
    ]


def snapshot(*items: JSON, now: Time = 0) -> JSON:
    """All that the node has sent, up to the last of it."""
    cursor = max((each["ctime"] for each in items), default=START)
    return {"told": {"items": list(items), "cursor": cursor}, "now": START + now}


def act(now: Time = SECOND, **action: JSON) -> JSON:
    """An action, by default one second after START."""
    return {**action, "now": START + now}


# What a backend has sent after `a` and `b` were read and archived on a device that is offline.
NEWER = [*unread("a", SECOND, msg_id="a2"), *unread("b", SECOND + 10, msg_id="b2")]

DONE = {
    "entries are notifications, the newest first": [
        snapshot(
            *unread("old", -30),
            item("read", -20),
            *unread("later", -40, starts_at=START + HOUR),
            item("no key", -10) | {"key": None},
            item("x" * 249, -10) | {"msg_id": "long"},
            item("unread:marker", -9),
            item("setting", -8, category="settings.theme"),
            item("elsewhere", -7, category="inboxes"),
            item("long topic", -6, category="inbox." + "x" * 248),
        ),
        act(HOUR - 1, list={}),
        act(HOUR, list={}),
        act(HOUR, list={"limit": 2}),
        act(HOUR, list={"limit": 1}),
    ],
    "a topic has the topics below it": [
        snapshot(
            *unread("a", -40, "likes"),
            *unread("b", -30, "likes.photo7"),
            *unread("c", -20, "likesome"),
            *unread("d", -10, "chat.room1"),
        ),
        act(list={"topic": "likes"}),
        act(list={"topic": "likes.photo7"}),
        act(list={"topic": "chat"}),
        act(list={"topic": "room1"}),
        act(list={"topic": "likes."}),
        act(read_all={"topic": "likes"}),
        act(read_all={"topic": "likes"}),
        act(undo=6),
        act(read_all={"topic": "chat.room1"}),
        act(read_all={}),
    ],
    "the longest topic": [
        snapshot(*unread("a", -40, "x" * 247)),
        act(read_all={"topic": "x" * 247}),
        act(read_all={"topic": "x" * 248}),
        act(unread=["a"]),
    ],
    "a marker marks the notification of its scope": [
        snapshot(
            *unread("a", -40),
            item("a", -30, msg_id="own", device_id=DEVICE),
            marker("gone", -20),
            marker("b", -10, device_id=DEVICE),
            item("b", -15),
        ),
        act(list={}),
        act(unread=["a"]),
        act(read=["a", "b", "gone"]),
        act(archive=["a"]),
        act(undo=4),
    ],
    "read and unread": [
        snapshot(*unread("a", -40), *unread("b", -30, expires_at=START + HOUR), item("c", -20)),
        act(read=["a"]),
        act(read=["a"]),
        act(read=["c", "unknown"]),
        act(read=["a", "b", "b"]),
        act(read=["x" * 249]),
        act(unread=["b", "c", "unknown"]),
        act(unread=["b"]),
        act(read=["b"]),
        act(undo=1),
        act(undo=1),
        act(list={}),
    ],
    "what the device has not been told of stays, unread": [
        snapshot(*unread("a", -40), *unread("b", -30)),
        act(read_all={}),
        act(archive=["b"]),
        # The backend has sent both again, and neither device nor node has heard of the other.
        snapshot(*NEWER, now=2 * SECOND),
        act(2 * SECOND, undo=2),
        act(2 * SECOND, undo=1),
        act(2 * SECOND, read=["a"]),
        act(2 * SECOND, undo=6),
    ],
    "read all takes what has begun, and nothing else": [
        snapshot(*unread("a", -40, starts_at=START + HOUR), *unread("b", -30, starts_at=START + 1)),
        act(read_all={}),
        act(HOUR, list={}),
    ],
    "what has not begun can be named": [
        snapshot(*unread("a", -40, starts_at=START + HOUR)),
        act(read=["a"]),
        act(undo=1),
        act(unread=["a"]),
        act(read=["a"]),
        act(unread=["a"]),
        act(HOUR, list={}),
    ],
    "archive and undo": [
        snapshot(
            *unread("a", -40, expires_at=START + HOUR),
            item("b", -20, device_id=DEVICE),
            *unread("c", -10, starts_at=START + 2 * HOUR),
        ),
        act(archive=["a", "b", "c"]),
        act(archive=["a"]),
        act(undo=1),
        act(undo=1),
        act(2 * HOUR, list={}),
        act(2 * HOUR, archive=["b", "unknown"]),
        act(2 * HOUR, undo=1),
        act(2 * HOUR, undo=6),
        act(2 * HOUR, undo=2),
    ],
    "an undo puts no marker without its notification": [
        snapshot(*unread("a", -40)),
        act(read=["a"]),
        act(archive=["a"]),
        act(undo=1),
        act(undo=2),
        act(undo=1),
    ],
    "snooze and undo": [
        snapshot(*unread("a", -40, expires_at=START + 3 * HOUR), item("b", -20)),
        act(snooze={"key": "a", "until": {"offset": HOUR}}),
        act(snooze={"key": "b", "until": {"time": START + 2 * HOUR}}),
        act(HOUR, list={}),
        act(HOUR + SECOND, list={}),
        act(2 * HOUR, list={}),
        act(2 * HOUR, snooze={"key": "a", "until": {"offset": HOUR}}),
        act(2 * HOUR, snooze={"key": "a", "until": {"time": START + 3 * HOUR - 1}}),
        act(2 * HOUR, undo=7),
        act(2 * HOUR, undo=7),
        act(2 * HOUR, snooze={"key": "a", "until": {"offset": 0}}),
        act(2 * HOUR, snooze={"key": "a", "until": {"time": START}}),
        act(2 * HOUR, snooze={"key": "unknown", "until": {"offset": HOUR}}),
    ],
    "a snooze that is snoozed again, and undone": [
        snapshot(*unread("a", -40)),
        act(snooze={"key": "a", "until": {"offset": HOUR}}),
        act(snooze={"key": "a", "until": {"offset": 2 * HOUR}}),
        act(undo=1),
        act(undo=2),
        act(undo=1),
    ],
    "a marker without its notification is not counted, and read all removes it": [
        snapshot(marker("a", -40), *unread("b", -30)),
        act(read=["a"]),
        act(undo=1),
        act(unread=["a"]),
        act(read_all={}),
    ],
    "read all removes a marker without its notification": [
        snapshot(marker("a", -40)),
        act(read_all={}),
        act(undo=1),
    ],
    "what the device has written itself": [
        snapshot(item("a", -40)),
        act(unread=["a"]),
        act(read=["a"]),
        act(unread=["a"]),
        act(snooze={"key": "a", "until": {"offset": HOUR}}),
        act(HOUR + SECOND, list={}),
        act(HOUR + SECOND, read_all={}),
        act(HOUR + SECOND, archive=["a"]),
        act(HOUR + SECOND, undo=7),
    ],
}


def vectors() -> VectorFile:
    """The file as it must be today."""
    cases = [Case(name, steps) for name, steps in (SENT | BODIES).items()]
    cases += [asyncio.run(_played(name, inputs)) for name, inputs in DONE.items()]
    return VectorFile(ABOUT, cases)


async def _played(name: str, inputs: list[JSON]) -> Case:
    device = ReplicaDevice()
    run, steps = InboxRun(device), list[Step]()
    for given in msgspec.json.decode(msgspec.json.encode(inputs)):
        device.now = given["now"]
        steps.append(Step(given, await run.feed(given)))
    return Case(name, steps)
