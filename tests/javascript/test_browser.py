"""The JavaScript client in a real browser, with a real server and a Python device.

make hunt-js

plays more rounds. A round that fails prints its seed.
"""

import pytest

from tests.javascript.node import run

BROWSER = ("run", "--config", "tests/browser/vitest.config.ts")
ROUNDS = 20
ROUNDS_PER_TEST = 5
FLEET_ROUNDS = 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["harness", "stores", "tabs", "examples"])
def test_browser_passes(name: str) -> None:
    run("vitest", *BROWSER, name)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(ROUNDS // ROUNDS_PER_TEST))
def test_all_devices_agree_after_random_rounds(part: int) -> None:
    print(run("vitest", *BROWSER, "rounds", GREGOR_ROUNDS=str(ROUNDS_PER_TEST)))


@pytest.mark.slow
def test_all_devices_of_a_fleet_agree_after_random_rounds() -> None:
    print(run("vitest", *BROWSER, "rounds", GREGOR_ROUNDS=str(FLEET_ROUNDS), GREGOR_FLEET="1"))
