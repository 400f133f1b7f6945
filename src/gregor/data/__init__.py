"""The data that ship with the package: a sample of real activity, for `gregor demo`."""

from pathlib import Path

SAMPLE = Path(__file__).parent / "celery-sample.jsonl.gz"
"""About 5,000 lines of the activity around one open-source repository."""
