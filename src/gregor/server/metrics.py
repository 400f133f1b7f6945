"""What a server tells about itself, for Prometheus.

Counting happens in plain integers on the hot path; they are turned into metrics when asked for.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gregor.core.message import InBandMessage
from gregor.errors import Malformed
from gregor.interfaces import Outcome
from gregor.node import Observer
from gregor.protocol.server import ServerSession


class Connected(Protocol):
    """A connected device, as far as it is counted."""

    session: ServerSession


class Reading(NamedTuple):
    """A number that somebody else keeps, who is asked for it with the page."""

    family: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    text: str
    value: Callable[[], float]
    labels: Mapping[str, str] = {}


counter = partial(Reading, CounterMetricFamily)
gauge = partial(Reading, GaugeMetricFamily)


class Metrics(Observer, Collector):
    """The counters of one server, and its `readings`. `connected` is who is connected now."""

    def __init__(self, connected: Iterable[Connected]) -> None:
        self.readings: list[Reading] = []
        self._connected = connected
        self._messages: Counter[tuple[str, str]] = Counter()
        self._healed = self._strange = self._interrupted = self._unheard = 0
        self._failed_commits = 0
        self.delivered = 0
        self.lagged = 0
        self.mismatches = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._commit_seconds = Histogram(
            "gregor_commit_seconds",
            "How long a commit took, its statements included",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
            registry=self.registry,
        )
        self._commit_messages = Histogram(
            "gregor_commit_messages",
            "How many messages shared a commit",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self.registry,
        )

    def committed(self, messages: int, seconds: float, taken: bool) -> None:
        self._failed_commits += not taken
        self._commit_seconds.observe(seconds)
        self._commit_messages.observe(messages)

    def injected(self, outcome: Outcome) -> None:
        kind = "in_band" if isinstance(outcome.message, InBandMessage) else "out_of_band"
        self._messages[kind, type(outcome).__name__.lower()] += 1

    def refused(self, messages: int) -> None:
        """Messages that could not be read, or that were not the sender's to send."""
        self._messages["unknown", "rejected"] += messages

    def healed(self, messages: int) -> None:
        self._healed += messages

    def strange(self, error: Malformed) -> None:
        self._strange += 1

    def interrupted(self) -> None:
        self._interrupted += 1

    def unheard(self, error: Exception) -> None:
        self._unheard += 1

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        sessions = [connection.session for connection in self._connected]
        messages = CounterMetricFamily(
            "gregor_messages",
            "Messages taken, by kind and by what became of them",
            labels=("kind", "result"),
        )
        for labels, number in self._messages.items():
            messages.add_metric(labels, number)
        yield messages
        lags = self.lagged + sum(session.lagged for session in sessions)
        for name, text, number in (
            ("failed_commits", "Commits that the store did not take", self._failed_commits),
            ("deliveries", "Messages written to devices", self.delivered),
            ("lags", "Times that a device was too slow for its queue", lags),
            ("hash_mismatches", "Snapshots that devices asked for to mend", self.mismatches),
            ("healed_messages", "Messages missed and found in the store", self._healed),
            ("strange_publications", "What came over the pub/sub and was not ours", self._strange),
            ("pubsub_interruptions", "Times that the pub/sub was down and back", self._interrupted),
            ("consumer_failures", "Messages that a consumer failed to pass on", self._unheard),
        ):
            yield CounterMetricFamily(f"gregor_{name}", text, value=number)
        yield GaugeMetricFamily("gregor_connections", "Devices connected now", value=len(sessions))
        yield GaugeMetricFamily(
            "gregor_users",
            "Users who have a device connected now",
            value=len({session.uid for session in sessions if session.uid}),
        )
        yield GaugeMetricFamily(
            "gregor_lagging_sessions",
            "Devices that wait for the store to catch up",
            value=sum(session.lagging for session in sessions),
        )
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for family, name, text, value, told_apart in self.readings:
            new = family(f"gregor_{name}", text, labels=tuple(told_apart))
            families.setdefault(name, new).add_metric(tuple(told_apart.values()), value())
        yield from families.values()
