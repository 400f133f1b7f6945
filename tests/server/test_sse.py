"""Server-sent events: the frames that a device would receive, one way, with a cursor to resume."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tests.server.harness import TIMEOUT_SECONDS, Served, serving, to, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Event(NamedTuple):
    name: str
    data: Any
    id: str | None


class EventReader:
    """Parses the events of a response, as the standard defines them."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while line := await anext(self._lines):
                name, _, value = line.partition(": ")
                fields[name] = value
        return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))


@asynccontextmanager
async def events(
    served: Served, uid: str, last: str | None = None, **query: Any
) -> AsyncIterator[EventReader]:
    headers = {} if last is None else {"Last-Event-ID": last}
    path = f"/v1/users/{uid}/events"
    async with served.http.stream("GET", path, headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield EventReader(response.aiter_lines())


async def test_stream_begins_with_sync_and_continues_with_messages(
    shared: Served, uid: str
) -> None:
    (first,) = (await shared.post(to(uid, msg_id="1"))).json()["results"]
    async with events(shared, uid) as stream:
        sync = await stream.next()
        assert (sync.name, sync.id) == ("sync", str(first["ctime"]))
        assert [item["msg_id"] for item in sync.data["items"]] == ["1"]
        (second,) = (await shared.post(to(uid, msg_id="2"))).json()["results"]
        event = await stream.next()
        assert (event.name, event.id) == ("messages", str(second["ctime"]))
        assert event.data["prev"] == first["ctime"]
        assert [message["msg_id"] for message in event.data["messages"]] == ["2"]


async def test_last_event_id_resumes_without_loss(shared: Served, uid: str) -> None:
    received: list[str] = []
    last: str | None = None
    for round_ in range(5):
        async with events(shared, uid, last) as stream:
            event = await stream.next()
            entries = event.data.get("items" if last is None else "messages", [])
            received += [entry["msg_id"] for entry in entries]
            await shared.post(to(uid, msg_id=f"{round_} live"))
            event = await stream.next()
            received += [message["msg_id"] for message in event.data["messages"]]
            last = event.id
        await shared.post(to(uid, msg_id=f"{round_} missed"))
    async with events(shared, uid, last) as stream:
        received += [message["msg_id"] for message in (await stream.next()).data["messages"]]
    assert received == [f"{n} {kind}" for n in range(5) for kind in ("live", "missed")]


async def test_last_event_id_takes_precedence_over_cursor_parameter(
    shared: Served, uid: str
) -> None:
    (first,) = (await shared.post(to(uid, msg_id="1"))).json()["results"]
    async with events(shared, uid, str(first["ctime"]), cursor=0) as stream:
        sync = await stream.next()
        assert (sync.data["mode"], sync.data["cursor"]) == ("changes", first["ctime"])
    async with events(shared, uid, cursor=first["ctime"]) as stream:
        assert (await stream.next()).data["mode"] == "changes"


async def test_only_events_to_resume_from_have_an_id(shared: Served, uid: str) -> None:
    for _ in range(2):
        await shared.post({"messages": [to(uid) for _ in range(500)]})
    async with events(shared, uid) as stream:
        first, second = await stream.next(), await stream.next()
        assert (first.data.get("more"), first.id) == (True, None)
        assert second.id == str(second.data["cursor"])
        await shared.post({"uid": uid, "system": "s", "body": {"a": 1}})
        out_of_band = await stream.next()
        assert out_of_band == Event(
            "out_of_band", {"type": "out_of_band", "system": "s", "body": {"a": 1}}, None
        )


async def test_body_with_line_breaks_is_one_event(shared: Served, uid: str) -> None:
    async with events(shared, uid) as stream:
        await stream.next()
        await shared.post(to(uid, body="a\n\nb\r\ndata: c"))
        (message,) = (await stream.next()).data["messages"]
        assert message["creation"]["body"] == "a\n\nb\r\ndata: c"


async def test_stream_of_device_leaves_out_messages_scoped_to_others(
    shared: Served, uid: str
) -> None:
    async with events(shared, uid, device_id="d1") as stream:
        await stream.next()
        await shared.post(to(uid, msg_id="2", device_id="d2"))
        await shared.post(to(uid, msg_id="1", device_id="d1"))
        (message,) = (await stream.next()).data["messages"]
        assert message["msg_id"] == "1"


async def test_closed_stream_is_no_longer_connected() -> None:
    async with serving() as served:
        node = served.server.node
        async with events(served, "u") as stream:
            await stream.next()
            assert node.device_count("u") == 1
            assert await served.metric("gregor_connections") == 1
        await until(lambda: node.device_count("u") == 0)
        assert await served.metric("gregor_connections") == 0


async def test_draining_server_sends_goaway_and_ends_stream() -> None:
    async with serving() as served, events(served, "u") as stream:
        await stream.next()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(served.server.drain())
            assert (await stream.next()).name == "goaway"
            with pytest.raises(StopAsyncIteration):
                await stream.next()
