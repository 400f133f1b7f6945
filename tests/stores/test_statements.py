"""Every statement runs on each database, and has the columns of its rows and tables."""

from collections.abc import Iterator
from typing import Any

from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.dialect import SQLITE, encode_rows, sql_of
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.sqlite import SQLiteConnection
from gregor.stores.sql.statements import BulkStatement, Insert, Statement, columns_of, no_row
from gregor.stores.sql.store_url import database_at

NEEDS_ROW_LOCKS = {
    *("LOCK_USERS", "LOCK_PLACEMENTS", "LOCK_AS_WRITER", "WAIT_FOR_WRITERS", "SET_LOCK_TIMEOUT"),
    "UNREGISTERED_NODES",
}
EXAMPLES: dict[str, object] = {"TEXT": "text", "BIGINT": 2**62}
SMALL = {"bucket": 1, "number": 1}  # columns that are INTEGER
OF_ONE_ROW = {"oldest_writer", "shard"}  # tables
TEXT_PARAMETERS = {
    *("uid", "msg_id", "device_id", "after", "after_id"),
    *("id", "key", "name", "shard", "holder", "revision"),
}


def all_statements() -> Iterator[tuple[str, Statement[Any]]]:
    for name, value in vars(statements).items():
        for statement in value if isinstance(value, tuple) else (value,):
            if isinstance(statement, Statement):
                yield name, statement


INSERTS = [value for value in vars(statements).values() if isinstance(value, Insert)]


def example_parameters(statement: Statement[Any]) -> dict[str, object]:
    parameters = {name: _example(name, statement) for name in sql_of(statement, SQLITE).parameters}
    if isinstance(statement, BulkStatement):
        columns = columns_of(statement.input).items()
        row = [SMALL.get(name, EXAMPLES[type_]) for name, type_ in columns]
        parameters["rows"] = encode_rows([row])
    return parameters


def _example(name: str, statement: Statement[Any]) -> object:
    is_text = name in TEXT_PARAMETERS and f"ctime > :{name}" not in statement.text
    return "text" if is_text else 1


async def test_every_statement_runs(url: str) -> None:
    def run_each(connection: DatabaseConnection) -> int:
        number = 0
        for name, statement in all_statements():
            if connection.dialect.has_row_locks or name not in NEEDS_ROW_LOCKS:
                print(name)
                connection.execute(statement, **example_parameters(statement))
                number += 1
        return number

    async with database_at(url, migrate) as database:
        assert await database.write(run_each) > 35


async def test_statements_of_few_rows_look_each_of_them_up() -> None:
    """SQLite does not keep the input of such a statement: a table that it went through would be
    compared with the input row by row."""

    def tables_gone_through(connection: DatabaseConnection) -> list[tuple[str, str]]:
        assert isinstance(connection, SQLiteConnection)
        found: list[tuple[str, str]] = []
        for name, statement in all_statements():
            if (
                isinstance(statement, BulkStatement)
                and (statement.looks_up or statement.row is no_row)
                and name not in NEEDS_ROW_LOCKS
            ):
                text = sql_of(statement, SQLITE, of_few_rows=True).text
                plan = connection.driver.execute(
                    f"EXPLAIN QUERY PLAN {text}", example_parameters(statement)
                )
                steps = (step.split() for *_, step in plan.fetchall())
                found += [(name, step[1]) for step in steps if step[0] == "SCAN"]
        return found

    async with database_at("sqlite://", migrate) as database:
        found = await database.read(tables_gone_through)
    assert len(found) > 10
    assert {table for _, table in found} == {"json_each", *OF_ONE_ROW}


async def test_rows_have_the_names_of_their_columns() -> None:
    """A row is made of the values in order, so a column out of order would be read as another."""

    def differences(connection: DatabaseConnection) -> dict[str, object]:
        assert isinstance(connection, SQLiteConnection)
        found: dict[str, object] = {}
        for name, statement in all_statements():
            if statement.row is not no_row and name not in NEEDS_ROW_LOCKS:
                parameters = example_parameters(statement)
                cursor = connection.driver.execute(sql_of(statement, SQLITE).text, parameters)
                columns = tuple(column[0] for column in cursor.description)
                cursor.fetchall()
                if columns != statement.columns:
                    found[name] = (columns, statement.columns)
        return found

    async with database_at("sqlite://", migrate) as database:
        assert await database.write(differences) == {}


def columns_as_stored(insert: Insert[Any]) -> list[tuple[str, str]]:
    """The columns; the tables have a smaller type where a number is always small."""
    types = insert.columns | ({"number": "INTEGER"} if "number" in insert.columns else {})
    return [(name, type_.lower()) for name, type_ in types.items()]


async def test_inserts_name_every_column_of_their_table(url: str) -> None:
    query = (
        "SELECT name, lower(type) FROM pragma_table_info('{}')"
        if url.startswith("sqlite")
        else "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_name = '{}' ORDER BY ordinal_position"
    )

    def columns(connection: DatabaseConnection) -> dict[str, object]:
        return {i.table: connection.execute_sql(query.format(i.table)) for i in INSERTS}

    async with database_at(url, migrate) as database:
        expected = {i.table: columns_as_stored(i) for i in INSERTS}
        assert await database.read(columns) == expected
