"""The metrics of a server, for Prometheus.

The hot path counts in plain integers. They are converted to metrics when the page is requested.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gregor.core.message import InBandMessage, Message, OutOfBandMessage
from gregor.errors import Malformed
from gregor.interfaces import Caller, Outcome
from gregor.node.observer import Observer


class Reading(NamedTuple):
    """A metric that another object keeps: `value` is called when the page is requested."""

    family: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    help: str
    value: Callable[[], float]
    labels: Mapping[str, str] = {}


counter = partial(Reading, CounterMetricFamily)
gauge = partial(Reading, GaugeMetricFamily)


class Metrics(Observer, Collector):
    """The counters of one server, and the `readings` that its parts add. A node's Observer: to see
    its events as well, subclass it."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._messages: Counter[tuple[str, str]] = Counter()
        self._gap_messages_recovered = 0
        self._invalid_publications = 0
        self._interruptions = 0
        self._publish_failures = 0
        self._failed_commits = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._commit_seconds = Histogram(
            "gregor_commit_seconds",
            "Duration of a commit, including its statements",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
            registry=self.registry,
        )
        self._commit_messages = Histogram(
            "gregor_commit_messages",
            "Number of messages that share a commit",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=self.registry,
        )

    def committed(self, messages: int, seconds: float, succeeded: bool) -> None:
        """A commit of this number of messages has succeeded or failed after this time."""
        self._failed_commits += not succeeded
        self._commit_seconds.observe(seconds)
        self._commit_messages.observe(messages)

    def injected(self, caller: Caller, outcome: Outcome) -> None:
        self._messages[_kind(outcome.message), type(outcome).__name__.lower()] += 1

    def gap_repaired(self, messages: int) -> None:
        self._gap_messages_recovered += messages

    def invalid_publication(self, error: Malformed) -> None:
        self._invalid_publications += 1

    def interrupted(self) -> None:
        self._interruptions += 1

    def consumer_failed(self, error: Exception) -> None:
        self._publish_failures += 1

    def page(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        messages = CounterMetricFamily(
            "gregor_messages",
            "Messages by kind and result",
            labels=("kind", "result"),
        )
        for labels, number in self._messages.items():
            messages.add_metric(labels, number)
        yield messages
        for name, text, number in (
            ("failed_commits", "Commits that the store did not accept", self._failed_commits),
            (
                "gap_messages_recovered",
                "Messages that were missed and then read from the store",
                self._gap_messages_recovered,
            ),
            (
                "pubsub_invalid_messages",
                "Invalid payloads on the pub/sub, which no node has sent",
                self._invalid_publications,
            ),
            (
                "pubsub_interruptions",
                "How often the pub/sub was down and came back",
                self._interruptions,
            ),
            (
                "publish_failures",
                "Stored messages that a consumer failed to publish or broadcast",
                self._publish_failures,
            ),
        ):
            yield CounterMetricFamily(f"gregor_{name}", text, value=number)
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for family, name, text, value, label_values in self.readings:
            new = family(f"gregor_{name}", text, labels=tuple(label_values))
            families.setdefault(name, new).add_metric(tuple(label_values.values()), value())
        yield from families.values()


def _kind(message: Message | None) -> str:
    match message:
        case None:
            return "unknown"  # invalid, or forbidden to the caller
        case InBandMessage():
            return "in_band"
        case OutOfBandMessage():
            return "out_of_band"
