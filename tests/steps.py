"""The cost of a piece of work in steps, which unlike seconds are the same on every machine."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.sqlite import SQLiteConnection


@contextmanager
def counting_python_steps() -> Iterator[Callable[[], int]]:
    """Count the bytecode instructions that this thread executes inside the block."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lambda: count
    finally:
        sys.settrace(before)


def python_steps(work: Callable[[], object]) -> int:
    """The number of bytecode instructions that the work executes."""
    with counting_python_steps() as steps:
        work()
    return steps()


def sqlite_steps(connection: DatabaseConnection, work: Callable[[], object]) -> int:
    """The number of steps of SQLite's virtual machine that the work takes, in tens."""
    assert isinstance(connection, SQLiteConnection)
    driver = connection.driver
    tens = 0

    def count_ten() -> int:
        nonlocal tens
        tens += 1
        return 0

    driver.set_progress_handler(count_ten, 10)
    work()
    driver.set_progress_handler(None, 0)
    return tens


def rows_read(connection: DatabaseConnection, work: Callable[[], object]) -> int:
    """The number of rows that PostgreSQL reads for the work."""
    query = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
    ((before,),) = connection.execute_sql(query)
    work()
    ((after,),) = connection.execute_sql(query)
    return int(after - before)
