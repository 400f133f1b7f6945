"""A producer returns when a message is durable, retries, and raises the server's errors.

Each test runs with both producers.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from gregor.client import AsyncProducer, Producer
from gregor.client.calls import LIMITS, UnexpectedAnswer
from gregor.client.per_process import PerProcess
from gregor.config import KEEP_ALIVE_SECONDS
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.item_history import Cause, ItemEvent, ItemHistory, PutRule
from gregor.core.message import JSON, MAX_BATCH, Message, create, out_of_band
from gregor.errors import (
    Conflict,
    Erased,
    GregorError,
    InvalidMessage,
    LimitExceeded,
    Malformed,
    Resync,
    SetupError,
    Unauthenticated,
    Unavailable,
)
from gregor.protocol.answers import EraseAnswer, MessagesAnswer
from gregor.protocol.requests import MAX_REQUEST, MAX_USERS
from tests.server.harness import jwt_settings, open_settings, serving, token


class InThread:
    """A blocking Producer whose methods are awaited: each runs in a thread."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        return partial(asyncio.to_thread, getattr(self._producer, name))


@pytest.fixture(params=["Producer", "AsyncProducer"])
def kind(request: pytest.FixtureRequest) -> str:
    """The producer that a test runs with."""
    assert isinstance(request.param, str)
    return request.param


@asynccontextmanager
async def producer_for(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """A producer of this kind. Its methods are awaited."""
    if kind == "Producer":
        with Producer(url, **options) as producer:
            yield InThread(producer)
    else:
        async with AsyncProducer(url, **options) as async_producer:
            yield async_producer


class FakeServer:
    """Gives the stated answers, in order; then answers that everything is stored."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.delays: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else stored(request)
        if isinstance(answer, Exception):
            raise answer
        # A copy, because a response can be sent only once.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    def producer(self, kind: str) -> AbstractAsyncContextManager[Any]:
        return producer_for(
            kind,
            "http://gregor",
            token="token",
            transport=httpx.MockTransport(self),
            sleep=self.delays.append if kind == "Producer" else self._sleep,
            jitter=lambda: 0.5,
        )

    async def _sleep(self, seconds: float) -> None:
        self.delays.append(seconds)

    def bodies(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(request.content) for request in self.requests]


def stored(request: httpx.Request) -> httpx.Response:
    body = msgspec.json.decode(request.content)
    if "uids" in body:
        ids = [(uid, body["message"]["msg_id"]) for uid in body["uids"]]
    else:
        ids = [(m["uid"], m.get("msg_id")) for m in body.get("messages", [body])]
    return httpx.Response(200, json={"results": [result(uid, msg_id) for uid, msg_id in ids]})


def result(uid: str, msg_id: str | None) -> dict[str, Any]:
    if msg_id is None:
        return {"status": "relayed", "uid": uid}
    return {"status": "stored", "uid": uid, "msg_id": msg_id, "ctime": 7}


def problem(status: int, code: str, action: str = "stop", **headers: str) -> httpx.Response:
    document = {"type": "x", "title": "X", "status": status, "detail": "details", "code": code}
    return httpx.Response(
        status, json={**document, "action": action, "field": "f"}, headers=headers
    )


def rejected(code: str, action: str = "stop") -> httpx.Response:
    error = {"code": code, "message": "details", "action": action, "field": "msg_id"}
    return httpx.Response(
        200, json={"results": [{"uid": "alice", "status": "rejected", "error": error}]}
    )


async def test_message_is_sent_with_msg_id_and_token(kind: str) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        result = await producer.create("alice", "mail", {"n": 1}, expires="90s")
    (request,) = server.requests
    (body,) = server.bodies()
    assert (request.method, str(request.url)) == ("POST", "http://gregor/v1/messages")
    assert request.headers["Authorization"] == "Bearer token"
    assert body["creation"] == {
        "category": "mail",
        "body": {"n": 1},
        "expires": {"offset": 90_000_000},
    }
    assert (result.status, result.msg_id, result.ctime) == ("stored", body["msg_id"], 7)


async def test_each_method_sends_what_it_is_given(kind: str) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        await producer.create("alice", "mail", 1, starts="2h", expires="1d", device_id="phone")
        await producer.put("alice", "theme", "dark")
        await producer.put("alice", "up", 4, key="up17", starts="1h", expires="2h", device_id="d")
        await producer.dismiss("alice", "a", "b")
        await producer.dismiss_key("alice", "theme", "up17", end_time="-1h", device_id="phone")
        await producer.dismiss_category("alice", "mail", prefix=True)
        await producer.dismiss_category("alice", "mail", scheduled=True, device_id="phone")
    hour = 3600 * SECOND
    assert [without_ids(body) for body in server.bodies()] == [
        {
            "device_id": "phone",
            "creation": {
                "category": "mail",
                "body": 1,
                "expires": {"offset": 24 * hour},
                "starts": {"offset": 2 * hour},
            },
        },
        {"creation": {"category": "theme", "body": "dark", "key": "theme"}},
        {
            "device_id": "d",
            "creation": {
                "category": "up",
                "body": 4,
                "expires": {"offset": 2 * hour},
                "starts": {"offset": hour},
                "key": "up17",
            },
        },
        {"dismissal": {"msg_ids": ["a", "b"]}},
        {
            "device_id": "phone",
            "dismissal": {
                "keys": [
                    {"key": "theme", "end_time": {"offset": -hour}},
                    {"key": "up17", "end_time": {"offset": -hour}},
                ]
            },
        },
        {"dismissal": {"ranges": [{"category": "mail", "prefix": True}]}},
        {
            "device_id": "phone",
            "dismissal": {"ranges": [{"category": "mail", "scheduled": True}]},
        },
    ]


def without_ids(body: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if name not in ("uid", "msg_id")}


@pytest.mark.parametrize(
    "failure",
    [
        problem(503, "unavailable", "retry"),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("no answer"),
        httpx.Response(200, text="<html>welcome</html>"),
        httpx.Response(200, content=b'{"results": [{"status": "sto'),
        httpx.Response(200, content=b"\xff" * 10),
        httpx.Response(200, content=b"[" * 100_000),
    ],
    ids=[
        *("unavailable", "bad-gateway", "connection-refused", "read-timeout"),
        *("not-json", "cut-off", "not-utf8", "nested"),
    ],
)
async def test_temporary_failure_is_retried_with_same_msg_id(
    kind: str,
    failure: httpx.Response | Exception,
) -> None:
    server = FakeServer(failure, failure)
    async with server.producer(kind) as producer:
        assert (await producer.create("alice", "mail")).status == "stored"
    assert len({str(body["msg_id"]) for body in server.bodies()}) == 1
    assert server.delays == [0.25, 0.5]


async def test_retry_after_is_added_to_backoff(kind: str) -> None:
    server = FakeServer(problem(503, "unavailable", "retry", **{"Retry-After": "3"}))
    async with server.producer(kind) as producer:
        await producer.create("alice", "mail")
    assert server.delays == [3.25]


@pytest.mark.parametrize("send", ["create", "out_of_band"])
async def test_rate_that_is_used_up_is_waited_for(kind: str, send: str) -> None:
    server = FakeServer(problem(429, "limit", "retry", **{"Retry-After": "3"}))
    async with server.producer(kind) as producer:
        await getattr(producer, send)("alice", "mail")
    assert server.delays == [3.25]


async def test_batch_of_which_a_part_is_refused_for_a_while_is_sent_again_after_that(
    kind: str,
) -> None:
    error = {"code": "limit", "message": "used up", "action": "retry", "retry_after_ms": 2000}
    refused = {"status": "rejected", "uid": "alice", "error": error}
    answer = {"results": [result("alice", "a"), refused]}
    server = FakeServer(httpx.Response(200, json=answer))
    async with server.producer(kind) as producer:
        results = await producer.send([create("alice", "c", msg_id=id_) for id_ in ("a", "b")])
    assert [each.status for each in results] == ["stored", "stored"]
    assert server.delays == [2.25]


class PartlyAway(FakeServer):
    """Refuses a user's messages from the one with this id on, as a server whose shard is away."""

    def __init__(self, uid: str, from_: str) -> None:
        super().__init__()
        self._first = (uid, from_)
        self.sent: list[tuple[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        uid, first = self._first
        messages = msgspec.json.decode(request.content)["messages"]
        ids = [(message["uid"], message["msg_id"]) for message in messages]
        self.sent += ids
        error = {"code": "unavailable", "message": "away", "action": "retry"}
        refused = {"status": "rejected", "uid": uid, "error": error}
        return httpx.Response(
            200,
            json={
                "results": [
                    refused if id_ >= first and to == uid else result(to, id_) for to, id_ in ids
                ]
            },
        )


async def test_nothing_of_a_user_is_sent_past_a_message_that_may_be_retried(kind: str) -> None:
    server = PartlyAway("alice", "m0300")
    uids = ("alice", "bob")
    async with server.producer(kind) as producer:
        messages = [create(uids[n % 2], "c", msg_id=f"m{n:04}") for n in range(1_200)]
        results = await producer.send(messages)
    assert {id_ for uid, id_ in server.sent if uid == "alice"} == {
        f"m{n:04}" for n in range(0, 500, 2)
    }
    assert [each.msg_id for each in results[1::2]] == [m.msg_id for m in messages[1::2]]
    assert {each.status for each in results[1::2]} == {"stored"}
    assert [each.status for each in results[::2]] == ["stored"] * 150 + ["rejected"] * 450
    assert all(each.should_retry for each in results[300::2])
    assert results[-2].error == results[300].error
    assert (results[-2].uid, results[-2].msg_id) == ("alice", "m1198")


@pytest.mark.parametrize(
    ("rate", "count", "body"),
    [({"messages_per_second": 20}, 210, 1), ({"bytes_per_second": 500_000}, 90, "x" * 60_000)],
)
async def test_more_messages_of_a_device_than_ever_fit_at_once_are_sent_in_several_requests(
    kind: str, rate: dict[str, int], count: int, body: JSON
) -> None:
    async with (
        serving(jwt_settings(**rate)) as served,
        producer_for(kind, str(served.http.base_url), token=token("u")) as producer,
    ):
        results = await producer.send(
            [create("u", "c", body, msg_id=f"m{n:03}") for n in range(count)]
        )
        assert {each.status for each in results} <= {"stored", "duplicate"}
        ctimes = [each.ctime for each in results]
        assert ctimes == sorted(ctimes)


async def test_message_for_more_users_than_fit_at_once_is_sent_in_several_requests(
    kind: str,
) -> None:
    async with (
        serving(open_settings(uids=20)) as served,
        producer_for(kind, str(served.http.base_url)) as producer,
    ):
        uids = [f"u{n:02}" for n in range(90)]
        results = await producer.send_to(uids, create("ignored", "news"))
        assert [(each.uid, each.status) for each in results] == [(uid, "stored") for uid in uids]


def never_allowed(limit: str, maximum: int) -> httpx.Response:
    """The answer to more than a limit, which no wait helps."""
    document = {"type": "x", "title": "X", "status": 422, "detail": "too many", "code": "limit"}
    numbers = {"action": "stop", "limit": limit, "maximum": maximum}
    return httpx.Response(422, json={**document, **numbers})


async def test_limit_of_users_that_is_not_smaller_is_raised(kind: str) -> None:
    for limit, maximum in (("uids", 4), ("uids", 0), ("keys", 2)):
        server = FakeServer(never_allowed(limit, maximum))
        async with server.producer(kind) as producer:
            with pytest.raises(LimitExceeded):
                await producer.send_to(list("abcd"), create("ignored", "news"))
        assert len(server.requests) == 1


async def test_one_message_that_never_fits_is_raised(kind: str) -> None:
    server = FakeServer(*[never_allowed("bytes_per_second", 100)] * 10)
    async with server.producer(kind) as producer:
        with pytest.raises(LimitExceeded):
            await producer.send([create("u", "c", n) for n in range(4)])
    assert [len(body["messages"]) for body in server.bodies()] == [4, 1]  # type: ignore[arg-type]


async def test_limit_that_no_wait_helps_is_raised_with_its_name(kind: str) -> None:
    server = FakeServer(never_allowed("live_items", 7))
    async with server.producer(kind) as producer:
        with pytest.raises(LimitExceeded) as raised:
            await producer.create("alice", "mail")
    assert (raised.value.limit, raised.value.maximum) == ("live_items", 7)
    assert (raised.value.retry_after_ms, len(server.requests)) == (None, 1)


@pytest.mark.parametrize("text", ["²", "-1", "soon", "9" * 400, ""])
async def test_absurd_retry_after_does_no_harm(kind: str, text: str) -> None:
    content = problem(503, "unavailable", "retry").content
    headers = [(b"Retry-After", text.encode("latin-1"))]
    server = FakeServer(httpx.Response(503, content=content, headers=headers))
    async with server.producer(kind) as producer:
        assert (await producer.create("alice", "mail")).status == "stored"
    assert server.delays in ([0.25], [60.25])


async def test_last_error_is_raised_after_six_attempts(kind: str) -> None:
    server = FakeServer(*[problem(503, "unavailable", "retry")] * 10)
    async with server.producer(kind) as producer:
        with pytest.raises(Unavailable):
            await producer.create("alice", "mail")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "unauthenticated", "reauthenticate"), Unauthenticated),
        (problem(400, "malformed"), Malformed),
        (rejected("conflict"), Conflict),
        (httpx.Response(404, text="not here"), UnexpectedAnswer),
        (problem(499, "of-a-later-version"), GregorError),
    ],
    ids=["unauthenticated", "malformed", "conflict", "not-found", "unknown-code"],
)
async def test_permanent_error_is_raised_without_retry(
    kind: str, answer: httpx.Response, error: type[GregorError]
) -> None:
    server = FakeServer(answer)
    async with server.producer(kind) as producer:
        with pytest.raises(error):
            await producer.create("alice", "mail")
    assert len(server.requests) == 1


async def test_out_of_band_message_that_may_be_delivered_is_not_retried(kind: str) -> None:
    server = FakeServer(httpx.ReadTimeout("no answer"))
    async with server.producer(kind) as producer:
        with pytest.raises(Unavailable):
            await producer.out_of_band("alice", "typing")
    assert len(server.requests) == 1


async def test_out_of_band_message_that_was_not_processed_is_retried(kind: str) -> None:
    server = FakeServer(httpx.ConnectError("refused"), problem(503, "unavailable", "retry"))
    async with server.producer(kind) as producer:
        await producer.out_of_band("alice", "typing")
    assert len(server.requests) == 3


async def test_many_messages_are_split_into_requests_within_limits(kind: str) -> None:
    server = FakeServer()
    messages: list[Message] = [create(f"u{n}", "mail", n) for n in range(1_100)]
    messages.append(out_of_band("u0", "typing"))
    async with server.producer(kind) as producer:
        results = await producer.send(messages)
        large = await producer.send(create("u", "mail", "x" * 60_000) for _ in range(200))
    assert [result.uid for result in results] == [message.uid for message in messages]
    assert len(large) == 200
    assert [len(body["messages"]) for body in server.bodies()[:3]] == [500, 500, 101]  # type: ignore[arg-type]
    sizes = [len(request.content) for request in server.requests]
    assert max(sizes) <= MAX_REQUEST < sizes[3] + sizes[4]


@pytest.mark.parametrize("in_a_generator", [False, True])
async def test_bad_argument_in_the_last_batch_is_found_before_the_first_is_sent(
    kind: str, in_a_generator: bool
) -> None:
    messages: list[Any] = [create("alice", "mail") for _ in range(MAX_BATCH + 1)]
    messages.append({"uid": "alice"})
    uids: list[Any] = [*map(str, range(MAX_USERS)), None]
    server = FakeServer()
    async with server.producer(kind) as producer:
        with pytest.raises(InvalidMessage, match="messages"):
            await producer.send(iter(messages) if in_a_generator else messages)
        with pytest.raises(InvalidMessage, match="uids"):
            await producer.send_to(iter(uids) if in_a_generator else uids, create("alice", "mail"))
    assert server.requests == []


async def test_rejected_message_in_batch_is_returned_as_result(kind: str) -> None:
    server = FakeServer(rejected("conflict"))
    async with server.producer(kind) as producer:
        (result,) = await producer.send([create("alice", "mail")])
    assert result.error is not None
    assert result.error.code == "conflict"


async def test_message_for_many_users_is_split_into_requests_with_one_msg_id(kind: str) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        results = await producer.send_to(
            (f"u{n}" for n in range(10_001)), create("ignored", "news")
        )
    assert len(results) == 10_001
    assert len({result.msg_id for result in results}) == 1
    assert [len(body["uids"]) for body in server.bodies()] == [10_000, 1]  # type: ignore[arg-type]


async def test_message_whose_shard_did_not_answer_is_retried_until_the_last_attempt(
    kind: str,
) -> None:
    server = FakeServer(*[rejected("unavailable", "retry")] * 10)
    async with server.producer(kind) as producer:
        (result,) = await producer.send([create("alice", "mail")])
    assert result.should_retry
    assert len(server.requests) == 6


async def test_url_that_is_not_of_a_server_is_refused(kind: str) -> None:
    for url in ("nonsense", "localhost:9911", "ftp://host", "http://", "http://[::1"):
        with pytest.raises(SetupError, match="is not the URL of a server"):
            async with producer_for(kind, url):
                pass


STORED = {"status": "stored", "uid": "alice", "msg_id": "m", "ctime": 7}
OTHER_ANSWERS: dict[str, list[dict[str, Any]]] = {
    "of another user": [{**STORED, "uid": "bob"}],
    "of another message": [{**STORED, "msg_id": "n"}],
    "without ids": [{"status": "stored"}],
    "without a ctime": [{"status": "stored", "uid": "alice", "msg_id": "m"}],
    "of an out-of-band message": [{"status": "relayed", "uid": "alice"}],
    "rejection of another message": [
        {
            "status": "rejected",
            "uid": "bob",
            "error": {"code": "x", "message": "", "action": "stop"},
        }
    ],
    "rejection without an error": [{"status": "rejected", "uid": "alice", "msg_id": "m"}],
    "none": [],
    "of two messages": [STORED, STORED],
}


@pytest.mark.parametrize("other", OTHER_ANSWERS)
async def test_answer_to_another_request_is_retried(kind: str, other: str) -> None:
    server = FakeServer(httpx.Response(200, json={"results": OTHER_ANSWERS[other]}))
    async with server.producer(kind) as producer:
        found = await producer.create("alice", "mail", msg_id="m")
    assert (found.uid, found.msg_id, found.status) == ("alice", "m", "stored")
    assert len(server.requests) == 2


async def test_answers_in_another_order_are_never_returned(kind: str) -> None:
    results = [result(uid, "m") for uid in ("bob", "alice")]
    server = FakeServer(*[httpx.Response(200, json={"results": results})] * 20)
    async with server.producer(kind) as producer:
        with pytest.raises(Unavailable):
            await producer.send_to(["alice", "bob"], create("ignored", "news", msg_id="m"))
        with pytest.raises(Unavailable):
            await producer.send([create(uid, "a", msg_id="m") for uid in ("alice", "bob")])
    assert len(server.requests) > 6


async def test_wrong_answer_to_an_out_of_band_message_is_not_retried(kind: str) -> None:
    server = FakeServer(httpx.Response(200, json={"results": [{"status": "relayed", "uid": "x"}]}))
    async with server.producer(kind) as producer:
        with pytest.raises(Unavailable):
            await producer.out_of_band("alice", "typing")
    assert len(server.requests) == 1


# Processes, threads and event loops


async def test_forked_processes_get_their_own_answers() -> None:
    """As of `gunicorn --preload` and Celery: the producer was used before the fork."""
    async with serving() as served:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FORKING, str(served.http.base_url)),
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        counts = (await served.http.get("/v1/users/parent/count")).json()["counts"]
        assert counts == {"": 51}
        for child in range(4):
            answer = await served.http.get(f"/v1/users/child {child}/count")
            assert answer.json()["counts"] == {"": 50}


FORKING = """
import asyncio, os, sys
from gregor.client import AsyncProducer, Producer

producer = Producer(sys.argv[1])
for_children = AsyncProducer(sys.argv[1])
asyncio.run(for_children.count("parent"))

def use(uid, number):
    for n in range(number):
        result = producer.create(uid, "mail", n, msg_id=f"m{n}")
        assert (result.uid, result.msg_id, result.status) == (uid, f"m{n}", "stored"), result

async def use_async(uid):
    assert list((await for_children.count(uid)).counts) == [""]

producer.create("parent", "mail", "first", msg_id="first")
children = []
for child in range(4):
    pid = os.fork()
    if pid == 0:
        use(f"child {child}", 50)
        asyncio.run(use_async(f"child {child}"))
        producer.close()
        os._exit(0)
    children.append(pid)
use("parent", 50)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
producer.close()
"""


async def test_threads_get_their_own_answers() -> None:
    async with serving() as served:
        with Producer(str(served.http.base_url)) as producer:

            def use(thread: int) -> None:
                for n in range(30):
                    found = producer.create(f"u{thread}", "mail", n, msg_id=f"m{n}")
                    assert (found.uid, found.msg_id) == (f"u{thread}", f"m{n}")
                    messages = producer.messages(f"u{thread}").messages
                    assert {message.uid for message in messages} == {f"u{thread}"}

            await asyncio.gather(*(asyncio.to_thread(use, thread) for thread in range(8)))


def test_producer_in_another_event_loop_raises_at_once() -> None:
    server = FakeServer()
    producer = AsyncProducer("http://gregor", transport=httpx.MockTransport(server))
    asyncio.run(producer.create("alice", "mail"))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(producer.create("alice", "mail"))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(producer.close())
    assert len(server.requests) == 1


ABSURD_JITTER: dict[str, Callable[[], Any]] = {
    "raises": lambda: 1 / 0,
    "NaN": lambda: float("nan"),
    "negative": lambda: -5,
    "huge": lambda: 1e9,
    "text": lambda: "x",
}


@pytest.mark.parametrize("name", ABSURD_JITTER)
async def test_absurd_jitter_of_the_host_does_no_harm(kind: str, name: str) -> None:
    server = FakeServer(*(httpx.Response(503) for _ in range(3)))
    options = {"jitter": ABSURD_JITTER[name], "transport": httpx.MockTransport(server)}
    sleep = server.delays.append if kind == "Producer" else server._sleep
    async with producer_for(kind, "http://gregor", sleep=sleep, **options) as producer:
        assert (await producer.create("alice", "mail")).status == "stored"
    assert len(server.delays) == 3
    assert all(0 <= delay <= 10 for delay in server.delays)


async def test_transport_that_raises_anything_is_an_attempt_that_failed(kind: str) -> None:
    server = FakeServer(KeyError("pool"), OSError("gone"), ValueError(""))
    async with server.producer(kind) as producer:
        assert (await producer.create("alice", "mail")).status == "stored"
    assert len(server.requests) == 4
    server = FakeServer(*(KeyError("pool") for _ in range(6)))
    async with server.producer(kind) as producer:
        with pytest.raises(Unavailable, match="KeyError: 'pool'"):
            await producer.create("alice", "mail")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1"),
        ("HTTP_PROXY", "ftp://proxy"),
        ("NO_PROXY", "[::1"),
        ("SSL_CERT_FILE", "/nonexistent"),
    ],
)
def test_environment_that_allows_no_connections_is_a_setup_error(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    for producer in (Producer, AsyncProducer):
        with pytest.raises(SetupError, match=variable):
            producer("http://gregor.example")


async def test_closed_producer_says_that_it_is_closed(kind: str) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        pass
    with pytest.raises(Unavailable, match="closed"):
        await producer.create("alice", "mail")
    assert (server.requests, server.delays) == ([], [])


def test_own_transport_is_not_used_after_a_fork() -> None:
    pid = os.getpid()
    per_process = PerProcess(object, may_be_made_again=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid + 1)
        assert per_process.made() is None
        with pytest.raises(SetupError):
            per_process.get()


def test_idle_connections_are_given_up_before_servers_close_them() -> None:
    """The default of uvicorn, under which a host may run the server, is the shortest."""
    assert LIMITS.keepalive_expiry is not None
    assert LIMITS.keepalive_expiry <= uvicorn.Config("app").timeout_keep_alive - 1
    assert uvicorn.Config("app").timeout_keep_alive < KEEP_ALIVE_SECONDS


# Reading


async def test_answer_about_another_user_is_retried(kind: str) -> None:
    of_another = create("bob", "mail", msg_id="m").stamp(7, 0)
    server = FakeServer(
        httpx.Response(200, content=msgspec.json.encode(MessagesAnswer((of_another,), 7, False))),
        httpx.Response(200, content=msgspec.json.encode(MessagesAnswer((), 7, False))),
        httpx.Response(200, json={"counts": {"": 3}, "as_of": 7}),
        httpx.Response(200, json={"counts": {"mail": 1}, "as_of": 7}),
    )
    async with server.producer(kind) as producer:
        assert (await producer.messages("alice")).messages == ()
        assert (await producer.count("alice", "mail")).counts == {"mail": 1}
    assert len(server.delays) == 2


async def test_empty_device_id_is_not_all_devices(kind: str) -> None:
    async with (
        serving() as served,
        producer_for(kind, str(served.http.base_url)) as producer,
    ):
        with pytest.raises(InvalidMessage):
            await producer.count("alice", device_id="")


async def test_state_count_and_messages_are_those_of_the_server(kind: str) -> None:
    uid = "ann/1?ü"
    async with (
        serving() as served,
        producer_for(kind, str(served.http.base_url)) as producer,
    ):
        mail = await producer.create(uid, "mail", 1)
        news = await producer.create(uid, "news.local", 2, device_id="phone")
        state = await producer.state(uid)
        assert [item.msg_id for item in state.items] == [mail.msg_id, news.msg_id]
        assert [item.category for item in (await producer.state(uid, "laptop")).items] == ["mail"]
        assert [i.body for i in (await producer.state(uid, prefixes=["news", "x"])).items] == [2]
        assert (await producer.state(uid, at=timedelta(hours=-1))).items == ()
        assert (await producer.count(uid)).counts == {"": 2}
        counted = await producer.count(uid, "mail", "news", device_id="laptop")
        assert counted.counts == {"mail": 1, "news": 0}
        assert (await producer.count_by_segment(uid)).counts == {"mail": 1, "news": 1}
        on_phone = await producer.count_by_segment(uid, "news.", device_id="phone")
        assert on_phone.counts == {"news.local": 1}
        log = await producer.messages(uid)
        assert [message.msg_id for message in log.messages] == [mail.msg_id, news.msg_id]
        assert log.cursor == news.ctime
        later = await producer.messages(uid, "phone", since=TimeOrOffset(time=news.ctime))
        assert [message.msg_id for message in later.messages] == [news.msg_id]
        first = await producer.messages(uid, limit=1)
        assert ([m.msg_id for m in first.messages], first.more) == ([mail.msg_id], True)
        second = await producer.messages(uid, after=first.cursor)
        assert ([m.msg_id for m in second.messages], second.more) == ([news.msg_id], False)
        assert state.cursor == second.cursor
        with pytest.raises(Resync):
            await producer.messages(uid, after=second.cursor + 1)
        with pytest.raises(InvalidMessage):
            await producer.messages(uid, since=0, after=0)


async def test_reading_is_retried(kind: str) -> None:
    answer = httpx.Response(200, json={"counts": {"": 3}, "as_of": 7})
    server = FakeServer(httpx.ReadTimeout("no answer"), problem(503, "unavailable"), answer)
    async with server.producer(kind) as producer:
        assert (await producer.count("alice")).counts == {"": 3}
    assert len(server.delays) == 2


async def test_reading_what_the_token_does_not_allow_raises(kind: str) -> None:
    server = FakeServer(problem(401, "unauthenticated", "reauthenticate"))
    async with server.producer(kind) as producer:
        with pytest.raises(Unauthenticated):
            await producer.state("alice")


# Keys


@asynccontextmanager
async def with_server(kind: str) -> AsyncIterator[Any]:
    """A producer of this kind, for a server."""
    async with (
        serving() as served,
        producer_for(kind, str(served.http.base_url)) as producer,
    ):
        yield producer


async def test_get_reads_what_put_has_written_last(kind: str) -> None:
    async with with_server(kind) as producer:
        assert await producer.get("alice", "theme") is None
        light = await producer.put("alice", "settings.theme", "light", key="theme")
        dark = await producer.put("alice", "settings.theme", "dark", key="theme")
        assert dark.replaced == light.msg_id
        item = await producer.get("alice", "theme")
        assert (item.msg_id, item.body, item.key) == (dark.msg_id, "dark", "theme")
        assert (await producer.state("alice")).items == (item,)
        assert await producer.get("alice", "settings.theme") is None
        await producer.dismiss_key("alice", "theme")
        assert await producer.get("alice", "theme") is None


async def test_get_prefers_the_scope_of_the_device(kind: str) -> None:
    async with with_server(kind) as producer:
        await producer.put("alice", "volume", 3, device_id="phone")
        assert await producer.get("alice", "volume") is None
        assert await producer.get("alice", "volume", "laptop") is None
        await producer.put("alice", "volume", 7)
        assert (await producer.get("alice", "volume")).body == 7
        assert (await producer.get("alice", "volume", "phone")).body == 3
        assert (await producer.get("alice", "volume", device_id="laptop")).body == 7


async def test_answer_with_an_item_of_another_key_is_retried(kind: str) -> None:
    def answer(key: str) -> httpx.Response:
        item = {"msg_id": "m", "ctime": 7, "category": "c", "body": 1, "key": key}
        return httpx.Response(200, json={"items": [item], "as_of": 7, "hash": "", "cursor": 7})

    server = FakeServer(answer("other"), answer("k"))
    async with server.producer(kind) as producer:
        assert (await producer.get("alice", "k")).key == "k"
    assert len(server.delays) == 1


# Pages


async def page_of(pages: Any) -> Any:
    """The next page of an iterator of either producer; None after the last."""
    if hasattr(pages, "__anext__"):
        return await anext(pages, None)
    return await asyncio.to_thread(next, pages, None)


async def test_pages_are_of_one_instant_though_the_state_changes(kind: str) -> None:
    async with with_server(kind) as producer:
        await producer.send([create("alice", "c", n, msg_id=f"m{n}") for n in range(5)])
        whole = await producer.state("alice", order="newest")
        pages = producer.state_pages("alice", order="newest", limit=2)
        pages = await pages if asyncio.iscoroutine(pages) else pages
        read = [await page_of(pages)]
        await producer.dismiss_category("alice", "c")
        await producer.create("alice", "c")
        while (page := await page_of(pages)) is not None:
            read.append(page)
        assert [len(page.items) for page in read] == [2, 2, 1]
        assert tuple(item for page in read for item in page.items) == whole.items
        assert {page.as_of for page in read} == {read[0].as_of}
        assert {(page.hash, page.cursor) for page in read} == {(whole.hash, whole.cursor)}


async def test_page_can_be_asked_for_by_its_token(kind: str) -> None:
    async with with_server(kind) as producer:
        await producer.send([create("alice", "c", n, msg_id=f"m{n}") for n in range(3)])
        first = await producer.state("alice", prefixes=["c"], limit=2)
        second = await producer.state("alice", prefixes=["c"], page=first.next_page)
        assert [item.msg_id for item in second.items] == ["m2"]
        assert second.next_page is None
        with pytest.raises(Malformed) as raised:
            await producer.state("alice", page=first.next_page)
        assert raised.value.field == "page"


# Snooze


async def test_snoozed_item_is_hidden_until_then_and_stays_what_it_was(kind: str) -> None:
    async with with_server(kind) as producer:
        await producer.create("alice", "mail", {"n": 1}, expires="2d", device_id="d", msg_id="m")
        (before,) = (await producer.state("alice")).items
        result = await producer.snooze("alice", "m", "1d")
        assert (result.visible, result.dismissed, result.replaced) == (False, 1, None)
        assert (await producer.state("alice")).items == ()
        (item,) = (await producer.state("alice", at="25h")).items
        assert item.msg_id == result.msg_id
        assert item.starts_at == result.starts_at == result.ctime + 24 * 3600 * SECOND
        for name in ("category", "body", "expires_at", "device_id", "key"):
            assert getattr(item, name) == getattr(before, name)


async def test_snoozed_item_of_a_key_takes_its_own_place(kind: str) -> None:
    async with with_server(kind) as producer:
        await producer.put("alice", "reminders", "call", key="call", msg_id="m")
        result = await producer.snooze("alice", "m", timedelta(hours=1))
        assert (result.replaced, result.dismissed) == ("m", 0)
        await producer.put("alice", "reminders", "call now", key="call")
        assert [item.body for item in (await producer.state("alice", at="2h")).items] == [
            "call now"
        ]


@pytest.mark.parametrize(
    ("msg_id", "until", "field"),
    [
        ("m", "-1s", "until"),
        ("m", "2026-01-01T00:00:00Z", "until"),
        ("m", "2h", "until"),
        ("m", None, "until"),
        ("m", 3600, "until"),
        ("unknown", "1m", "msg_id"),
        ("dead", "1m", "msg_id"),
        ("scheduled", "1m", "msg_id"),
    ],
)
async def test_snooze_that_cannot_be_is_refused_by_name(
    kind: str, msg_id: str, until: Any, field: str
) -> None:
    async with with_server(kind) as producer:
        await producer.create("alice", "c", expires="1h", msg_id="m")
        await producer.create("alice", "c", msg_id="dead")
        await producer.create("alice", "c", starts="1h", msg_id="scheduled")
        await producer.dismiss("alice", "dead")
        with pytest.raises(InvalidMessage) as raised:
            await producer.snooze("alice", msg_id, until)
        assert raised.value.field == field
        assert (await producer.count("alice")).counts == {"": 1}


async def test_snooze_until_the_expiry_is_refused_and_just_before_is_not(kind: str) -> None:
    async with with_server(kind) as producer:
        expiry = TimeOrOffset(time=4_000_000_000_000_000)
        await producer.create("alice", "c", expires=expiry, msg_id="m")
        with pytest.raises(InvalidMessage, match="`until`"):
            await producer.snooze("alice", "m", expiry)
        before = TimeOrOffset(time=3_999_999_999_999_999)
        assert (await producer.snooze("alice", "m", before)).starts_at == before.time


async def test_history_is_that_of_the_item(kind: str) -> None:
    other = ItemHistory("ann/1", "i", "unknown")  # the answer to another request
    history = ItemHistory("ann/1", "i/2", "pruned", (ItemEvent(7, "created", Cause("i/2")),))
    answers = [httpx.Response(200, content=msgspec.json.encode(h)) for h in (other, history)]
    server = FakeServer(*answers)
    async with server.producer(kind) as producer:
        assert await producer.history("ann/1", "i/2") == history
    assert {(request.method, str(request.url)) for request in server.requests} == {
        ("GET", "http://gregor/v1/users/ann%2F1/items/i%2F2/history")
    }


async def test_history_says_who_replaced_a_value(kind: str) -> None:
    async with with_server(kind) as producer:
        first = await producer.put("alice", "theme", "dark")
        second = await producer.put("alice", "theme", "light")
        history = await producer.history("alice", first.msg_id)
        assert history.state == "replaced"
        by = Cause(second.msg_id, "service:")
        assert history.events[-1] == ItemEvent(second.ctime, "replaced", by, PutRule("theme"))


# Erasing


async def test_erase_is_a_delete_of_the_user_and_is_retried(kind: str) -> None:
    erased = {"uid": "ann/1", "epoch": 7, "pending": ["b"]}
    server = FakeServer(
        problem(503, "unavailable", "retry"),
        httpx.Response(200, json={**erased, "uid": "bob"}),  # the answer to another request
        httpx.Response(200, json=erased),
    )
    async with server.producer(kind) as producer:
        assert await producer.erase("ann/1") == EraseAnswer("ann/1", 7, ("b",))
    assert {(request.method, str(request.url)) for request in server.requests} == {
        ("DELETE", "http://gregor/v1/users/ann%2F1")
    }
    assert len(server.delays) == 2


async def test_erased_user_has_nothing_left_and_can_be_written_to(kind: str) -> None:
    async with with_server(kind) as producer:
        first = await producer.create("alice", "mail", 1, msg_id="m")
        answer = await producer.erase("alice")
        assert answer.epoch > first.ctime
        assert (await producer.state("alice")).items == ()
        again = await producer.create("alice", "mail", 2, msg_id="m")
        assert (again.status, again.ctime > answer.epoch) == ("stored", True)
        assert (await producer.messages("alice")).epoch == answer.epoch


@pytest.mark.parametrize("uid", ["", "..", "x" * 129, 7.5, None])
async def test_user_who_cannot_be_is_not_erased(kind: str, uid: object) -> None:
    server = FakeServer()
    async with server.producer(kind) as producer:
        with pytest.raises(InvalidMessage) as raised:
            await producer.erase(uid)
        assert raised.value.field == "uid"
    assert server.requests == []


async def test_error_of_an_erased_user_has_the_epoch(kind: str) -> None:
    answer = problem(410, "erased")
    server = FakeServer(httpx.Response(410, json={**answer.json(), "epoch": 7}))
    async with server.producer(kind) as producer:
        with pytest.raises(Erased) as raised:
            await producer.create("alice", "mail", 1)
        assert raised.value.epoch == 7
    assert server.delays == []
