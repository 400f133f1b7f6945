"""The device's session, frame by frame."""

import tracemalloc

import msgspec
import pytest

from gregor.core.message import InBandMessage, create, dismiss, out_of_band, raw
from gregor.core.state import Item
from gregor.core.state_hash import hash_of
from gregor.core.sync import Snapshot
from gregor.errors import Action, Erased, Malformed
from gregor.limits import Limits
from gregor.protocol.client_session import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    Deferred,
    DeliverOutOfBand,
    Effect,
    Failed,
    Reconnect,
    Replace,
    Welcomed,
)
from gregor.protocol.effects import Send
from gregor.protocol.frames import (
    Ack,
    Consume,
    Error,
    Frame,
    GoAway,
    Hello,
    Messages,
    OutOfBand,
    Result,
    SyncPage,
    UserErased,
    Verify,
    Welcome,
    encode,
)
from gregor.protocol.sync_state import Syncing, UpToDate

HASH = hash_of(())
OK = (Result("stored", "u", "m", 12),)


def receive(session: ClientSession, frame: Frame) -> list[Effect]:
    return session.receive(encode(frame))


def changes(prev: int, cursor: int, *messages: InBandMessage, more: bool = False) -> SyncPage:
    return SyncPage("changes", prev, cursor, 50, HASH, more, messages)


def live_session(cursor: int = 10) -> ClientSession:
    """A session that has synced up to `cursor`."""
    session = ClientSession("t", "d1", 7)
    session.opened()
    receive(session, Welcome("u", "d1", 50, Limits()))
    receive(session, changes(7, cursor))
    return session


def message(ctime: int) -> InBandMessage:
    return create("u", "a", msg_id=f"m{ctime}").stamp(ctime, ctime - 1)


def test_session_sends_hello_and_may_consume_after_the_welcome() -> None:
    session = ClientSession("t", "d1", 7)
    assert session.opened() == [Send(Hello(token="t", device_id="d1", cursor=7, protocol=2))]
    assert not session.may_consume
    assert receive(session, Welcome("u", "d1", 50, Limits(messages=0), 9)) == [
        Welcomed("u", Limits(messages=1), 50, 9)
    ]
    three = Limits(messages=3)
    assert receive(session, Welcome("u", "d1", 50, three, 9)) == [Welcomed("u", three, 50, 9)]
    assert session.may_consume


def test_last_page_of_a_sync_leads_to_a_compare() -> None:
    session = ClientSession("t", "d1", 7)
    receive(session, Welcome("u", "d1", 50, Limits()))
    assert receive(session, changes(7, 9, message(9), more=True)) == [Apply((message(9),), 9)]
    assert session.state == Syncing()
    assert receive(session, changes(9, 12)) == [Apply((), 12), Compare(50, HASH)]
    assert session.is_up_to_date
    assert session.cursor == 12


def test_snapshot_replaces_the_replica_only_after_its_last_page() -> None:
    session = ClientSession("t", "d1", 0)
    receive(session, Welcome("u", "d1", 50, Limits()))
    item = Item("m", 5, "a", msgspec.Raw(b"1"))
    last = Item("n", 6, "a", msgspec.Raw(b"2"))
    first = SyncPage("snapshot", 0, 12, 50, HASH, more=True, items=(item,))
    second = SyncPage("snapshot", 0, 12, 50, HASH, items=(last,))
    assert receive(session, first) == []
    assert session.cursor == 0
    assert receive(session, second) == [Replace(Snapshot((item, last)), 12, 0), Compare(50, HASH)]
    assert session.cursor == 12


def test_frame_that_continues_the_cursor_is_applied() -> None:
    session = live_session(10)
    assert receive(session, Messages(10, (message(11),), 14)) == [Apply((message(11),), 14)]
    assert session.cursor == 14


def test_frame_up_to_the_cursor_is_not_applied_again() -> None:
    session = live_session(10)
    assert receive(session, Messages(8, (message(9),), 10)) == []
    assert session.cursor == 10


def test_frame_after_a_gap_is_ignored_and_a_sync_is_requested() -> None:
    session = live_session(10)
    assert receive(session, Messages(11, (message(12),), 12)) == [Send(Verify(10))]
    assert (session.state, session.cursor) == (Syncing(), 10)


def test_frame_during_a_sync_does_not_move_the_cursor() -> None:
    """The sync leaves out dismissals of items created after its start, which the frame may
    contain."""
    session = live_session(10)
    session.verify()
    assert receive(session, Messages(10, (message(11),), 11)) == []
    assert receive(session, changes(10, 12))[0] == Apply((), 12)


def test_sync_that_does_not_continue_the_cursor_is_not_applied() -> None:
    session = live_session(10)
    assert receive(session, changes(11, 14, message(14))) == [Send(Verify(10))]
    assert receive(session, changes(7, 9, message(9))) == []


def test_snapshot_older_than_the_cursor_is_ignored() -> None:
    session = live_session(10)
    assert receive(session, SyncPage("snapshot", 0, 9, 50, HASH)) == []
    assert session.cursor == 10


def test_sync_that_ends_before_an_ignored_frame_is_requested_again() -> None:
    session = live_session(10)
    session.verify()
    assert receive(session, Messages(13, (message(14),), 14)) == []
    assert receive(session, changes(10, 12))[-1] == Send(Verify(12))


def test_frame_that_overtakes_the_welcome_is_not_forgotten() -> None:
    session = ClientSession("t", "d1", 7)
    session.opened()
    assert receive(session, Messages(10, (message(14),), 14)) == []
    receive(session, Welcome("u", "d1", 50, Limits()))
    assert receive(session, changes(7, 10))[-1] == Send(Verify(10))


def test_snapshot_that_overtakes_the_welcome_says_no_epoch() -> None:
    session = ClientSession("t", "d1", 0)
    session.opened()
    page = SyncPage("snapshot", 0, 12, 50, HASH)
    assert receive(session, page)[0] == Replace(Snapshot(), 12, None)
    (welcomed,) = receive(session, Welcome("u", "d1", 1, Limits(), epoch=9))
    assert welcomed == Welcomed("u", Limits(), 1, 9)


def test_erase_of_another_user_does_not_wipe_the_device() -> None:
    session = ClientSession("t", "d1", 7, 3, uid="u")
    session.opened()
    (failed,) = receive(session, UserErased(9, "v"))
    assert isinstance(failed, Failed)
    assert failed.error.code == "forbidden"
    assert session.disconnected(Erased.close_code) == []


def test_welcome_of_another_user_does_not_wipe_the_device() -> None:
    session = ClientSession("t", "d1", 7, 3, uid="u")
    session.opened()
    (welcomed,) = receive(session, Welcome("v", "d1", 1, Limits(), epoch=9))
    assert isinstance(welcomed, Welcomed)  # the client compares the uid


def test_pages_of_a_snapshot_that_was_not_completed_are_forgotten() -> None:
    session = live_session(10)
    item = Item("m", 5, "a", msgspec.Raw(b"1"))
    receive(session, SyncPage("snapshot", 0, 12, 50, HASH, more=True, items=(item,)))
    receive(session, changes(10, 12))
    replaced = receive(session, SyncPage("snapshot", 0, 12, 50, HASH))
    assert replaced[0] == Replace(Snapshot(), 12, 0)


def test_hash_mismatch_is_counted_and_requests_a_snapshot() -> None:
    session = live_session(10)
    assert session.hash_compared(True) == []
    assert session.hash_compared(False) == [Send(Verify(0))]
    assert session.mismatches == 1


def test_hash_mismatch_after_a_snapshot_requests_no_other_snapshot() -> None:
    session = live_session(10)
    session.hash_compared(False)
    receive(session, SyncPage("snapshot", 0, 10, 50, HASH))
    assert session.hash_compared(False) == []
    assert session.mismatches == 2


def test_at_most_one_consume_is_in_flight() -> None:
    session = live_session(10)
    (send,) = session.consume([dismiss("u", "m")])
    assert isinstance(send, Send)
    assert isinstance(send.frame, Consume)
    assert send.frame.n == 1
    assert not session.may_consume
    assert session.consume([dismiss("u", "n")]) == []
    assert receive(session, Ack(7, OK)) == []
    assert receive(session, Ack(1, OK)) == [Acked(OK)]
    assert receive(session, Ack(1, OK)) == []
    (second,) = session.consume([out_of_band("u", "s", 1)])
    assert isinstance(second, Send)
    assert isinstance(second.frame, Consume)
    assert second.frame.n == 2


def test_consume_without_messages_sends_nothing() -> None:
    session = live_session(10)
    assert session.consume([]) == []
    assert session.may_consume


def test_unavailable_consume_is_deferred_and_may_be_retried() -> None:
    session = live_session(10)
    session.consume([dismiss("u", "m")])
    error = Error("unavailable", "later", Action.RETRY, n=1)
    assert receive(session, error) == [Deferred(error)]
    assert session.may_consume
    assert receive(session, error) == []


def test_out_of_band_frame_is_delivered() -> None:
    body = msgspec.Raw(b'{"room":7}')
    assert receive(live_session(), OutOfBand("typing", body)) == [DeliverOutOfBand("typing", body)]


def test_error_fails_the_session_and_resync_requests_a_snapshot() -> None:
    session = live_session()
    error = Error("unauthenticated", "who?", Action.REAUTHENTICATE)
    assert receive(session, error) == [Failed(error)]
    assert receive(session, Error("resync", "again", Action.RESYNC)) == [Send(Verify(0))]


def test_goaway_leads_to_a_reconnect_within_its_time() -> None:
    assert receive(live_session(), GoAway(5000)) == [Reconnect(5000)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"type":"messages","prev":0}',
        '{"type":"sync","mode":"other","cursor":0,"as_of":0,"hash":""}',
        b"\xff",
    ],
)
def test_malformed_frame_is_rejected_and_changes_nothing(text: str | bytes) -> None:
    session = live_session(10)
    with pytest.raises(Malformed):
        session.receive(text)
    assert (session.state, session.cursor) == (UpToDate(), 10)
    assert receive(session, Messages(10, (message(11),), 11)) == [Apply((message(11),), 11)]


def test_item_of_a_snapshot_does_not_keep_its_frame_in_memory() -> None:
    """Else what a device holds would not be proportional to what is live."""
    bodies = raw("kept"), raw("x" * 50_000)
    items = tuple(Item(f"m{n}", n, "a", body) for n, body in enumerate(bodies, start=1))
    page = SyncPage("snapshot", 0, 12, 50, HASH, items=items)
    tracemalloc.start()
    try:
        kept = [snapshot_in(encode(page)).items[0] for _ in range(20)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [item.body for item in kept] == ["kept"] * 20
    assert held < 100_000


def snapshot_in(text: str) -> Snapshot:
    session = ClientSession("t", "d1", 0)
    replaced, _ = session.receive(text)
    assert isinstance(replaced, Replace)
    return replaced.snapshot
