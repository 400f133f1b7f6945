"""The two sessions back to back: whatever happens between them, the replica ends at the truth."""

from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core.message import InBandMessage, create, dismiss, out_of_band
from gregor.protocol import frames, server
from gregor.protocol.client import Acked, Apply, Compare, PassedBy, Phase, Replace
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


async def test_a_device_that_comes_for_the_first_time_gets_a_snapshot() -> None:
    pair = Pair()
    await pair.write(create(UID, "a"), create(UID, "b", device_id="d2"))
    await pair.settle()
    assert [type(effect) for effect in pair.told[1:]][1:] == [Replace, Compare]
    assert pair.shown() == await pair.stored_state()


async def test_a_device_that_comes_back_gets_what_it_missed_and_no_more() -> None:
    pair = Pair()
    await pair.write(create(UID, "a"))
    await pair.settle()
    (missed,) = await pair.write(create(UID, "b"))
    pair.told.clear()
    pair.connect()
    await pair.settle()
    assert pair.said(Apply) == [Apply(missed.messages, missed.cursor)]
    assert len(pair.shown()) == 2


async def test_what_a_device_writes_it_hears_like_everybody() -> None:
    pair = Pair()
    await pair.settle()
    pair.consume([create(UID, "a", msg_id="m"), out_of_band(UID, "typing", 7)])
    await pair.settle()
    (acked,) = pair.said(Acked)
    assert isinstance(acked, Acked)
    assert [result.status for result in acked.results] == ["stored", "passed"]
    assert len(pair.said(PassedBy)) == 1
    assert "m" in pair.shown()


async def test_more_than_a_page_of_changes_reaches_a_device_that_comes_back() -> None:
    pair = Pair()
    await pair.write(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await pair.settle()
    for n in range(600):
        await pair.write(create(UID, "b", n))
    pair.told.clear()
    pair.connect()
    await pair.settle()
    assert len(pair.said(Apply)) == 2
    assert pair.shown() == await pair.stored_state()
    assert pair.device.mismatches == 0


async def test_a_device_whose_line_breaks_between_pages_goes_on_where_it_was() -> None:
    pair = Pair()
    await pair.write(*(create(UID, "a", msg_id=f"m{n}") for n in range(1500)))
    await pair.settle()
    await pair.write(*(create(UID, "b", n) for n in range(600)))
    pair.connect()
    pair.told.clear()
    while not pair.said(Apply):
        _ = await pair.read_on_node() or await pair.write_on_node() or await pair.read_on_device()
    pair.connect()
    await pair.settle()
    assert [len(e.messages) for e in pair.said(Apply) if isinstance(e, Apply)] == [500, 100]
    assert pair.shown() == await pair.stored_state()


async def test_a_slow_device_lags_catches_up_and_has_missed_nothing() -> None:
    pair = Pair()
    await pair.settle()
    for n in range(server.QUEUE_MESSAGES + 100):
        await pair.tell(create(UID, "a", n))
    assert pair.node.lagged == 1
    await pair.settle()
    assert pair.shown() == await pair.stored_state()
    assert len(pair.said(Compare)) == 2
    assert pair.device.mismatches == 0


async def test_a_restored_backup_is_found_and_the_device_follows_it() -> None:
    pair = Pair()
    await pair.tell(*(create(UID, "a", n) for n in range(3)))
    await pair.settle()
    pair.restore_backup()
    await pair.write(create(UID, "a", "after the backup"))
    pair.connect()
    await pair.settle()
    assert [item.body for item in pair.shown()] == ["after the backup"]
    assert pair.device.mismatches == 0


async def test_a_replica_that_differs_is_replaced_and_the_difference_is_counted() -> None:
    pair = Pair()
    await pair.write(create(UID, "a"))
    await pair.settle()
    pair.replica = pair.replica.replay(create(UID, "a", "never stored").stamp(5, 0))
    pair.connect()
    await pair.settle()
    assert pair.shown() == await pair.stored_state()
    assert pair.device.mismatches == 1


async def test_a_stretch_that_straddles_the_position_does_not_bring_back_the_dead() -> None:
    """The device was told of an item; the stretch, read later, leaves out that it has died."""
    pair = Pair()
    await pair.settle()
    (made,) = await pair.write(create(UID, "a", msg_id="m"))
    before = made.prev
    pair.node.publish(made)
    await pair.settle()
    (gone,) = await pair.write(dismiss(UID, "m"))
    await pair.write(create(UID, "b"))
    since = await pair.store.sync(UID, None, 0)
    pair.node.publish(server.Publication.stretch(before, (), since.cursor))
    assert gone.cursor < since.cursor
    await pair.settle()
    assert pair.shown() == await pair.stored_state()
