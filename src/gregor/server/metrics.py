"""The metrics of a server, for Prometheus.

The hot path counts in plain integers. They are converted to metrics when the page is requested.
A counter with a fixed set of labels has all of them from the start, at 0: Prometheus sees no
increase in a sample that was not there before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from platform import python_version
from types import NoneType
from typing import NamedTuple, TypeAlias

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gregor.core.message import UID, InBandMessage, OutOfBandMessage
from gregor.errors import LimitExceeded, Malformed
from gregor.interfaces import Caller, EraseResult, Outcome, Rejected
from gregor.limits import SETTINGS
from gregor.node.observer import Observer
from gregor.stores.sql.failure_reason import FailureReason

Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily

KINDS: dict[type, str] = {
    InBandMessage: "in_band",
    OutOfBandMessage: "out_of_band",
    NoneType: "unknown",  # invalid, or forbidden to the caller
}


class Reading(NamedTuple):
    """A metric that another object keeps: `value` is called when the page is requested."""

    family: type[Family]
    name: str
    help: str
    value: Callable[[], float]
    labels: Mapping[str, str] = {}

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def samples(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """The values of the labels, with the number that they have."""
        yield tuple(self.labels.values()), self.value()


class Readings(NamedTuple):
    """The same, with labels whose values are known only when the page is requested: `values`
    returns a number for each combination of them."""

    family: type[Family]
    name: str
    help: str
    label_names: tuple[str, ...]
    values: Callable[[], Mapping[tuple[str, ...], float]]

    def samples(self) -> Iterable[tuple[tuple[str, ...], float]]:
        return self.values().items()


counter = partial(Reading, CounterMetricFamily)
counters = partial(Readings, CounterMetricFamily)
gauge = partial(Reading, GaugeMetricFamily)
gauges = partial(Readings, GaugeMetricFamily)


class Metrics(Observer, Collector):
    """The counters of one server, and the `readings` that its parts add. A node's Observer: to see
    its events as well, subclass it."""

    def __init__(self) -> None:
        self._messages: Counter[tuple[str, ...]] = Counter()
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._failed_commits: Counter[tuple[str, ...]] = Counter()
        self._failed_commits.update({(reason.value,): 0 for reason in FailureReason})
        self._limited: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in SETTINGS})
        self._users_erased = 0
        self._gap_messages_recovered = 0
        self._hashes_repaired = 0
        self._invalid_publications = 0
        self._interruptions = 0
        self._publish_failures = 0
        self.readings: list[Reading | Readings] = [*self._own_readings()]
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
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
        request_seconds = Histogram(
            "gregor_http_request_seconds",
            "Time from an HTTP request to the beginning of its answer",
            ("method", "route"),
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self._request_seconds = cache(request_seconds.labels)
        self._event_loop_lag = Histogram(
            "gregor_event_loop_lag_seconds",
            "How late the event loop was, four times a second",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )

    def committed(self, messages: int, seconds: float, failure: FailureReason | None) -> None:
        """A commit of this number of messages has succeeded, or failed, after this time."""
        if failure is not None:
            self._failed_commits[failure.value,] += 1
        self._commit_seconds.observe(seconds)
        self._commit_messages.observe(messages)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """The answer to an HTTP request has begun after this time. The labels are kept forever, so
        there must be few of them."""
        self._requests[method, route, str(status)] += 1
        self._request_seconds(method, route).observe(seconds)

    def event_loop_late(self, seconds: float) -> None:
        """The event loop has done what was due so late."""
        self._event_loop_lag.observe(seconds)

    def injected(self, caller: Caller, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            self._messages[KINDS[type(outcome.message)], type(outcome).__name__.lower()] += 1
            if isinstance(outcome, Rejected) and isinstance(outcome.error, LimitExceeded):
                self.limited(outcome.error.limit)

    def limited(self, limit: str) -> None:
        """Something was refused, because it exceeds this limit."""
        self._limited[limit,] += 1

    def erased(self, caller: Caller, uid: UID, result: EraseResult) -> None:
        self._users_erased += 1

    def gap_repaired(self, messages: int) -> None:
        self._gap_messages_recovered += messages

    def hash_repaired(self) -> None:
        self._hashes_repaired += 1

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
        families: dict[str, Family] = {}
        for reading in self.readings:
            new = reading.family(f"gregor_{reading.name}", reading.help, labels=reading.label_names)
            family = families.setdefault(reading.name, new)
            for label_values, number in reading.samples():
                family.add_metric(label_values, number)
        yield from families.values()

    def _own_readings(self) -> Iterator[Reading | Readings]:
        yield gauge("build_info", "1; the labels say what runs", lambda: 1, _build())
        yield counters(
            "messages", "Messages by kind and result", ("kind", "result"), lambda: self._messages
        )
        yield counters(
            "http_requests",
            "HTTP requests by method, route and status",
            ("method", "route", "status"),
            lambda: self._requests,
        )
        yield counters(
            "failed_commits",
            "Commits that the store did not accept",
            ("reason",),
            lambda: self._failed_commits,
        )
        yield counters(
            "limited",
            "What was refused, or delayed, because it exceeds a limit",
            ("limit",),
            lambda: self._limited,
        )
        yield counter("users_erased", "Users that were erased", lambda: self._users_erased)
        yield counter(
            "gap_messages_recovered",
            "Messages that were missed and then read from the store",
            lambda: self._gap_messages_recovered,
        )
        yield counter(
            "kept_hash_mismatches",
            "Hashes kept by the store that were wrong, and that the sweep has repaired",
            lambda: self._hashes_repaired,
        )
        yield counter(
            "pubsub_invalid_messages",
            "Invalid payloads on the pub/sub, which no node has sent",
            lambda: self._invalid_publications,
        )
        yield counter(
            "pubsub_interruptions",
            "How often the pub/sub was down and came back",
            lambda: self._interruptions,
        )
        yield counter(
            "publish_failures",
            "Stored messages that a consumer failed to publish or broadcast",
            lambda: self._publish_failures,
        )


def _build() -> Mapping[str, str]:
    return {"version": version("gregor-sync"), "python": python_version()}
