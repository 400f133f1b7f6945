import subprocess
import sys
from contextlib import ExitStack

from tests.ports import BLOCK_SIZE, free_port

PROGRAM = """
import sys
from tests.ports import free_port
print(*(free_port() for _ in range(100)), flush=True)
sys.stdin.read()  # until it is closed
"""


def test_processes_choose_different_ports() -> None:
    with ExitStack() as stack:
        outputs = []
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            assert process.stdin is not None
            assert process.stdout is not None
            outputs.append(process.stdout.readline())
        first, second = (set(output.split()) for output in outputs)
        assert len(first) == len(second) == 100
        assert first.isdisjoint(second)


def test_port_is_chosen_again_only_after_the_others() -> None:
    ports = [free_port() for _ in range(BLOCK_SIZE // 2)]
    assert len(set(ports)) == len(ports)
