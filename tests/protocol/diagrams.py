"""Draws the state diagrams of spec/protocol.md from the tables of transitions in the code.

`python -m tests.protocol.diagrams` writes them into the page again.
"""

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from gregor.protocol import delivery_state, handshake, sync_state

SPEC = Path(__file__).parents[2] / "spec" / "protocol.md"

# Each is the first block of code below the heading of this name.
TABLES: Mapping[str, Mapping[Any, Mapping[Any, Any]]] = {
    "### The phases of a node": handshake.TRANSITIONS,
    "### How a node delivers": delivery_state.TRANSITIONS,
    "### The states of a device": sync_state.TRANSITIONS,
}


class Arrow(NamedTuple):
    """One row of a table: what leads from a state to others."""

    state: str
    event: str
    following: str


def arrows(table: Mapping[Any, Mapping[Any, Any]]) -> Iterator[Arrow]:
    for state, row in table.items():
        for event, following in row.items():
            targets = following if isinstance(following, tuple) else (following,)
            *others, last = [words(each) for each in targets]
            either = f"{', '.join(others)} or {last}" if others else last
            yield Arrow(words(state), words(event), either)


def words(name: Any) -> str:
    """The name of a state or event in plain words: `UpToDate` is "up to date"."""
    match name:
        case Enum():
            return name.name.lower()
        case type():
            return re.sub("(?<=[a-z])(?=[A-Z])", " ", name.__name__).lower()
        case _:
            return str(name)


def diagram(table: Mapping[Any, Mapping[Any, Any]]) -> str:
    """One line per arrow, in columns."""
    rows = list(arrows(table))
    state_width = max(len(row.state) for row in rows)
    event_width = max(len(row.event) for row in rows)
    return "\n".join(
        f"{state:<{state_width}} ── {event} {'─' * (event_width - len(event))}──▶ {following}"
        for state, event, following in rows
    )


def with_diagrams(page: str) -> str:
    """The page, with each diagram as the code is now."""
    for heading, table in TABLES.items():
        before, found, after = page.partition(f"{heading}\n")
        assert found, heading
        text, _, rest = after.partition("```\n")
        page = f"{before}{found}{text}```\n{diagram(table)}\n```" + rest.partition("```")[2]
    return page


if __name__ == "__main__":
    SPEC.write_text(with_diagrams(SPEC.read_text()))
