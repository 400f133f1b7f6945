"""What differs between databases in the text of a statement: parameters, input rows, the clock."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import msgspec

from gregor.stores.sql.statements import BulkStatement, Statement, columns_of

ROWS = "rows"  # the parameter that holds the input rows, as a JSON array of arrays
_PARAMETER = re.compile(r"(?<!:):(\w+)")


class SQL(NamedTuple):
    """A statement as a driver runs it: the text, and its parameters in the order of their numbers
    (where they are numbered)."""

    text: str
    parameters: tuple[str, ...]


class Dialect(NamedTuple):
    """How one database writes what statements leave open."""

    name: str
    json_rows: str  # a table of the elements of the JSON array in :rows
    clock: str  # the database's clock in microseconds, at evaluation
    tables: str  # a table of the `name` of each table
    has_numbered_parameters: bool  # $1, $2, … instead of :name
    has_row_locks: bool  # transactions run concurrently and lock rows; otherwise one at a time


SQLITE = Dialect(
    "sqlite",
    "json_each(:rows)",
    "database_now()",  # a function of ours: the process that holds the file has the only clock
    "sqlite_master",
    has_numbered_parameters=False,
    has_row_locks=False,
)
POSTGRESQL = Dialect(
    "postgresql",
    "json_array_elements(CAST(:rows AS json))",
    "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
    "(SELECT relname AS name FROM pg_class WHERE pg_table_is_visible(oid)) AS visible",
    has_numbered_parameters=True,
    has_row_locks=True,
)


@cache
def sql_of(statement: Statement[object], dialect: Dialect) -> SQL:
    """The statement in this dialect."""
    text = " ".join(statement.text.split())
    if isinstance(statement, BulkStatement):
        types = columns_of(statement.input).items()
        columns = ", ".join(_input_column(n, *column) for n, column in enumerate(types))
        # Materialized: otherwise SQLite reads the JSON again for each row that it compares.
        text = f"WITH input AS MATERIALIZED (SELECT {columns} FROM {dialect.json_rows}) {text}"
    text = text.replace("database_now()", dialect.clock)
    text = text.replace("database_tables", dialect.tables)
    names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    if dialect.has_numbered_parameters:
        text = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", text)
    return SQL(text, names)


def _input_column(number: int, name: str, type_: str) -> str:
    return f"CAST(value ->> {number} AS {type_}) AS {name}"


def encode_rows(rows: Iterable[Sequence[object]]) -> str:
    """Input rows as the one JSON parameter that carries them."""
    return msgspec.json.encode(list(rows)).decode()
