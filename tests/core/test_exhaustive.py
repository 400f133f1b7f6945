"""Every history of up to four messages over a small alphabet, in every order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import msgspec

from gregor.core.facts import Facts
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    Creation,
    DeviceID,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    MsgID,
    Range,
    create,
    dismiss,
    put,
    raw,
)
from gregor.core.sync import EXPIRY_GRACE, After, Since
from gregor.testing import oracle
from tests.core.test_history import Remembered
from tests.core.test_laws import ctimes_and_ids, replay_on_device

LENGTH = 4
STEP = 10

History = tuple[InBandMessage, ...]
MessageMaker = Callable[[int], InBandMessage]
"""Makes the message at an index of a history."""


def id_of(index: int) -> MsgID:
    return f"m{index % LENGTH}"


def update(index: int) -> InBandMessage:
    """Creates an item on one device, and dismisses the one before it."""
    ranges = (Range("b", TimeOrOffset(offset=-STEP)),)
    return InBandMessage(
        "u",
        id_of(index),
        device_id="d1",
        creation=Creation("a.b", raw(None), TimeOrOffset(time=45)),
        dismissal=Dismissal((id_of(index - 1),), ranges),
    )


def put_and_dismiss_own_category(index: int) -> InBandMessage:
    """Puts an item on one device, which its own range and key do not reach."""
    dismissal = Dismissal(ranges=(Range("a", prefix=True),), keys=(KeyDismissal("k"),))
    return msgspec.structs.replace(
        put("u", "a", index, key="k", device_id="d1", msg_id=id_of(index)), dismissal=dismissal
    )


ALPHABET: tuple[MessageMaker, ...] = (
    lambda index: create("u", "a", msg_id=id_of(index)),
    lambda index: InBandMessage(
        "u", id_of(index), creation=Creation("b", raw(None), TimeOrOffset(offset=15))
    ),
    lambda index: dismiss(
        "u", id_of(index - 1), id_of(index + 1), "never created", msg_id=id_of(index)
    ),
    lambda index: InBandMessage(
        "u",
        id_of(index),
        dismissal=Dismissal(ranges=(Range("a", TimeOrOffset(time=30), ("m1",), prefix=True),)),
    ),
    update,
    lambda index: put("u", "a", index, key="k", msg_id=id_of(index)),
    lambda index: InBandMessage(
        "u",
        id_of(index),
        creation=Creation(
            "a", raw(None), TimeOrOffset(offset=25), TimeOrOffset(offset=STEP), key="k"
        ),
    ),
    put_and_dismiss_own_category,
    lambda index: InBandMessage(
        "u",
        id_of(index),
        device_id="d2",
        dismissal=Dismissal(keys=(KeyDismissal("k", TimeOrOffset(offset=-STEP)),)),
    ),
    lambda index: InBandMessage(
        "u",
        id_of(index),
        device_id="d2",
        dismissal=Dismissal(ranges=(Range("a", TimeOrOffset(time=99), scheduled=True),)),
    ),
)


def all_histories(length: int = LENGTH) -> Iterator[History]:
    choices = [
        [make(index).stamp((index + 1) * STEP, index * STEP) for make in ALPHABET]
        for index in range(length)
    ]
    return product(*choices)


def distinct(answers: Iterable[Sequence[InBandMessage]]) -> list[Sequence[InBandMessage]]:
    """Without repetitions: the same messages give the same replicas."""
    found: list[Sequence[InBandMessage]] = []
    for answer in answers:
        if answer not in found:
            found.append(answer)
    return found


def test_every_order_of_arrival_gives_the_same_facts() -> None:
    # If, for every set of messages, the facts do not depend on which message arrives last, then by
    # induction they depend on no order. This needs far fewer replays than all orders.
    for history in all_histories():
        facts_of: dict[int, Facts] = {0: Facts()}  # by set of messages, as a bit mask
        for bits in range(1, 2**LENGTH):
            results = [
                facts_of[bits - (1 << index)].replay(message)
                for index, message in enumerate(history)
                if bits & 1 << index
            ]
            facts_of[bits] = results[0]
            assert all(facts == results[0] for facts in results), history


def test_state_equals_the_oracle_at_every_time() -> None:
    times: tuple[Time, ...] = (9, 10, 20, 25, 30, 40, 45)
    for history in all_histories():
        facts = Facts().replay_all(history)
        for device_id in (None, "d2"):
            visible = ctimes_and_ids(facts.state(device_id, 44))
            assert visible == oracle.visible(history, device_id, 44), history
        for at in times:
            visible = ctimes_and_ids(facts.state_at(None, at))
            assert visible == oracle.visible(history, None, 0, at), history


def test_messages_since_bring_every_replica_from_every_start_to_the_present() -> None:
    replicas: tuple[DeviceID | None, ...] = (None, "d1", "d2")
    now = 44 + EXPIRY_GRACE
    for history in all_histories():
        whole = Remembered.of(history)
        known = [Facts().replay_all(history[:size]) for size in range(LENGTH + 1)]
        for device_id in replicas:
            expected = oracle.visible(history, device_id, now)
            for last, facts in zip(range(0, (LENGTH + 1) * STEP, STEP), known, strict=True):
                starts = (Since(last), Since(last + 1), After(last))
                for sent in distinct(whole.messages_since(device_id, s, now) for s in starts):
                    for replica in (facts.replay_all(sent), replay_on_device(facts.pruned(), sent)):
                        assert ctimes_and_ids(replica.state(device_id, now)) == expected, history


def test_every_floor_keeps_what_is_asked_of_it_and_later() -> None:
    floors: tuple[Time, ...] = (10, 20, 25, 30, 40, 45)
    for history in all_histories():
        whole = Remembered.of(history)
        known = [Facts().replay_all(history[:size]) for size in range(LENGTH + 1)]
        kept = whole
        for floor in floors:
            before, kept = kept, kept.forgetting(floor)
            assert kept == whole.forgetting(floor), history
            gone = {m.msg_id for m in history} - {m.msg_id for m in kept.log}
            assert gone == oracle.past(history, floor), history
            if kept.log != before.log:
                assert_same_at_the_floor_and_later(whole.facts, kept.facts, floor)
                assert_who_knows_the_floor_is_told_the_present(history, known, kept, floor)


def assert_same_at_the_floor_and_later(whole: Facts, kept: Facts, floor: Time) -> None:
    assert kept.state(None, floor) == whole.state(None, floor)
    assert kept.hash("d2", floor) == whole.hash("d2", floor)
    for at in range(floor, 51, STEP):
        assert kept.state_at(None, at) == whole.state_at(None, at)


def assert_who_knows_the_floor_is_told_the_present(
    history: History, known: list[Facts], kept: Remembered, floor: Time
) -> None:
    """A device with any cursor that is not below both the floor and the clock, or with nothing."""
    now = 45 + EXPIRY_GRACE
    expected = oracle.visible(history, "d2", now)
    for size in {0, *range(min(-(-floor // STEP), LENGTH), LENGTH + 1)}:
        cursor = history[size - 1].ctime if size else 0
        sent = kept.messages_since("d2", After(cursor), now)
        replica = replay_on_device(known[size].pruned(), sent)
        assert ctimes_and_ids(replica.state("d2", now)) == expected, history


def test_every_history_may_be_stored_before_or_after_each_floor_rises() -> None:
    for history in all_histories():
        for size in range(1, LENGTH):
            floor = history[size - 1].ctime
            last = Remembered.of(history).forgetting(floor)
            first = Remembered.of(history[:size]).forgetting(floor).followed_by(history[size:])
            assert first.log == last.log, history
            assert first.facts.items == last.facts.items, history
            assert dict(first.facts.dismissed) == dict(last.facts.dismissed), history
