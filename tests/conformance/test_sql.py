"""The state machine on SQL: group commit, the limit of its queue, and how it closes and fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gregor.core.message import create, dismiss_category, parse_message
from gregor.errors import InvalidMessage, Unavailable
from gregor.interfaces import StoreOutcome
from gregor.limits import DEFAULT_LIMITS
from gregor.stores.sql.commit_queue import COMMIT_COST, MAX_QUEUED_MESSAGES
from gregor.stores.sql.database import Database, DatabaseConnection, StorageBroken
from gregor.stores.sql.failure_reason import FailureReason
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from tests.timeouts import TIMEOUT_SECONDS


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with database_at("sqlite://", migrate) as database:
        yield database


def clock() -> int:
    return 1_000


class Commits(list[int]):
    """The number of messages of each commit."""

    def add(self, messages: int, seconds: float, failure: FailureReason | None) -> None:
        assert failure is None
        self.append(messages)


async def test_concurrent_messages_share_a_commit(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        async with asyncio.TaskGroup() as senders:
            for number in range(200):
                senders.create_task(machine.consume_message(create(f"u{number % 7}", "a")))
        assert sum(commits) == 200
        assert len(commits) <= 2


async def test_single_message_is_committed_without_waiting_for_others(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        for _ in range(3):
            await machine.consume_message(create("u", "a"))
    assert commits == [1, 1, 1]


async def test_commit_has_at_most_max_commit_messages(database: Database) -> None:
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add) as machine:
        batches = [[create("u", "a") for _ in range(400)] for _ in range(5)]
        await asyncio.gather(*(machine.consume_messages(batch) for batch in batches))
    assert sum(commits) == 2000
    assert max(commits) <= COMMIT_COST


async def test_commit_ends_after_ranges_over_many_items(database: Database) -> None:
    """The commits know how many items a user has, if that is limited."""
    commits = Commits()
    async with SQLStateMachine(database, clock, commits.add, limits=DEFAULT_LIMITS) as machine:
        await machine.consume_messages([create("u", "a") for _ in range(5_000)])
        commits.clear()
        await machine.consume_messages([dismiss_category("u", "z") for _ in range(60)])
    assert sum(commits) == 60
    assert len(commits) > 2


async def test_messages_over_queue_limit_are_rejected_and_later_ones_are_stored(
    database: Database,
) -> None:
    async with SQLStateMachine(database, clock) as machine:
        with pytest.raises(Unavailable):
            await machine.consume_messages([create("u", "a")] * (MAX_QUEUED_MESSAGES + 1))
        await machine.consume_message(create("u", "a"))
        assert len(await machine.state("u")) == 1


async def test_messages_queued_before_close_are_stored(database: Database) -> None:
    async with SQLStateMachine(database, clock) as machine:
        sent = [asyncio.create_task(machine.consume_message(create("u", "a"))) for _ in range(9)]
        await asyncio.sleep(0)  # all are queued
    await asyncio.gather(*sent)
    async with SQLStateMachine(database, clock) as machine:
        assert len(await machine.state("u")) == 9


async def test_message_after_close_is_rejected(database: Database) -> None:
    async with SQLStateMachine(database, clock) as machine:
        pass
    with pytest.raises(Unavailable):
        await machine.consume_message(create("u", "a"))


async def test_queued_messages_are_stored_if_the_block_raises(database: Database) -> None:
    senders: list[asyncio.Task[list[StoreOutcome]]] = []

    async def serve() -> None:
        async with SQLStateMachine(database, clock) as machine:
            for _ in range(50):
                batch = [create("u", "a") for _ in range(100)]
                senders.append(asyncio.create_task(machine.consume_messages(batch)))
            await asyncio.sleep(0)  # all are queued
            raise ValueError("something else went wrong")

    with pytest.raises(ValueError, match="something else"):
        await serve()
    outcomes = await asyncio.gather(*senders)
    assert [len(batch) for batch in outcomes] == [100] * 50
    async with SQLStateMachine(database, clock) as machine:
        assert len(await machine.state("u")) == 5_000


def corrupt(connection: DatabaseConnection) -> None:
    """Make a table point to a page that does not exist, as a failing disk might."""
    for statement in (
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_master SET rootpage = 99999 WHERE name = 'messages'",
        "PRAGMA schema_version = 999",
    ):
        connection.execute_sql(statement)


async def test_broken_store_cancels_the_block_and_fails_pending_messages(
    database: Database,
) -> None:
    senders: list[asyncio.Task[list[StoreOutcome]]] = []

    async def serve() -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS), SQLStateMachine(database, clock) as machine:
            await database.write(corrupt)
            batches = [[create("u", "a")] * COMMIT_COST for _ in range(3)]
            senders.extend(asyncio.create_task(machine.consume_messages(b)) for b in batches)
            await asyncio.Event().wait()  # until the machine cancels it

    with pytest.raises(ExceptionGroup) as raised:
        await serve()
    assert raised.group_contains(StorageBroken)
    done, pending = await asyncio.wait(senders, timeout=TIMEOUT_SECONDS)
    assert not pending
    assert all(isinstance(task.exception(), Unavailable) for task in done)


async def test_body_at_nesting_limit_is_stored_and_deeper_body_is_rejected(
    database: Database,
) -> None:
    """Without the limit, a body as deep as the stack was stored, and a deeper one with the same id
    ended the process."""
    max_depth = 128

    def nested(levels: int) -> bytes:
        body = b"[" * levels + b'"[[]{"' + b"]" * levels
        return b'{"uid":"u","msg_id":"m","creation":{"category":"a","body":%s}}' % body

    with pytest.raises(InvalidMessage, match="nested"):
        parse_message(nested(max_depth + 1))
    message = parse_message(nested(max_depth))
    async with SQLStateMachine(database, clock) as machine:
        stored = await machine.consume_message(message)
        assert await machine.consume_message(message) == stored
