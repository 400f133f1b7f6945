"""docs/glossary.md is true: files exist, terms are unique, and so are the names of classes."""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
TERMS, _, UNUSED = GLOSSARY.partition("## Words that are not used")

SOURCES = [
    path for folder in ("src", "tests", "examples") for path in (ROOT / folder).rglob("*.py")
]
DOCUMENTS = [
    *(path for folder in ("docs", "spec", "deploy") for path in (ROOT / folder).rglob("*.md")),
    *ROOT.glob("*.md"),
    ROOT / "js" / "README.md",
    *(ROOT / "js" / "src").rglob("*.ts"),
]

CITES_OLD_NAMES = [
    ROOT / "CHANGELOG.md",
    ROOT / "docs" / "glossary.md",
    ROOT / "docs" / "decisions" / "0016-standard-terms-and-protocol-2.md",
    Path(__file__),
]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the tables, without their headings."""
    for line in text.splitlines():
        if line.startswith("| ") and not line.startswith(("| term |", "| say |")):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_each_term_has_a_definition_and_a_file_that_exists() -> None:
    for term, definition, file in rows(TERMS):
        assert definition.endswith("."), term
        assert (ROOT / file.strip(" |`")).is_file(), term


def test_no_term_is_defined_twice() -> None:
    terms = Counter(name for row in rows(TERMS) for name in row[0].split(", "))
    assert [term for term, times in terms.items() if times > 1] == []


def test_no_class_name_occurs_twice() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def unused_words() -> list[str]:
    """What the table says not to write; a single word may have an ending."""
    return [word.strip(" |") for _, words in rows(UNUSED) for word in words.split(",")]


@pytest.mark.parametrize("word", unused_words())
def test_word_is_not_used(word: str) -> None:
    pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*SOURCES, *DOCUMENTS]
        if path not in CITES_OLD_NAMES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []
