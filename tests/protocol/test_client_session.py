"""The device's side of a conversation, frame by frame."""

import msgspec
import pytest

from gregor.core.message import InBandMessage, create, dismiss, out_of_band
from gregor.core.state import DismissedRange, Item, Snapshot, hash_of
from gregor.errors import Malformed, Turn
from gregor.protocol.client import (
    Acked,
    Apply,
    ClientSession,
    Compare,
    Deferred,
    Effect,
    Failed,
    PassedBy,
    Phase,
    Reconnect,
    Replace,
    Welcomed,
)
from gregor.protocol.frames import (
    Ack,
    Consume,
    Error,
    Frame,
    GoAway,
    Hello,
    Limits,
    Messages,
    OutOfBand,
    Result,
    SyncPage,
    Verify,
    Welcome,
    encode,
)
from gregor.protocol.server import Send

HASH = hash_of(())
OK = (Result("stored", "u", "m", 12),)


def said(session: ClientSession, frame: Frame) -> list[Effect]:
    return session.receive(encode(frame))


def changes(prev: int, cursor: int, *messages: InBandMessage, more: bool = False) -> SyncPage:
    return SyncPage("changes", prev, cursor, 50, HASH, more, messages)


def live(cursor: int = 10) -> ClientSession:
    """A session that has synced up to `cursor`."""
    session = ClientSession("t", "d1", 7)
    session.opened()
    said(session, Welcome("u", "d1", 50, Limits()))
    said(session, changes(7, cursor))
    return session


def message(ctime: int) -> InBandMessage:
    return create("u", "a", msg_id=f"m{ctime}").stamp(ctime, ctime - 1)


def test_a_conversation_begins_with_who_we_are_and_what_we_know() -> None:
    session = ClientSession("t", "d1", 7)
    assert session.opened() == [Send(Hello(token="t", device_id="d1", cursor=7, protocol=1))]
    assert not session.may_consume
    assert said(session, Welcome("u", "d1", 50, Limits(messages=3))) == [Welcomed("u", 3)]
    assert session.may_consume


def test_after_the_last_page_the_state_is_compared() -> None:
    session = ClientSession("t", "d1", 7)
    said(session, Welcome("u", "d1", 50, Limits()))
    assert said(session, changes(7, 9, message(9), more=True)) == [Apply((message(9),), 9)]
    assert session.phase is Phase.SYNCING
    assert said(session, changes(9, 12)) == [Apply((), 12), Compare(50, HASH)]
    assert (session.phase, session.cursor) == (Phase.LIVE, 12)


def test_a_snapshot_replaces_nothing_before_it_is_whole() -> None:
    session = ClientSession("t", "d1", 0)
    said(session, Welcome("u", "d1", 50, Limits()))
    item = Item("m", 5, "a", msgspec.Raw(b"1"))
    range_ = DismissedRange(90, 6, "a")
    first = SyncPage("snapshot", 0, 12, 50, HASH, more=True, items=(item,))
    second = SyncPage(
        "snapshot", 0, 12, 50, HASH, dismissed_ids=(("x", 4),), dismissed_ranges=(range_,)
    )
    assert said(session, first) == []
    assert session.cursor == 0
    whole = Snapshot((item,), (("x", 4),), (range_,))
    assert said(session, second) == [Replace(whole, 12), Compare(50, HASH)]
    assert session.cursor == 12


def test_a_frame_that_continues_what_we_know_is_applied() -> None:
    session = live(10)
    assert said(session, Messages(10, (message(11),), 14)) == [Apply((message(11),), 14)]
    assert session.cursor == 14


def test_a_frame_that_lies_behind_is_not_applied_again() -> None:
    session = live(10)
    assert said(session, Messages(8, (message(9),), 10)) == []
    assert session.cursor == 10


def test_a_frame_after_a_gap_is_left_and_a_sync_is_asked_for() -> None:
    session = live(10)
    assert said(session, Messages(11, (message(12),), 12)) == [Send(Verify(10))]
    assert (session.phase, session.cursor) == (Phase.SYNCING, 10)


def test_a_frame_that_comes_during_a_sync_leaves_the_cursor_where_the_sync_begins() -> None:
    """From there the node leaves out the deaths of items which that frame would bring."""
    session = live(10)
    session.verify()
    assert said(session, Messages(10, (message(11),), 11)) == []
    assert said(session, changes(10, 12))[0] == Apply((), 12)


def test_a_sync_that_begins_elsewhere_is_not_applied() -> None:
    session = live(10)
    assert said(session, changes(11, 14, message(14))) == [Send(Verify(10))]
    assert said(session, changes(7, 9, message(9))) == []


def test_a_snapshot_of_long_ago_is_not_taken() -> None:
    session = live(10)
    assert said(session, SyncPage("snapshot", 0, 9, 50, HASH)) == []
    assert session.cursor == 10


def test_a_sync_that_ends_before_a_frame_that_came_meanwhile_is_asked_for_again() -> None:
    session = live(10)
    session.verify()
    assert said(session, Messages(13, (message(14),), 14)) == []
    assert said(session, changes(10, 12))[-1] == Send(Verify(12))


def test_a_hash_that_differs_is_mended_with_a_snapshot_and_counted() -> None:
    session = live(10)
    assert session.compared(True) == []
    assert session.compared(False) == [Send(Verify(0))]
    assert session.mismatches == 1


def test_a_snapshot_that_does_not_fit_is_not_asked_for_again() -> None:
    session = live(10)
    session.compared(False)
    said(session, SyncPage("snapshot", 0, 10, 50, HASH))
    assert session.compared(False) == []
    assert session.mismatches == 2


def test_one_consume_is_under_way_at_a_time() -> None:
    session = live(10)
    (send,) = session.consume([dismiss("u", "m")])
    assert isinstance(send, Send)
    assert isinstance(send.frame, Consume)
    assert send.frame.n == 1
    assert not session.may_consume
    assert session.consume([dismiss("u", "n")]) == []
    assert said(session, Ack(7, OK)) == []
    assert said(session, Ack(1, OK)) == [Acked(OK)]
    assert said(session, Ack(1, OK)) == []
    (again,) = session.consume([out_of_band("u", "s", 1)])
    assert isinstance(again, Send)
    assert isinstance(again.frame, Consume)
    assert again.frame.n == 2


def test_nothing_is_sent_for_no_messages() -> None:
    session = live(10)
    assert session.consume([]) == []
    assert session.may_consume


def test_a_consume_that_was_not_taken_may_be_sent_again() -> None:
    session = live(10)
    session.consume([dismiss("u", "m")])
    error = Error("unavailable", "later", Turn.RETRY, n=1)
    assert said(session, error) == [Deferred(error)]
    assert session.may_consume
    assert said(session, error) == []


def test_what_only_passes_by_is_handed_on() -> None:
    body = msgspec.Raw(b'{"room":7}')
    assert said(live(), OutOfBand("typing", body)) == [PassedBy("typing", body)]


def test_an_error_of_the_conversation_says_whose_turn_it_is() -> None:
    session = live()
    error = Error("unauthenticated", "who?", Turn.REAUTHENTICATE)
    assert said(session, error) == [Failed(error)]
    assert said(session, Error("resync", "again", Turn.RESYNC)) == [Send(Verify(0))]


def test_a_node_that_leaves_says_within_what_time_to_come_back() -> None:
    assert said(live(), GoAway(5000)) == [Reconnect(5000)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"type":"hello","token":"t","device_id":"d","protocol":1}',
        '{"type":"messages","prev":0}',
        '{"type":"sync","mode":"other","cursor":0,"as_of":0,"hash":""}',
        '{"type":"messages","prev":0,"cursor":1,"messages":[{"uid":"u","msg_id":"m"}]}',
        b"\xff",
    ],
)
def test_what_is_no_frame_of_a_node_is_malformed_and_changes_nothing(text: str | bytes) -> None:
    session = live(10)
    with pytest.raises(Malformed):
        session.receive(text)
    assert (session.phase, session.cursor) == (Phase.LIVE, 10)
    assert said(session, Messages(10, (message(11),), 11)) == [Apply((message(11),), 11)]
