"""Settings of all tests: Hypothesis, which prints how to reproduce a failure, the collector, and
the order of tests."""

import gc

import pytest
from hypothesis import HealthCheck, Phase, settings

# The thresholds of a server: almost all objects are freed by their reference count.
gc.set_threshold(50_000, 20, 100)

# Their failures say which values differ.
pytest.register_assert_rewrite("gregor.testing.conformance", "gregor.testing.pubsub_conformance")

pytest_plugins = ["tests.server_fixtures"]

# The suppressed checks are intended: a test opens a state machine once, and each example uses its
# own user in it; conformance suites are base classes that run in several subclasses.
settings.register_profile(
    "gregor",
    deadline=None,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)
settings.load_profile("gregor")

# Without the search for a simpler example, which takes most of the time of a test that fails.
settings.register_profile(
    "first-failure",
    settings.get_profile("gregor"),
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end of a run no worker waits long for another one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
