"""Parameters and rows reach each database as they are, and come back as they were."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import pytest

from gregor.stores.sql import statements
from gregor.stores.sql.database import Database
from gregor.stores.sql.dialect import POSTGRESQL, SQLITE, sql_of
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.statements import BulkStatement, MessageRow, RangeRow, Statement, UserClock
from gregor.stores.sql.store_url import database_at

TEXTS = [
    "plain",
    "",
    'it\'s "quoted" \\ and \\n, with a\nnew line, a tab\t and \x01',
    ":uid $1 ? %s {} -- comment; /* comment */",
    "é 漢字 😀 \u2028 \ufffe",
    "null",
    '["JSON"]',
]
NUMBERS = [0, 1, -1, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]


class Echo(NamedTuple):
    label: str | None
    number: int | None
    bucket: int | None


class OneText(NamedTuple):
    a: str


ECHO = BulkStatement("SELECT input.label, input.number, input.bucket FROM input", Echo, Echo._make)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with database_at(url, migrate) as database:
        yield database


async def echoed(database: Database, rows: Sequence[Echo]) -> list[Echo]:
    return sorted(await database.read(lambda c: c.execute_rows(ECHO, rows)), key=repr)


async def test_input_rows_are_read_back_unchanged(database: Database) -> None:
    rows = [Echo(text, len(text), 4095) for text in TEXTS]
    rows += [Echo("number", number, -1) for number in NUMBERS]
    rows += [Echo(None, 1, 1), Echo("a", None, None), Echo(None, None, None)]
    assert await echoed(database, rows) == sorted(rows, key=repr)


async def test_no_input_rows_give_no_rows(database: Database) -> None:
    assert await echoed(database, []) == []


@pytest.mark.parametrize("text", TEXTS)
async def test_parameter_is_read_back_unchanged(database: Database, text: str) -> None:
    """Also if it is used twice, in another order."""
    echo = Statement(
        """
        SELECT CAST(:label AS TEXT) AS label, CAST(:number AS BIGINT) AS number,
            CAST(length(:label) AS INTEGER) AS bucket
        """,
        Echo._make,
    )
    rows = await database.read(lambda c: c.execute(echo, number=2**62, label=text))
    assert rows == [Echo(text, 2**62, len(text))]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 700])
async def test_inserted_rows_are_read_back_unchanged(database: Database, count: int) -> None:
    rows = [
        MessageRow(
            *("u", n, 2**62, f"m{n}", None, TEXTS[n % len(TEXTS)]),
            *(TEXTS[-1 - n % len(TEXTS)], None, n, None, n if n % 2 else None),
        )
        for n in range(count)
    ]
    await database.write(lambda c: c.insert(statements.INSERT_MESSAGES, rows))
    query = "SELECT * FROM messages ORDER BY ctime"
    assert await database.read(lambda c: c.execute_sql(query)) == rows


async def test_boolean_column_is_stored(database: Database) -> None:
    ctimes = {1: True, 2: False}
    rows = [RangeRow("u", n, 0, 9, "a", flag, "[]", not flag) for n, flag in ctimes.items()]
    own = [MessageRow("u", n, n - 1, f"m{n}", "d1", "{}", None, None) for n in ctimes]
    await database.write(lambda c: c.insert(statements.INSERT_RANGES, rows))
    await database.write(lambda c: c.insert(statements.INSERT_MESSAGES, own))
    keys = [UserClock("u", 0)]
    ranges = await database.read(lambda c: c.execute_rows(statements.RANGES_ENDING_AFTER, keys))
    assert [bool(range_.prefix) for range_ in ranges] == [True, False]
    assert [bool(range_.scheduled) for range_ in ranges] == [False, True]
    assert [(range_.device_id, range_.own) for range_ in ranges] == [("d1", "m1"), ("d1", "m2")]


def test_text_of_a_statement_in_each_dialect() -> None:
    statement = BulkStatement(
        "SELECT a FROM input WHERE b = :b AND c = :c AND d = :b", OneText, OneText._make
    )
    assert sql_of(statement, SQLITE).text == (
        "WITH input AS MATERIALIZED (SELECT CAST(value AS TEXT) AS a FROM json_each(:rows)) "
        "SELECT a FROM input WHERE b = :b AND c = :c AND d = :b"
    )
    assert sql_of(statement, SQLITE, of_few_rows=True).text == (
        "WITH input AS (SELECT CAST(value AS TEXT) AS a FROM json_each(:rows)) "
        "SELECT a FROM input WHERE b = :b AND c = :c AND d = :b"
    )
    assert sql_of(statement, POSTGRESQL).text == (
        "WITH input AS MATERIALIZED (SELECT CAST(value #>> '{}' AS TEXT) AS a "
        "FROM json_array_elements(CAST($1 AS json))) "
        "SELECT a FROM input WHERE b = $2 AND c = $3 AND d = $2"
    )
    assert sql_of(statement, POSTGRESQL).parameters == ("rows", "b", "c")
