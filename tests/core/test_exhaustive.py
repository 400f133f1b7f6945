"""Every history of up to four messages over a small alphabet, in every order."""

from collections.abc import Callable, Iterator
from itertools import product

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    DeviceID,
    Dismissal,
    InBandMessage,
    MsgID,
    Range,
    create,
    dismiss,
    dismiss_category,
    replace,
)
from gregor.core.state import Facts
from gregor.testing import oracle
from tests.core.test_laws import messages_since, names

LENGTH = 4
STEP = 10

History = tuple[InBandMessage, ...]
Letter = Callable[[int], InBandMessage]


def id_of(place: int) -> MsgID:
    return f"m{place % LENGTH}"


def update(place: int) -> InBandMessage:
    """Creates an item on one device, and dismisses the one before it."""
    ranges = (Range("b", TimeOrOffset(offset=-STEP)),)
    return InBandMessage(
        "u",
        id_of(place),
        device_id="d1",
        creation=create("u", "a.b", dtime=TimeOrOffset(time=45)).creation,
        dismissal=Dismissal((id_of(place - 1),), ranges),
    )


ALPHABET: tuple[Letter, ...] = (
    lambda place: create("u", "a", msg_id=id_of(place)),
    lambda place: create("u", "b", dtime=TimeOrOffset(offset=15), msg_id=id_of(place)),
    lambda place: dismiss("u", id_of(place - 1), msg_id=id_of(place)),
    lambda place: dismiss("u", id_of(place + 1), "nobody", msg_id=id_of(place)),
    lambda place: dismiss_category("u", "b", msg_id=id_of(place)),
    lambda place: dismiss_category(
        "u", "a", prefix=True, end_time=30, skip_msg_ids=("m1",), msg_id=id_of(place)
    ),
    lambda place: replace("u", "a", place, msg_id=id_of(place)),
    update,
)


def all_histories(length: int = LENGTH) -> Iterator[History]:
    for letters in product(ALPHABET, repeat=length):
        drafts = [letter(place) for place, letter in enumerate(letters)]
        yield tuple(
            draft.stamp((place + 1) * STEP, place * STEP) for place, draft in enumerate(drafts)
        )


def test_every_order_of_arrival_gives_the_same_facts() -> None:
    # If whatever comes last makes no difference to what a set of messages amounts to, for every
    # set, then no order does: that is far fewer replays than there are orders.
    for history in all_histories():
        by_set: dict[int, Facts] = {0: Facts()}
        for members in range(1, 2**LENGTH):
            reached = [
                by_set[members - (1 << place)].replay(message)
                for place, message in enumerate(history)
                if members & 1 << place
            ]
            by_set[members] = reached[0]
            assert all(facts == reached[0] for facts in reached), history


def test_every_state_is_what_the_definition_says_at_every_time() -> None:
    ats: tuple[Time, ...] = (9, 10, 20, 25, 30, 40, 45)
    for history in all_histories():
        facts = Facts().replay_all(history)
        for device_id in (None, "d2"):
            shown = names(facts.state(device_id, 44))
            assert shown == oracle.visible(history, device_id, 44), history
        for at in ats:
            assert names(facts.state_at(None, at)) == oracle.visible(history, None, 0, at), history


def test_every_replica_is_brought_to_the_present_from_every_cursor() -> None:
    replicas: tuple[DeviceID | None, ...] = (None, "d1", "d2")
    for history in all_histories():
        for device_id, known in product(replicas, range(LENGTH + 1)):
            start = history[known].ctime if known < LENGTH else 99
            replica = Facts().replay_all(history[:known])
            replica = replica.replay_all(messages_since(history, device_id, start, 44))
            expected = oracle.visible(history, device_id, 44)
            assert names(replica.state(device_id, 44)) == expected, history
