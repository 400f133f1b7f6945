"""The two sessions back to back: whatever happens between them, the replica ends at the truth."""

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core.message import (
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    out_of_band,
    replace,
)
from gregor.protocol import frames, server
from gregor.protocol.client import Acked, Apply, Compare, PassedBy, Phase, Reconnect, Replace
from gregor.testing.strategies import messages
from tests.protocol.pair import UID, Pair

Step: TypeAlias = tuple[str, InBandMessage | int | None]

# Mostly items that come, and go by their ids, so that what one frame brings another takes.
IDS = tuple(f"m{n}" for n in range(30))
letters: st.SearchStrategy[InBandMessage] = st.one_of(
    st.sampled_from([create(UID, "a", msg_id=f"x{n}") for n in range(4)]),
    st.sampled_from([dismiss(UID, f"x{n}", msg_id=f"-x{n}") for n in range(4)]),
    messages(IDS),
)
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.sampled_from(["write", "tell", "tell", "consume"]), letters),
    st.tuples(st.just("hear"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.integers(0, 30)),
    st.tuples(
        st.sampled_from(["stretch", "verify", "verify", "verify from 0", "reconnect", "settle"]),
        st.none(),
    ),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
)


async def take(pair: Pair, step: Step) -> None:
    match step:
        case "write", InBandMessage() as message:
            await pair.write(message)
        case "tell", InBandMessage() as message:
            await pair.tell(message)
        case "consume", InBandMessage() as message:
            pair.consume([message])
        case "hear", int(number) if pair.published:
            # Publications come late, twice, or not at all.
            pair.node.publish(pair.published[number % len(pair.published)])
        case "wait", int(microseconds):
            pair.clock.now += microseconds
        case "stretch", _ if pair.node.position:
            pair.node.publish(await pair.stretch())
        case "verify", _ if pair.device.phase is not Phase.GREETING:
            pair.verify()
        case "verify from 0", _ if pair.device.phase is not Phase.GREETING:
            pair.verify(0)
        case "reconnect", _:
            pair.connect()
        case "settle", _:
            await pair.settle()
        case "read on node", _:
            await pair.read_on_node()
        case "write on node", _:
            await pair.write_on_node()
        case "read on device", _:
            await pair.read_on_device()


@settings(max_examples=400)
@given(st.lists(steps, max_size=40))
async def test_whatever_is_lost_repeated_or_late_the_replica_ends_at_the_truth(
    story: list[Step],
) -> None:
    with pytest.MonkeyPatch.context() as small:
        small.setattr(frames, "PAGE_ENTRIES", 2)
        small.setattr(server, "QUEUE_MESSAGES", 3)
        pair = Pair()
        await pair.settle()
        for step in story:
            await take(pair, step)
        await pair.settle()
        pair.node.publish(await pair.stretch())  # what a sweep does
        await pair.settle()
    assert pair.shown() == await pair.stored_state()
    assert pair.device.cursor == pair.node.cursor
    assert pair.device.mismatches == 0


async def test_what_waited_before_a_sync_is_not_told_after_it() -> None:
    """The sync knows it, and also what has died since."""
    pair = Pair()
    await pair.settle()
    await pair.tell(create(UID, "a", msg_id="m"))  # waits for the socket
    pair.verify()
    await pair.read_on_node()
    await pair.write(dismiss(UID, "m"))  # not heard
    while pair.answer is None:
        await pair.write_on_node()
    await pair.write_on_node()
    await pair.tell(create(UID, "a", msg_id="next"))
    await pair.settle()
    assert pair.shown() == await pair.stored_state()
