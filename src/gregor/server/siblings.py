"""How the workers of one server show their metrics together.

A scrape comes to whichever worker takes the connection, and counters that jump between those of
one worker and another's mean nothing. So whoever is asked asks all, each on a socket of its own
in a folder that only they know, and tells apart by a label what they say.

The library's own way, files that all processes map, knows its own kinds of metrics only, and not
what is collected when it is asked for.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

PATIENCE_SECONDS = 1.0


class Siblings:
    """All workers of a server, as one of them sees them: it has a `number` among so many."""

    def __init__(self, folder: Path, number: int, workers: int) -> None:
        self._folder = folder
        self._number = number
        self._workers = range(1, workers + 1)

    @asynccontextmanager
    async def answering(self, page: Callable[[], bytes]) -> AsyncIterator[None]:
        """While the block runs, the others get this page from us."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(page())
            writer.close()

        place = self._place(self._number)
        place.unlink(missing_ok=True)  # of one before us, who had no time to clear it away
        async with await asyncio.start_unix_server(answer, place):
            yield

    async def page(self) -> bytes:
        """The metrics of all workers that answer."""
        pages = await asyncio.gather(*(self._ask(number) for number in self._workers))
        registry = CollectorRegistry()
        registry.register(_Together(dict(zip(self._workers, pages, strict=True))))
        return generate_latest(registry)

    async def _ask(self, number: int) -> bytes | None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._place(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except OSError:  # the time-out is one of them
            return None

    def _place(self, number: int) -> Path:
        return self._folder / str(number)


class _Together(Collector):
    """The pages of workers as one; None is the page of one that did not answer."""

    def __init__(self, pages: Mapping[int, bytes | None]) -> None:
        self._pages = {str(number): page for number, page in pages.items()}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        up = GaugeMetricFamily("gregor_worker_up", "Whether the worker answers", labels=["worker"])
        for worker, page in self._pages.items():
            up.add_metric([worker], page is not None)
            for family in text_string_to_metric_families((page or b"").decode()):
                samples = [
                    s._replace(labels={**s.labels, "worker": worker}) for s in family.samples
                ]
                blank = Metric(family.name, family.documentation, family.type)
                families.setdefault(family.name, blank).samples += samples
        yield up
        yield from families.values()
