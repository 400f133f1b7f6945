"""The JavaScript client in a real browser, with a real server and a Python device."""

import pytest

from tests.javascript.node import run

BROWSER = ("run", "--config", "tests/browser/vitest.config.ts")


@pytest.mark.slow
def test_harness_of_the_browser_works() -> None:
    run("vitest", *BROWSER, "harness")
