"""A server tells its limits, and refuses what exceeds them, with the name of the limit."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from websockets.exceptions import ConnectionClosed

from gregor.config import Settings, load
from gregor.core.message import UID
from gregor.errors import (
    GregorError,
    InvalidMessage,
    LimitExceeded,
    SetupError,
    StorageUnavailable,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import Erasure
from gregor.limits import DEFAULT_LIMITS, SETTINGS, Limits
from gregor.node.limiter import Limiter
from gregor.server import http
from gregor.server.auth import Identity, Role
from gregor.server.http import PAUSE_SECONDS, authenticated_endpoint
from tests.client.harness import on_virtual_time
from tests.server.harness import (
    JSON,
    RawDevice,
    creation,
    jwt_settings,
    open_settings,
    serving,
    small_buffer_socket,
    to,
    token,
)
from tests.timeouts import TIMEOUT_SECONDS


def test_settings_have_the_defaults_of_the_limits() -> None:
    assert Settings().limits == DEFAULT_LIMITS


@pytest.mark.parametrize("name", SETTINGS)
def test_each_limit_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GREGOR_{name.upper()}", "7")
    assert getattr(load().limits, name) == 7


def test_limit_that_is_negative_is_refused() -> None:
    with pytest.raises(SetupError, match="setting `live_items`"):
        load(live_items=-1)


@pytest.mark.parametrize("name", SETTINGS)
def test_limit_that_not_every_client_can_hold_is_refused(name: str) -> None:
    largest = 2**53 - 1  # which JavaScript holds exactly
    most: dict[str, Any] = {name: largest}
    more: dict[str, Any] = {name: largest + 1}
    assert getattr(load(**most).limits, name) == largest
    with pytest.raises(SetupError, match=f"setting `{name}`: .* less than or equal to {largest}"):
        load(**more)


async def test_limits_are_told_to_devices_and_to_callers_with_a_token() -> None:
    settings = jwt_settings(ranges=7, messages_per_second=0)
    async with serving(settings) as served:
        headers = {"Authorization": f"Bearer {token('u')}"}
        told = (await served.http.get("/v1/limits", headers=headers)).json()
        assert told["ranges"] == 7
        assert told["messages_per_second"] == 0
        assert told["ids_days"] == 400
        assert (await served.http.get("/v1/limits")).status_code == 401


async def test_consume_has_no_more_messages_than_the_rate_ever_takes_at_once() -> None:
    async with serving(open_settings(messages_per_second=2)) as served:
        assert (await served.http.get("/v1/limits")).json()["messages"] == 20


async def ack_or_error(device: RawDevice, n: int, *messages: JSON) -> JSON:
    await device.send("consume", n=n, messages=messages)
    while (frame := await device.receive()).get("n") != n:
        pass
    return frame


async def test_consume_beyond_the_rate_is_refused_whole_and_says_when_to_send_it_again() -> None:
    async with serving(open_settings(messages_per_second=1)) as served:
        async with await served.synced("u") as device:
            assert (await ack_or_error(device, 1, *[creation()] * 9))["type"] == "ack"
            error = await ack_or_error(device, 2, *[creation()] * 10)
            assert (error["code"], error["action"]) == ("limit", "retry")
            assert (error["limit"], error["maximum"]) == ("messages_per_second", 1)
            assert 0 < error["retry_after_ms"] <= 10_000
            later = await ack_or_error(device, 3, creation())  # for which there is room
            assert (later["code"], later["n"]) == ("limit", 3)
            assert (await ack_or_error(device, 2, creation()))["type"] == "ack"
        assert await served.metric('gregor_limited_total{limit="messages_per_second"}') == 1


async def test_devices_of_one_user_share_a_rate_and_other_users_have_their_own() -> None:
    async with serving(open_settings(messages_per_second=1)) as served:
        async with await served.synced("u", "d1") as one, await served.synced("u", "d2") as two:
            assert (await ack_or_error(one, 1, *[creation()] * 10))["type"] == "ack"
            assert (await ack_or_error(two, 1, *[creation()] * 10))["code"] == "limit"
        async with await served.synced("other") as other:
            assert (await ack_or_error(other, 1, *[creation()] * 10))["type"] == "ack"


async def test_bytes_are_limited_and_a_whole_frame_always_fits() -> None:
    async with (
        serving(open_settings(bytes_per_second=1)) as served,
        await served.synced("u") as device,
    ):
        large = [creation(body="x" * 60_000)] * 16
        assert (await ack_or_error(device, 1, *large))["type"] == "ack"
        error = await ack_or_error(device, 2, *large)
        assert (error["limit"], error["maximum"]) == ("bytes_per_second", 1)


async def test_out_of_band_messages_count() -> None:
    async with (
        serving(open_settings(messages_per_second=1)) as served,
        await served.synced("u") as device,
    ):
        typing = {"system": "typing", "body": 1}
        assert (await ack_or_error(device, 1, *[typing] * 10))["type"] == "ack"
        assert (await ack_or_error(device, 2, *[typing] * 10))["code"] == "limit"


async def test_sync_beyond_the_rate_ends_the_connection_with_when_to_come_back() -> None:
    async with (
        serving(open_settings(syncs_per_second=1)) as served,
        await served.synced("u") as device,
    ):
        with suppress(ConnectionClosed):
            for _ in range(50):
                await device.send("verify", cursor=0)
        error = await device.receive_type("error")
        assert (error["code"], error["limit"]) == ("limit", "syncs_per_second")
        assert error["retry_after_ms"] > 0
        assert await device.wait_closed() == 1013


async def test_hello_is_a_sync() -> None:
    async with serving(open_settings(syncs_per_second=1)) as served:
        first = {"type": "welcome"}
        while first["type"] == "welcome":
            async with await RawDevice.connect(served.url) as device:
                await device.send("hello", token="u", device_id="d", protocol=2)
                first = await device.receive()
        assert (first["type"], first["limit"]) == ("error", "syncs_per_second")


async def until_refused(ask: Callable[[], Awaitable[httpx.Response]]) -> tuple[int, httpx.Response]:
    """How often it is answered before it is refused, and the refusal."""
    answered = 0
    while (answer := await ask()).status_code == 200:
        answered += 1
    return answered, answer


@pytest.mark.parametrize("resource", ["state", "messages", "export"])
async def test_reads_of_all_that_a_user_has_are_syncs(resource: str) -> None:
    async with serving(jwt_settings(syncs_per_second=1)) as served:
        path = f"/v1/users/u/{resource}"
        device = {"Authorization": f"Bearer {token('u')}"}
        answered, refusal = await until_refused(lambda: served.http.get(path, headers=device))
        assert answered >= 10
        assert refusal.status_code == 429
        assert int(refusal.headers["Retry-After"]) >= 1
        assert refusal.json()["limit"] == "syncs_per_second"
        service = {"Authorization": f"Bearer {token('s', Role.SERVICE)}"}
        assert (await served.http.get(path, headers=service)).status_code == 200


async def test_frames_beyond_the_rate_are_read_later_and_none_is_lost() -> None:
    async with serving(open_settings(frames_per_second=1)) as served:
        async with await served.synced("u") as device:
            started = asyncio.get_running_loop().time()
            for n in range(1, 15):
                await device.send("consume", n=n, messages=[creation(msg_id=f"m{n}")])
            acks = [await device.receive_type("ack") for _ in range(14)]
            assert [ack["n"] for ack in acks] == [*range(1, 15)]
            assert asyncio.get_running_loop().time() - started > 1
        assert await served.metric('gregor_limited_total{limit="frames_per_second"}') > 0


async def test_requests_of_devices_are_frames_and_those_of_a_service_are_requests() -> None:
    async with serving(jwt_settings(frames_per_second=1, requests_per_second=2)) as served:

        async def refused(token: str) -> tuple[int, str]:
            headers = {"Authorization": f"Bearer {token}"}
            path = "/v1/users/u/count"
            answered, refusal = await until_refused(lambda: served.http.get(path, headers=headers))
            assert refusal.status_code == 429
            return answered, refusal.json()["limit"]

        answered, limit = await refused(token("u"))
        assert (answered >= 10, limit) == (True, "frames_per_second")
        answered, limit = await refused(token("s", Role.SERVICE))
        assert (answered >= 20, limit) == (True, "requests_per_second")


async def test_consumes_in_flight_beyond_the_limit_are_refused_and_counted() -> None:
    counted = 'gregor_limited_total{limit="consumes_in_flight"}'
    async with serving(open_settings(consumes_in_flight=1)) as served:
        port = served.http.base_url.port
        assert port is not None
        async with await RawDevice.connect(served.url, small_buffer_socket(port)) as device:
            await device.send("hello", token="u", device_id="d", protocol=2)
            assert (await device.receive())["type"] == "welcome"
            large, first = {"messages": [to("u", body="x" * 60_000)] * 16}, 1
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not await served.metric(counted):  # until nothing more fits in the socket
                    assert (await served.post(large)).status_code == 200
                    for n in range(first, first + 10):
                        await device.send("consume", n=n, messages=[creation()])
                    first += 10
            assert (await device.receive_type("error"))["limit"] == "consumes_in_flight"
        assert await served.metric(counted) == 1


async def test_connections_of_one_user_are_limited() -> None:
    async with serving(open_settings(connections=2)) as served:
        async with await served.synced("u", "d1"), await served.synced("u", "d2"):
            async with await RawDevice.connect(served.url) as third:
                await third.send("hello", token="u", device_id="d3", protocol=2)
                error = await third.receive()
                assert (error["limit"], error["maximum"]) == ("connections", 2)
                assert (error["action"], await third.wait_closed()) == ("retry", 1013)
            async with await served.synced("other"):
                pass
        async with await served.synced("u", "d3"):
            pass


async def test_event_streams_of_one_user_are_limited() -> None:
    async with (
        serving(open_settings(streams=1)) as served,
        served.http.stream("GET", "/v1/users/u/events") as first,
    ):
        lines = first.aiter_lines()
        while "welcome" not in await anext(lines):
            pass
        second = await served.http.get("/v1/users/u/events")
        assert second.status_code == 200  # an EventSource gives up after any other
        assert '"limit":"streams"' in second.text
        assert "retry: " in second.text
        async with await served.synced("u"):
            pass


async def test_nothing_is_read_for_an_event_stream_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(jwt_settings(streams=1)) as served:
        headers = {"Authorization": f"Bearer {token('u')}"}
        reads = list[UID]()
        machine = served.server.service.node.state_machine
        erasure = machine.erasure

        async def counted(uid: UID) -> Erasure:
            reads.append(uid)
            return await erasure(uid)

        monkeypatch.setattr(machine, "erasure", counted)
        async with served.http.stream("GET", "/v1/users/u/events", headers=headers) as first:
            lines = first.aiter_lines()
            while "welcome" not in await anext(lines):
                pass
            assert reads == ["u"]
            second = await served.http.get("/v1/users/u/events", headers=headers)
            assert '"limit":"streams"' in second.text
            assert reads == ["u"]


async def test_batch_beyond_the_rate_is_stored_up_to_a_message_and_not_after_it() -> None:
    async with serving(jwt_settings(messages_per_second=1)) as served:
        first = {"messages": [to("u", msg_id=f"first {n}") for n in range(2)]}
        assert (await served.post(first, token("u"))).status_code == 200
        batch = {"messages": [to("u", msg_id=f"m{n}") for n in range(10)]}
        results = (await served.post(batch, token("u"))).json()["results"]
        assert [result["status"] for result in results] == ["stored"] * 8 + ["rejected"] * 2
        errors = [result["error"] for result in results[8:]]
        assert errors[0] == errors[1]
        assert (errors[0]["code"], errors[0]["action"]) == ("limit", "retry")
        assert errors[0]["retry_after_ms"] > 0
        _, refusal = await until_refused(lambda: served.post(to("u"), token("u")))
        assert refusal.status_code == 429
        assert int(refusal.headers["Retry-After"]) >= 1
        service = await served.post(batch, token("s", Role.SERVICE))
        assert {r["status"] for r in service.json()["results"]} == {"stored", "duplicate"}


async def test_batch_of_more_than_ever_fit_is_refused_for_good_and_nothing_is_stored() -> None:
    """What is sent again begins with what was stored: it would never get past that."""
    async with serving(jwt_settings(messages_per_second=2)) as served:
        batch = {"messages": [to("u", msg_id=f"m{n}") for n in range(30)]}
        answer = await served.post(batch, token("u"))
        problem = answer.json()
        assert (answer.status_code, problem["action"]) == (422, "stop")
        assert (problem["limit"], problem["maximum"]) == ("messages_per_second", 20)
        headers = {"Authorization": f"Bearer {token('u')}"}
        count = await served.http.get("/v1/users/u/count", headers=headers)
        assert count.json()["counts"] == {"": 0}
        batch = {"messages": batch["messages"][: problem["maximum"]]}
        assert (await served.post(batch, token("u"))).status_code == 200
        service = await served.post(batch, token("s", Role.SERVICE))
        assert service.status_code == 200


async def test_request_that_never_fits_is_refused_for_good() -> None:
    async with serving(jwt_settings(bytes_per_second=1)) as served:
        batch = {"messages": [to("u", body="x" * 60_000)] * 20}
        answer = await served.post(batch, token("u"))
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["action"]) == (422, "limit", "stop")
        assert "Retry-After" not in answer.headers


async def test_body_that_never_fits_is_refused_before_it_is_read() -> None:
    async with serving(jwt_settings(bytes_per_second=1)) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.http.base_url.port)
        head = (
            "POST /v1/messages HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {token('u')}",
            "Content-Length: 8000000",
        )
        writer.write("\r\n".join((*head, "", "")).encode())
        answer = await reader.read()
        writer.close()
        assert (answer[:12], b'"limit":"bytes_per_second"' in answer) == (b"HTTP/1.1 422", True)


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    """A body whose length is not told before."""
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


async def test_body_of_unknown_length_that_never_fits_is_refused_for_good() -> None:
    async with serving(jwt_settings(bytes_per_second=1)) as served:
        headers = {"Authorization": f"Bearer {token('u')}"}
        body = pieces(b" " * 2_000_000)
        answer = await served.http.post("/v1/messages", content=body, headers=headers)
        problem = answer.json()
        assert (answer.status_code, problem["limit"]) == (422, "bytes_per_second")
        assert (problem["action"], problem["maximum"]) == ("stop", 1024 * 1024)


async def test_body_of_unknown_length_is_taken_after_the_wait_that_is_told() -> None:
    """Also if a refusal has spent what had come."""
    now = 0
    async with serving(jwt_settings()) as served:
        limits = Limits(bytes_per_second=100_000)
        served.server.service.limiter = Limiter(limits, lambda: now)
        headers = {"Authorization": f"Bearer {token('u')}"}
        large = {"messages": [to("u", body="x" * 60_000) for _ in range(17)]}
        assert (await served.post(large, token("u"))).status_code == 200
        body = json.dumps({"messages": large["messages"][:15]}).encode()
        for expected in (429, 200):
            answer = await served.http.post("/v1/messages", content=pieces(body), headers=headers)
            assert answer.status_code == expected
            now += 1_000 * answer.json().get("retry_after_ms", 0)


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (LimitExceeded("too many", limit="frames_per_second", maximum=1), PAUSE_SECONDS),
        (Unauthenticated("no"), PAUSE_SECONDS),
        (InvalidMessage("no"), 0),
    ],
)
@on_virtual_time
async def test_refusal_for_a_rate_or_a_token_comes_after_a_pause(
    error: GregorError, pause: float
) -> None:
    """Who takes no notice, and asks again in a loop, would take the server's whole time."""

    class Refusing:
        async def identify(self, token: str | None) -> Identity:
            raise error

    service: Any = Refusing()
    respond = authenticated_endpoint(service, http.get_limits)
    started = asyncio.get_running_loop().time()
    await respond(Request({"type": "http", "headers": []}))
    assert asyncio.get_running_loop().time() == started + pause


async def test_reads_of_one_user_take_turns() -> None:
    async with serving() as served:
        service, order = served.server.service, list[str]()

        async def read(uid: str, name: str, gate: asyncio.Event) -> None:
            async with service.turn_to_read(uid):
                await gate.wait()
                order.append(name)

        gates = {name: asyncio.Event() for name in ("first", "second", "other")}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read("u", "first", gates["first"]))
            tasks.create_task(read("u", "second", gates["second"]))
            gates["second"].set()
            gates["other"].set()
            await tasks.create_task(read("other", "other", gates["other"]))
            gates["first"].set()
        assert order == ["other", "first", "second"]


async def test_reads_that_wait_for_one_that_the_store_does_not_answer_end_with_it() -> None:
    async with serving() as served:
        service, answered = served.server.service, list[str]()

        async def read(fails: bool) -> None:
            try:
                async with service.turn_to_read("u"):
                    await asyncio.sleep(0)
                    if fails:
                        raise StorageUnavailable("down")
                    answered.append("read")
            except Unavailable:
                answered.append("refused")

        await asyncio.gather(*(read(fails) for fails in (False, True, False, False)))
        await read(fails=False)
        assert answered == ["read", "refused", "refused", "refused", "read"]


@pytest.mark.parametrize("resource", ["state", "count"])
async def test_prefixes_are_limited(resource: str) -> None:
    async with serving(open_settings(prefixes=2)) as served:
        query = {"prefix": ["a", "b", "c"]}
        answer = await served.http.get(f"/v1/users/u/{resource}", params=query)
        assert (answer.status_code, answer.json()["limit"]) == (422, "prefixes")
        assert answer.json()["maximum"] == 2
        assert await served.metric('gregor_limited_total{limit="prefixes"}') == 1


async def test_what_a_user_has_is_limited_and_counted() -> None:
    async with serving(open_settings(live_items=2, ranges=1)) as served:
        async with await served.synced("u") as device:
            many = {"dismissal": {"ranges": [{"category": "c"}, {"category": "d"}]}}
            ack = await device.consume(creation(), creation(), creation(), many)
            errors = [result.get("error", {}) for result in ack["results"]]
            assert [error.get("limit") for error in errors] == [None, None, "live_items", "ranges"]
            assert [error.get("action") for error in errors[2:]] == ["stop", "stop"]
        for limit in ("live_items", "ranges"):
            assert await served.metric(f'gregor_limited_total{{limit="{limit}"}}') == 1
        answer = await served.post(to("u"))
        assert (answer.status_code, answer.json()["limit"]) == (422, "live_items")


async def test_offline_device_with_a_thousand_messages_syncs_without_an_error() -> None:
    """By default, at once."""
    async with (
        serving(Settings(store="sqlite://", drain_seconds=0)) as served,
        await served.synced("u") as device,
    ):
        for n in (1, 2):
            batch = [creation(msg_id=f"m{n}.{i}") for i in range(500)]
            assert (await ack_or_error(device, n, *batch))["type"] == "ack"
