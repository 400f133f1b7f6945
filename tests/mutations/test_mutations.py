"""Each planted bug is detected by the test that its mutation names."""

import pytest

from tests.mutations.mutations import MUTATIONS, Mutation
from tests.mutations.runner import run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_is_detected(mutation: Mutation) -> None:
    assert run(mutation) is None
