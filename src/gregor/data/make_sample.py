"""Makes the sample out of the whole recording: `python -m gregor.data.make_sample FILE`.

The sample is the first sixth of what each of the 100 busiest users received, in the order of the
recording: so a dismissal still finds what it dismisses, and the busy are still busier than the
others. The same input gives the same bytes.
"""

import gzip
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import msgspec

from gregor.data import SAMPLE

USERS = 100
SHARE = 6


class Line(msgspec.Struct):
    """As much of a line as is needed to choose it."""

    uid: str


def uid_of(line: bytes) -> str:
    return msgspec.json.decode(line, type=Line).uid


def sample(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are chosen."""
    recording = [(uid_of(line), line) for line in lines]
    received = Counter(uid for uid, _ in recording)
    # Those who received equally many are told apart by name, so that the choice is always the same.
    busiest = sorted(received, key=lambda uid: (-received[uid], uid))[:USERS]
    left = {uid: -(-received[uid] // SHARE) for uid in busiest}
    for uid, line in recording:
        if left.get(uid, 0):
            left[uid] -= 1
            yield line


def packed(lines: Iterable[bytes]) -> bytes:
    """The lines as gzip, without the time or the name that would make each run differ."""
    result = BytesIO()
    with gzip.GzipFile(filename="", fileobj=result, mode="wb", mtime=0) as file:
        file.writelines(lines)
    return result.getvalue()


def main() -> None:
    """Write the sample to where the package keeps it."""
    with gzip.open(Path(sys.argv[1])) as file:
        SAMPLE.write_bytes(packed(sample(file)))


if __name__ == "__main__":
    main()
