"""HTTP requests are counted by method, route and status, whatever callers send."""

import asyncio
import re

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from gregor.server.app import Server
from tests.server.harness import (
    Served,
    http_client,
    jwt_settings,
    listening,
    open_settings,
    serving,
    to,
    until,
)

COUNT = 'gregor_http_requests_total{method="%s",route="%s",status="%d"}'


async def count(served: Served, method: str, route: str, status: int) -> float:
    return await served.metric(COUNT % (method, route, status))


async def routes(http: httpx.AsyncClient) -> set[str]:
    """The values of the label `route`."""
    return set(re.findall(r'route="([^"]*)"', (await http.get("/metrics")).text))


async def test_answers_are_counted_by_the_template_of_their_route() -> None:
    async with serving() as served:
        for uid in ("ann", "bob", "x" * 128, "%00", "a%2Fb"):
            assert (await served.http.get(f"/v1/users/{uid}/state")).status_code < 500
        await served.post(to("u"))
        assert await count(served, "GET", "/v1/users/{uid}/state", 200) == 4
        assert await count(served, "GET", "/v1/users/{uid}/state", 422) == 1
        assert await count(served, "POST", "/v1/messages", 200) == 1


async def test_number_of_labels_does_not_depend_on_callers() -> None:
    async with serving() as served:
        for number in range(20):
            await served.http.get(f"/{number}")
            await served.http.get(f"/v1/users/{number}/state", params={"at": number})
        assert await routes(served.http) <= {"none", "/v1/users/{uid}/state", "/metrics"}
        assert await count(served, "GET", "none", 404) == 20


async def test_invented_methods_are_counted_together() -> None:
    server = Server.from_settings(open_settings())
    # Without uvicorn, which accepts only methods that it knows.
    transport = httpx.ASGITransport(server.app)
    async with server, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        for number in range(20):
            await http.request(f"M{number}", "/v1/messages")
    assert f"{COUNT % ('other', '/v1/messages', 405)} 20.0" in server.metrics.page().decode()


async def test_refused_requests_are_counted() -> None:
    async with serving(jwt_settings()) as served:
        assert (await served.post(to("u"))).status_code == 401
        assert (await served.http.put("/v1/messages")).status_code == 405
        assert await count(served, "POST", "/v1/messages", 401) == 1
        assert await count(served, "PUT", "/v1/messages", 405) == 1
    async with serving() as served:
        page = {"origin": "https://elsewhere.example"}
        assert (await served.http.get("/metrics", headers=page)).status_code == 403
        assert await count(served, "GET", "none", 403) == 1


async def test_unavailable_store_is_counted_as_503() -> None:
    async with serving() as served:
        await served.server.drain()
        assert (await served.post(to("u"))).status_code == 503
        assert await count(served, "POST", "/v1/messages", 503) == 1


async def test_duration_is_observed_for_each_request() -> None:
    async with serving() as served:
        for _ in range(3):
            await served.post(to("u"))
        labels = '{method="POST",route="/v1/messages"}'
        assert await served.metric(f"gregor_http_request_seconds_count{labels}") == 3
        assert 0 < await served.metric(f"gregor_http_request_seconds_sum{labels}") < 10
        bucket = '{le="+Inf",method="POST",route="/v1/messages"}'
        assert await served.metric(f"gregor_http_request_seconds_bucket{bucket}") == 3


async def test_event_stream_is_counted_when_it_begins() -> None:
    async with serving() as served:
        events = "/v1/users/u/events"
        async with served.http.stream("GET", events):
            assert await count(served, "GET", "/v1/users/{uid}/events", 200) == 1


async def test_client_that_goes_away_is_counted_as_499() -> None:
    async with serving() as served:
        address = httpx.URL(served.url)
        _, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.close()
        counted = served.server.metrics
        await until(lambda: b'route="/v1/messages",status="499"} 1.0' in counted.page())


async def test_mounted_server_counts_its_own_requests_by_template() -> None:
    server = Server.from_settings(open_settings())
    host = Starlette(routes=[Mount("/host", Starlette(routes=[Mount("/gregor", server.app)]))])
    async with server, listening(host) as port, http_client(port) as http:
        assert (await http.get("/host/gregor/v1/users/u/count")).status_code == 200
        assert (await http.get("/host/gregor/no")).status_code == 404
        assert (await http.get("/host/other")).status_code == 404
        page = server.metrics.page().decode()
    assert set(re.findall(r'route="([^"]*)"', page)) == {"/v1/users/{uid}/count", "none"}
    assert f"{COUNT % ('GET', 'none', 404)} 1.0" in page
