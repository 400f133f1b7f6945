"""What differs between databases in the text of a statement: parameters, input rows, the clock."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec

from gregor.stores.sql.statements import BulkStatement, Statement, columns_of

ROWS = "rows"  # the parameter that holds the input rows, as a JSON array
_SIZE = re.compile(r"database_size\(([\w.]+)\)")
_PARAMETER = re.compile(r"(?<!:):(\w+)")


class SQL(NamedTuple):
    """A statement as a driver runs it: the text, and its parameters in the order of their numbers
    (where they are numbered)."""

    text: str
    parameters: tuple[str, ...]


class Dialect(NamedTuple):
    """How one database writes what statements leave open."""

    name: str
    json_rows: str  # a table of the elements of the JSON array in :rows, each a `value`
    json_text: str  # such a value that is neither an array nor an object
    clock: str  # the database's clock in microseconds, at evaluation
    size: str  # of the text in {}, in bytes
    tables: str  # a table of the `name` of each table
    has_numbered_parameters: bool  # $1, $2, … instead of :name
    has_row_locks: bool  # transactions run concurrently and lock rows; otherwise one at a time


SQLITE = Dialect(
    "sqlite",
    "json_each(:rows)",
    "value",
    "database_now()",  # a function of ours: the process that holds the file has the only clock
    "length(CAST({} AS BLOB))",
    "sqlite_master",
    has_numbered_parameters=False,
    has_row_locks=False,
)
POSTGRESQL = Dialect(
    "postgresql",
    "json_array_elements(CAST(:rows AS json))",
    "value #>> '{}'",
    "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
    "octet_length({})",
    "(SELECT relname AS name FROM pg_class WHERE pg_table_is_visible(oid)) AS visible",
    has_numbered_parameters=True,
    has_row_locks=True,
)


@cache
def sql_of(statement: Statement[object], dialect: Dialect, *, of_few_rows: bool = False) -> SQL:
    """The statement in this dialect; for few input rows, or for any number of them."""
    text = " ".join(statement.text.split())
    if isinstance(statement, BulkStatement):
        columns = ", ".join(_input_columns(statement.input, dialect))
        # Otherwise SQLite reads the JSON again for each row that it compares.
        kept = "" if of_few_rows else "MATERIALIZED "
        text = f"WITH input AS {kept}(SELECT {columns} FROM {dialect.json_rows}) {text}"
    text = text.replace("database_now()", dialect.clock)
    text = _SIZE.sub(lambda match: dialect.size.format(match[1]), text)
    text = text.replace("database_tables", dialect.tables)
    names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    if dialect.has_numbered_parameters:
        text = _PARAMETER.sub(lambda match: f"${names.index(match[1]) + 1}", text)
    return SQL(text, names)


def _input_columns(row: type[tuple[Any, ...]], dialect: Dialect) -> Iterator[str]:
    types = columns_of(row)
    for number, (name, type_) in enumerate(types.items()):
        value = dialect.json_text if len(types) == 1 else f"value ->> {number}"
        yield f"CAST({value} AS {type_}) AS {name}"


def encode_rows(rows: Iterable[Sequence[object]]) -> str:
    """Input rows as the one JSON parameter that carries them: an array of arrays; for rows of one
    column, of values, which are read faster."""
    rows = list(rows)
    values = [row[0] for row in rows] if rows and len(rows[0]) == 1 else rows
    return msgspec.json.encode(values).decode()
