"""A node that refuses a consume for a while takes nothing that was written after it."""

import json
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.message import InBandMessage
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Sync
from gregor.errors import LimitExceeded, Unavailable
from gregor.interfaces import HOLDS_FOREVER, Stored
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.protocol.effects import Send
from gregor.protocol.frames import Ack, Error
from gregor.protocol.server_session import ServerSession, Store

BUSY = LimitExceeded("used up", limit="messages_per_second", maximum=1, retry_after_ms=100)
ALL = 10


class ScriptedRates:
    """Rates that take a consume or refuse it, as they are told; and any, when nothing is told."""

    def __init__(self, turns: list[bool]) -> None:
        self.turns = deque(turns)
        self.reported: list[str] = []

    def take_messages(self, uid: str, messages: int, size: int) -> LimitExceeded | None:
        takes = self.turns.popleft() if self.turns else True
        return None if takes else BUSY

    def take_sync(self, uid: str) -> LimitExceeded | None:
        return None

    def exceeded(self, error: LimitExceeded) -> LimitExceeded:
        self.reported.append(error.limit)
        return error


def opened(rates: ScriptedRates, limits: Limits = DEFAULT_LIMITS) -> ServerSession:
    session = ServerSession(limits, rates)
    session.resume("d", 0, None)
    session.reading()
    session.opened("u", Sync(Changes(()), 0, 1, hash_of(())), 1, HOLDS_FOREVER)
    answers(session)
    return session


def message(number: int) -> dict[str, object]:
    return {"msg_id": f"m{number}", "creation": {"category": "c", "body": number}}


def consume(n: int, *messages: dict[str, object]) -> str:
    return json.dumps({"type": "consume", "n": n, "messages": messages})


def answers(session: ServerSession) -> list[Ack | Error]:
    """What the node has to say now, but for syncs."""
    found = []
    while isinstance(effect := session.next(), Send):
        if isinstance(effect.frame, Ack | Error):
            found.append(effect.frame)
    return found


def stored(request: Store) -> list[Stored]:
    """The outcomes of a request whose messages are all stored."""
    entries = (entry for entry in request.entries if isinstance(entry, InBandMessage))
    return [Stored(entry.stamp(1, 0)) for entry in entries]


class PipeliningDevice:
    """Sends consumes of one message each without waiting for answers, and the refused ones again,
    in order, with the same numbers."""

    def __init__(self, rates: ScriptedRates, fails: list[bool]) -> None:
        self.session = opened(rates)
        self.stored: list[str] = []
        self.to_send = deque(range(1, ALL + 1))
        self._fails = deque(fails)

    def send(self) -> None:
        n = self.to_send.popleft()
        request = self.session.receive(consume(n, message(n)))
        if isinstance(request, Store):
            if self._fails and self._fails.popleft():
                self.session.unavailable(n, Unavailable("down"))
            else:
                self.stored += [outcome.message.msg_id for outcome in stored(request)]
                self.session.stored(n, stored(request))

    def read_answers(self) -> None:
        refused = [a.n for a in answers(self.session) if isinstance(a, Error) and a.n is not None]
        self.to_send = deque(sorted({*refused, *self.to_send}))


@given(
    st.lists(st.booleans(), max_size=30),
    st.lists(st.booleans(), max_size=30),
    st.lists(st.booleans(), max_size=60),
)
def test_law_what_is_refused_and_sent_again_is_stored_in_the_order_of_writing(
    takes: list[bool], fails: list[bool], reads: list[bool]
) -> None:
    device = PipeliningDevice(ScriptedRates(takes), fails)
    pauses = deque(reads)
    while device.to_send:
        device.send()
        if not device.to_send or (pauses and pauses.popleft()):
            device.read_answers()
    assert device.stored == [f"m{n}" for n in range(1, ALL + 1)]


@given(st.lists(st.booleans(), max_size=30), st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_law_after_a_refusal_nothing_is_taken_until_the_consume_comes_again(
    takes: list[bool], numbers: list[int]
) -> None:
    session = opened(ScriptedRates(takes))
    waits_for: int | None = None
    last_stored = 0
    for n in numbers:
        request = session.receive(consume(n, message(n)))
        if isinstance(request, Store):
            assert waits_for in (None, n)
            waits_for, last_stored = None, max(last_stored, n)
            session.stored(n, stored(request))
            assert [type(answer) for answer in answers(session)] == [Ack]
        else:
            if n > last_stored:  # what is stored need not come again
                waits_for = waits_for or n
            (error,) = answers(session)
            assert isinstance(error, Error)
            assert (error.n, error.code, error.retry_after_ms) == (n, "limit", 100)


def test_store_that_does_not_answer_is_waited_for_as_well() -> None:
    session = opened(ScriptedRates([]))
    assert isinstance(session.receive(consume(1, message(1))), Store)
    session.unavailable(1, Unavailable("down"))
    assert session.receive(consume(2, message(2))) is None
    assert [(a.n, a.code) for a in answers(session) if isinstance(a, Error)] == [
        (1, "unavailable"),
        (2, "unavailable"),
    ]
    assert isinstance(session.receive(consume(1, message(1))), Store)


def test_device_of_an_earlier_version_sends_the_same_with_the_next_number() -> None:
    session = opened(ScriptedRates([False, False]))
    assert session.receive(consume(1, message(1), message(2))) is None
    assert session.receive(consume(2, message(1), message(2))) is None
    assert isinstance(session.receive(consume(3, message(1), message(2), message(3))), Store)
    assert isinstance(session.receive(consume(4, message(4))), Store)


def test_nothing_waits_for_an_out_of_band_message_that_is_refused() -> None:
    session = opened(ScriptedRates([False]))
    assert session.receive(consume(1, {"system": "typing", "body": 1})) is None
    assert isinstance(session.receive(consume(2, message(1))), Store)


def test_refusal_for_good_does_not_hold_up_what_follows() -> None:
    session = opened(ScriptedRates([]), Limits(messages=1))
    assert session.receive(consume(1, message(1), message(2))) is None
    (error,) = answers(session)
    assert isinstance(error, Error)
    assert error.code == "too-large"
    assert isinstance(session.receive(consume(2, message(1))), Store)


@pytest.mark.parametrize("size", [0, 2])
def test_later_consume_of_a_wrong_size_is_answered_as_the_refused_one(size: int) -> None:
    session = opened(ScriptedRates([False]), Limits(messages=1))
    assert session.receive(consume(1, message(1))) is None
    assert session.receive(consume(2, *map(message, range(size)))) is None
    assert [(a.n, a.code) for a in answers(session) if isinstance(a, Error)] == [
        (1, "limit"),
        (2, "limit"),
    ]
    assert isinstance(session.receive(consume(1, message(1))), Store)


def test_device_that_does_not_read_its_answers_has_few_consumes_in_flight() -> None:
    rates = ScriptedRates([])
    session = opened(rates, Limits(consumes_in_flight=2))
    for n in (1, 2):
        request = session.receive(consume(n, message(n)))
        assert isinstance(request, Store)
        session.stored(n, stored(request))
    for n in (3, 4):
        assert session.receive(consume(n, message(n))) is None
    *acks, error, later = answers(session)
    assert [ack.n for ack in acks] == [1, 2]
    assert isinstance(error, Error)
    assert (error.limit, error.maximum, error.action) == ("consumes_in_flight", 2, "retry")
    assert isinstance(later, Error)
    assert (later.n, later.limit) == (4, "consumes_in_flight")
    assert rates.reported == ["consumes_in_flight"]
    assert isinstance(session.receive(consume(3, message(3))), Store)
