"""Every history of up to four messages over a small alphabet, in every order."""

from collections.abc import Callable, Iterator
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
from tests.core.test_laws import ctimes_and_ids, messages_since, replay_on_device

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
    for makers in product(ALPHABET, repeat=length):
        messages = [make(index) for index, make in enumerate(makers)]
        yield tuple(
            message.stamp((index + 1) * STEP, index * STEP)
            for index, message in enumerate(messages)
        )


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
        for device_id, known in product(replicas, range(LENGTH + 1)):
            last = history[known - 1].ctime if known else 0
            expected = oracle.visible(history, device_id, now)
            facts = Facts().replay_all(history[:known])
            for start in (Since(last), Since(last + 1), After(last)):
                sent = messages_since(history, device_id, start, now)
                for replica in (facts.replay_all(sent), replay_on_device(facts.pruned(), sent)):
                    assert ctimes_and_ids(replica.state(device_id, now)) == expected, history
