"""The generated vectors of spec/: which files there are, and what makes each."""

from pathlib import Path

from tests.vectors import inbox, replica, session

SPEC = Path(__file__).parents[2] / "spec" / "vectors"
FILES = {
    SPEC / "session.json": session.vectors,
    SPEC / "replica.json": replica.vectors,
    SPEC / "inbox.json": inbox.vectors,
}
