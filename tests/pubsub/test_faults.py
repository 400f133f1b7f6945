"""RemotePubSub when its server or the connection to it fails, is silent, or is misconfigured."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from logging.handlers import BufferingHandler
from typing import Any, NamedTuple

import pytest
from redis import Redis as BlockingClient
from redis.asyncio import Redis as Client

from gregor.errors import SetupError
from gregor.pubsub import incoming, remote
from gregor.pubsub.interface import Interrupted, Received
from gregor.pubsub.remote import RemotePubSub, pubsub_at
from tests.fleet.proxy import Proxy
from tests.fleet.servers import NATS, ManagedServer, Redis
from tests.timeouts import TIMEOUT_SECONDS

FAST_HEARTBEAT_SECONDS = 0.25  # detects a silent server fast
MEBIBYTE = 1 << 20
CHANNEL_COUNT = 3 * remote.MAX_BATCH_SIZE + 7  # more than one batch


class ProxiedPubSub(NamedTuple):
    """A pub/sub that is connected to its server through a proxy."""

    pubsub: RemotePubSub
    proxy: Proxy
    server: ManagedServer


def pubsub_to(server: ManagedServer, port: int = 0, **options: Any) -> RemotePubSub:
    """A pub/sub on the server, or on the port of a proxy to it, with a short reconnect delay."""
    url = server.url.replace(str(server.port), str(port or server.port))
    return pubsub_at(url, jitter=lambda: 0.1, **options)


@asynccontextmanager
async def proxied_pubsub(kind: type[ManagedServer], **options: Any) -> AsyncIterator[ProxiedPubSub]:
    """A pub/sub, a proxy, and a server, all running."""
    async with (
        kind() as server,
        Proxy("127.0.0.1", server.port) as proxy,
        pubsub_to(server, proxy.port, **options) as pubsub,
    ):
        yield ProxiedPubSub(pubsub, proxy, server)


@pytest.fixture(params=[Redis, NATS])
async def proxied(request: pytest.FixtureRequest) -> AsyncIterator[ProxiedPubSub]:
    """Detects errors of the connection, but a silent server only after seconds."""
    async with proxied_pubsub(request.param) as proxied:
        yield proxied


@pytest.fixture(params=[Redis, NATS])
async def fast_heartbeat(request: pytest.FixtureRequest) -> AsyncIterator[ProxiedPubSub]:
    """Detects a silent server fast."""
    async with proxied_pubsub(request.param, heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as proxied:
        yield proxied


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0.005)


async def next_event(pubsub: RemotePubSub) -> object:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await anext(aiter(pubsub.received()))


async def assert_recovers(pubsub: RemotePubSub) -> None:
    """The pub/sub is up again, reports one interruption, and then delivers payloads."""
    await until(lambda: pubsub.up)
    assert await next_event(pubsub) == Interrupted()
    await assert_delivers(pubsub)


async def assert_delivers(pubsub: RemotePubSub, channel: str = "test") -> None:
    """The pub/sub receives a payload that it publishes itself."""
    await pubsub.subscribe(channel)
    await pubsub.publish(channel, b"payload")
    assert await next_event(pubsub) == Received(channel, b"payload")


# Lost connections


async def test_all_subscriptions_are_restored_after_a_server_restart(
    proxied: ProxiedPubSub,
) -> None:
    pubsub, channels = proxied.pubsub, [f"channel {number}" for number in range(CHANNEL_COUNT)]
    await asyncio.gather(*map(pubsub.subscribe, channels))
    await proxied.server.kill()
    await until(lambda: not pubsub.up)
    await proxied.server.start()
    await until(lambda: pubsub.up)
    assert await next_event(pubsub) == Interrupted()
    for channel in channels:
        await pubsub.publish(channel, b"after restart")
    assert {await next_event(pubsub) for _ in channels} == {
        Received(c, b"after restart") for c in channels
    }


@pytest.mark.parametrize("client_type", ["pubsub", "normal"])
async def test_loss_of_either_redis_connection_leads_to_a_reconnect(client_type: str) -> None:
    async with (
        Redis() as server,
        Client.from_url(server.url) as client,
        pubsub_to(server, heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as pubsub,
    ):
        assert await client.execute_command("CLIENT", "KILL", "TYPE", client_type) == 1
        await until(lambda: not pubsub.up)
        await assert_recovers(pubsub)


async def test_each_of_several_lost_connections_is_reestablished_and_reported(
    proxied: ProxiedPubSub,
) -> None:
    for _ in range(3):
        proxied.proxy.drop_connections()
        await until(lambda: not proxied.pubsub.up)
        await assert_recovers(proxied.pubsub)


# Silent servers


async def test_silent_server_is_detected(fast_heartbeat: ProxiedPubSub) -> None:
    fast_heartbeat.server.pause()
    await until(lambda: not fast_heartbeat.pubsub.up)
    fast_heartbeat.server.resume()
    await assert_recovers(fast_heartbeat.pubsub)


async def test_server_that_does_not_read_is_detected_and_blocks_no_publisher(
    fast_heartbeat: ProxiedPubSub,
) -> None:
    fast_heartbeat.server.pause()
    for _ in range(500):
        await fast_heartbeat.pubsub.publish("c", b"x" * 100_000)
    await until(lambda: not fast_heartbeat.pubsub.up)
    fast_heartbeat.server.resume()
    await assert_recovers(fast_heartbeat.pubsub)


@pytest.mark.parametrize(
    "directions",
    [{"up": False}, {"down": False}, {}],
    ids=["from server", "to server", "both directions"],
)
async def test_blackholed_connection_is_detected(
    fast_heartbeat: ProxiedPubSub, directions: dict[str, bool]
) -> None:
    fast_heartbeat.proxy.blackhole(new=False, **directions)
    await until(lambda: not fast_heartbeat.pubsub.up)
    await assert_recovers(fast_heartbeat.pubsub)


async def test_stalled_event_loop_is_not_treated_as_a_silent_server() -> None:
    async with Redis() as server, pubsub_to(server, heartbeat_seconds=0.5) as pubsub:
        server.pause()
        await asyncio.sleep(0.6)  # a heartbeat was sent after 0.5 s and times out 1 s later
        server.resume()
        time.sleep(1.5)  # noqa: ASYNC251 (stalls the event loop on purpose)
        await assert_delivers(pubsub)
        assert pubsub.up


async def test_pubsub_stays_down_while_reconnecting_fails(proxied: ProxiedPubSub) -> None:
    await proxied.server.stop()
    await until(lambda: not proxied.pubsub.up)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await next_event(proxied.pubsub)
    await proxied.server.start()
    await assert_recovers(proxied.pubsub)


# Calls while the connection is lost


async def test_payloads_published_while_down_are_counted_as_dropped(proxied: ProxiedPubSub) -> None:
    await proxied.server.kill()
    await until(lambda: not proxied.pubsub.up)
    before = proxied.pubsub.dropped
    for _ in range(7):
        await proxied.pubsub.publish("c", b"lost")
    assert proxied.pubsub.dropped == before + 7


async def test_unconfirmed_payloads_are_counted_as_dropped(fast_heartbeat: ProxiedPubSub) -> None:
    fast_heartbeat.proxy.blackhole(new=False)
    for _ in range(7):
        await fast_heartbeat.pubsub.publish("c", b"lost")
    await until(lambda: not fast_heartbeat.pubsub.up)
    assert fast_heartbeat.pubsub.dropped == 7


async def test_subscription_changes_while_down_take_effect_after_reconnect(
    proxied: ProxiedPubSub,
) -> None:
    await proxied.pubsub.subscribe("left")
    await proxied.server.kill()
    await until(lambda: not proxied.pubsub.up)
    await proxied.pubsub.subscribe("joined")
    await proxied.pubsub.unsubscribe("left")
    await proxied.server.start()
    await until(lambda: proxied.pubsub.up)
    assert await next_event(proxied.pubsub) == Interrupted()
    for channel in ("left", "joined"):
        await proxied.pubsub.publish(channel, b"hello")
    assert await next_event(proxied.pubsub) == Received("joined", b"hello")


async def test_pending_subscribe_returns_when_the_connection_breaks(
    fast_heartbeat: ProxiedPubSub,
) -> None:
    fast_heartbeat.proxy.blackhole()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await fast_heartbeat.pubsub.subscribe("c")
    assert not fast_heartbeat.pubsub.up


async def test_close_does_not_wait_for_a_silent_server(
    proxied: ProxiedPubSub,
) -> None:
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        pubsub_to(proxied.server, heartbeat_seconds=60) as pubsub,
    ):
        proxied.server.pause()
        for _ in range(500):
            await pubsub.publish("c", b"x" * 100_000)
    proxied.server.resume()


# Overload


async def test_slow_reader_receives_interrupted_and_later_payloads(
    proxied: ProxiedPubSub,
) -> None:
    await proxied.pubsub.subscribe("c")
    for _ in range(6):
        async with pubsub_to(proxied.server) as sender:
            for _ in range(incoming.MAX_QUEUED_EVENTS // 5):
                await sender.publish("c", b"payload")
    await proxied.pubsub.subscribe("confirmed after all earlier payloads")
    assert await next_event(proxied.pubsub) == Interrupted()
    assert proxied.pubsub.up
    await proxied.pubsub.unsubscribe("c")
    await proxied.pubsub.publish("c", b"payload")
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await proxied.pubsub.subscribe("test")
        await proxied.pubsub.publish("test", b"payload")
        while await next_event(proxied.pubsub) != Received("test", b"payload"):
            pass


async def test_node_that_is_too_slow_for_redis_is_disconnected_and_comes_back() -> None:
    async with (
        Redis("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1") as server,
        pubsub_to(server) as pubsub,
    ):
        await pubsub.subscribe("c")
        # The event loop is blocked, so that nothing is read.
        with BlockingClient.from_url(server.url) as publisher:
            while publisher.publish("c", b"x" * 1_000_000):
                pass
        await until(lambda: pubsub.reconnects["closed"] == 1)
        await until(lambda: pubsub.up)
        while await next_event(pubsub) != Interrupted():
            pass


async def test_redis_disconnects_slow_subscribers_by_default(redis_server: Redis) -> None:
    async with Client.from_url(redis_server.url) as client:
        limits = await client.config_get("client-output-buffer-limit")
    assert "pubsub 33554432 8388608 60" in str(limits["client-output-buffer-limit"])


async def test_unix_socket_and_database_of_redis() -> None:
    async with Redis("--unixsocket", "redis.sock") as server:
        url = f"unix://{server.directory}/redis.sock?db=3"
        async with pubsub_at(url) as pubsub, Client.from_url(server.url) as client:
            assert {c["db"] for c in await client.client_list() if c["name"] == "gregor"} == {"3"}
            await assert_delivers(pubsub)


async def test_payloads_beyond_the_queue_limit_are_counted_as_dropped(
    proxied: ProxiedPubSub,
) -> None:
    await proxied.pubsub.subscribe("c")
    for number in range(remote.MAX_QUEUED_PAYLOADS + 5):
        await proxied.pubsub.publish("c", b"%d" % number)
    assert proxied.pubsub.dropped == 5
    for number in range(remote.MAX_QUEUED_PAYLOADS):
        assert await next_event(proxied.pubsub) == Received("c", b"%d" % number)


async def test_only_the_payload_that_is_too_large_for_nats_is_dropped() -> None:
    async with NATS() as server, pubsub_to(server) as pubsub:
        await pubsub.publish("test", b"x" * (MEBIBYTE + 1))
        await assert_delivers(pubsub)
        assert pubsub.dropped == 1
        assert pubsub.up
        await pubsub.publish("test", b"x" * MEBIBYTE)
        assert await next_event(pubsub) == Received("test", b"x" * MEBIBYTE)


# Setup


@asynccontextmanager
async def wrong_server(greeting: bytes, answer: bytes) -> AsyncIterator[int]:
    """The port of a server that sends the greeting, answers once, and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        if await reader.read(1):
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextmanager
def captured_logs() -> Iterator[list[str]]:
    """The log messages of the block; the list is filled when the block ends."""
    handler = BufferingHandler(capacity=1_000)
    logger = logging.getLogger("gregor")
    logger.addHandler(handler)
    logs: list[str] = []
    try:
        yield logs
    finally:
        logger.removeHandler(handler)
        logs += [record.getMessage() for record in handler.buffer]


async def setup_error(url: str) -> str:
    """The error message, which must name the option to correct, and the logs of a failed setup."""
    with captured_logs() as logs, pytest.raises(SetupError) as raised:
        async with pubsub_at(url, operation_timeout_seconds=0.5):
            pass
    assert "--pubsub" in raised.value.message
    return f"{raised.value.message} {logs}"


@pytest.mark.parametrize("scheme", ["redis", "nats"])
async def test_setup_error_names_the_url_when_nothing_listens_there(scheme: str) -> None:
    message = await setup_error(f"{scheme}://127.0.0.1:1")
    assert f"{scheme}://127.0.0.1:1 cannot be used" in message
    assert "Connect call failed" in message


@pytest.mark.parametrize("scheme", ["redis", "nats"])
async def test_setup_error_when_another_kind_of_server_listens(scheme: str) -> None:
    async with wrong_server(b"", b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "cannot be used" in await setup_error(f"{scheme}://127.0.0.1:{port}")


async def test_setup_error_when_a_nats_server_fails_the_tls_handshake() -> None:
    async with wrong_server(b'INFO {"tls_required": true}\r\n', b"-ERR no\r\n") as port:
        assert "SSL" in await setup_error(f"tls://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (Redis, ["--requirepass", "right"], "invalid username-password pair"),
        (NATS, ["--user", "me", "--pass", "right"], "Authorization Violation"),
    ],
)
async def test_setup_error_names_a_wrong_password_without_showing_it(
    kind: type[ManagedServer], options: list[str], reason: str
) -> None:
    async with kind(*options) as server:
        url = server.url.replace("://", "://me:sesame@")
        message = await setup_error(url)
        assert reason in message
        assert "sesame" not in message
        credentials = "default:right" if kind is Redis else "me:right"
        async with pubsub_at(server.url.replace("://", f"://{credentials}@")) as pubsub:
            await assert_delivers(pubsub)


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
async def test_setup_error_for_an_invalid_url_does_not_show_its_secrets(
    url: str,
) -> None:
    message = await setup_error(url)
    assert "sesame" not in message
    assert "ses/ame" not in message


async def test_setup_error_when_a_nats_server_does_not_offer_required_tls() -> None:
    async with NATS() as server:
        assert "does not offer TLS" in await setup_error(server.url.replace("nats:", "tls:"))


async def test_each_new_reason_of_an_outage_is_logged_and_counted_without_secrets() -> None:
    async with NATS("--user", "me", "--pass", "sesame") as server:
        with captured_logs() as logs:
            url = server.url.replace("://", "://me:sesame@")
            async with pubsub_at(
                url, jitter=lambda: 0.1, heartbeat_seconds=0.25, operation_timeout_seconds=0.5
            ) as pubsub:
                reconnects = pubsub.reconnects
                await server.kill()
                await until(lambda: reconnects["refused"] >= 3)
                await server.start()
                await until(lambda: pubsub.up)
                server.pause()
                await until(lambda: reconnects["timeout"] >= 2)
                server.resume()
                await until(lambda: pubsub.up)
    assert [line.split(" url=")[0].split(" reason=")[0] for line in logs] == [
        "the pub/sub is down",
        "the pub/sub is still down",
        "the pub/sub is up again",
        "the pub/sub is down",
        "the pub/sub is still down",
        "the pub/sub is up again",
    ]
    assert "Connect call failed" in logs[1]
    assert "no heartbeat" in logs[3]
    assert "connecting has taken more than 0.5 s" in logs[4]
    assert (reconnects["closed"], reconnects["silent"]) == (1, 1)
    assert "sesame" not in str(logs)


async def test_rejected_password_of_a_reconnect_is_a_reason_of_its_own() -> None:
    async with (
        Redis() as server,
        Client.from_url(server.url) as client,
        pubsub_to(server) as pubsub,
    ):
        await client.config_set("requirepass", "new")
        await client.execute_command("AUTH", "new")
        await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: pubsub.reconnects["authentication"] >= 2)
        await client.config_set("requirepass", "")
        await until(lambda: pubsub.up)
