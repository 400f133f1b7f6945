"""A producer returns when a message is durable, and raises what is wrong by its name."""

import httpx
import msgspec
import pytest

from gregor.client import Producer
from gregor.core.message import Message, create, out_of_band
from gregor.errors import Conflict, GregorError, Malformed, Unauthenticated, Unavailable


class Server:
    """Answers with what it was given to say; then takes everything."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.naps: list[float] = []

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
            sleep=self.naps.append,
            jitter=lambda: 0.5,
        )

    def bodies(self) -> list[dict[str, object]]:
        return [msgspec.json.decode(request.content) for request in self.requests]


def stored(request: httpx.Request) -> httpx.Response:
    body = msgspec.json.decode(request.content)
    if "uids" in body:
        named = [(uid, body["message"]["msg_id"]) for uid in body["uids"]]
    else:
        named = [(m["uid"], m.get("msg_id")) for m in body.get("messages", [body])]
    results = [{"uid": u, "msg_id": m, "ctime": 7, "status": "stored"} for u, m in named]
    return httpx.Response(200, json={"results": results})


def problem(status: int, code: str, turn: str = "stop", **headers: str) -> httpx.Response:
    document = {"type": "x", "title": "X", "status": status, "detail": "so it is", "code": code}
    return httpx.Response(status, json={**document, "turn": turn, "field": "f"}, headers=headers)


def rejected(code: str) -> httpx.Response:
    error = {"code": code, "message": "so it is", "turn": "stop", "field": "msg_id"}
    return httpx.Response(
        200, json={"results": [{"uid": "alice", "status": "rejected", "error": error}]}
    )


def test_a_message_is_sent_with_an_id_and_a_token() -> None:
    server = Server()
    with server.producer() as producer:
        result = producer.create("alice", "mail", {"n": 1}, dtime="90s")
    (request,) = server.requests
    (body,) = server.bodies()
    assert (request.method, str(request.url)) == ("POST", "http://gregor/v1/messages")
    assert request.headers["Authorization"] == "Bearer token"
    assert body["creation"] == {
        "category": "mail",
        "body": {"n": 1},
        "dtime": {"offset": 90_000_000},
    }
    assert (result.status, result.msg_id, result.ctime) == ("stored", body["msg_id"], 7)


def test_every_verb_says_what_it_means() -> None:
    server = Server()
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
    "trouble",
    [
        problem(503, "unavailable", "retry"),
        httpx.Response(502, text="<html>bad gateway</html>"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("no answer"),
    ],
)
def test_what_may_pass_is_tried_again_under_the_same_id(trouble: httpx.Response) -> None:
    server = Server(trouble, trouble)
    with server.producer() as producer:
        assert producer.create("alice", "mail").status == "stored"
    assert len({str(body["msg_id"]) for body in server.bodies()}) == 1
    assert server.naps == [0.25, 0.5]


def test_it_waits_as_long_as_the_server_asks() -> None:
    server = Server(problem(503, "unavailable", "retry", **{"Retry-After": "3"}))
    with server.producer() as producer:
        producer.create("alice", "mail")
    assert server.naps == [3.25]


def test_it_gives_up_in_the_end() -> None:
    server = Server(*[problem(503, "unavailable", "retry")] * 10)
    with server.producer() as producer, pytest.raises(Unavailable):
        producer.create("alice", "mail")
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(401, "unauthenticated", "re-authenticate"), Unauthenticated),
        (problem(400, "malformed"), Malformed),
        (rejected("conflict"), Conflict),
        (httpx.Response(404, text="not here"), GregorError),
        (problem(499, "of-a-later-version"), GregorError),
    ],
)
def test_what_will_not_pass_is_raised_by_its_name(
    answer: httpx.Response, error: type[GregorError]
) -> None:
    server = Server(answer)
    with server.producer() as producer, pytest.raises(error):
        producer.create("alice", "mail")
    assert len(server.requests) == 1


def test_an_out_of_band_message_is_not_repeated_once_it_may_have_gone() -> None:
    server = Server(httpx.ReadTimeout("no answer"))
    with server.producer() as producer, pytest.raises(Unavailable):
        producer.out_of_band("alice", "typing")
    assert len(server.requests) == 1


def test_an_out_of_band_message_that_cannot_have_gone_is_repeated() -> None:
    server = Server(httpx.ConnectError("refused"), problem(503, "unavailable", "retry"))
    with server.producer() as producer:
        producer.out_of_band("alice", "typing")
    assert len(server.requests) == 3


def test_many_messages_go_in_requests_that_the_server_takes() -> None:
    server = Server()
    messages: list[Message] = [create(f"u{n}", "mail", n) for n in range(1_100)]
    messages.append(out_of_band("u0", "typing"))
    with server.producer() as producer:
        results = producer.send(messages)
        large = producer.send(create("u", "mail", "x" * 60_000) for _ in range(100))
    assert [result.uid for result in results] == [message.uid for message in messages]
    assert len(large) == 100
    assert [len(body["messages"]) for body in server.bodies()[:3]] == [500, 500, 101]  # type: ignore[arg-type]
    assert all(len(request.content) < 8 * 1024 * 1024 for request in server.requests)


def test_a_rejected_message_among_many_is_a_result() -> None:
    server = Server(rejected("conflict"))
    with server.producer() as producer:
        (result,) = producer.send([create("alice", "mail")])
    assert result.error is not None
    assert result.error.code == "conflict"


def test_one_message_for_many_users() -> None:
    server = Server()
    with server.producer() as producer:
        results = producer.send_to((f"u{n}" for n in range(10_001)), create("anybody", "news"))
    assert len(results) == 10_001
    assert len({result.msg_id for result in results}) == 1
    assert [len(body["uids"]) for body in server.bodies()] == [10_000, 1]  # type: ignore[arg-type]
