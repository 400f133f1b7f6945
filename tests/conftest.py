"""How the tests look for counterexamples: a failure prints the blob that repeats it."""

import gc

from hypothesis import HealthCheck, settings

# As a server has it: what a test makes is freed by its reference count.
gc.set_threshold(50_000, 20, 100)

pytest_plugins = ["tests.backends"]

# A machine is opened once for a test, and each example is a user of its own in there; the suites
# are base classes, which run in many subclasses. Both are meant.
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
