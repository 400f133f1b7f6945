"""Both sessions together: after any sequence of faults the replica has the state of the store."""

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core.message import InBandMessage, create, dismiss, out_of_band
from gregor.protocol import frames, outbound_queue
from gregor.protocol.client_session import (
    Acked,
    Apply,
    Compare,
    DeliverOutOfBand,
    Replace,
)
from gregor.protocol.publication import Publication
from gregor.protocol.sync_state import Greeting
from gregor.testing.strategies import messages
from tests.protocol.conversation import UID, Conversation

Step: TypeAlias = tuple[str, InBandMessage | int | None]

# Mostly creations, and dismissals by id, so that one frame creates what another dismisses.
IDS = tuple(f"m{n}" for n in range(30))
in_band_messages: st.SearchStrategy[InBandMessage] = st.one_of(
    st.sampled_from([create(UID, "a", msg_id=f"x{n}") for n in range(4)]),
    st.sampled_from([dismiss(UID, f"x{n}", msg_id=f"-x{n}") for n in range(4)]),
    messages(IDS),
)
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(
        st.sampled_from(["store", "store and publish", "store and publish", "consume"]),
        in_band_messages,
    ),
    st.tuples(st.just("publish again"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.integers(0, 30)),
    st.tuples(
        st.sampled_from(
            ["gap repair", "verify", "verify", "verify from 0", "reconnect", "run until idle"]
        ),
        st.none(),
    ),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
)


async def carry_out(conversation: Conversation, step: Step) -> None:
    match step:
        case "store", InBandMessage() as message:
            await conversation.store_messages(message)
        case "store and publish", InBandMessage() as message:
            await conversation.store_and_publish(message)
        case "consume", InBandMessage() as message:
            conversation.consume([message])
        case "publish again", int(number) if conversation.published:
            # A publication arrives late, twice, or never.
            conversation.node.publish(conversation.published[number % len(conversation.published)])
        case "wait", int(microseconds):
            conversation.clock.now += microseconds
        case "gap repair", _ if conversation.node.position:
            conversation.node.publish(await conversation.gap_repair())
        case "verify", _ if conversation.device.state != Greeting():
            conversation.verify()
        case "verify from 0", _ if conversation.device.state != Greeting():
            conversation.verify(0)
        case "reconnect", _:
            conversation.connect()
        case "run until idle", _:
            await conversation.run_until_idle()
        case "read on node", _:
            await conversation.read_on_node()
        case "write on node", _:
            await conversation.write_on_node()
        case "read on device", _:
            await conversation.read_on_device()


@settings(max_examples=400)
@given(st.lists(steps, max_size=40))
async def test_law_replica_converges_after_lost_repeated_and_late_frames(
    history: list[Step],
) -> None:
    with pytest.MonkeyPatch.context() as small_limits:
        small_limits.setattr(frames, "PAGE_ENTRIES", 2)
        small_limits.setattr(outbound_queue, "QUEUE_MESSAGES", 3)
        conversation = Conversation()
        await conversation.run_until_idle()
        for step in history:
            await carry_out(conversation, step)
        await conversation.run_until_idle()
        conversation.node.publish(await conversation.gap_repair())  # as a sweep does
        await conversation.run_until_idle()
    assert conversation.visible() == await conversation.stored_state()
    assert conversation.device.cursor == conversation.node.cursor
    assert conversation.device.mismatches == 0


async def test_messages_pending_before_a_sync_are_not_sent_after_it() -> None:
    """The sync contains them, and knows which of their items have died since."""
    conversation = Conversation()
    await conversation.run_until_idle()
    await conversation.store_and_publish(create(UID, "a", msg_id="m"))  # pending for the writer
    conversation.verify()
    await conversation.read_on_node()
    await conversation.store_messages(dismiss(UID, "m"))  # not published
    while conversation.sync is None:
        await conversation.write_on_node()
    await conversation.write_on_node()
    await conversation.store_and_publish(create(UID, "a", msg_id="next"))
    await conversation.run_until_idle()
    assert conversation.visible() == await conversation.stored_state()


async def test_new_device_gets_a_snapshot() -> None:
    conversation = Conversation()
    await conversation.store_messages(create(UID, "a"), create(UID, "b", device_id="d2"))
    await conversation.run_until_idle()
    assert [type(effect) for effect in conversation.effects[1:]][1:] == [Replace, Compare]
    assert conversation.visible() == await conversation.stored_state()


async def test_reconnected_device_gets_only_the_missed_messages() -> None:
    conversation = Conversation()
    await conversation.store_messages(create(UID, "a"))
    await conversation.run_until_idle()
    (missed,) = await conversation.store_messages(create(UID, "b"))
    conversation.effects.clear()
    conversation.connect()
    await conversation.run_until_idle()
    assert conversation.effects_of(Apply) == [Apply(missed.messages, missed.cursor)]
    assert len(conversation.visible()) == 2


async def test_device_receives_its_own_messages() -> None:
    conversation = Conversation()
    await conversation.run_until_idle()
    conversation.consume([create(UID, "a", msg_id="m"), out_of_band(UID, "typing", 7)])
    await conversation.run_until_idle()
    (acked,) = conversation.effects_of(Acked)
    assert isinstance(acked, Acked)
    assert [result.status for result in acked.results] == ["stored", "relayed"]
    assert len(conversation.effects_of(DeliverOutOfBand)) == 1
    assert "m" in conversation.visible()


async def test_reconnected_device_gets_several_pages_of_changes() -> None:
    conversation = Conversation()
    await conversation.store_messages(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await conversation.run_until_idle()
    for n in range(600):
        await conversation.store_messages(create(UID, "b", n))
    conversation.effects.clear()
    conversation.connect()
    await conversation.run_until_idle()
    assert len(conversation.effects_of(Apply)) == 2
    assert conversation.visible() == await conversation.stored_state()
    assert conversation.device.mismatches == 0


async def test_reconnect_between_two_pages_continues_after_the_first() -> None:
    conversation = Conversation()
    await conversation.store_messages(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await conversation.run_until_idle()
    await conversation.store_messages(*(create(UID, "b", n) for n in range(600)))
    conversation.connect()
    conversation.effects.clear()
    while not conversation.effects_of(Apply):
        _ = (
            await conversation.read_on_node()
            or await conversation.write_on_node()
            or await conversation.read_on_device()
        )
    conversation.connect()
    await conversation.run_until_idle()
    assert [len(e.messages) for e in conversation.effects_of(Apply) if isinstance(e, Apply)] == [
        500,
        100,
    ]
    assert conversation.visible() == await conversation.stored_state()


async def test_slow_consumer_is_reset_and_misses_no_message() -> None:
    conversation = Conversation()
    await conversation.run_until_idle()
    for n in range(outbound_queue.QUEUE_MESSAGES + 100):
        await conversation.store_and_publish(create(UID, "a", n))
    assert conversation.node.slow_consumer_resets == 1
    await conversation.run_until_idle()
    assert conversation.visible() == await conversation.stored_state()
    assert len(conversation.effects_of(Compare)) == 2
    assert conversation.device.mismatches == 0


async def test_device_converges_after_the_restore_of_a_backup() -> None:
    conversation = Conversation()
    await conversation.store_and_publish(*(create(UID, "a", n) for n in range(3)))
    await conversation.run_until_idle()
    conversation.restore_backup()
    await conversation.store_messages(create(UID, "a", "after the backup"))
    conversation.connect()
    await conversation.run_until_idle()
    assert [item.body for item in conversation.visible()] == ["after the backup"]
    assert conversation.device.mismatches == 0


async def test_replica_with_another_hash_is_replaced_and_the_mismatch_is_counted() -> None:
    conversation = Conversation()
    await conversation.store_messages(create(UID, "a"))
    await conversation.run_until_idle()
    conversation.replica = conversation.replica.replay(create(UID, "a", "never stored").stamp(5, 0))
    conversation.connect()
    await conversation.run_until_idle()
    assert conversation.visible() == await conversation.stored_state()
    assert conversation.device.mismatches == 1


async def test_gap_repair_that_starts_before_the_position_does_not_revive_dead_items() -> None:
    """The device has received an item; the gap repair, read later, leaves out its dismissal."""
    conversation = Conversation()
    await conversation.run_until_idle()
    (created,) = await conversation.store_messages(create(UID, "a", msg_id="m"))
    start = created.prev
    conversation.node.publish(created)
    await conversation.run_until_idle()
    (dismissed,) = await conversation.store_messages(dismiss(UID, "m"))
    await conversation.store_messages(create(UID, "b"))
    sync = await conversation.store.sync(UID, None, 0)
    conversation.node.publish(Publication.span(start, (), sync.cursor))
    assert dismissed.cursor < sync.cursor
    await conversation.run_until_idle()
    assert conversation.visible() == await conversation.stored_state()
