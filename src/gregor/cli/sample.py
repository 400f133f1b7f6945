"""The sample of real activity that ships with the package, for `gregor demo`."""

from pathlib import Path

SAMPLE = Path(__file__).parent / "celery-sample.jsonl.gz"
"""About 5,000 lines of the activity around one open-source repository."""
