"""The conformance suite, run on every state machine of record. Add a class for a new one."""

from pathlib import Path

import pytest

from gregor.testing.conformance import (
    DurableStateMachineConformance,
    OpenMachine,
    StateMachineConformance,
)
from tests.conformance import implementations
from tests.fleet.servers import PostgreSQL


class TestMemory(StateMachineConformance):
    @pytest.fixture
    def open_machine(self) -> OpenMachine:
        return implementations.memory


class TestSQLiteInMemory(StateMachineConformance):
    @pytest.fixture
    def open_machine(self) -> OpenMachine:
        return implementations.sql("sqlite://")


class TestSQLiteFile(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, tmp_path: Path) -> OpenMachine:
        return implementations.sql(f"sqlite:///{tmp_path / 'gregor.db'}")


class TestPostgreSQL(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, postgresql_url: str) -> OpenMachine:
        return implementations.sql(postgresql_url)


class TestThreeSQLiteShards(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, tmp_path: Path) -> OpenMachine:
        return implementations.sharded([f"sqlite:///{tmp_path / f'{n}.db'}" for n in range(3)])


class TestThreePostgreSQLShards(DurableStateMachineConformance):
    @pytest.fixture
    async def open_machine(self, postgresql_server: PostgreSQL) -> OpenMachine:
        return implementations.sharded(
            [await postgresql_server.create_database() for _ in range(3)]
        )
