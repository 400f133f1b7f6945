"""States in pages: all of one instant, whatever happens between them; and tokens for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, put
from gregor.core.state_page import PageStart, StateQuery
from gregor.errors import Malformed
from gregor.node.node import Node
from gregor.protocol.requests import MAX_STATE_ITEMS
from gregor.server import Server
from gregor.server.auth import OpenAuthenticator
from gregor.server.page_token import StateRequest
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock
from gregor.testing.strategies import MSG_IDS, creations, devices, keys, messages
from tests.server.harness import JSON, open_settings, serving, shared_settings

USER = "user"


class PagedUser:
    """The user of a server whose clock is set by the test."""

    def __init__(self, http: httpx.AsyncClient, clock: ManualClock, server: Server) -> None:
        self.http = http
        self.clock = clock
        self._machine = server.node.state_machine

    async def store(self, *sent: InBandMessage) -> None:
        await self._machine.consume_messages(sent)

    async def answer(self, uid: str = USER, **query: Any) -> JSON:
        response = await self.http.get(f"/v1/users/{uid}/state", params=query)
        assert response.status_code == 200, response.text
        answer: JSON = response.json()
        return answer

    async def ids(self, **query: Any) -> list[str]:
        return [item["msg_id"] for item in (await self.answer(**query))["items"]]


@asynccontextmanager
async def in_memory() -> AsyncIterator[PagedUser]:
    """Called in this process, without a socket."""
    clock = ManualClock()
    node = Node(MemoryStateMachine(clock), Broadcaster(), clock=clock)
    server = Server(node, authenticator=OpenAuthenticator())
    transport = httpx.ASGITransport(server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield PagedUser(http, clock, server)


@asynccontextmanager
async def on_sqlite() -> AsyncIterator[PagedUser]:
    clock = ManualClock()
    async with serving(open_settings(), clock=clock) as served:
        yield PagedUser(served.http, clock, served.server)


@asynccontextmanager
async def on_shards() -> AsyncIterator[PagedUser]:
    clock = ManualClock()
    settings = shared_settings(("a=sqlite://", "b=sqlite://"))
    async with serving(settings, clock=clock) as served:
        yield PagedUser(served.http, clock, served.server)


STORES = {"memory": in_memory, "SQLite": on_sqlite, "shards": on_shards}


# Pages


queries = st.fixed_dictionaries(
    {},
    optional={
        "device_id": devices.filter(bool),
        "prefix": st.lists(st.sampled_from(["a", "a.", "b", "é", ""]), min_size=1, max_size=2),
        "key": keys,
        "order": st.sampled_from(["oldest", "newest"]),
    },
)
steps = st.lists(messages() | st.integers(0, 9), max_size=3)
"""Messages, and by how much the clock moves on: so that items begin and expire."""


@st.composite
def several_items(draw: st.DrawFn) -> list[InBandMessage]:
    return [
        InBandMessage(USER, msg_id, device_id=draw(devices), creation=draw(creations()))
        for msg_id in MSG_IDS[:6]
    ]


@given(several_items(), st.lists(steps, min_size=1, max_size=3), queries, st.integers(1, 2))
def test_pages_hold_each_item_that_was_visible_at_their_instant_once_and_none_other(
    before: list[InBandMessage],
    between: list[list[InBandMessage | Time]],
    query: dict[str, Any],
    limit: int,
) -> None:
    async def read_in_pages() -> None:
        async with in_memory() as user:
            await change(user, [3, *before, 3])
            whole = await user.answer(**query)
            pages = [await user.answer(**query, limit=limit)]
            while (token := pages[-1]["next_page"]) is not None:
                await change(user, between[len(pages) % len(between)])
                pages.append(await user.answer(**query, limit=limit, page=token))
            assert [item for page in pages for item in page["items"]] == whole["items"]
            for name in ("as_of", "hash", "cursor"):
                assert {page[name] for page in pages} == {whole[name]}
            assert all(len(page["items"]) == limit for page in pages[:-1])

    asyncio.run(read_in_pages())


async def change(user: PagedUser, happening: list[InBandMessage | Time]) -> None:
    for step in happening:
        if isinstance(step, int):
            user.clock.now += step
        else:
            await user.store(step)


@pytest.mark.parametrize("store", STORES)
async def test_state_that_changes_meanwhile_is_read_as_it_was(store: str) -> None:
    async with STORES[store]() as user:
        user.clock.now = 100 * SECOND
        await user.store(
            create(USER, "a", 1, msg_id="dies"),
            put(USER, "a", 1, key="k", msg_id="is replaced"),
            create(USER, "a", 1, msg_id="expires", expires="10s"),
            create(USER, "a", 1, msg_id="begins", starts="10s"),
            create(USER, "a", 1, msg_id="stays"),
            create(USER, "a", 1, msg_id="begins late", starts="20s"),
        )
        user.clock.now = 106 * SECOND
        first = await user.answer(limit=1)
        user.clock.now = 150 * SECOND
        await user.store(
            dismiss(USER, "dies", "stays"),
            put(USER, "a", 2, key="k"),
            create(USER, "a", 1, msg_id="new"),
            dismiss_category(USER, "a", scheduled=True),
            create(USER, "a", 1, msg_id="newer"),
        )
        rest = await user.answer(page=first["next_page"])
        assert [item["msg_id"] for item in first["items"]] == ["dies"]
        assert [i["msg_id"] for i in rest["items"]] == ["is replaced", "expires", "stays"]
        for name in ("as_of", "hash", "cursor"):
            assert rest[name] == first[name]
        assert (rest["as_of"], rest["next_page"]) == (106 * SECOND, None)
        assert await user.ids() == ["newer"]


@pytest.mark.parametrize("store", STORES)
async def test_limit_and_order_say_which_items_come(store: str) -> None:
    async with STORES[store]() as user:
        user.clock.now = 100
        await user.store(*(create(USER, f"c{n % 2}", n, msg_id=f"m{n}") for n in range(5)))
        assert await user.ids(limit=2) == ["m0", "m1"]
        assert await user.ids(limit=2, order="newest") == ["m4", "m3"]
        assert await user.ids(order="newest", prefix="c0") == ["m4", "m2", "m0"]
        answer = await user.answer(limit=5)
        assert (len(answer["items"]), answer["next_page"]) == (5, None)


@pytest.mark.parametrize("store", STORES)
async def test_items_of_a_key_are_one_of_each_scope(store: str) -> None:
    async with STORES[store]() as user:
        user.clock.now = 100
        await user.store(
            put(USER, "theme", "light", msg_id="m1"),
            put(USER, "theme", "dark", msg_id="m2"),
            put(USER, "theme", "red", device_id="phone", msg_id="m3"),
            put(USER, "theme", "blue", key="other", msg_id="m4"),
        )
        assert await user.ids(key="theme") == ["m2", "m3"]
        assert await user.ids(key="theme", device_id="laptop") == ["m2"]
        assert await user.ids(key="none") == []


# Tokens


async def test_page_may_have_another_limit_and_name_its_prefixes_in_another_order() -> None:
    async with in_memory() as user:
        await user.store(*(create(USER, name, 1, msg_id=name) for name in ("a", "b", "c", "ab")))
        first = await user.answer(prefix=["a", "b"], limit=1)
        query = {"prefix": ["b", "a", "b"], "page": first["next_page"]}
        assert await user.ids(**query, limit=1) == ["b"]
        assert await user.ids(**query) == ["b", "ab"]


async def test_page_of_a_past_state_is_of_its_first_instant() -> None:
    async with in_memory() as user:
        user.clock.now = 4_000_000_000_000_000
        await user.store(*(create(USER, "a", 1, msg_id=f"m{n}") for n in range(3)))
        user.clock.now += 100
        first = await user.answer(at="-10us", limit=1)
        await user.store(dismiss(USER, "m1"))
        user.clock.now += 100
        assert await user.ids(at="-10us", page=first["next_page"]) == ["m1", "m2"]


OTHER_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "another user": ("other", {}),
    "a device": (USER, {"device_id": "d"}),
    "a prefix": (USER, {"prefix": "a"}),
    "a key": (USER, {"key": "k"}),
    "another order": (USER, {"order": "newest"}),
    "an instant": (USER, {"at": "P1D"}),
}


@pytest.mark.parametrize("name", OTHER_REQUESTS)
async def test_page_of_another_user_or_query_is_refused(name: str) -> None:
    uid, query = OTHER_REQUESTS[name]
    async with in_memory() as user:
        for owner in (USER, "other"):
            of_two_scopes = [put(owner, "a", 1, key="k", device_id=scope) for scope in (None, "d")]
            await user.store(*of_two_scopes, create(owner, "a"))
        token = (await user.answer(limit=1))["next_page"]
        assert await refusal(user, uid, page=token, **query) == (400, "malformed", "page")
        of_other = (await user.answer(uid, limit=1, **query))["next_page"]
        assert await refusal(user, USER, page=of_other) == (400, "malformed", "page")


async def refusal(user: PagedUser, uid: str, **query: Any) -> tuple[int, str, str | None]:
    response = await user.http.get(f"/v1/users/{uid}/state", params=query)
    document = response.json()
    return response.status_code, document["code"], document.get("field")


@pytest.mark.parametrize("token", ["", "x", "é", "AAAA", "A" * 400, "a b", "=", "%00", "\0", "[]"])
async def test_text_that_is_no_token_is_refused(token: str) -> None:
    async with in_memory() as user:
        assert await refusal(user, USER, page=token) == (400, "malformed", "page")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        *(
            ({"limit": limit}, "limit")
            for limit in ("0", "-1", "x", "", MAX_STATE_ITEMS + 1, "1.5")
        ),
        *(({"order": order}, "order") for order in ("", "first", "Newest")),
        *(({"key": key}, "key") for key in ("", "é" * 128, "a\0")),
        *(
            ({"prefix": prefix}, "prefix")
            for prefix in ("é" * 128, "a\0", ["a", "\0"], ["a"] * 101)
        ),
    ],
)
async def test_parameter_that_selects_nothing_possible_is_refused_by_name(
    query: dict[str, Any], field: str
) -> None:
    async with in_memory() as user:
        assert await refusal(user, USER, **query) == (422, "invalid", field)


START = PageStart(100, 90, "0" * 64, 80, "é" * 32)
ASKED = StateRequest("üser", StateQuery("d", ("b", "a"), "k"), TimeOrOffset(offset=-5))


def test_token_is_text_for_urls_and_stands_for_its_start() -> None:
    token = ASKED.token_of(START)
    assert token.replace("-", "").replace("_", "").isalnum()
    assert ASKED.start_of(token) == START


def test_token_that_is_damaged_anywhere_is_refused() -> None:
    token = ASKED.token_of(START)
    for at in range(len(token)):
        for damage in ("", "A", "_", "~", "ü", token[at] * 2):
            damaged = token[:at] + damage + token[at + 1 :]
            if damaged != token:
                with pytest.raises(Malformed):
                    ASKED.start_of(damaged)


@pytest.mark.parametrize(
    "start",
    [
        PageStart(-1, 1, "0" * 64, 1, "m"),
        PageStart(1, 2**63, "0" * 64, 1, "m"),
        PageStart(1, 1, "0", 1, "m"),
        PageStart(1, 1, "0" * 64, 2**60, "m"),
        PageStart(1, 1, "0" * 64, 1, ""),
        PageStart(1, 1, "0" * 64, 1, "a\0b"),
        PageStart(1, 1, "0" * 64, 1, "é" * 33),
    ],
)
def test_forged_token_brings_nothing_to_a_store_that_it_cannot_take(start: PageStart) -> None:
    with pytest.raises(Malformed):
        ASKED.start_of(ASKED.token_of(start))
