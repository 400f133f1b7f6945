"""Every history of up to four messages over a small alphabet, in every order."""

from collections.abc import Callable, Iterator
from itertools import product

from gregor.core.facts import Facts
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    Creation,
    DeviceID,
    Dismissal,
    InBandMessage,
    MsgID,
    Range,
    create,
    dismiss,
    dismiss_category,
    raw,
    replace,
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


ALPHABET: tuple[MessageMaker, ...] = (
    lambda index: create("u", "a", msg_id=id_of(index)),
    lambda index: InBandMessage(
        "u", id_of(index), creation=Creation("b", raw(None), TimeOrOffset(offset=15))
    ),
    lambda index: dismiss("u", id_of(index - 1), msg_id=id_of(index)),
    lambda index: dismiss("u", id_of(index + 1), "never created", msg_id=id_of(index)),
    lambda index: dismiss_category("u", "b", msg_id=id_of(index)),
    lambda index: InBandMessage(
        "u",
        id_of(index),
        dismissal=Dismissal(ranges=(Range("a", TimeOrOffset(time=30), ("m1",), prefix=True),)),
    ),
    lambda index: replace("u", "a", index, msg_id=id_of(index)),
    update,
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
