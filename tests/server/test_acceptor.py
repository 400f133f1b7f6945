"""Which connections are accepted: caps, room that silent ones make, proxies, and throttled ones."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from gregor.errors import SetupError
from gregor.server import open_connections, peer_errors, process
from gregor.server.client_address import Networks
from gregor.server.composition import connection_limits_of
from gregor.server.open_connections import ConnectionLimits, OpenConnections
from gregor.server.peer_errors import PeerError, PeerErrors
from gregor.server.process import GuardedServer, listen
from gregor.server.service import Timeouts
from tests.server.harness import (
    RawDevice,
    Served,
    jwt_settings,
    open_settings,
    serving,
    token,
    until,
)
from tests.server.test_guarded_http import Guarded, Raw, echo, get, guarded, post
from tests.server.test_proxy_protocol import v1, v2
from tests.timeouts import TIMEOUT_SECONDS

HANDSHAKE = get(
    b"/v1/connect",
    *(b"Connection: Upgrade", b"Upgrade: websocket"),
    *(b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
)
LOOPBACK = Networks.parse(["127.0.0.0/8"])
BEHIND_PROXY = ConnectionLimits(trusted=LOOPBACK)
PROXY_PROTOCOL = BEHIND_PROXY._replace(proxy_protocol=True)


@asynccontextmanager
async def silent(server: Guarded, number: int) -> AsyncIterator[list[Raw]]:
    """So many connections that send nothing."""
    all_ = [await server.connect() for _ in range(number)]
    try:
        yield all_
    finally:
        for raw in all_:
            raw.writer.close()


async def client_of(raw: Raw, *fields: bytes) -> bytes:
    await raw.send(get(b"/client", *fields))
    status, body = await raw.answer()
    assert status == 200
    return body


def test_each_setting_is_a_limit() -> None:
    assert connection_limits_of(open_settings()) == ConnectionLimits()
    settings = jwt_settings(
        max_connections=1,
        connections_per_address=2,
        head_seconds=3,
        body_seconds=4,
        keep_alive_seconds=5,
        trusted_proxy="127.0.0.1 ::1",
        proxy_protocol=True,
    )
    limits = connection_limits_of(settings)
    assert limits[:5] == (1, 2, 3, 4, 5)
    assert "::1" in limits.trusted
    assert limits.proxy_protocol


def test_proxy_protocol_needs_trusted_proxies() -> None:
    with pytest.raises(SetupError, match="--trusted-proxy"):
        connection_limits_of(open_settings(proxy_protocol=True))


def test_clients_of_a_proxy_need_tokens() -> None:
    with pytest.raises(SetupError, match="set --auth to jwt"):
        connection_limits_of(open_settings(proxy_protocol=True, trusted_proxy="127.0.0.1"))


def test_trusted_proxy_that_is_no_network_is_an_error_of_the_settings() -> None:
    with pytest.raises(ValueError, match="'x' is no address or network"):
        open_settings(trusted_proxy=("x",))


# Room


async def test_silent_connections_make_room_for_others() -> None:
    async with guarded(ConnectionLimits(max_connections=10)) as server, silent(server, 50):
        for _ in range(20):
            async with await server.connect() as raw:
                assert await client_of(raw) == b"127.0.0.1"
        assert server.connections.number <= 10


async def test_idle_connections_make_room_after_those_that_never_sent_a_request() -> None:
    async with guarded(ConnectionLimits(max_connections=2)) as server:
        idle, other = await server.connect(), await server.connect()
        await client_of(idle)
        async with await server.connect() as raw:
            await client_of(raw)
            assert await other.rest() == b""
            assert await client_of(idle) == b"127.0.0.1"
            async with await server.connect() as another:
                await client_of(another)
                await until(lambda: server.connections.number == 2)
        idle.writer.close()
        other.writer.close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", range(6))
def test_connection_that_comes_as_the_server_stops_does_not_hold_it_up(
    new_loop: Callable[[], asyncio.AbstractEventLoop], turns: int
) -> None:
    """In whichever turn of the event loop it stops, and however far the connection is then."""

    async def stop_after_the_turns() -> None:
        configured = process.config(echo)
        configured.load()
        connections = OpenConnections(ConnectionLimits(head=3_600))  # no deadline ends it
        server = GuardedServer(configured, connections, PeerErrors())
        server.lifespan = configured.lifespan_class(configured)
        with listen("127.0.0.1", 0) as listener:
            await server.startup([listener])
            with socket.create_connection(listener.getsockname()):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await server.shutdown()
                assert connections.number == 0
                assert not server.server_state.connections

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(stop_after_the_turns())


async def test_accepting_pauses_while_all_connections_are_busy_and_then_goes_on() -> None:
    async with guarded(ConnectionLimits(max_connections=1)) as server:
        async with await server.connect() as busy:
            # Its body is still to come, but not yet for long.
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
            await busy.send(head + b"Expect: 100-continue\r\n\r\n")
            await busy.reader.readuntil(b"\r\n\r\n")
            waiting = await server.connect()
            await waiting.send(get())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await waiting.reader.read(1)
            await busy.send(b"ok")
            assert await busy.answer() == (200, b"ok")
        assert await waiting.answer() == (200, b"127.0.0.1")
        waiting.writer.close()


@pytest.mark.parametrize(
    "request_",
    {
        "a body that does not come": post(b"x", 100),
        "an answer that is not taken": get(b"/much"),
    }.items(),
    ids=lambda item: item[0],
)
async def test_clients_that_do_not_go_on_make_room_after_a_while(
    monkeypatch: pytest.MonkeyPatch, request_: tuple[str, bytes]
) -> None:
    monkeypatch.setattr(open_connections, "STALLED_SECONDS", 0.0)
    async with guarded(ConnectionLimits(max_connections=5)) as server, silent(server, 5) as slow:
        for raw in slow:
            await raw.send(request_[1])
        for _ in range(10):
            async with await server.connect() as raw:
                assert await client_of(raw) == b"127.0.0.1"


async def test_clients_that_have_had_their_last_answer_make_room_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_connections, "STALLED_SECONDS", 3_600)
    limits = ConnectionLimits(max_connections=5, linger=3_600)
    async with guarded(limits) as server, silent(server, 5) as refused:
        for raw in refused:
            await raw.send(post(b"x", 100, b"/refused"))
            assert (await raw.answer())[0] == 403
        for _ in range(10):
            async with await server.connect() as raw:
                assert await client_of(raw) == b"127.0.0.1"


async def test_websockets_without_a_message_make_room_for_others() -> None:
    settings, patient = jwt_settings(max_connections=8), Timeouts(hello=3_600)
    async with serving(settings, timeouts=patient) as served, asyncio.timeout(TIMEOUT_SECONDS):
        port = served.http.base_url.port
        assert port is not None
        silent = []
        for _ in range(20):
            silent.append(await Raw.connect(port))
            await silent[-1].send(HANDSHAKE)
            assert b" 101 " in await silent[-1].head()
        for n in range(4):
            device = await served.device(token("u"), f"d{n}")
            await device.assert_usable()
        for raw in silent:
            raw.writer.close()


async def test_health_check_gets_through_when_devices_fill_the_server() -> None:
    async with serving(jwt_settings(max_connections=8)) as served, asyncio.timeout(TIMEOUT_SECONDS):
        devices: list[RawDevice] = []
        with suppress(Exception):
            while True:
                devices.append(await served.device(token("u"), f"d{len(devices)}"))
        assert 4 <= len(devices) <= 6
        port = served.http.base_url.port
        assert port is not None
        async with await Raw.connect(port) as raw:
            await raw.send(get(b"/healthz"))
            assert (await raw.answer())[0] == 200
        await devices[0].send("verify", cursor=0)
        for device in devices:
            await device.close()


# Addresses


async def test_one_address_has_so_many_connections_and_others_have_theirs() -> None:
    limits = PROXY_PROTOCOL._replace(connections_per_address=3)
    async with guarded(limits) as server:

        async def connect(host: str) -> Raw:
            raw = await server.connect()
            await raw.send(f"PROXY TCP4 {host} 127.0.0.1 1 2\r\n".encode() + get())
            return raw

        kept = [await connect("203.0.113.1") for _ in range(3)]
        assert [await raw.answer() for raw in kept] == [(200, b"203.0.113.1")] * 3
        refused = await connect("203.0.113.1")
        assert await refused.rest() == b""
        other = await connect("203.0.113.2")
        assert await other.answer() == (200, b"203.0.113.2")
        kept[0].writer.close()
        await until(lambda: server.connections.number == 3)
        again = await connect("203.0.113.1")
        assert await again.answer() == (200, b"203.0.113.1")
        for raw in (*kept, refused, other, again):
            raw.writer.close()


async def test_loopback_is_not_counted() -> None:
    limits = ConnectionLimits(connections_per_address=1)
    async with guarded(limits) as server, silent(server, 5) as connected:
        assert {await client_of(raw) for raw in connected} == {b"127.0.0.1"}


async def test_forwarded_address_counts_until_another_one_is_forwarded() -> None:
    limits = BEHIND_PROXY._replace(connections_per_address=1)
    async with guarded(limits) as server:
        first, second = await server.connect(), await server.connect()
        one, two = b"X-Forwarded-For: 203.0.113.1", b"X-Forwarded-For: 203.0.113.2"
        assert await client_of(first, one) == b"203.0.113.1"
        await second.send(get(b"/client", one))
        assert (await second.answer())[0] == 429
        assert await client_of(first, two) == b"203.0.113.2"
        async with await server.connect() as third:
            assert await client_of(third, one) == b"203.0.113.1"
        first.writer.close()
        second.writer.close()


async def test_forwarded_address_of_a_stranger_is_not_believed() -> None:
    limits = ConnectionLimits(trusted=Networks.parse(["10.0.0.0/8"]))
    async with guarded(limits) as server, await server.connect() as raw:
        for field in (b"X-Forwarded-For: 203.0.113.1", b"Forwarded: for=203.0.113.1"):
            assert await client_of(raw, field) == b"127.0.0.1"


# The PROXY protocol


@pytest.mark.parametrize("write", [v1, v2])
@pytest.mark.parametrize("host", ["203.0.113.9", "2001:db8::9"])
async def test_proxy_protocol_names_the_client_however_it_is_cut(write, host) -> None:  # type: ignore[no-untyped-def]
    from ipaddress import ip_address

    header = write(ip_address(host), 4711)
    async with guarded(PROXY_PROTOCOL) as server:
        async with await server.connect() as raw:
            await raw.send(header)
            assert await client_of(raw) == host.encode()
        async with await server.connect() as raw:
            for byte in header:
                await raw.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await client_of(raw) == host.encode()


async def test_connection_without_a_proxy_header_is_refused() -> None:
    async with guarded(PROXY_PROTOCOL) as server, await server.connect() as raw:
        await raw.send(get())
        assert await raw.rest() == b""
        assert server.count(PeerError.PROXY) == 1


async def test_proxy_header_of_a_stranger_is_refused() -> None:
    limits = ConnectionLimits(trusted=Networks.parse(["10.0.0.0/8"]), proxy_protocol=True)
    async with guarded(limits) as server, await server.connect() as raw:
        await raw.send(b"PROXY UNKNOWN\r\n" + get())
        assert await raw.rest() == b""
        assert server.count(PeerError.PROXY) == 1


async def test_proxy_header_is_an_error_where_it_is_not_expected() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(b"PROXY TCP4 203.0.113.9 127.0.0.1 1 2\r\n" + get())
        assert (await raw.answer())[0] == 400


async def test_slow_proxy_header_ends_at_its_deadline() -> None:
    async with guarded(PROXY_PROTOCOL._replace(head=0.3)) as server, await server.connect() as raw:
        await raw.send(b"PROXY TC")
        assert await raw.rest() == b""
        await until(lambda: server.connections.number == 0)


# Errors


async def test_address_that_makes_too_many_errors_is_refused_and_others_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    errors = PeerErrors(LOOPBACK, burst=3, clock=lambda: clock[0])
    bad, good = b"X-Forwarded-For: 203.0.113.1", b"X-Forwarded-For: 203.0.113.2"
    async with guarded(BEHIND_PROXY, errors) as server:
        with caplog.at_level(logging.WARNING, "gregor.server"):
            for status in (400, 400, 400, 429, 429, 429):
                async with await server.connect() as raw:
                    await raw.send(get(b"/client", bad))
                    assert (await raw.answer())[0] == (200 if status == 400 else status)
                    if status == 400:
                        await raw.send(b"\0\r\n\r\n")
                        assert (await raw.answer())[0] == 400
        (entry,) = caplog.records
        assert "203.0.113.1" in entry.getMessage()
        assert "refused=1" in entry.getMessage()
        async with await server.connect() as raw:
            assert await client_of(raw, good) == b"203.0.113.2"
        clock[0] = 10.0
        async with await server.connect() as raw:
            assert await client_of(raw, bad) == b"203.0.113.1"


async def test_three_hundred_bad_tokens_leave_a_trace_and_do_not_lock_this_machine_out() -> None:
    async with serving(jwt_settings()) as served:
        answers = await asyncio.gather(*(served.post({}, "a.b.c") for _ in range(300)))
        assert {answer.status_code for answer in answers} == {401}
        assert await authentication_errors(served) == 300


async def test_bad_token_of_a_device_is_counted() -> None:
    async with serving(jwt_settings()) as served:
        device = await RawDevice.connect(served.url)
        await device.send("hello", token="a.b.c", device_id="d", protocol=2)
        assert await device.wait_closed() == 4001
        assert await authentication_errors(served) == 1


async def authentication_errors(served: Served) -> float:
    return await served.metric('gregor_peer_errors_total{reason="authentication"}')


async def test_bad_tokens_of_a_forwarded_address_are_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_errors, "PER_SECOND", 0.0)  # none is forgiven, however long it takes
    settings = jwt_settings(trusted_proxy=("127.0.0.0/8",))
    async with serving(settings) as served:

        async def good() -> int:
            headers = {"X-Forwarded-For": "203.0.113.1"}
            return (await served.http.get("/", headers=headers)).status_code

        async def bad() -> int:
            headers = {"X-Forwarded-For": "203.0.113.0", "Authorization": "Bearer a.b.c"}
            return (await served.http.get("/v1/users/u/state", headers=headers)).status_code

        statuses = await asyncio.gather(*(ask() for ask in [good, bad] * 250))
        assert set(statuses[::2]) == {200}
        assert set(statuses[1::2]) == {401, 429}
        assert await served.metric("gregor_throttled_connections_total") > 0


async def test_websocket_is_counted_until_it_ends() -> None:
    async with serving(jwt_settings()) as served:
        open_ = served.server.service.open_connections
        device = await served.synced(token("u"))
        await until(lambda: open_.number == 1)
        await device.close()
        await until(lambda: open_.number == 0)


async def test_violation_of_the_websocket_protocol_is_an_error_of_its_address() -> None:
    async with serving(jwt_settings()) as served:
        device = await served.synced(token("u"))
        transport = device.connection.transport
        transport.write(b"\x81\x00")  # a frame that is not masked
        await device.wait_ended()
        assert await served.metric('gregor_peer_errors_total{reason="websocket"}') == 1
