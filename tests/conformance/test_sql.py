"""What only the state machine on SQL promises: commits that are shared, and ends that are told."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection

from gregor.core.message import create, parse_message
from gregor.errors import InvalidMessage, Unavailable
from gregor.interfaces import Outcome
from gregor.state_machines.sql import MOST_IN_A_COMMIT, MOST_WAITING, SQLStateMachine
from gregor.storage.database import Database, StorageBroken
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with database_at("sqlite://", migrate) as database:
        yield database


def clock() -> int:
    return 1_000


class Commits(list[int]):
    """How many messages each commit held."""

    def add(self, messages: int, seconds: float, taken: bool) -> None:
        assert taken
        self.append(messages)


async def test_concurrent_callers_share_a_commit(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        async with asyncio.TaskGroup() as senders:
            for number in range(200):
                senders.create_task(machine.consume_message(create(f"u{number % 7}", "a")))
        assert sum(commits) == 200
        assert len(commits) <= 2


async def test_a_message_that_is_alone_does_not_wait_for_company(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        for _ in range(3):
            await machine.consume_message(create("u", "a"))
    assert commits == [1, 1, 1]


async def test_a_commit_is_no_larger_than_it_may_be(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        batches = [[create("u", "a") for _ in range(400)] for _ in range(5)]
        await asyncio.gather(*(machine.consume_messages(batch) for batch in batches))
    assert sum(commits) == 2000
    assert max(commits) <= MOST_IN_A_COMMIT


async def test_more_than_may_wait_is_refused_at_once_and_may_come_again(
    database: Database,
) -> None:
    async with SQLStateMachine(database, clock) as machine:
        with pytest.raises(Unavailable):
            await machine.consume_messages([create("u", "a")] * (MOST_WAITING + 1))
        await machine.consume_message(create("u", "a"))
        assert len(await machine.state("u")) == 1


async def test_what_was_accepted_before_the_end_is_stored(database: Database) -> None:
    async with SQLStateMachine(database, clock) as machine:
        sent = [asyncio.create_task(machine.consume_message(create("u", "a"))) for _ in range(9)]
        await asyncio.sleep(0)  # all have begun
    await asyncio.gather(*sent)
    async with SQLStateMachine(database, clock) as machine:
        assert len(await machine.state("u")) == 9


async def test_after_the_end_a_message_is_refused(database: Database) -> None:
    async with SQLStateMachine(database, clock) as machine:
        pass
    with pytest.raises(Unavailable):
        await machine.consume_message(create("u", "a"))


async def test_what_was_accepted_is_stored_though_the_block_fails(database: Database) -> None:
    senders: list[asyncio.Task[list[Outcome]]] = []

    async def serve() -> None:
        async with SQLStateMachine(database, clock) as machine:
            for _ in range(50):
                batch = [create("u", "a") for _ in range(100)]
                senders.append(asyncio.create_task(machine.consume_messages(batch)))
            await asyncio.sleep(0)  # all have begun
            raise ValueError("something else went wrong")

    with pytest.raises(ValueError, match="something else"):
        await serve()
    outcomes = await asyncio.gather(*senders)
    assert [len(batch) for batch in outcomes] == [100] * 50
    async with SQLStateMachine(database, clock) as machine:
        assert len(await machine.state("u")) == 5_000


def corrupt(connection: Connection) -> None:
    """Leave a table where there is no page, as a disk that fails might."""
    for statement in (
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'messages'",
        "PRAGMA schema_version = 999",
    ):
        connection.exec_driver_sql(statement)


async def test_a_store_that_breaks_ends_the_block_and_tells_those_who_wait(
    database: Database,
) -> None:
    waiting: list[asyncio.Task[list[Outcome]]] = []

    async def serve() -> None:
        async with asyncio.timeout(30), SQLStateMachine(database, clock) as machine:
            await database.write(corrupt)
            batches = [[create("u", "a")] * MOST_IN_A_COMMIT for _ in range(3)]
            waiting.extend(asyncio.create_task(machine.consume_messages(b)) for b in batches)
            await asyncio.Event().wait()  # until the machine ends it

    with pytest.raises(ExceptionGroup) as ended:
        await serve()
    assert ended.group_contains(StorageBroken)
    done, pending = await asyncio.wait(waiting, timeout=30)
    assert not pending
    assert all(isinstance(task.exception(), Unavailable) for task in done)


async def test_a_body_that_some_reader_could_not_read_is_never_stored(database: Database) -> None:
    """It was, once, up to the depth of the stack; and when it came again, deeper, it ended us."""
    deepest = 128

    def nested(levels: int) -> bytes:
        body = b"[" * levels + b'"[[]{"' + b"]" * levels
        return b'{"uid":"u","msg_id":"m","creation":{"category":"a","body":%s}}' % body

    with pytest.raises(InvalidMessage, match="nested"):
        parse_message(nested(deepest + 1))
    message = parse_message(nested(deepest))
    async with SQLStateMachine(database, clock) as machine:
        stored = await machine.consume_message(message)
        assert await machine.consume_message(message) == stored
