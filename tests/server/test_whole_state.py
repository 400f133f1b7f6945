"""A whole state is answered as it is read: any number of large answers takes little memory."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from gregor.core.state_page import StateQuery
from gregor.server.whole_state import PAGE_ITEMS, STATE_BYTES
from tests.server.harness import Served, open_settings, serving, store_failure, to

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY = "x" * 40_000
ITEMS = 400  # 16 MB
ANSWERS = 10
LAST_CHUNK = b"\r\n0\r\n\r\n"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def large() -> AsyncIterator[Served]:
    """A server on which `u` has many large items, `v` very many small ones, and `w` large ones
    after small ones."""
    async with serving(open_settings(syncs_per_second=0)) as served:
        for uid, body, number in (("u", BODY, ITEMS), ("v", "", PAGE_ITEMS + 1)):
            for start in range(0, number, 100):
                some = range(start, min(start + 100, number))
                await served.post({"messages": [to(uid, f"c{n % 2}", body) for n in some]})
        await served.post({"messages": [to("w", "c", "") for _ in range(100)]})
        for _ in range(0, ITEMS, 100):
            await served.post({"messages": [to("w", "c", BODY) for _ in range(100)]})
        yield served


@pytest.mark.parametrize("uid", ["u", "v", "w", "nobody"])
@pytest.mark.parametrize("query", [{}, {"order": "newest"}, {"prefix": "c1"}, {"at": "1d"}])
async def test_whole_state_is_that_of_the_store(
    large: Served, uid: str, query: dict[str, str]
) -> None:
    answer = (await large.http.get(f"/v1/users/{uid}/state", params=query)).json()
    machine = large.server.node.state_machine
    prefixes = (query["prefix"],) if "prefix" in query else ()
    asked = StateQuery(prefixes=prefixes, newest_first="order" in query)
    page = await machine.state_page(uid, asked)
    ids = [item["msg_id"] for item in answer["items"]]
    assert ids == [item.msg_id for item in page.items]
    assert (answer["cursor"], answer["next_page"]) == (page.cursor, None)
    assert ("at" in query) or answer["hash"] == page.hash


async def test_state_that_changes_while_it_is_answered_is_that_of_its_instant(
    large: Served,
) -> None:
    async with large.http.stream("GET", "/v1/users/u/state") as answer:
        await large.post(to("u", "later", 1, msg_id="later"))
        assert "later" not in (await answer.aread()).decode()
    await large.post({"uid": "u", "dismissal": {"msg_ids": ["later"]}})


@pytest.mark.parametrize("uid", ["u", "w"])
async def test_answers_that_are_not_read_take_a_page_of_memory_each(
    large: Served, uid: str
) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        sockets = [await ask(large, uid) for _ in range(ANSWERS)]
        for reader, _ in sockets:
            await reader.readuntil(b'{"items":[')
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for _, writer in sockets:
        writer.close()
    assert (after - before) / ANSWERS < 5 * STATE_BYTES


async def test_state_that_cannot_be_read_to_its_end_is_broken_off(
    large: Served, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await ask(large)
    await reader.readuntil(b'{"items":[')
    async with store_failure(large):
        end = b""
        while end != LAST_CHUNK and (some := await reader.read(65_536)):
            end = (end + some)[-len(LAST_CHUNK) :]
    writer.close()
    assert end != LAST_CHUNK
    assert "a state was broken off" in caplog.text
    assert "Traceback" not in caplog.text


async def ask(served: Served, uid: str = "u") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request for the state, of whose answer little is read."""
    port = httpx.URL(served.http.base_url).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4_096)
    writer.write(f"GET /v1/users/{uid}/state HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return reader, writer
