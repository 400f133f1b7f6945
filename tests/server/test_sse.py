"""Server-sent events: what a device would hear, one way, and resumable."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tests.server.world import PATIENCE, Served, serving, to, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Event(NamedTuple):
    name: str
    data: Any
    id: str | None


class Stream:
    """The events of a response, read as the standard has it."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> Event:
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE):
            while line := await anext(self._lines):
                name, _, value = line.partition(": ")
                fields[name] = value
        return Event(fields["event"], json.loads(fields["data"]), fields.get("id"))


@asynccontextmanager
async def events(
    served: Served, uid: str, last: str | None = None, **query: Any
) -> AsyncIterator[Stream]:
    headers = {} if last is None else {"Last-Event-ID": last}
    path = f"/v1/users/{uid}/events"
    async with served.http.stream("GET", path, headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response.aiter_lines())


async def test_a_sync_comes_first_and_then_what_happens(shared: Served, uid: str) -> None:
    (first,) = (await shared.post(to(uid, msg_id="1"))).json()["results"]
    async with events(shared, uid) as stream:
        sync = await stream.next()
        assert (sync.name, sync.id) == ("sync", str(first["ctime"]))
        assert [item["msg_id"] for item in sync.data["items"]] == ["1"]
        (second,) = (await shared.post(to(uid, msg_id="2"))).json()["results"]
        news = await stream.next()
        assert (news.name, news.id) == ("messages", str(second["ctime"]))
        assert news.data["prev"] == first["ctime"]
        assert [message["msg_id"] for message in news.data["messages"]] == ["2"]


async def test_the_last_event_id_resumes_without_loss(shared: Served, uid: str) -> None:
    known: list[str] = []
    last: str | None = None
    for round_ in range(5):
        async with events(shared, uid, last) as stream:
            event = await stream.next()
            entries = event.data.get("items" if last is None else "messages", [])
            known += [entry["msg_id"] for entry in entries]
            await shared.post(to(uid, msg_id=f"{round_} live"))
            event = await stream.next()
            known += [message["msg_id"] for message in event.data["messages"]]
            last = event.id
        await shared.post(to(uid, msg_id=f"{round_} missed"))
    async with events(shared, uid, last) as stream:
        known += [message["msg_id"] for message in (await stream.next()).data["messages"]]
    assert known == [f"{n} {kind}" for n in range(5) for kind in ("live", "missed")]


async def test_the_header_goes_before_the_parameter(shared: Served, uid: str) -> None:
    (first,) = (await shared.post(to(uid, msg_id="1"))).json()["results"]
    async with events(shared, uid, str(first["ctime"]), cursor=0) as stream:
        sync = await stream.next()
        assert (sync.data["mode"], sync.data["cursor"]) == ("changes", first["ctime"])
    async with events(shared, uid, cursor=first["ctime"]) as stream:
        assert (await stream.next()).data["mode"] == "changes"


async def test_only_what_can_be_resumed_from_has_an_id(shared: Served, uid: str) -> None:
    for _ in range(2):
        await shared.post({"messages": [to(uid) for _ in range(500)]})
    async with events(shared, uid) as stream:
        first, second = await stream.next(), await stream.next()
        assert (first.data.get("more"), first.id) == (True, None)
        assert second.id == str(second.data["cursor"])
        await shared.post({"uid": uid, "system": "s", "body": {"a": 1}})
        passing = await stream.next()
        assert passing == Event(
            "out_of_band", {"type": "out_of_band", "system": "s", "body": {"a": 1}}, None
        )


async def test_a_body_with_line_ends_is_still_one_event(shared: Served, uid: str) -> None:
    async with events(shared, uid) as stream:
        await stream.next()
        await shared.post(to(uid, body="a\n\nb\r\ndata: c"))
        (message,) = (await stream.next()).data["messages"]
        assert message["creation"]["body"] == "a\n\nb\r\ndata: c"


async def test_a_stream_is_of_a_device(shared: Served, uid: str) -> None:
    async with events(shared, uid, device_id="d1") as stream:
        await stream.next()
        await shared.post(to(uid, msg_id="2", device_id="d2"))
        await shared.post(to(uid, msg_id="1", device_id="d1"))
        (message,) = (await stream.next()).data["messages"]
        assert message["msg_id"] == "1"


async def test_who_hangs_up_is_let_go() -> None:
    async with serving() as served:
        node = served.server.node
        async with events(served, "u") as stream:
            await stream.next()
            assert node.connected("u") == 1
            assert await served.metric("gregor_connections") == 1
        await until(lambda: node.connected("u") == 0)
        assert await served.metric("gregor_connections") == 0


async def test_a_stopping_server_says_goaway_and_ends_the_stream() -> None:
    async with serving() as served, events(served, "u") as stream:
        await stream.next()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(served.server.drain())
            assert (await stream.next()).name == "goaway"
            with pytest.raises(StopAsyncIteration):
                await stream.next()
