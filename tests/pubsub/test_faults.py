"""What a remote pub/sub does when its server, or the line to it, lets it down."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis as Client
from structlog.testing import capture_logs

from gregor.errors import SetupError
from gregor.pubsub import arrivals, remote
from gregor.pubsub.interface import Interrupted, Received
from gregor.pubsub.remote import RemotePubSub, pubsub_at
from gregor.testing.backends import NATS, Backend, Redis
from gregor.testing.proxy import Proxy

PATIENCE = 10.0
HEARTBEAT = 0.25  # of those who shall notice silence soon; the others notice only errors
MANY = 3 * remote.BATCH + 7  # channels, for more than one batch


class Line(NamedTuple):
    """An end, which hears itself, and what is between it and its server."""

    end: RemotePubSub
    proxy: Proxy
    server: Backend


def near(server: Backend, port: int = 0, **options: Any) -> RemotePubSub:
    """An end at the server, or at a proxy before it, which soon connects again."""
    url = server.url.replace(str(server.port), str(port or server.port))
    return pubsub_at(url, jitter=lambda: 0.1, **options)


@asynccontextmanager
async def line_to(kind: type[Backend], **options: Any) -> AsyncIterator[Line]:
    async with (
        kind() as server,
        Proxy("127.0.0.1", server.port) as proxy,
        near(server, proxy.port, **options) as end,
    ):
        yield Line(end, proxy, server)


@pytest.fixture(params=[Redis, NATS])
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    async with line_to(request.param) as line:
        yield line


@pytest.fixture(params=[Redis, NATS])
async def watched(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    """A line whose silence is noticed soon."""
    async with line_to(request.param, heartbeat_seconds=HEARTBEAT) as line:
        yield line


async def until(fact: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not fact():  # noqa: ASYNC110 (nobody tells when)
            await asyncio.sleep(0.005)


async def heard(end: RemotePubSub) -> object:
    async with asyncio.timeout(PATIENCE):
        return await anext(aiter(end.received()))


async def assert_heals(end: RemotePubSub) -> None:
    """It comes back, says so once, and then all works as before."""
    await until(lambda: end.up)
    assert await heard(end) == Interrupted()
    await assert_works(end)


async def assert_works(end: RemotePubSub) -> None:
    await end.subscribe("works")
    await end.publish("works", b"well")
    assert await heard(end) == Received("works", b"well")


# The end of a connection


async def test_a_server_that_is_killed_is_missed_and_after_it_everything_is_as_before(
    line: Line,
) -> None:
    end, channels = line.end, [f"channel {number}" for number in range(MANY)]
    await asyncio.gather(*map(end.subscribe, channels))
    await line.server.kill()
    await until(lambda: not end.up)
    await line.server.start()
    await until(lambda: end.up)
    assert await heard(end) == Interrupted()
    for channel in channels:
        await end.publish(channel, b"again")
    assert {await heard(end) for _ in channels} == {Received(c, b"again") for c in channels}


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_either_connection_to_redis_is_missed(kind: str) -> None:
    async with (
        Redis() as server,
        Client.from_url(server.url) as client,
        near(server, heartbeat_seconds=HEARTBEAT) as end,
    ):
        assert await client.execute_command("CLIENT", "KILL", "TYPE", kind) == 1
        await until(lambda: not end.up)
        await assert_heals(end)


async def test_connections_that_break_again_and_again_are_had_again_and_again(line: Line) -> None:
    for _ in range(3):
        line.proxy.drop_connections()
        await until(lambda: not line.end.up)
        await assert_heals(line.end)


# Silence


async def test_a_server_that_says_nothing_any_more_is_missed(watched: Line) -> None:
    watched.server.pause()
    await until(lambda: not watched.end.up)
    watched.server.resume()
    await assert_heals(watched.end)


async def test_one_that_takes_nothing_any_more_holds_nobody_up(watched: Line) -> None:
    watched.server.pause()
    for _ in range(500):
        await watched.end.publish("c", b"x" * 100_000)
    await until(lambda: not watched.end.up)
    watched.server.resume()
    await assert_heals(watched.end)


@pytest.mark.parametrize("way", [{"up": False}, {"down": False}, {}])
async def test_a_line_that_goes_deaf_without_a_word_is_noticed(
    watched: Line, way: dict[str, bool]
) -> None:
    watched.proxy.deafen(new=False, **way)
    await until(lambda: not watched.end.up)
    await assert_heals(watched.end)


async def test_the_time_in_which_one_stood_still_oneself_is_not_the_server_s_silence() -> None:
    async with Redis() as server, near(server, heartbeat_seconds=0.5) as end:
        server.pause()
        await asyncio.sleep(0.6)  # by now it has asked, and waits for so long again
        server.resume()
        time.sleep(1.5)  # noqa: ASYNC251 (that is the point)
        await assert_works(end)
        assert end.up


async def test_while_it_connects_in_vain_it_stays_down(line: Line) -> None:
    await line.server.stop()
    await until(lambda: not line.end.up)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await heard(line.end)
    await line.server.start()
    await assert_heals(line.end)


# Those who call meanwhile


async def test_what_is_published_meanwhile_is_lost_and_counted(line: Line) -> None:
    await line.server.kill()
    await until(lambda: not line.end.up)
    before = line.end.dropped
    for _ in range(7):
        await line.end.publish("c", b"to nobody")
    assert line.end.dropped == before + 7


async def test_what_broke_off_unconfirmed_is_counted(watched: Line) -> None:
    watched.proxy.deafen(new=False)
    for _ in range(7):
        await watched.end.publish("c", b"to nobody")
    await until(lambda: not watched.end.up)
    assert watched.end.dropped == 7


async def test_what_is_wanted_meanwhile_is_noted_at_once(line: Line) -> None:
    await line.end.subscribe("left")
    await line.server.kill()
    await until(lambda: not line.end.up)
    await line.end.subscribe("joined")
    await line.end.unsubscribe("left")
    await line.server.start()
    await until(lambda: line.end.up)
    assert await heard(line.end) == Interrupted()
    for channel in ("left", "joined"):
        await line.end.publish(channel, b"hello")
    assert await heard(line.end) == Received("joined", b"hello")


async def test_who_waits_for_a_subscription_while_it_breaks_is_let_go(watched: Line) -> None:
    watched.proxy.deafen()
    async with asyncio.timeout(PATIENCE):
        await watched.end.subscribe("c")
    assert not watched.end.up


async def test_leaving_a_server_that_is_silent_takes_no_longer_than_a_farewell(line: Line) -> None:
    async with asyncio.timeout(PATIENCE), near(line.server, heartbeat_seconds=60) as end:
        line.server.pause()
        for _ in range(500):
            await end.publish("c", b"x" * 100_000)
    line.server.resume()


# Too much


async def test_who_does_not_read_is_told_what_that_costs_and_hears_on(line: Line) -> None:
    await line.end.subscribe("c")
    for _ in range(6):
        async with near(line.server) as sender:
            for _ in range(arrivals.QUEUE // 5):
                await sender.publish("c", b"much")
    await line.end.subscribe("what is confirmed behind all that")
    assert await heard(line.end) == Interrupted()
    assert line.end.up
    await line.end.unsubscribe("c")
    await line.end.publish("c", b"more")
    async with asyncio.timeout(PATIENCE):
        await line.end.subscribe("works")
        await line.end.publish("works", b"well")
        while await heard(line.end) != Received("works", b"well"):
            pass


async def test_more_than_can_wait_is_lost_and_counted(line: Line) -> None:
    await line.end.subscribe("c")
    for number in range(remote.QUEUE + 5):
        await line.end.publish("c", b"%d" % number)
    assert line.end.dropped == 5
    for number in range(remote.QUEUE):
        assert await heard(line.end) == Received("c", b"%d" % number)


async def test_what_nats_cannot_carry_is_lost_and_counted_and_nothing_else() -> None:
    async with NATS() as server, near(server) as end:
        await end.publish("works", b"x" * 2_000_000)
        await assert_works(end)
        assert end.dropped == 1
        assert end.up


# At the start


@asynccontextmanager
async def somebody_else(greeting: bytes, answer: bytes) -> AsyncIterator[int]:
    """The port of a server that is not what is looked for."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if await reader.read(1):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def refusal(url: str) -> str:
    """Why there is no pub/sub at the URL: for a person, who can do something about it."""
    with capture_logs() as logs, pytest.raises(SetupError) as raised:
        async with pubsub_at(url, patience_seconds=0.5):
            pass
    assert "redis://HOST:PORT/DB or nats://HOST:PORT" in raised.value.message
    return f"{raised.value.message} {logs}"


@pytest.mark.parametrize("scheme", ["redis", "nats"])
async def test_nobody_there(scheme: str) -> None:
    message = await refusal(f"{scheme}://127.0.0.1:1")
    assert f"{scheme}://127.0.0.1:1 cannot be used" in message
    assert "Connect call failed" in message


@pytest.mark.parametrize("scheme", ["redis", "nats"])
async def test_somebody_else_there(scheme: str) -> None:
    async with somebody_else(b"", b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "cannot be used" in await refusal(f"{scheme}://127.0.0.1:{port}")


async def test_a_nats_that_promises_tls_and_cannot() -> None:
    async with somebody_else(b'INFO {"tls_required": true}\r\n', b"-ERR no\r\n") as port:
        assert "SSL" in await refusal(f"tls://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (Redis, ["--requirepass", "right"], "invalid username-password pair"),
        (NATS, ["--user", "me", "--pass", "right"], "Authorization Violation"),
    ],
)
async def test_a_wrong_password_is_said_to_be_wrong_and_not_shown(
    kind: type[Backend], options: list[str], why: str
) -> None:
    async with kind(*options) as server:
        url = server.url.replace("://", "://me:sesame@")
        message = await refusal(url)
        assert why in message
        assert "sesame" not in message
        right = "default:right" if kind is Redis else "me:right"
        async with pubsub_at(server.url.replace("://", f"://{right}@")) as end:
            await assert_works(end)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://me:sesame@host",
        "localhost",
        "",
        "redis://:ses/ame@host",
        "redis://:sesame?x@host",
        "redis://:sesame#x@host",
        "redis://sesame[@host",
        "redis://:sesame@host:port",
        "nats://sesame@host:port",
        "redis://127.0.0.1:1?password=sesame@host",
        "redis://127.0.0.1:1?password=sesame",
        "redis://:sesame@127.0.0.1:1?colour=red",
        "nats://",
    ],
)
async def test_a_url_that_cannot_be_meant_is_refused_and_its_secrets_are_not_shown(
    url: str,
) -> None:
    message = await refusal(url)
    assert "sesame" not in message
    assert "ses/ame" not in message


async def test_a_password_is_not_sent_in_the_clear_to_who_was_asked_for_tls() -> None:
    async with NATS() as server:
        assert "does not offer TLS" in await refusal(server.url.replace("nats:", "tls:"))


async def test_what_goes_wrong_later_is_logged_once_and_without_secrets() -> None:
    async with NATS("--user", "me", "--pass", "sesame") as server:
        with capture_logs() as logs:
            url = server.url.replace("://", "://me:sesame@")
            async with pubsub_at(url, jitter=lambda: 0.1) as end:
                await server.kill()
                await until(lambda: not end.up)
                await server.start()
                await until(lambda: end.up)
    assert [entry["event"] for entry in logs] == ["the pub/sub is down", "the pub/sub is up again"]
    assert "sesame" not in str(logs)
