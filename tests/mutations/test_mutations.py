"""Each planted bug is detected by the test that its mutation names."""

import pytest

from tests.fleet.servers import PostgreSQL
from tests.mutations.mutations import MUTATIONS, Mutation
from tests.mutations.runner import run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_detected(mutation: Mutation, postgresql_server: PostgreSQL) -> None:
    assert run(mutation, {PostgreSQL.variable: postgresql_server.url}) is None
