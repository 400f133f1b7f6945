"""Settings of all tests: Hypothesis, which prints how to reproduce a failure, the collector, where
temporary files are, and the order of tests."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

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


MEMORY = Path("/dev/shm")
ROOM = 4 * 1024**3

LONGEST_ID = 100


def pytest_configure() -> None:
    """Without a TMPDIR, temporary files are in memory, if there is room: stores call fsync for each
    commit, which takes a busy disk up to a second. What a process wrote there survives SIGKILL."""
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM
    if "TMPDIR" not in os.environ and has_room:
        os.environ["TMPDIR"] = str(MEMORY)  # for processes that tests start
        tempfile.tempdir = None  # it is looked up again


def pytest_make_parametrize_id(val: object) -> str | None:
    """A long text is named by its length: pytest puts the names of tests into the environment,
    which has a limit, and some tests make uids of them."""
    if isinstance(val, str | bytes) and len(val) > LONGEST_ID:
        return f"{type(val).__name__} of {len(val)}"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests: at the end of a run no worker waits long for another one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
