"""`python -m tests.autobahn [CASE]...`: run the suite, and report. Fails if a case has failed."""

import sys
from collections import Counter

import uvloop

from tests.autobahn import run

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"]
"""All but compression, which no server of Gregor offers."""


def main(cases: list[str]) -> int:
    verdicts = uvloop.run(run(cases or CASES))
    for verdict in verdicts:
        if verdict.behavior != "OK" or not verdict.passed:
            print(f"{verdict.case:10} {verdict.behavior}, the end: {verdict.ending}")
    counts = Counter(verdict.behavior for verdict in verdicts)
    print(f"{len(verdicts)} cases:", ", ".join(f"{n} {name}" for name, n in counts.items()))
    return 0 if verdicts and all(verdict.passed for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
