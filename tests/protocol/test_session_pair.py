"""Both sessions together: after any sequence of faults the replica has the state of the store."""

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core import sync as core_sync
from gregor.core.message import InBandMessage, create, dismiss, out_of_band
from gregor.protocol import frames, outbound_queue
from gregor.protocol.client_session import (
    Acked,
    Apply,
    Compare,
    DeliverOutOfBand,
    Replace,
    Wipe,
)
from gregor.protocol.effects import Close
from gregor.protocol.publication import Publication
from gregor.protocol.sync_state import Greeting
from gregor.testing.strategies import messages
from tests.protocol.session_pair import UID, SessionPair

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
    st.tuples(st.sampled_from(["replay", "replay and publish"]), in_band_messages),
    st.tuples(st.just("publish again"), st.integers(0, 20)),
    st.tuples(st.just("wait"), st.integers(0, 30)),
    st.tuples(
        st.sampled_from(
            ["gap repair", "verify", "verify", "verify from 0", "reconnect", "run until idle"]
        ),
        st.none(),
    ),
    st.tuples(st.sampled_from(["erase", "erase and publish"]), st.none()),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
    st.tuples(st.sampled_from(["read on node", "write on node", "read on device"]), st.none()),
)


async def carry_out(pair: SessionPair, step: Step) -> None:
    match step:
        case "store", InBandMessage() as message:
            await pair.store_messages(message)
        case "store and publish", InBandMessage() as message:
            await pair.store_and_publish(message)
        case "consume", InBandMessage() as message:
            pair.consume([message])
        case "replay", InBandMessage() as message:
            await pair.store_messages(await pair.behind_the_clock(message))
        case "replay and publish", InBandMessage() as message:
            await pair.store_and_publish(await pair.behind_the_clock(message))
        case "publish again", int(number) if pair.published:
            # A publication arrives late, twice, or never.
            pair.node.publish(pair.published[number % len(pair.published)])
        case "wait", int(microseconds):
            pair.clock.now += microseconds
        case "gap repair", _ if pair.node.position:
            pair.node.publish(await pair.gap_repair())
        case "verify", _ if pair.device.state != Greeting():
            pair.verify()
        case "verify from 0", _ if pair.device.state != Greeting():
            pair.verify(0)
        case "reconnect", _:
            pair.connect()
        case "erase", _:
            await pair.erase()
        case "erase and publish", _:
            await pair.erase_and_publish()
        case "run until idle", _:
            await pair.run_until_idle()
        case "read on node", _:
            await pair.read_on_node()
        case "write on node", _:
            await pair.write_on_node()
        case "read on device", _:
            await pair.read_on_device()


@settings(max_examples=400)
@given(st.lists(steps, max_size=40))
async def test_law_replica_converges_after_lost_repeated_and_late_frames(
    history: list[Step],
) -> None:
    with pytest.MonkeyPatch.context() as small_limits:
        small_limits.setattr(frames, "PAGE_ENTRIES", 2)
        small_limits.setattr(outbound_queue, "QUEUE_MESSAGES", 3)
        small_limits.setattr(core_sync, "MAX_ITEMS_READ", 3)
        pair = SessionPair()
        await pair.run_until_idle()
        for step in history:
            await carry_out(pair, step)
        await pair.reconnect_until_synced()
        pair.node.publish(await pair.gap_repair())  # as a sweep does
        await pair.reconnect_until_synced()
    assert pair.visible() == await pair.stored_state()
    assert pair.device.cursor == pair.node.cursor
    assert pair.device.epoch == pair.node.epoch == (await pair.store.erasure(UID)).epoch
    assert pair.device.mismatches == 0


async def test_messages_pending_before_a_sync_are_not_sent_after_it() -> None:
    """The sync contains them, and knows which of their items have died since."""
    pair = SessionPair()
    await pair.run_until_idle()
    await pair.store_and_publish(create(UID, "a", msg_id="m"))  # pending for the writer
    pair.verify()
    await pair.read_on_node()
    await pair.store_messages(dismiss(UID, "m"))  # not published
    while pair.sync is None:
        await pair.write_on_node()
    await pair.write_on_node()
    await pair.store_and_publish(create(UID, "a", msg_id="next"))
    await pair.run_until_idle()
    assert pair.visible() == await pair.stored_state()


async def test_new_device_gets_a_snapshot() -> None:
    pair = SessionPair()
    await pair.store_messages(create(UID, "a"), create(UID, "b", device_id="d2"))
    await pair.run_until_idle()
    assert [type(effect) for effect in pair.effects[1:]][1:] == [Replace, Compare]
    assert pair.visible() == await pair.stored_state()


async def test_large_snapshot_is_read_in_parts_and_is_the_state_at_its_cursor() -> None:
    """Whatever is stored meanwhile: the hash is compared with the whole of it."""
    pair = SessionPair()
    size = 2 * core_sync.MAX_ITEMS_READ + 100
    await pair.store_messages(*(create(UID, "a", n, msg_id=f"m{n}") for n in range(size)))
    while pair.read_items is None:
        _ = await pair.read_on_node() or await pair.write_on_node() or await pair.read_on_device()
    await pair.store_and_publish(dismiss(UID, "m0", f"m{size - 1}"), create(UID, "b", "later"))
    await pair.run_until_idle()
    (replaced,) = pair.effects_of(Replace)
    assert isinstance(replaced, Replace)
    assert [item.body for item in replaced.snapshot.items] == list(range(size))
    assert pair.visible() == await pair.stored_state()
    assert pair.device.mismatches == 0


async def test_device_that_asks_while_a_snapshot_is_read_gets_no_other() -> None:
    pair = SessionPair()
    await pair.store_messages(create(UID, "a"))
    await pair.run_until_idle()
    many = range(2 * core_sync.max_changes(0))
    await pair.store_messages(*(create(UID, "a", n, msg_id=f"m{n}") for n in many))
    await pair.store_messages(dismiss(UID, *(f"m{n}" for n in many)))
    pair.verify()
    while pair.sync is None:
        _ = await pair.read_on_node() or await pair.write_on_node()
    pair.verify()
    await pair.run_until_idle()
    _, replaced = pair.effects_of(Replace)  # it was new
    assert isinstance(replaced, Replace)
    assert replaced.cursor == pair.device.cursor == await pair.store.ctime(UID)
    assert pair.visible() == await pair.stored_state()


async def test_reconnected_device_gets_only_the_missed_messages() -> None:
    pair = SessionPair()
    await pair.store_messages(create(UID, "a"))
    await pair.run_until_idle()
    (missed,) = await pair.store_messages(create(UID, "b"))
    pair.effects.clear()
    pair.connect()
    await pair.run_until_idle()
    assert pair.effects_of(Apply) == [Apply(missed.messages, missed.cursor)]
    assert len(pair.visible()) == 2


async def test_device_receives_its_own_messages() -> None:
    pair = SessionPair()
    await pair.run_until_idle()
    pair.consume([create(UID, "a", msg_id="m"), out_of_band(UID, "typing", 7)])
    await pair.run_until_idle()
    (acked,) = pair.effects_of(Acked)
    assert isinstance(acked, Acked)
    assert [result.status for result in acked.results] == ["stored", "relayed"]
    assert len(pair.effects_of(DeliverOutOfBand)) == 1
    assert "m" in pair.visible()


async def test_reconnected_device_gets_several_pages_of_changes() -> None:
    pair = SessionPair()
    await pair.store_messages(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await pair.run_until_idle()
    for n in range(600):
        await pair.store_messages(create(UID, "b", n))
    pair.effects.clear()
    pair.connect()
    await pair.run_until_idle()
    assert len(pair.effects_of(Apply)) == 2
    assert pair.visible() == await pair.stored_state()
    assert pair.device.mismatches == 0


async def test_reconnect_between_two_pages_continues_after_the_first() -> None:
    pair = SessionPair()
    await pair.store_messages(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await pair.run_until_idle()
    await pair.store_messages(*(create(UID, "b", n) for n in range(600)))
    pair.connect()
    pair.effects.clear()
    while not pair.effects_of(Apply):
        _ = await pair.read_on_node() or await pair.write_on_node() or await pair.read_on_device()
    pair.connect()
    await pair.run_until_idle()
    assert [len(e.messages) for e in pair.effects_of(Apply) if isinstance(e, Apply)] == [
        500,
        100,
    ]
    assert pair.visible() == await pair.stored_state()


async def test_slow_consumer_is_reset_and_misses_no_message() -> None:
    pair = SessionPair()
    await pair.run_until_idle()
    for n in range(outbound_queue.QUEUE_MESSAGES + 100):
        await pair.store_and_publish(create(UID, "a", n))
    assert pair.node.slow_consumer_resets == 1
    await pair.run_until_idle()
    assert pair.visible() == await pair.stored_state()
    assert len(pair.effects_of(Compare)) == 2
    assert pair.device.mismatches == 0


async def test_device_converges_after_the_restore_of_a_backup() -> None:
    pair = SessionPair()
    await pair.store_and_publish(*(create(UID, "a", n) for n in range(3)))
    await pair.run_until_idle()
    pair.restore_backup()
    await pair.store_messages(create(UID, "a", "after the backup"))
    pair.connect()
    await pair.run_until_idle()
    assert [item.body for item in pair.visible()] == ["after the backup"]
    assert pair.device.mismatches == 0


@pytest.mark.parametrize("published", [False, True])
async def test_replay_behind_the_clock_reaches_a_live_device_in_a_snapshot(published: bool) -> None:
    pair = SessionPair()
    await pair.store_messages(create(UID, "a"))
    pair.clock.now += 10
    await pair.store_messages(create(UID, "b"))
    await pair.run_until_idle()
    replay = await pair.behind_the_clock(create(UID, "c", "late"))
    await (pair.store_and_publish if published else pair.store_messages)(replay)
    await pair.run_until_idle()
    assert "late" not in [item.body for item in pair.visible()]
    await pair.store_and_publish(create(UID, "d"))
    await pair.run_until_idle()
    assert [item.category for item in pair.visible()] == ["a", "c", "b", "d"]
    assert [type(effect) for effect in pair.effects[-2:]] == [Replace, Compare]
    assert pair.device.mismatches == 0


async def test_replica_with_another_hash_is_replaced_and_the_mismatch_is_counted() -> None:
    pair = SessionPair()
    await pair.store_messages(create(UID, "a"))
    await pair.run_until_idle()
    pair.replica = pair.replica.replay(create(UID, "a", "never stored").stamp(5, 0))
    pair.connect()
    await pair.run_until_idle()
    assert pair.visible() == await pair.stored_state()
    assert pair.device.mismatches == 1


async def test_gap_repair_that_starts_before_the_position_does_not_revive_dead_items() -> None:
    """The device has received an item; the gap repair, read later, leaves out its dismissal."""
    pair = SessionPair()
    await pair.run_until_idle()
    (created,) = await pair.store_messages(create(UID, "a", msg_id="m"))
    start = created.prev
    pair.node.publish(created)
    await pair.run_until_idle()
    (dismissed,) = await pair.store_messages(dismiss(UID, "m"))
    await pair.store_messages(create(UID, "b"))
    sync = await pair.store.sync(UID, None, 0)
    pair.node.publish(Publication.span(start, (), sync.cursor))
    assert dismissed.cursor < sync.cursor
    await pair.run_until_idle()
    assert pair.visible() == await pair.stored_state()


# Erase


@pytest.mark.parametrize("published", [False, True])
async def test_connected_device_is_wiped_and_begins_a_new_life_when_asked(published: bool) -> None:
    pair = SessionPair()
    await pair.store_and_publish(create(UID, "a", "before"))
    await pair.run_until_idle()
    await (pair.erase_and_publish if published else pair.erase)()
    pair.node.publish(await pair.gap_repair())  # as a sweep does
    await pair.run_until_idle()
    epoch = (await pair.store.erasure(UID)).epoch
    assert pair.effects[-1] == Wipe(epoch)
    assert pair.closed == Close(4010, "erased")
    pair.connect()
    await pair.store_and_publish(create(UID, "a", "after"))
    await pair.run_until_idle()
    assert [item.body for item in pair.visible()] == ["after"]
    assert pair.device.epoch == pair.node.epoch == epoch


async def test_device_that_was_away_is_wiped_before_it_sends_anything() -> None:
    pair = SessionPair()
    await pair.store_and_publish(create(UID, "a", "before"))
    await pair.run_until_idle()
    epoch = await pair.erase()
    pair.connect()
    pair.consume([create(UID, "a", "of before")])
    await pair.run_until_idle()
    assert pair.effects[-1] == Wipe(epoch)
    assert pair.store.log(UID) == ()


async def test_device_that_was_never_welcome_takes_the_epoch_from_its_welcome() -> None:
    pair = SessionPair()
    epoch = await pair.erase()
    await pair.run_until_idle()
    assert pair.effects_of(Wipe) == []
    assert pair.device.epoch == epoch


@pytest.mark.parametrize("connected", [False, True])
async def test_device_of_a_later_epoch_gets_a_snapshot_and_keeps_what_it_wrote(
    connected: bool,
) -> None:
    pair = SessionPair()
    await pair.erase()
    await pair.run_until_idle()
    pair.restore_backup()  # of before the erase
    if not connected:
        pair.connect()
        await pair.run_until_idle()
    pair.consume([create(UID, "a", "unsent", msg_id="m")])
    await pair.reconnect_until_synced()
    pair.consume([create(UID, "a", "unsent", msg_id="m")])  # as an outbox does
    await pair.reconnect_until_synced()
    assert pair.effects_of(Wipe) == []
    assert [item.body for item in pair.visible()] == ["unsent"]
    assert pair.device.epoch == 0
