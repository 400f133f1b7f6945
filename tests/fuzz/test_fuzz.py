"""Each target takes some thousand inputs of the fuzzer, beginning with the corpus."""

import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_the_law_of_the_target(target: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz", target, "--runs", "3000", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
