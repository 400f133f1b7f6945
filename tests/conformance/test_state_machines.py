"""The conformance suite, run on every state machine of record. Add a class for a new one."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import is_hypothesis_test, settings

from gregor.testing.conformance import (
    DurableStateMachineConformance,
    OpenMachine,
    StateMachineConformance,
)
from tests.conformance import implementations


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
    def open_machine(self, migrated_url: str) -> OpenMachine:
        return implementations.sql(migrated_url)


class TestThreeSQLiteShards(DurableStateMachineConformance):
    @pytest.fixture
    def open_machine(self, tmp_path: Path) -> OpenMachine:
        return implementations.sharded({n: f"sqlite:///{tmp_path / f'{n}.db'}" for n in "abc"})


class TestThreePostgreSQLShards(DurableStateMachineConformance):
    """With a quarter of the examples: each law has all of them on shards, and on PostgreSQL."""

    @pytest.fixture(autouse=True)
    def fewer_examples(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        law = request.function.__func__
        if is_hypothesis_test(law):
            found = law._hypothesis_internal_use_settings  # which a subclass cannot set otherwise
            fewer = settings(found, max_examples=-(-found.max_examples // 4))
            monkeypatch.setattr(law, "_hypothesis_internal_use_settings", fewer)

    @pytest.fixture
    def open_machine(self, shard_urls: Mapping[str, str]) -> OpenMachine:
        return implementations.sharded(shard_urls)
