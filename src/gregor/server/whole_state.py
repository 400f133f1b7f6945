"""A whole state as one answer, which is read and sent in pages of one instant.

A user may have 64 MiB of items, and ask for them many times at once. So of each answer there is one
page in memory, and the next one is read when the caller has taken it.
"""

from collections.abc import AsyncIterator

import msgspec
from msgspec import structs
from starlette.responses import Response

from gregor.core.instant import TimeOrOffset
from gregor.core.state_page import PageStart, StatePage, StateQuery
from gregor.errors import HistoryForgotten
from gregor.protocol.answers import StateAnswer
from gregor.server.page_token import StateRequest
from gregor.server.service import Service
from gregor.server.streams import Streamed

JSON = "application/json"

PAGE_ITEMS = 1_000
STATE_BYTES = 1024 * 1024  # about

_ITEMS = b'{"items":['
_encode = msgspec.json.encode


class WholeState:
    """What is asked for: the items from a start on, all of them."""

    def __init__(self, service: Service, asked: StateRequest, start: PageStart | None) -> None:
        self._service = service
        self._asked = asked
        self._start = start
        self._paged = structs.replace(asked.query, limit=PAGE_ITEMS, max_bytes=STATE_BYTES)

    async def answer(self) -> Response:
        # A later page is of the instant of the first one, and not of `at`, which may be an offset.
        at = self._asked.at if self._start is None else None
        first = await self._page(self._paged, self._start, at)
        if first.next is None:
            return _response(first)
        try:
            second = await self._page(self._paged, first.next)
        except HistoryForgotten:  # its instant: then it is read at once
            return _response(await self._page(self._asked.query, self._start, at))
        chunks = self._chunks(first, second)
        return Streamed(await anext(chunks), chunks, JSON, "a state was broken off")

    async def _page(
        self, query: StateQuery, start: PageStart | None, at: TimeOrOffset | None = None
    ) -> StatePage:
        machine = self._service.node.state_machine
        async with self._service.turn_to_read(self._asked.uid):
            return await machine.state_page(self._asked.uid, query, at, start)

    async def _chunks(self, first: StatePage, second: StatePage) -> AsyncIterator[bytes]:
        yield _ITEMS + _encode(first.items)[1:-1]
        page = second
        while True:
            yield b"," + _encode(page.items)[1:-1]
            if page.next is None:
                break
            page = await self._page(self._paged, page.next)
        without_items = structs.replace(first, items=(), next=None)
        yield _encode(StateAnswer.of(without_items)).removeprefix(_ITEMS)


def _response(page: StatePage) -> Response:
    return Response(_encode(StateAnswer.of(page)), media_type=JSON)
