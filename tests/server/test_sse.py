"""Server-sent events: the frames that a device would receive, one way, with a cursor to resume."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from gregor.errors import Unavailable
from gregor.server.auth import Identity
from gregor.server.sse import RECONNECT_MS, TRY_ANOTHER_AFTER_MS
from tests.server.harness import Served, serving, to, until
from tests.timeouts import TIMEOUT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Event(NamedTuple):
    name: str
    data: Any
    id: str | None
    retry: str | None = None


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
        data = json.loads(fields["data"])
        return Event(fields["event"], data, fields.get("id"), fields.get("retry"))

    async def rest(self) -> list[Event]:
        """The events until the end of the stream."""
        found = []
        with suppress(StopAsyncIteration):
            while True:
                found.append(await self.next())
        return found


@asynccontextmanager
async def stream_of(
    served: Served, uid: str, last: str | None = None, **query: Any
) -> AsyncIterator[EventReader]:
    headers = {} if last is None else {b"Last-Event-ID": last.encode()}
    path = f"/v1/users/{uid}/events"
    async with served.http.stream("GET", path, headers=headers, params=query) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield EventReader(response.aiter_lines())


@asynccontextmanager
async def events(
    served: Served, uid: str, last: str | None = None, **query: Any
) -> AsyncIterator[EventReader]:
    """A stream after its welcome."""
    async with stream_of(served, uid, last, **query) as stream:
        assert (await stream.next()).name == "welcome"
        yield stream


async def test_stream_begins_with_welcome_and_a_random_time_to_come_back(
    shared: Served, uid: str
) -> None:
    times = set()
    for _ in range(5):
        async with stream_of(shared, uid, device_id="d1") as stream:
            welcome = await stream.next()
            assert (welcome.name, welcome.id) == ("welcome", None)
            assert (welcome.data["uid"], welcome.data["device_id"]) == (uid, "d1")
            assert welcome.data["limits"]["messages"] == 500
            assert welcome.retry is not None
            times.add(int(welcome.retry))
    assert all(RECONNECT_MS / 2 <= time <= RECONNECT_MS for time in times)
    assert len(times) > 1


@pytest.mark.parametrize(
    "last",
    [str(2**53 - 1), "undefined", "null", "urn:uuid:1", "9" * 17, "9" * 5000, "-1", "", "1.5", "²"],
)
async def test_strange_or_stale_last_event_id_means_from_the_beginning(
    shared: Served, uid: str, last: str
) -> None:
    await shared.post(to(uid, msg_id="m"))
    async with events(shared, uid, last, cursor=0) as stream:
        sync = await stream.next()
        assert sync.data["mode"] == "snapshot"
        assert [item["msg_id"] for item in sync.data["items"]] == ["m"]


async def test_head_ends_and_connects_no_device(shared: Served, uid: str) -> None:
    response = await shared.http.head(f"/v1/users/{uid}/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert shared.server.node.device_count(uid) == 0


@pytest.mark.parametrize(
    "sent", ["Content-Length: 5\r\n\r\nxxxxx", "Transfer-Encoding: chunked\r\n\r\n5\r\nxxxxx\r\n"]
)
async def test_request_for_events_with_a_body_is_refused(
    shared: Served, uid: str, sent: str
) -> None:
    """Otherwise it could be sent for ever, beside the events."""
    port = shared.http.base_url.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = f"/v1/users/{quote(uid, safe='')}/events"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{sent}".encode())
    async with asyncio.timeout(TIMEOUT_SECONDS):
        assert b"400" in await reader.readline()
    writer.close()


@pytest.mark.parametrize("resource", ["events", "state"])
async def test_http_1_0_gets_no_chunks(shared: Served, uid: str, resource: str) -> None:
    """A body of unknown length ends with the connection."""
    url = shared.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"GET /v1/users/{uid}/{resource} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    if resource == "events":
        assert (await reader.readline()).startswith(b"retry: ")
        assert await reader.readline() == b"event: welcome\n"
    else:
        assert json.loads(await reader.read())["items"] == []
    writer.close()
    await writer.wait_closed()


async def test_stream_over_http_1_0_ends_with_its_connection() -> None:
    async with serving() as served:
        url = served.http.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"GET /v1/users/u/events HTTP/1.0\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"event: sync\n")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(served.server.drain())
            assert b"event: goaway\n" in await reader.read()
        writer.close()


async def test_body_with_line_breaks_between_its_tokens_is_one_line(
    shared: Served, uid: str
) -> None:
    pretty = '{"uid": "%s", "creation": {"category": "c", "body": {\r\n"a":\n[1,\r2, "\u2028"]\n}}}'
    async with events(shared, uid) as stream:
        await stream.next()
        await shared.http.post("/v1/messages", content=pretty % uid)
        (message,) = (await stream.next()).data["messages"]
        assert message["creation"]["body"] == {"a": [1, 2, "\u2028"]}
    async with events(shared, uid) as stream:
        (item,) = (await stream.next()).data["items"]
        assert item["body"] == {"a": [1, 2, "\u2028"]}


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
            (goaway,) = await stream.rest()
        assert goaway.name == "goaway"
        within = goaway.data["reconnect_after_ms"]
        assert within / 2 <= int(goaway.retry or -1) <= within


async def test_draining_server_answers_a_new_stream_with_goaway() -> None:
    async with serving() as served:
        await served.server.drain()
        async with stream_of(served, "u") as stream:
            (goaway,) = await stream.rest()
            assert (goaway.name, goaway.id) == ("goaway", None)
            assert (
                0 < int(goaway.retry or 0) <= TRY_ANOTHER_AFTER_MS
            )  # perhaps another node answers


async def test_stream_that_cannot_begin_now_is_an_event_that_says_when_to_come_back() -> None:
    """A browser would never try again after a 503."""
    async with serving(authenticator=DownAuthenticator()) as served, stream_of(served, "u") as s:
        (error,) = await s.rest()
        assert (error.name, error.data["code"], error.id) == ("error", "unavailable", None)
        assert error.retry is not None
        assert (await served.http.get("/v1/users/u/state")).status_code == 503


class DownAuthenticator:
    """An authenticator that never answers in time."""

    async def identify(self, token: str | None) -> Identity:
        raise Unavailable("the authenticator does not answer; retry later")
