"""Each planted bug is noticed by the test that is named for it: so the tests can fail."""

import pytest

from tests.mutations import MUTATIONS, Mutation, run


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_is_noticed(mutation: Mutation) -> None:
    assert run(mutation) is None
