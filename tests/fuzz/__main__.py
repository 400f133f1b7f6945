"""Fuzzes what peers send: a fuzzer that is guided by coverage (atheris, on libFuzzer) looks for
inputs that break the law of a target.

python -m tests.fuzz --seconds 3600                  # all targets, one after the other
python -m tests.fuzz message --seconds 600           # keeps in the corpus what covers more
python -m tests.fuzz message --runs 2000 --seed 7    # a short run, which keeps nothing
python -m tests.fuzz message --input crash-1f3b…     # one input again
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

PARSERS = ["gregor.core", "gregor.protocol", "gregor.server"]
with atheris.instrument_imports(include=PARSERS):
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 4096


def main() -> int:
    """Ends with 0 if no input breaks the law of its target. Otherwise the input is in a file, which
    is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS), help="one of these alone")
    parser.add_argument("--seconds", type=int, default=0, help="fuzz for this time")
    parser.add_argument("--runs", type=int, default=-1, help="fuzz this number of inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer; 0: another each time")
    parser.add_argument("--input", type=Path, help="run only the input in this file")
    options = parser.parse_args()
    if options.target is None:
        return _fuzz_all(options.seconds)
    if options.input is not None:
        TARGETS[options.target](options.input.read_bytes())
        return 0
    _fuzz(options.target, options.seconds, options.runs, options.seed)
    return 0


def _fuzz_all(seconds: int) -> int:
    """The first status that is not 0: libFuzzer ends its process, so each target has its own."""
    share = max(1, seconds // len(TARGETS))
    for target in TARGETS:
        print(f"{target}: {share} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz", target, "--seconds", str(share)]
        if status := subprocess.run(command).returncode:
            return status
    return 0


def _fuzz(target: str, seconds: int, runs: int, seed: int) -> None:
    """Fuzz one target, and end this process."""
    corpus = str(CORPUS / target)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            sys.argv[0],
            corpus if seconds else scratch,  # libFuzzer writes to the first folder
            corpus,
            f"-max_total_time={seconds}",
            f"-runs={runs}",
            f"-seed={seed}",
            f"-max_len={MAX_BYTES}",
            "-timeout=10",
            "-print_final_stats=1",
        ]
        atheris.Setup(arguments, TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
