"""A batch keeps the order of its entries, whichever stage decides their outcomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.message import InBandMessage, Message, create, out_of_band
from gregor.errors import Forbidden
from gregor.interfaces import Rejected, Relayed, Stored
from gregor.node.batch import Batch, accepted
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock
from tests.node.fakes import BACKEND

REJECTED = Rejected(None, Forbidden("not yours"))


@given(st.lists(st.sampled_from(["in-band", "out-of-band", "rejected"])))
async def test_outcomes_are_in_the_order_of_the_entries(kinds: list[str]) -> None:
    entries: list[Message | Rejected] = []
    for number, kind in enumerate(kinds):
        choices: dict[str, Message | Rejected] = {
            "in-band": create("u", "a", msg_id=f"m{number}"),
            "out-of-band": out_of_band("u", "s", number),
            "rejected": REJECTED,
        }
        entries.append(choices[kind])
    batch = Batch(BACKEND, entries)
    await MemoryStateMachine(ManualClock(100)).store(batch.slots)
    outcomes = batch.outcomes()
    expected = {"in-band": Stored, "out-of-band": Relayed, "rejected": Rejected}
    assert [type(outcome) for outcome in outcomes] == [expected[kind] for kind in kinds]
    messages = [outcome.message for outcome in accepted(outcomes)]
    names = [m.msg_id if isinstance(m, InBandMessage) else m.body for m in messages]
    numbers = [n for n, kind in enumerate(kinds) if kind != "rejected"]
    assert names == [f"m{n}" if kinds[n] == "in-band" else n for n in numbers]


def test_outcomes_of_a_batch_that_no_store_has_filled_are_an_error() -> None:
    with pytest.raises(AssertionError):
        Batch(BACKEND, [create("u", "a")]).outcomes()
