import subprocess
import sys
from pathlib import Path

TESTS_OF_A_GROUP = """
import os
import pytest

@pytest.mark.xdist_group("group")
@pytest.mark.parametrize("n", range(6))
def test(n):
    with open("workers", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
"""


def test_tests_of_a_group_have_one_worker(tmp_path: Path) -> None:
    """As those do that load the machine, for which `make test` has a group."""
    (tmp_path / "test_group.py").write_text(TESTS_OF_A_GROUP)
    options = ["-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, check=True)
    workers = (tmp_path / "workers").read_text().split()
    assert len(workers) == 6
    assert len(set(workers)) == 1
