"""Creates the sample from the full recording: `python -m gregor.cli.make_sample FILE`.

The sample contains the first sixth of the messages of each of the 100 busiest users, in the order
of the recording. So the sample also contains the items that its dismissals dismiss, and the
relative load of the users is kept. The output is deterministic.
"""

import gzip
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import msgspec

from gregor.cli.sample import SAMPLE

USERS = 100
FRACTION = 6  # one message in six


class SampleLine(msgspec.Struct):
    """The part of a line that is needed to select it."""

    uid: str


def uid_of(line: bytes) -> str:
    return msgspec.json.decode(line, type=SampleLine).uid


def sample(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The selected lines."""
    recording = [(uid_of(line), line) for line in lines]
    received = Counter(uid for uid, _ in recording)
    # Ties are broken by uid, so that the selection is deterministic.
    busiest = sorted(received, key=lambda uid: (-received[uid], uid))[:USERS]
    remaining = {uid: -(-received[uid] // FRACTION) for uid in busiest}
    for uid, line in recording:
        if remaining.get(uid, 0):
            remaining[uid] -= 1
            yield line


def packed(lines: Iterable[bytes]) -> bytes:
    """The lines as gzip, without time and file name, so that the output is deterministic."""
    result = BytesIO()
    with gzip.GzipFile(filename="", fileobj=result, mode="wb", mtime=0) as file:
        file.writelines(lines)
    return result.getvalue()


def main() -> None:
    """Write the sample to its file in the package."""
    with gzip.open(Path(sys.argv[1])) as file:
        SAMPLE.write_bytes(packed(sample(file)))


if __name__ == "__main__":
    main()
