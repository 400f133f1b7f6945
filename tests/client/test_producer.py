"""A producer returns when a message is durable, retries, and raises the server's errors."""

import httpx
import msgspec
import pytest

from gregor.client import Producer
from gregor.core.message import Message, create, out_of_band
from gregor.errors import Conflict, GregorError, Malformed, Unauthenticated, Unavailable


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
        return answer

    def producer(self) -> Producer:
        return Producer(
            "http://gregor",
            "token",
            transport=httpx.MockTransport(self),
            sleep=self.delays.append,
            jitter=lambda: 0.5,
        )

    def bodies(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(request.content) for request in self.requests]


def stored(request: httpx.Request) -> httpx.Response:
    body = msgspec.json.decode(request.content)
    if "uids" in body:
        ids = [(uid, body["message"]["msg_id"]) for uid in body["uids"]]
    else:
        ids = [(m["uid"], m.get("msg_id")) for m in body.get("messages", [body])]
    results = [
        {"uid": uid, "msg_id": msg_id, "ctime": 7, "status": "stored"} for uid, msg_id in ids
    ]
    return httpx.Response(200, json={"results": results})


def problem(status: int, code: str, action: str = "stop", **headers: str) -> httpx.Response:
    document = {"type": "x", "title": "X", "status": status, "detail": "details", "code": code}
    return httpx.Response(
        status, json={**document, "action": action, "field": "f"}, headers=headers
    )


def rejected(code: str) -> httpx.Response:
    error = {"code": code, "message": "details", "action": "stop", "field": "msg_id"}
    return httpx.Response(
        200, json={"results": [{"uid": "alice", "status": "rejected", "error": error}]}
    )


def test_message_is_sent_with_msg_id_and_token() -> None:
    server = FakeServer()
    with server.producer() as producer:
        result = producer.create("alice", "mail", {"n": 1}, expires="90s")
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


def test_dismiss_and_replace_methods_send_their_dismissals() -> None:
    server = FakeServer()
    with server.producer() as producer:
        producer.dismiss("alice", "a", "b")
        producer.dismiss_category("alice", "mail", prefix=True)
        producer.replace("alice", "theme", "dark", msg_id="m")
    dismissals = [body["dismissal"] for body in server.bodies()]
    assert dismissals == [
        {"msg_ids": ["a", "b"]},
        {"ranges": [{"category": "mail", "prefix": True}]},
        {"ranges": [{"category": "theme", "skip_msg_ids": ["m"]}]},
    ]


@pytest.mark.parametrize(
    "failure",
    [
        problem(503, "unavailable", "retry"),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("no answer"),
    ],
    ids=["unavailable", "bad-gateway", "connection-refused", "read-timeout"],
)
def test_temporary_failure_is_retried_with_same_msg_id(
    failure: httpx.Response | Exception,
) -> None:
    server = FakeServer(failure, failure)
    with server.producer() as producer:
        assert producer.create("alice", "mail").status == "stored"
    assert len({str(body["msg_id"]) for body in server.bodies()}) == 1
    assert server.delays == [0.25, 0.5]


def test_retry_after_is_added_to_backoff() -> None:
    server = FakeServer(problem(503, "unavailable", "retry", **{"Retry-After": "3"}))
    with server.producer() as producer:
        producer.create("alice", "mail")
    assert server.delays == [3.25]


def test_last_error_is_raised_after_six_attempts() -> None:
    server = FakeServer(*[problem(503, "unavailable", "retry")] * 10)
    with server.producer() as producer, pytest.raises(Unavailable):
        producer.create("alice", "mail")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "unauthenticated", "reauthenticate"), Unauthenticated),
        (problem(400, "malformed"), Malformed),
        (rejected("conflict"), Conflict),
        (httpx.Response(404, text="not here"), GregorError),
        (problem(499, "of-a-later-version"), GregorError),
    ],
    ids=["unauthenticated", "malformed", "conflict", "not-json", "unknown-code"],
)
def test_permanent_error_is_raised_without_retry(
    answer: httpx.Response, error: type[GregorError]
) -> None:
    server = FakeServer(answer)
    with server.producer() as producer, pytest.raises(error):
        producer.create("alice", "mail")
    assert len(server.requests) == 1


def test_out_of_band_message_that_may_be_delivered_is_not_retried() -> None:
    server = FakeServer(httpx.ReadTimeout("no answer"))
    with server.producer() as producer, pytest.raises(Unavailable):
        producer.out_of_band("alice", "typing")
    assert len(server.requests) == 1


def test_out_of_band_message_that_was_not_processed_is_retried() -> None:
    server = FakeServer(httpx.ConnectError("refused"), problem(503, "unavailable", "retry"))
    with server.producer() as producer:
        producer.out_of_band("alice", "typing")
    assert len(server.requests) == 3


def test_many_messages_are_split_into_requests_within_limits() -> None:
    server = FakeServer()
    messages: list[Message] = [create(f"u{n}", "mail", n) for n in range(1_100)]
    messages.append(out_of_band("u0", "typing"))
    with server.producer() as producer:
        results = producer.send(messages)
        large = producer.send(create("u", "mail", "x" * 60_000) for _ in range(100))
    assert [result.uid for result in results] == [message.uid for message in messages]
    assert len(large) == 100
    assert [len(body["messages"]) for body in server.bodies()[:3]] == [500, 500, 101]  # type: ignore[arg-type]
    assert all(len(request.content) < 8 * 1024 * 1024 for request in server.requests)


def test_rejected_message_in_batch_is_returned_as_result() -> None:
    server = FakeServer(rejected("conflict"))
    with server.producer() as producer:
        (result,) = producer.send([create("alice", "mail")])
    assert result.error is not None
    assert result.error.code == "conflict"


def test_message_for_many_users_is_split_into_requests_with_one_msg_id() -> None:
    server = FakeServer()
    with server.producer() as producer:
        results = producer.send_to((f"u{n}" for n in range(10_001)), create("ignored", "news"))
    assert len(results) == 10_001
    assert len({result.msg_id for result in results}) == 1
    assert [len(body["uids"]) for body in server.bodies()] == [10_000, 1]  # type: ignore[arg-type]
