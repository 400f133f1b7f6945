"""Answers that are sent as they are read, in bounded memory, however much they are."""

import logging
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Send

from gregor.errors import GregorError
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.server")


class Streamed(StreamingResponse):
    """An answer in chunks, the first of which is read before the status is sent. If another one
    cannot be read, that is logged as the event, and the answer is broken off: the server closes the
    connection of one that has no end, so nobody takes it for a whole one."""

    def __init__(
        self, first: bytes, others: AsyncIterator[bytes], media_type: str, if_broken_off: str
    ) -> None:
        super().__init__(_all(first, others), media_type=media_type)
        self._event = if_broken_off

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except GregorError as error:
            log.error(LogEvent(self._event, reason=str(error)))


async def _all(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in others:
        yield chunk
