"""The one suite, run on every state machine of record. A new one adds a class here."""

from pathlib import Path

import pytest

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
