"""Runs mutations, and prints which were caught.

python -m tests.mutations            # all mutations
python -m tests.mutations prefix     # the mutations with "prefix" in the name
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.mutations.mutations import MUTATIONS
from tests.mutations.runner import run


def main(name_parts: list[str]) -> int:
    chosen = [m for m in MUTATIONS if all(part in m.name for part in name_parts)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(zip(chosen, pool.map(run, chosen), strict=True))
    for mutation, reason in results:
        print(f"{'caught ' if reason is None else 'MISSED '} {mutation.name}")
        if reason is not None:
            print(f"        {reason}")
    return any(reason is not None for _, reason in results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
