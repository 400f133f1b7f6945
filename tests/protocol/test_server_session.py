"""The node's session, frame by frame."""

from collections.abc import Callable

import msgspec
import pytest
from msgspec import structs

from gregor.core.instant import SECOND
from gregor.core.message import (
    MAX_BATCH,
    Dismissal,
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    out_of_band,
    put,
)
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.errors import (
    Action,
    Conflict,
    Erased,
    GregorError,
    HistoryForgotten,
    Resync,
    Unavailable,
)
from gregor.interfaces import HOLDS_FOREVER, NEVER_ERASED, Erasure, Rejected, Stored
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import (
    Ack,
    Error,
    Frame,
    GoAway,
    Messages,
    OutOfBand,
    Problem,
    Result,
    SyncPage,
    UserErased,
    Welcome,
    encode,
)
from gregor.protocol.handshake import Phase
from gregor.protocol.later_versions import decode_node_frame
from gregor.protocol.outbound_queue import QUEUE_BYTES, QUEUE_MESSAGES
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import (
    Authenticate,
    CatchUp,
    Effect,
    ServerSession,
    Store,
)

CONFLICT = Conflict("this msg_id is known with other contents")
HELLO = '{"type":"hello","token":"t","device_id":"d1","cursor":7,"protocol":2}'


def reading_session(hello: str = HELLO) -> ServerSession:
    """A session whose device has sent a hello, while its first sync is read."""
    session = ServerSession()
    assert session.receive(hello) == Authenticate("t", "d1")
    session.reading()
    return session


def all_effects(session: ServerSession) -> list[Effect]:
    """The effects for the writer, until there is nothing to do."""
    effects = []
    while (effect := session.next()) is not None:
        effects.append(effect)
    return effects


def sent_frames(session: ServerSession) -> list[Frame]:
    """The frames that are sent now, as the device decodes them."""
    effects = all_effects(session)
    decoded = [decode_node_frame(encode(e.frame)) for e in effects if isinstance(e, Send)]
    return [frame for frame in decoded if frame is not None]


def live_session(position: int = 10) -> ServerSession:
    """A session whose device is synced up to `position`."""
    session = reading_session()
    opened(session, first_sync(position))
    return session


def catching_up_session(cursor: int = 7) -> ServerSession:
    """A session that waits for a sync from this cursor."""
    session = live_session(cursor)
    session.receive(f'{{"type":"verify","cursor":{cursor}}}')
    assert all_effects(session) == [CatchUp(cursor)]
    return session


def first_sync(cursor: int = 10, erasure: Erasure = NEVER_ERASED) -> Sync:
    return Sync(Changes(()), cursor, 50, hash_of(()), *erasure)


def publication(ctime: int, prev: int | None = None, body: str = "x") -> Publication:
    message = create("u", "a", body, msg_id=f"m{ctime}")
    return Publication.of(Stored(message.stamp(ctime, ctime - 1 if prev is None else prev)))


def opened(session: ServerSession, sync: Sync) -> list[Frame]:
    """What a session sends whose first sync has been read."""
    session.opened("u", sync, 50, HOLDS_FOREVER)
    return sent_frames(session)


# Greeting


def test_first_sync_follows_the_welcome_and_what_was_published_while_it_was_read_follows_it() -> (
    None
):
    session = reading_session()
    for ctime in (10, 11, 12):
        session.publish(publication(ctime))
    assert all_effects(session) == []
    welcome, page, messages = opened(session, first_sync(10))
    assert isinstance(welcome, Welcome)
    assert isinstance(page, SyncPage)
    assert isinstance(messages, Messages)
    assert (messages.prev, messages.cursor) == (10, 12)


def test_conversation_that_was_closed_while_its_first_sync_was_read_stays_closed() -> None:
    session = reading_session()
    session.close(1000, "bye")
    assert opened(session, first_sync()) == []


def test_hello_is_answered_by_a_welcome_and_a_sync_from_the_cursor_of_the_device() -> None:
    session = reading_session()
    assert session.cursor == 7
    welcome, page = opened(session, first_sync(10))
    assert isinstance(welcome, Welcome)
    assert (welcome.uid, welcome.device_id, welcome.now) == ("u", "d1", 50)
    assert page == SyncPage("changes", 7, 10, 50, hash_of(()))


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
def test_first_frame_that_is_not_a_valid_hello_closes_the_session(text: str | None) -> None:
    session = ServerSession()
    assert session.receive(text) is None
    error, close = all_effects(session)
    assert isinstance(error, Send)
    assert isinstance(error.frame, Error)
    assert (error.frame.code, error.frame.action) == ("protocol", "stop")
    assert close == Close(4002, "protocol")
    assert session.phase is Phase.CLOSED


def test_unknown_protocol_is_rejected_with_the_supported_version() -> None:
    session = ServerSession()
    session.receive(HELLO.replace('"protocol":2', '"protocol":3'))
    (error,) = sent_frames(session)
    assert isinstance(error, Error)
    assert "protocol 2, not 3" in error.message


def test_frame_before_authentication_closes_the_session() -> None:
    session = ServerSession()
    session.receive(HELLO)
    assert all_effects(session) == []
    session.receive('{"type":"verify","cursor":0}')
    assert session.phase is Phase.CLOSED


def test_second_hello_closes_the_session() -> None:
    session = live_session()
    session.receive(HELLO)
    (error,) = sent_frames(session)
    assert isinstance(error, Error)
    assert "OPEN" in error.message
    assert session.phase is Phase.CLOSED


def test_hello_timeout_closes_only_a_session_without_hello() -> None:
    session = ServerSession()
    session.hello_timed_out()
    assert all_effects(session)[-1] == Close(4008, "hello-timeout")
    session_with_hello = live_session()
    session_with_hello.hello_timed_out()
    assert all_effects(session_with_hello) == []


def test_closed_session_ignores_all_input_and_sends_nothing() -> None:
    session = live_session()
    session.close(1000, "bye")
    assert all_effects(session) == [Close(1000, "bye")]
    assert session.receive('{"type":"verify","cursor":0}') is None
    session.publish(publication(11))
    session.deliver_out_of_band(out_of_band("u", "s"))
    session.close(1001, "again")
    assert all_effects(session) == []


def test_conversation_closed_during_authentication_stays_closed() -> None:
    session = ServerSession()
    session.receive(HELLO)
    session.close(1012, "going away")
    session.reading()
    assert session.phase is Phase.CLOSED
    assert all_effects(session) == [Close(1012, "going away")]
    assert opened(session, first_sync()) == []


def test_goaway_is_sent_before_pending_messages() -> None:
    session = live_session()
    session.publish(publication(11))
    session.go_away(1000)
    first, second = sent_frames(session)
    assert first == GoAway(1000)
    assert isinstance(second, Messages)


# Consuming


def consume(session: ServerSession, *messages: object) -> Store:
    frame = {"type": "consume", "n": 3, "messages": messages}
    request = session.receive(msgspec.json.encode(frame).decode())
    assert isinstance(request, Store)
    return request


def test_message_without_uid_gets_the_uid_of_the_session() -> None:
    creation = {"category": "a", "body": 1}
    request = consume(
        live_session(), {"creation": creation}, {"uid": "u", "system": "s", "body": None}
    )
    assert request.n == 3
    assert [e.uid for e in request.entries if not isinstance(e, Rejected)] == ["u", "u"]


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
        ({"creation": {"category": "a", "body": "x" * 70_000}}, "too-large", "creation.body"),
        ({"creation": {"category": "a", "body": 1}, "typo": 1}, "invalid", "typo"),
    ],
)
def test_invalid_message_is_rejected_alone(message: object, code: str, field: str | None) -> None:
    valid = {"creation": {"category": "a", "body": 1}}
    before, rejected, after = consume(live_session(), valid, message, valid).entries
    assert isinstance(rejected, Rejected)
    assert (rejected.error.code, rejected.error.field) == (code, field)
    assert isinstance(before, InBandMessage)
    assert isinstance(after, InBandMessage)


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_empty_or_too_large_consume_is_an_error_and_the_session_stays_open(size: int) -> None:
    session = live_session()
    frame = {"type": "consume", "n": 9, "messages": [{}] * size}
    assert session.receive(msgspec.json.encode(frame).decode()) is None
    (error,) = sent_frames(session)
    assert isinstance(error, Error)
    assert (error.code, error.n) == ("too-large", 9)
    assert session.phase is Phase.OPEN


def test_malformed_frame_is_an_error_and_the_next_frame_is_processed() -> None:
    session = live_session()
    for text in ("{", "null", '{"type":"consume","n":"x","messages":[]}', "[" * 100_000):
        assert session.receive(text) is None
        (error,) = sent_frames(session)
        assert isinstance(error, Error)
        assert error.code == "malformed"
    assert consume(session, {"creation": {"category": "a", "body": 1}}).n == 3


def test_binary_frame_closes_the_session() -> None:
    session = live_session()
    assert session.receive(None) is None
    assert all_effects(session)[-1] == Close(4002, "protocol")


def test_outcomes_of_a_consume_are_acknowledged() -> None:
    session = live_session()
    session.stored(3, [Stored(create("u", "a", msg_id="m").stamp(11, 0)), Rejected(None, CONFLICT)])
    rejected = Result("rejected", error=Problem.of(CONFLICT))
    stored = Result("stored", "u", "m", 11, visible=True, dismissed=0)
    assert sent_frames(session) == [Ack(3, (stored, rejected))]


def test_consume_with_a_message_to_retry_is_retried_whole() -> None:
    session = live_session()
    message = create("u", "a", msg_id="m").stamp(11, 0)
    session.stored(3, [Stored(message), Rejected(message, Unavailable("the shard is down"))])
    (error,) = sent_frames(session)
    assert error == Error("unavailable", "the shard is down", Action.RETRY, n=3)


def test_unavailable_store_is_an_error_of_that_consume() -> None:
    session = live_session()
    session.unavailable(3, Unavailable("later"))
    (error,) = sent_frames(session)
    assert isinstance(error, Error)
    assert (error.n, error.code, error.action) == (3, "unavailable", "retry")


def test_device_that_reads_no_answers_is_disconnected() -> None:
    session = live_session()
    for n in range(10_000):
        session.unavailable(n, Unavailable("later"))
    effects = all_effects(session)
    assert len(effects) <= QUEUE_MESSAGES + 1
    assert effects[-1] == Close(4009, "the device does not read its answers")


# Publishing


def test_publications_that_continue_the_position_are_sent_in_one_frame() -> None:
    session = live_session(10)
    for ctime in (11, 12, 13):
        session.publish(publication(ctime))
    (frame,) = sent_frames(session)
    assert isinstance(frame, Messages)
    assert (frame.prev, frame.cursor) == (10, 13)
    assert [message.ctime for message in frame.messages] == [11, 12, 13]


def test_repeated_publication_is_sent_once() -> None:
    session = live_session(10)
    for ctime in (11, 11, 10, 9):
        session.publish(publication(ctime))
    (frame,) = sent_frames(session)
    assert isinstance(frame, Messages)
    assert [message.ctime for message in frame.messages] == [11]
    session.publish(publication(11))
    assert all_effects(session) == []


def test_gap_leads_to_a_sync_from_the_cursor_of_the_device() -> None:
    session = live_session(10)
    session.publish(publication(11))
    session.publish(publication(13))
    assert all_effects(session) == [CatchUp(10)]
    assert session.lagging


def test_gap_repair_that_starts_before_the_position_leads_to_a_sync() -> None:
    """It leaves out dismissals of items that were created within it, but this device may already
    have received those items."""
    session = live_session(10)
    session.publish(Publication.span(8, (), 12))
    assert all_effects(session) == [CatchUp(10)]


def test_gap_repair_that_continues_the_position_is_sent() -> None:
    session = live_session(10)
    message = create("u", "a", msg_id="m").stamp(12, 11)
    session.publish(Publication.span(10, (message,), 14))
    assert sent_frames(session) == [Messages(10, (message,), 14)]


def test_creation_for_another_device_is_left_out_but_its_dismissal_is_sent() -> None:
    session = live_session(10)
    session.publish(
        Publication.of(Stored(create("u", "a", "secret", device_id="d2", msg_id="x").stamp(11, 10)))
    )
    update = put("u", "a", "secret", device_id="d2", msg_id="y").stamp(12, 11)
    update = structs.replace(update, dismissal=Dismissal(("x",)))
    session.publish(Publication.of(Stored(update)))
    (frame,) = sent_frames(session)
    assert isinstance(frame, Messages)
    (reduced,) = frame.messages
    assert (reduced.creation, reduced.dismissal) == (None, update.dismissal)
    assert "secret" not in encode(frame)


def test_publications_during_a_catch_up_are_sent_after_the_sync() -> None:
    session = catching_up_session()
    for ctime in (11, 12, 13):
        session.publish(publication(ctime))
    assert all_effects(session) == []
    session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    sync, after = sent_frames(session)
    assert isinstance(sync, SyncPage)
    assert isinstance(after, Messages)
    assert (after.prev, after.cursor) == (12, 13)
    assert [message.ctime for message in after.messages] == [13]


def test_gap_after_the_sync_leads_to_another_catch_up() -> None:
    session = catching_up_session()
    session.publish(publication(14))
    session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    sync, catch_up = all_effects(session)
    assert isinstance(sync, Send)
    assert catch_up == CatchUp(12)


@pytest.mark.parametrize("catching_up", [False, True])
def test_slow_consumer_is_reset_and_synced_from_the_store(catching_up: bool) -> None:
    session = catching_up_session(cursor=10) if catching_up else live_session(10)
    for ctime in range(11, 11 + QUEUE_MESSAGES):
        session.publish(publication(ctime))
    assert session.slow_consumer_resets == 0
    session.publish(publication(11 + QUEUE_MESSAGES))
    assert session.slow_consumer_resets == 1
    if catching_up:
        session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    assert all_effects(session)[-1] == CatchUp(12 if catching_up else 10)


def test_new_device_whose_queue_is_full_during_its_first_sync_gets_one_snapshot() -> None:
    session = reading_session(HELLO.replace(":7", ":0"))
    for ctime in range(1, 3 + QUEUE_MESSAGES):
        session.publish(publication(ctime))
    assert session.slow_consumer_resets == 1
    session.opened("u", Sync(Snapshot(), 100, 150, hash_of(())), 150, HOLDS_FOREVER)
    assert all_effects(session)[-1] == CatchUp(100)


def test_queue_is_limited_in_bytes() -> None:
    session = live_session(10)
    body = "x" * 60_000
    for ctime in range(11, 11 + QUEUE_BYTES // 60_000 + 1):
        session.publish(publication(ctime, body=body))
    assert session.slow_consumer_resets == 1
    assert all_effects(session) == [CatchUp(10)]


def test_fast_consumer_is_never_reset() -> None:
    session = live_session(10)
    for ctime in range(11, 11 + 3 * QUEUE_MESSAGES):
        session.publish(publication(ctime, body="x" * 10_000))
        assert len(sent_frames(session)) == 1
    assert session.slow_consumer_resets == 0


# Out of band


def test_out_of_band_message_is_sent_before_pending_messages() -> None:
    session = live_session(10)
    session.publish(publication(11))
    session.deliver_out_of_band(out_of_band("u", "typing", {"room": 7}))
    first, second = sent_frames(session)
    assert isinstance(first, OutOfBand)
    assert isinstance(second, Messages)


def test_slow_consumer_misses_out_of_band_messages() -> None:
    session = live_session(10)
    for _ in range(20):
        session.deliver_out_of_band(out_of_band("u", "s", "x" * 60_000))
    assert 0 < len(sent_frames(session)) * 60_000 <= QUEUE_BYTES
    session.deliver_out_of_band(out_of_band("u", "s", "x" * 60_000))
    assert len(sent_frames(session)) == 1


def test_out_of_band_messages_during_a_sync_count_towards_the_queue() -> None:
    session = catching_up_session()
    for _ in range(20):
        session.deliver_out_of_band(out_of_band("u", "s", "x" * 60_000))
    session.synced(Sync(Changes(()), 12, 50, hash_of(())))
    for _ in range(20):  # the sync has not reset the size of what is queued
        session.deliver_out_of_band(out_of_band("u", "s", "x" * 60_000))
    sent = sum(isinstance(frame, OutOfBand) for frame in sent_frames(session))
    assert sent * 60_000 <= QUEUE_BYTES


# Verifying


def test_verify_reads_from_the_cursor_in_the_frame() -> None:
    for cursor in (0, 5):
        session = live_session(10)
        session.receive(f'{{"type":"verify","cursor":{cursor}}}')
        assert all_effects(session) == [CatchUp(cursor)]


def test_verify_during_a_sync_is_answered_after_its_last_page() -> None:
    session = catching_up_session()
    items = tuple(create("u", "a", msg_id=f"m{n}").stamp(n, n - 1) for n in range(8, 1300))
    session.synced(Sync(Changes(items), 1300, 50, hash_of(())))
    first = session.next()
    assert isinstance(first, Send)
    session.receive('{"type":"verify","cursor":0}')
    *pages, catch_up = all_effects(session)
    assert [
        page.frame.more
        for page in pages
        if isinstance(page, Send) and isinstance(page.frame, SyncPage)
    ] == [True, False]
    assert catch_up == CatchUp(0)


def test_empty_snapshot_is_sent_as_one_page() -> None:
    session = catching_up_session(cursor=0)
    session.synced(Sync(Snapshot(), 12, 50, hash_of(())))
    assert sent_frames(session) == [SyncPage("snapshot", 0, 12, 50, hash_of(()))]


def test_creation_that_is_dead_when_it_is_stored_is_not_sent() -> None:
    """What it has replaced is, and the cursor passes it."""
    session = live_session(10)
    dead = create("u", "a", msg_id="x").stamp(11, 10)
    update = put("u", "a", 1, msg_id="y").stamp(12, 11)
    session.publish(Publication.of(Stored(dead, dead=True)))
    session.publish(Publication.of(Stored(update, dead=True, replaced="m")))
    (frame,) = sent_frames(session)
    assert isinstance(frame, Messages)
    assert (frame.prev, frame.cursor) == (10, 12)
    (sent,) = frame.messages
    assert (sent.creation, sent.dismissal) == (None, Dismissal(("m",)))


def test_messages_with_only_a_dismissal_are_sent() -> None:
    session = live_session(10)
    for ctime, message in ((11, dismiss("u", "m")), (12, dismiss_category("u", "a", prefix=True))):
        session.publish(Publication.of(Stored(message.stamp(ctime, ctime - 1))))
    (frame,) = sent_frames(session)
    assert isinstance(frame, Messages)
    assert len(frame.messages) == 2


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"consume","n":7,"messages":5}',
        '{"type":"consume","n":7,"messages":[],"colour":"red"}',
        '{"type":"consume","n":7,"messages":[NaN],"colour":"red"}',
        '{"type":"consume","n":7,"messages":[{"uid":"not closed}]}',
        '{"n":7,"messages":[],"type":"consume"',
        '{"type":"consume","n":7,"messages":[]}',
        '{"type":"consume","n":7,"messages":[{}],"messages":[NaN}',
    ],
)
def test_error_about_a_consume_carries_its_number(frame: str) -> None:
    session = live_session()
    assert session.receive(frame) is None
    errors = [e.frame for e in all_effects(session) if isinstance(e, Send)]
    assert [e.n for e in errors if isinstance(e, Error)] == [7]


def test_device_connects_again_if_the_store_has_lost_what_it_received() -> None:
    """Devices go back with the first sync of a connection only."""
    session = live_session(position=5)
    session.sync_again()
    assert all_effects(session) == [CatchUp(5)]
    session.synced(Sync(Snapshot(()), 4, 20, "h"))
    assert [type(effect) for effect in all_effects(session)] == [Send, Close]


def test_session_that_reads_the_store_does_not_sync_twice() -> None:
    session = catching_up_session()
    session.sync_again()
    session.synced(Sync(Changes(()), 10, 10, "h"))
    assert CatchUp not in map(type, all_effects(session))


# Erasure

EPOCH = 20 * SECOND + 7
ERASED = Erasure(EPOCH, 20 * SECOND + 5)
LATER = 21 * SECOND  # when a token was issued that holds
TOLD_AND_CLOSED = [Send(UserErased(EPOCH, "u")), Close(4010, "erased")]


def greeted(epoch: object, *, erasure: Erasure = ERASED, issued_at: int | None) -> ServerSession:
    """A session whose device has sent a hello with this epoch (`left out`: with none)."""
    known = "" if epoch == "left out" else f',"epoch":{epoch}'
    session = reading_session(HELLO[:-1] + known + "}")
    session.opened("u", first_sync(10, erasure), 50, issued_at)
    return session


def resumed(epoch: object, *, erasure: Erasure = ERASED, issued_at: int | None) -> ServerSession:
    """The same, whose transport has said it."""
    session = ServerSession()
    session.resume("d1", 7, epoch if isinstance(epoch, int) else None)
    session.reading()
    session.opened("u", first_sync(10, erasure), 50, issued_at)
    return session


def answer(session: ServerSession) -> object:
    """What the device was sent first."""
    effect = session.next()
    assert isinstance(effect, Send)
    match effect.frame:
        case Error(code=code):
            return code
        case frame:
            return type(frame)


BEGINNINGS = {"hello": greeted, "resume": resumed}
OLD_TOKENS = {"unknown": None, "before": 19 * SECOND, "same second": ERASED.erased_at + 1}
TOKENS = {**OLD_TOKENS, "later": LATER, "open": HOLDS_FOREVER}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("epoch", ["left out", "null", 0, EPOCH - 1, EPOCH, EPOCH + 1])
@pytest.mark.parametrize("token", TOKENS)
def test_first_answer_depends_on_the_epoch_and_then_on_the_token(
    begin: Callable[..., ServerSession], epoch: object, token: str
) -> None:
    session = begin(epoch, issued_at=TOKENS[token])
    if epoch in (0, EPOCH - 1):
        assert all_effects(session) == TOLD_AND_CLOSED
    elif token in OLD_TOKENS:
        assert answer(session) == "unauthenticated"
        assert all_effects(session) == [Close(4001, "unauthenticated")]
    else:
        assert answer(session) is Welcome
        if epoch == EPOCH + 1:
            assert session.next() == CatchUp(0)
        else:
            assert answer(session) is SyncPage


@pytest.mark.parametrize("issued_at", [None, 0])
def test_every_token_holds_if_the_user_was_never_erased(issued_at: int | None) -> None:
    assert answer(greeted(0, erasure=Erasure(), issued_at=issued_at)) is Welcome


def test_welcome_has_the_epoch_of_the_user() -> None:
    effect = greeted("left out", issued_at=LATER).next()
    assert isinstance(effect, Send)
    assert isinstance(effect.frame, Welcome)
    assert effect.frame.epoch == EPOCH


@pytest.mark.parametrize("epoch", ['"5"', "-1", "1.5", "true", "9007199254740992"])
def test_hello_whose_epoch_is_no_ctime_closes_the_session(epoch: str) -> None:
    session = ServerSession()
    assert session.receive(HELLO[:-1] + f',"epoch":{epoch}}}') is None
    assert answer(session) == "protocol"


def synced_at(epoch: int) -> ServerSession:
    """An open session of a user with this epoch, whose device is synced."""
    session = greeted("left out", erasure=Erasure(epoch, epoch), issued_at=HOLDS_FOREVER)
    all_effects(session)
    return session


def test_device_of_a_user_who_is_erased_is_told_after_what_is_to_be_answered() -> None:
    session = synced_at(0)
    session.publish(publication(11))
    session.stored(3, [])
    session.erased(EPOCH)
    assert all_effects(session) == [Send(Ack(3, ())), *TOLD_AND_CLOSED]
    session.erased(EPOCH + 1)
    assert all_effects(session) == []


@pytest.mark.parametrize("known", [EPOCH, EPOCH + 1])
def test_erase_that_the_device_knows_changes_nothing(known: int) -> None:
    session = synced_at(known)
    session.erased(EPOCH)
    assert all_effects(session) == []


@pytest.mark.parametrize("read", [0, EPOCH - 1, EPOCH, EPOCH + 1])
def test_device_is_told_of_an_erase_while_its_first_sync_was_read(read: int) -> None:
    session = reading_session()
    session.erased(EPOCH)
    session.erased(EPOCH - 1)
    session.opened("u", first_sync(10, Erasure(read)), 50, HOLDS_FOREVER)
    assert answer(session) is Welcome
    told = all_effects(session)
    assert (told == TOLD_AND_CLOSED) == (read < EPOCH), "which the sync does not know yet"


def test_erase_that_was_not_heard_of_is_found_by_the_next_sync() -> None:
    session = catching_up_session()
    session.synced(Sync(Snapshot(), EPOCH, 50, hash_of(()), EPOCH))
    assert all_effects(session) == TOLD_AND_CLOSED


def test_first_sync_of_a_restored_backup_is_read_again_from_the_beginning() -> None:
    session = reading_session(HELLO[:-1] + f',"epoch":{EPOCH}}}')
    session.publish(publication(11))
    session.opened("u", first_sync(10), 50, HOLDS_FOREVER)
    _, catch_up = all_effects(session)
    assert catch_up == CatchUp(0)


def test_sync_of_an_earlier_epoch_makes_the_device_connect_again() -> None:
    session = greeted("left out", issued_at=LATER)
    all_effects(session)
    session.synced(Sync(Snapshot(), 10, 50, hash_of(()), EPOCH - 1))
    assert answer(session) == "unavailable"
    assert all_effects(session) == [Close(1013, "unavailable")]


@pytest.mark.parametrize("others", [[], [Stored(create("u", "a", msg_id="m").stamp(11, 10))]])
def test_message_of_before_the_erase_is_answered_by_the_frame_and_by_no_ack(
    others: list[Stored],
) -> None:
    session = synced_at(0)
    erased = Rejected(create("u", "a", msg_id="x"), Erased("erased", epoch=EPOCH))
    session.stored(3, [*others, erased])
    assert all_effects(session) == TOLD_AND_CLOSED


def test_message_of_a_later_epoch_makes_the_device_connect_again() -> None:
    session = synced_at(EPOCH)
    session.stored(3, [Rejected(create("u", "a"), Resync("the store is older"))])
    assert answer(session) == "unavailable"
    assert all_effects(session) == [Close(1013, "unavailable")]


REFUSALS: dict[GregorError, object] = {
    Erased("erased", epoch=EPOCH): UserErased,
    HistoryForgotten("forgotten"): "history-forgotten",
    Unavailable("down"): "unavailable",
}


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: error.code)
def test_session_refuses_with_the_frame_of_the_error_and_closes(error: GregorError) -> None:
    session = synced_at(0)
    session.refuse(error)
    assert answer(session) == REFUSALS[error]
    assert all_effects(session) == [Close(error.close_code, error.code)]
