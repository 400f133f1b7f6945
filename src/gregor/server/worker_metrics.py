"""The metrics of all workers of one server, merged into one page.

A scrape reaches any one of the workers, and counters that jump between the values of different
workers are useless. So the worker that is scraped fetches the pages of all workers and adds the
label `worker` to each sample. Every worker serves its page on a Unix socket in a private folder.

The multiprocess mode of prometheus_client (files that all processes map) is not an alternative: it
supports only the library's own metric types, not custom collectors.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

PAGE_TIMEOUT_SECONDS = 1.0


class WorkerMetrics:
    """The metrics of all workers, for the worker with this `number` (1 to `workers`)."""

    def __init__(self, folder: Path, number: int, workers: int) -> None:
        self._folder = folder
        self._number = number
        self._workers = range(1, workers + 1)

    @asynccontextmanager
    async def serving_page(self, page: Callable[[], bytes]) -> AsyncIterator[None]:
        """While the block runs, the other workers can fetch this page."""

        async def send_page(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(page())
            writer.close()

        path = self._socket_path(self._number)
        path.unlink(missing_ok=True)  # left behind by a worker that was killed
        async with await asyncio.start_unix_server(send_page, path):
            path.chmod(0o600)  # the folder is private too
            yield

    async def page(self) -> bytes:
        """The metrics of all workers that answer."""
        pages = await asyncio.gather(*(self._fetch(number) for number in self._workers))
        registry = CollectorRegistry()
        registry.register(_MergedPages(dict(zip(self._workers, pages, strict=True))))
        return generate_latest(registry)

    async def _fetch(self, number: int) -> bytes | None:
        try:
            async with asyncio.timeout(PAGE_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._socket_path(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except OSError:  # includes TimeoutError
            return None

    def _socket_path(self, number: int) -> Path:
        return self._folder / str(number)


class _MergedPages(Collector):
    """The pages of all workers as one; None stands for a worker that did not answer."""

    def __init__(self, pages: Mapping[int, bytes | None]) -> None:
        self._pages = {str(number): page for number, page in pages.items()}

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        up = GaugeMetricFamily("gregor_worker_up", "1 if the worker answers", labels=["worker"])
        for worker, page in self._pages.items():
            up.add_metric([worker], page is not None)
            for family in text_string_to_metric_families((page or b"").decode()):
                samples = [
                    s._replace(labels={**s.labels, "worker": worker}) for s in family.samples
                ]
                merged = Metric(family.name, family.documentation, family.type)
                families.setdefault(family.name, merged).samples += samples
        yield up
        yield from families.values()
