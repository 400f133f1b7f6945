"""The state diagrams of spec/protocol.md are drawn from the tables in the code."""

from gregor.protocol import handshake
from tests.protocol.diagrams import SPEC, Arrow, arrows, diagram, with_diagrams


def test_diagrams_in_the_spec_are_those_of_the_code() -> None:
    page = SPEC.read_text()
    assert page == with_diagrams(page), "run `python -m tests.protocol.diagrams`"


def test_diagram_has_one_line_per_row_of_the_table() -> None:
    rows = list(arrows(handshake.TRANSITIONS))
    assert rows[0] == Arrow("greeting", "hello", "authenticating")
    lines = diagram(handshake.TRANSITIONS).splitlines()
    assert lines[0] == "greeting       ── hello ──────────▶ authenticating"
    assert len(lines) == len(rows)
