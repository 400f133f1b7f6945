"""The node's side of a conversation, frame by frame."""

import msgspec
import pytest

from gregor.core.message import (
    MAX_BATCH,
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    out_of_band,
    replace,
)
from gregor.core.state import Changes, Snapshot, Sync, hash_of
from gregor.errors import Unavailable
from gregor.protocol.frames import (
    Ack,
    Error,
    Frame,
    GoAway,
    Messages,
    OutOfBand,
    Result,
    SyncPage,
    Welcome,
    decode_node_frame,
    encode,
)
from gregor.protocol.server import (
    QUEUE_BYTES,
    QUEUE_MESSAGES,
    Authenticate,
    CatchUp,
    Close,
    Effect,
    Phase,
    Publication,
    Send,
    ServerSession,
    Store,
)

HELLO = '{"type":"hello","token":"t","device_id":"d1","cursor":7,"protocol":1}'


def greeted(cursor: int = 7) -> ServerSession:
    """A session whose device has said hello and is known."""
    session = ServerSession()
    assert session.receive(HELLO.replace("7", str(cursor))) == Authenticate("t", "d1")
    session.authenticated("u", now=50)
    return session


def everything(session: ServerSession) -> list[Effect]:
    """What the writing hand does until there is nothing to do."""
    effects = []
    while (effect := session.next()) is not None:
        effects.append(effect)
    return effects


def frames(session: ServerSession) -> list[Frame]:
    """The frames that go out now, as the device reads them."""
    effects = everything(session)
    return [decode_node_frame(encode(e.frame)) for e in effects if isinstance(e, Send)]


def live(position: int = 10) -> ServerSession:
    """A session whose device has been told everything up to `position`."""
    session = greeted()
    everything(session)
    session.synced(Sync(Changes(()), position, 50, hash_of(())))
    everything(session)
    return session


def published(ctime: int, prev: int | None = None, body: str = "x") -> Publication:
    message = create("u", "a", body, msg_id=f"m{ctime}")
    return Publication.of(message.stamp(ctime, ctime - 1 if prev is None else prev))


# Greeting


def test_a_greeting_is_answered_with_a_welcome_and_a_sync_from_the_devices_cursor() -> None:
    welcome, catch_up = everything(greeted())
    assert isinstance(welcome, Send)
    assert isinstance(welcome.frame, Welcome)
    assert (welcome.frame.uid, welcome.frame.device_id, welcome.frame.now) == ("u", "d1", 50)
    assert catch_up == CatchUp(7)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"verify","cursor":0}',
        '{"type":"consume","n":1,"messages":[]}',
        '{"type":"welcome"}',
        '{"type":"hello"}',
        "{",
        "",
        "[]",
        None,
        HELLO.replace(":7", ":-1"),
        HELLO.replace(":7", ":9007199254740992"),
        HELLO.replace("d1", ""),
        HELLO.replace('"token"', '"unknown":1,"token"'),
        "[" * 100_000,
    ],
)
def test_what_is_no_hello_ends_the_conversation(text: str | None) -> None:
    session = ServerSession()
    assert session.receive(text) is None
    error, close = everything(session)
    assert isinstance(error, Send)
    assert isinstance(error.frame, Error)
    assert (error.frame.code, error.frame.turn) == ("protocol", "stop")
    assert close == Close(4002, "protocol")
    assert session.phase is Phase.CLOSED


def test_an_unknown_protocol_is_refused_with_the_one_that_is_spoken() -> None:
    session = ServerSession()
    session.receive(HELLO.replace('"protocol":1', '"protocol":2'))
    (error,) = frames(session)
    assert isinstance(error, Error)
    assert "protocol 1, not 2" in error.message


def test_nothing_may_be_said_before_the_token_has_been_looked_at() -> None:
    session = ServerSession()
    session.receive(HELLO)
    assert everything(session) == []
    session.receive('{"type":"verify","cursor":0}')
    assert session.phase is Phase.CLOSED


def test_a_second_hello_ends_the_conversation() -> None:
    session = live()
    session.receive(HELLO)
    (error,) = frames(session)
    assert isinstance(error, Error)
    assert "OPEN" in error.message
    assert session.phase is Phase.CLOSED


def test_who_says_no_hello_in_time_is_sent_away() -> None:
    session = ServerSession()
    session.greeting_expired()
    assert everything(session)[-1] == Close(4008, "hello-timeout")
    greeted_in_time = live()
    greeted_in_time.greeting_expired()
    assert everything(greeted_in_time) == []


def test_after_the_end_nothing_is_heard_or_said() -> None:
    session = live()
    session.leave(1000, "bye")
    assert everything(session) == [Close(1000, "bye")]
    assert session.receive('{"type":"verify","cursor":0}') is None
    session.publish(published(11))
    session.pass_by(out_of_band("u", "s"))
    session.leave(1001, "again")
    assert everything(session) == []


def test_a_goaway_is_said_before_what_waits() -> None:
    session = live()
    session.publish(published(11))
    session.go_away(1000)
    first, second = frames(session)
    assert first == GoAway(1000)
    assert isinstance(second, Messages)


# Consuming


def stored_from(session: ServerSession, *messages: object) -> Store:
    frame = {"type": "consume", "n": 3, "messages": messages}
    request = session.receive(msgspec.json.encode(frame).decode())
    assert isinstance(request, Store)
    return request


def test_messages_of_a_device_are_its_users_though_it_leaves_out_the_uid() -> None:
    creation = {"category": "a", "body": 1}
    request = stored_from(live(), {"creation": creation}, {"uid": "u", "system": "s", "body": None})
    assert request.n == 3
    assert [message.uid for message in request.messages] == ["u", "u"]


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        ({"uid": "other", "creation": {"category": "a", "body": 1}}, "forbidden", "uid"),
        ({"creation": {"category": "a", "body": 1}, "ctime": 5}, "invalid", "ctime"),
        ({"creation": {"category": "a"}}, "invalid", "creation.body"),
        ({"creation": {"category": "", "body": 1}}, "invalid", "creation.category"),
        ({}, "invalid", None),
        ({"dismissal": {}}, "invalid", None),
        (7, "invalid", None),
        ({"creation": {"category": "a", "body": "x" * 70_000}}, "too-large", "body"),
        ({"creation": {"category": "a", "body": 1}, "typo": 1}, "invalid", "typo"),
    ],
)
def test_a_bad_message_is_rejected_and_its_neighbours_are_not(
    message: object, code: str, field: str | None
) -> None:
    good = {"creation": {"category": "a", "body": 1}}
    before, bad, after = stored_from(live(), good, message, good).messages
    assert isinstance(bad, Result)
    assert bad.status == "rejected"
    assert bad.error is not None
    assert (bad.error.code, bad.error.field) == (code, field)
    assert isinstance(before, InBandMessage)
    assert isinstance(after, InBandMessage)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_a_consume_of_no_size_is_answered_and_the_conversation_goes_on(size: int) -> None:
    session = live()
    frame = {"type": "consume", "n": 9, "messages": [{}] * size}
    assert session.receive(msgspec.json.encode(frame).decode()) is None
    (error,) = frames(session)
    assert isinstance(error, Error)
    assert (error.code, error.n) == ("too-large", 9)
    assert session.phase is Phase.OPEN


def test_malformed_json_is_answered_and_a_good_frame_works_after_it() -> None:
    session = live()
    for text in ("{", "null", '{"type":"consume","n":"x","messages":[]}', "[" * 100_000):
        assert session.receive(text) is None
        (error,) = frames(session)
        assert isinstance(error, Error)
        assert error.code == "malformed"
    assert stored_from(session, {"creation": {"category": "a", "body": 1}}).n == 3


def test_a_binary_frame_ends_the_conversation() -> None:
    session = live()
    assert session.receive(None) is None
    assert everything(session)[-1] == Close(4002, "protocol")


def test_what_became_of_messages_is_acknowledged() -> None:
    session = live()
    session.stored(3, [Result("stored", "u", "m", 11)])
    assert frames(session) == [Ack(3, (Result("stored", "u", "m", 11),))]


def test_a_store_that_does_not_answer_is_an_error_of_that_consume() -> None:
    session = live()
    session.unavailable(3, Unavailable("later"))
    (error,) = frames(session)
    assert isinstance(error, Error)
    assert (error.n, error.code, error.turn) == (3, "unavailable", "retry")


def test_a_device_that_takes_no_answers_is_disconnected() -> None:
    session = live()
    for n in range(10_000):
        session.unavailable(n, Unavailable("later"))
    effects = everything(session)
    assert len(effects) <= QUEUE_MESSAGES + 1
    assert effects[-1] == Close(4009, "answers are not taken")


# Publishing


def test_what_continues_the_devices_position_goes_out_in_one_frame() -> None:
    session = live(10)
    for ctime in (11, 12, 13):
        session.publish(published(ctime))
    (frame,) = frames(session)
    assert isinstance(frame, Messages)
    assert (frame.prev, frame.cursor) == (10, 13)
    assert [message.ctime for message in frame.messages] == [11, 12, 13]


def test_a_publication_that_comes_again_is_told_once() -> None:
    session = live(10)
    for ctime in (11, 11, 10, 9):
        session.publish(published(ctime))
    (frame,) = frames(session)
    assert isinstance(frame, Messages)
    assert [message.ctime for message in frame.messages] == [11]
    session.publish(published(11))
    assert everything(session) == []


def test_a_gap_is_filled_from_the_store_from_where_the_device_is() -> None:
    session = live(10)
    session.publish(published(11))
    session.publish(published(13))
    assert everything(session) == [CatchUp(10)]
    assert session.lagging


def test_a_stretch_that_begins_before_the_position_is_not_trusted() -> None:
    """The store left out of it the deaths of items that were made within it; but this device has
    been told of those items already."""
    session = live(10)
    session.publish(Publication.stretch(8, (), 12))
    assert everything(session) == [CatchUp(10)]


def test_a_stretch_that_continues_the_position_is_passed_on() -> None:
    session = live(10)
    message = create("u", "a", msg_id="m").stamp(12, 11)
    session.publish(Publication.stretch(10, (message,), 14))
    assert frames(session) == [Messages(10, (message,), 14)]


def test_what_is_made_for_another_device_stays_here_and_its_dismissal_does_not() -> None:
    session = live(10)
    session.publish(
        Publication.of(create("u", "a", "secret", device_id="d2", msg_id="x").stamp(11, 10))
    )
    update = replace("u", "a", "secret", device_id="d2", msg_id="y").stamp(12, 11)
    session.publish(Publication.of(update))
    (frame,) = frames(session)
    assert isinstance(frame, Messages)
    (told,) = frame.messages
    assert (told.creation, told.dismissal) == (None, update.dismissal)
    assert "secret" not in encode(frame)


def test_what_is_published_while_the_store_is_read_comes_after_the_sync() -> None:
    session = greeted()
    everything(session)
    for ctime in (11, 12, 13):
        session.publish(published(ctime))
    assert everything(session) == []
    session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    sync, after = frames(session)
    assert isinstance(sync, SyncPage)
    assert isinstance(after, Messages)
    assert (after.prev, after.cursor) == (12, 13)
    assert [message.ctime for message in after.messages] == [13]


def test_a_gap_within_what_was_published_meanwhile_is_read_from_the_store_again() -> None:
    session = greeted()
    everything(session)
    session.publish(published(14))
    session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    sync, again = everything(session)
    assert isinstance(sync, Send)
    assert again == CatchUp(12)


@pytest.mark.parametrize("held", [False, True])
def test_a_device_that_is_too_slow_lags_and_is_told_from_the_store(held: bool) -> None:
    session = greeted(cursor=10) if held else live(10)
    if held:
        everything(session)
    for ctime in range(11, 11 + QUEUE_MESSAGES):
        session.publish(published(ctime))
    assert session.lagged == 0
    session.publish(published(11 + QUEUE_MESSAGES))
    assert session.lagged == 1
    if held:
        session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    assert everything(session)[-1] == CatchUp(10)


def test_a_few_large_messages_fill_the_queue_as_many_small_ones_do() -> None:
    session = live(10)
    body = "x" * 60_000
    for ctime in range(11, 11 + QUEUE_BYTES // 60_000 + 1):
        session.publish(published(ctime, body=body))
    assert session.lagged == 1
    assert everything(session) == [CatchUp(10)]


def test_a_device_that_keeps_up_never_lags() -> None:
    session = live(10)
    for ctime in range(11, 11 + 3 * QUEUE_MESSAGES):
        session.publish(published(ctime, body="x" * 10_000))
        assert len(frames(session)) == 1
    assert session.lagged == 0


# Out of band


def test_an_out_of_band_message_goes_out_before_what_waits() -> None:
    session = live(10)
    session.publish(published(11))
    session.pass_by(out_of_band("u", "typing", {"room": 7}))
    first, second = frames(session)
    assert isinstance(first, OutOfBand)
    assert isinstance(second, Messages)


def test_a_device_that_is_too_slow_misses_what_only_passes_by() -> None:
    session = live(10)
    for _ in range(20):
        session.pass_by(out_of_band("u", "s", "x" * 60_000))
    assert 0 < len(frames(session)) * 60_000 <= QUEUE_BYTES
    session.pass_by(out_of_band("u", "s", "x" * 60_000))
    assert len(frames(session)) == 1


def test_what_passes_by_during_a_sync_still_counts_towards_the_queue() -> None:
    session = greeted()
    everything(session)
    sent = 0
    for _ in range(3):  # each sync would otherwise make room for as much again
        for _ in range(20):
            session.pass_by(out_of_band("u", "s", "x" * 60_000))
        session.synced(Sync(Changes(()), 12, 50, hash_of(())))
        session.pass_by(out_of_band("u", "s", "x" * 60_000))
    sent = sum(isinstance(frame, OutOfBand) for frame in frames(session))
    assert sent * 60_000 <= QUEUE_BYTES


# Verifying


def test_a_verify_reads_from_the_cursor_that_the_device_says() -> None:
    for cursor in (0, 5):
        session = live(10)
        session.receive(f'{{"type":"verify","cursor":{cursor}}}')
        assert everything(session) == [CatchUp(cursor)]


def test_a_verify_does_not_interrupt_the_pages_of_a_sync() -> None:
    session = greeted()
    everything(session)
    items = tuple(create("u", "a", msg_id=f"m{n}").stamp(n, n - 1) for n in range(8, 1300))
    session.synced(Sync(Changes(items), 1300, 50, hash_of(())))
    first = session.next()
    assert isinstance(first, Send)
    session.receive('{"type":"verify","cursor":0}')
    *pages, catch_up = everything(session)
    assert [
        page.frame.more
        for page in pages
        if isinstance(page, Send) and isinstance(page.frame, SyncPage)
    ] == [True, False]
    assert catch_up == CatchUp(0)


def test_a_snapshot_is_told_with_its_tombstones() -> None:
    session = greeted(cursor=0)
    everything(session)
    snapshot = Snapshot((), (("gone", 5),), ())
    session.synced(Sync(snapshot, 12, 50, hash_of(())))
    (page,) = frames(session)
    assert page == SyncPage("snapshot", 0, 12, 50, hash_of(()), dismissed_ids=(("gone", 5),))


def test_only_dismissals_are_told_as_they_are() -> None:
    session = live(10)
    for ctime, message in ((11, dismiss("u", "m")), (12, dismiss_category("u", "a", prefix=True))):
        session.publish(Publication.of(message.stamp(ctime, ctime - 1)))
    (frame,) = frames(session)
    assert isinstance(frame, Messages)
    assert len(frame.messages) == 2
