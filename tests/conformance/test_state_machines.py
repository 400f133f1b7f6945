"""The one suite, run on every state machine of record. A new one adds a class here."""

from pathlib import Path

import pytest

from gregor.testing.backends import PostgreSQL
from gregor.testing.conformance import (
    DurableStateMachineConformance,
    OpenMachine,
    StateMachineConformance,
)
from tests.conformance import machines


class TestMemory(StateMachineConformance):
    @pytest.fixture
    def open_machine(self) -> OpenMachine:
        return machines.memory


class TestSQLiteInMemory(StateMachineConformance):
    @pytest.fixture
    def open_machine(self) -> OpenMachine:
        return machines.sql("sqlite://")


class TestSQLiteFile(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, tmp_path: Path) -> OpenMachine:
        return machines.sql(f"sqlite:///{tmp_path / 'gregor.db'}")


class TestPostgreSQL(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, postgresql_url: str) -> OpenMachine:
        return machines.sql(postgresql_url)


class TestThreeSQLiteShards(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, tmp_path: Path) -> OpenMachine:
        return machines.sharded([f"sqlite:///{tmp_path / f'{n}.db'}" for n in range(3)])


class TestThreePostgreSQLShards(DurableStateMachineConformance):
    @pytest.fixture
    async def open_machine(self, postgresql_server: PostgreSQL) -> OpenMachine:
        return machines.sharded([await postgresql_server.create_database() for _ in range(3)])
