"""A whole state as one answer, which is read and sent in pages of one instant.

A user may have 64 MiB of items, and ask for them many times at once. So of each answer there is one
page in memory, and the next one is read when the caller has taken it.
"""

from collections.abc import AsyncIterator, Iterable

import msgspec
from msgspec import structs
from starlette.responses import Response

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.state import Item
from gregor.core.state_page import PageStart, StatePage
from gregor.errors import HistoryForgotten
from gregor.protocol.answers import StateAnswer
from gregor.server.page_token import StateRequest
from gregor.server.service import Service
from gregor.server.streams import Streamed

JSON = "application/json"

FIRST_ITEMS = 50
MOST_ITEMS = 1_000
PAGE_BYTES = 1024 * 1024  # about, from the second page on

_ITEMS = b'{"items":['
_encode = msgspec.json.encode


class WholeState:
    """What is asked for: the items from a start on, all of them."""

    def __init__(self, service: Service, asked: StateRequest, start: PageStart | None) -> None:
        self._service = service
        self._asked = asked
        self._start = start

    async def answer(self, epoch: Time) -> Response:
        """The answer for a user with this epoch."""
        # A later page is of the instant of the first one, and not of `at`, which may be an offset.
        at = self._asked.at if self._start is None else None
        first = await self._page(FIRST_ITEMS, self._start, at)
        if first.next is None:
            return _response(first, epoch)
        try:
            second = await self._page(_next_limit(first), first.next)
        except HistoryForgotten:  # its instant: then it is read at once
            return _response(await self._page(None, self._start, at), epoch)
        chunks = self._chunks(first, second, epoch)
        return Streamed(await anext(chunks), chunks, JSON, "a state was broken off")

    async def _page(
        self, limit: int | None, start: PageStart | None, at: TimeOrOffset | None = None
    ) -> StatePage:
        query = structs.replace(self._asked.query, limit=limit)
        machine = self._service.node.state_machine
        async with self._service.turn_to_read(self._asked.uid):
            return await machine.state_page(self._asked.uid, query, at, start)

    async def _chunks(
        self, first: StatePage, second: StatePage, epoch: Time
    ) -> AsyncIterator[bytes]:
        yield _ITEMS + _encode(first.items)[1:-1]
        page = second
        while True:
            yield b"," + _encode(page.items)[1:-1]
            if page.next is None:
                break
            page = await self._page(_next_limit(page), page.next)
        without_items = structs.replace(first, items=())
        yield _encode(_answer(without_items, epoch)).removeprefix(_ITEMS)


def _next_limit(page: StatePage) -> int:
    """How many items the next page has, if they are as large as these."""
    each = size_of(page.items) // len(page.items)
    return max(1, min(MOST_ITEMS, PAGE_BYTES // each))


def size_of(items: Iterable[Item]) -> int:
    """About how many bytes of JSON they are."""
    return sum(200 + len(memoryview(item.raw_body)) for item in items)


def _answer(page: StatePage, epoch: Time) -> StateAnswer:
    return StateAnswer(page.items, page.as_of, page.hash, page.cursor, epoch)


def _response(page: StatePage, epoch: Time) -> Response:
    return Response(_encode(_answer(page, epoch)), media_type=JSON)
