"""What a frame costs a device is proportional to the frame, not to what is live. Instructions are
counted, not time; the client is a whole one, with its store and a subscriber."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import pytest
from msgspec import structs

from gregor.client import Client
from gregor.client.connection import Transport
from gregor.client.replica import Replica, events_between
from gregor.client.store import changed_records
from gregor.core.admission import EARLIEST_TIME
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    Dismissal,
    InBandMessage,
    Range,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.core.state import Item
from gregor.core.sync import Snapshot
from gregor.protocol.frames import PAGE_BYTES, Result
from tests.steps import counting_python_steps, python_steps

NOW = 1_600_000_000 * SECOND

Operation: TypeAlias = Callable[[Client, int], Awaitable[object]]

FRAMES: dict[str, Callable[[], InBandMessage]] = {
    "creation": lambda: create("u", "b"),
    "creation_that_expires": lambda: create("u", "b", expires=TimeOrOffset(time=NOW + SECOND)),
    "dismissal": lambda: dismiss("u", "i7"),
    "replacement": lambda: put("u", "c.7.x", 1, key="k7"),
    "dismissal_of_prefix": lambda: dismiss_category("u", "c.7.", prefix=True),
    "dismissal_of_key": lambda: dismiss_key("u", "k7"),
}


async def unreachable() -> Transport:
    raise OSError("there is no network")


def items(size: int) -> tuple[Item, ...]:
    messages = (
        put(
            "u",
            f"c.{n}.x",
            key=f"k{n}",
            msg_id=f"i{n}",
            starts=None if n % 2 else TimeOrOffset(time=EARLIEST_TIME),
            expires=TimeOrOffset(time=NOW + n * SECOND),
        ).stamp(n + 1, n)
        for n in range(1, size)
    )
    return tuple(item for message in messages if (item := Item.of(message)) is not None)


def device(size: int) -> tuple[Client, Snapshot]:
    client = Client("", "token", device_id="d", connect=unreachable, clock=lambda: NOW)
    return client, Snapshot(items(size))


async def cost(size: int, operation: Operation) -> int:
    """The steps of an operation on a device with so many live items."""
    client, snapshot = device(size)
    async with client, client.events() as events:
        await client.change(lambda replica, now: replica.apply_snapshot(snapshot, size))
        events.take_pending()
        with counting_python_steps() as steps:
            await operation(client, size)
        assert events.take_pending()
        return steps()


def received(message: InBandMessage) -> Operation:
    def operation(client: Client, cursor: int) -> Awaitable[object]:
        messages = [message.stamp(cursor + 1, cursor)]
        return client.change(lambda replica, now: replica.apply(messages, cursor + 1), messages)

    return operation


@pytest.mark.parametrize("name", FRAMES)
async def test_cost_of_a_frame_does_not_grow_with_what_is_live(name: str) -> None:
    few, many = [await cost(size, received(FRAMES[name]())) for size in (100, 1_000)]
    assert 0 < many < 2 * few


@pytest.mark.parametrize(
    "operation",
    [
        lambda client, _: client.create("b"),
        lambda client, _: client.put("b", key="k7"),
        lambda client, _: client.snooze("i7", "1s"),
        lambda client, _: client.dismiss("i7"),
        lambda client, _: client.dismiss_key("k7"),
        lambda client, _: client.dismiss_category("c.7.x"),
        lambda client, _: client.hide("i7"),
    ],
    ids=["create", "put", "snooze", "dismiss", "dismiss_key", "dismiss_category", "hide"],
)
async def test_cost_of_a_write_does_not_grow_with_what_is_live(
    operation: Operation,
) -> None:
    few, many = [await cost(size, operation) for size in (100, 1_000)]
    assert 0 < many < 2 * few


OUTBOXES: dict[str, Callable[[int], InBandMessage]] = {
    "creations": lambda n: create("u", f"c{n % 7}", msg_id=f"o{n}"),
    "creations_that_expire": lambda n: create("u", "c", expires="1h", msg_id=f"o{n}"),
    "puts_of_different_keys": lambda n: put("u", "c", key=f"k{n}", msg_id=f"o{n}"),
    "puts_of_one_key": lambda n: put("u", "c", key="k", msg_id=f"o{n}"),
    "puts_of_one_key_in_two_scopes": lambda n: put(
        "u", "c", key="k", device_id="d" if n % 2 else None, msg_id=f"o{n}"
    ),
    "dismissals": lambda n: dismiss("u", f"i{n}", msg_id=f"o{n}"),
    "dismissals_of_keys": lambda n: dismiss_key("u", f"k{n}", msg_id=f"o{n}"),
    "dismissals_of_keys_that_end": lambda n: dismiss_key(
        "u", f"k{n}", end_time=TimeOrOffset(time=EARLIEST_TIME), msg_id=f"o{n}"
    ),
    "puts_after_a_dismissal_of_their_key": lambda n: (
        put("u", "c", key="k", msg_id=f"o{n}") if n else dismiss_key("u", "k", msg_id="o0")
    ),
    "creations_after_a_dismissal_of_their_category": lambda n: (
        create("u", "c", msg_id=f"o{n}") if n else dismiss_category("u", "c", msg_id="o0")
    ),
}


@pytest.mark.parametrize("name", OUTBOXES)
def test_cost_of_sending_the_outbox_is_proportional_to_it(name: str) -> None:
    def work(size: int) -> Callable[[], object]:
        replica = Replica("d", "u").apply_snapshot(Snapshot(items(size)), size)
        for n in range(size):
            replica = replica.write(OUTBOXES[name](n), NOW)
        return lambda: send_outbox(replica, 20)

    assert python_steps(work(400)) < 6 * python_steps(work(100))


def send_outbox(replica: Replica, size: int) -> None:
    """Send the outbox in windows of this size, each of which is acknowledged and then sent back,
    and save and show what that changes."""
    while window := replica.window(size, PAGE_BYTES):
        ctimes = range(NOW + replica.cursor, NOW + replica.cursor + len(window))
        results = [
            Result("stored", "u", message.msg_id, ctime, visible=message.creation is not None)
            for message, ctime in zip(window, ctimes, strict=True)
        ]
        acknowledged = replica.apply_results(list(zip(window, results, strict=True)))
        look_at_changes(replica, acknowledged)
        stored = [m.stamp(ctime, ctime - 1) for m, ctime in zip(window, ctimes, strict=True)]
        replica = acknowledged.apply(stored, ctimes[-1])
        look_at_changes(acknowledged, replica)


def look_at_changes(before: Replica, after: Replica) -> None:
    changed_records(before, after, after.changed)
    after.visible_among(after.changed, NOW)
    assert after.outbox.waiting_count <= before.outbox.waiting_count


def test_cost_of_telling_of_the_acknowledged_messages_is_proportional_to_them() -> None:
    """However many were acknowledged before the node tells of the first one."""

    def work(size: int) -> Callable[[], object]:
        replica = Replica("d", "u").apply_snapshot(Snapshot(items(size)), size)
        for n in range(size):
            replica = replica.write(put("u", "c", key=f"k{n % 7}", msg_id=f"o{n}"), NOW)
        sent = replica.unsent()
        results = [Result("stored", "u", m.msg_id, NOW + n) for n, m in enumerate(sent)]
        replica = replica.apply_results(list(zip(sent, results, strict=True)))
        return lambda: tell_one_by_one(replica, sent)

    assert python_steps(work(400)) < 6 * python_steps(work(100))


def tell_one_by_one(replica: Replica, sent: Sequence[InBandMessage]) -> None:
    for n, message in enumerate(sent):
        told = replica.apply([message.stamp(NOW + n, NOW + n - 1)], NOW + n)
        look_at_changes(replica, told)
        replica = told


def test_cost_of_a_comparison_of_hashes_does_not_grow_with_what_is_live() -> None:
    def work(size: int) -> Callable[[], object]:
        replica = Replica("d", "u").apply_snapshot(Snapshot(items(size)), size)
        hash_ = replica.facts.hash("d", NOW + 3 * SECOND)
        return lambda: _require(replica.hash_matches(NOW + 3 * SECOND, hash_))

    few, many = [python_steps(work(size)) for size in (100, 1_000)]
    assert 0 < many < 2 * few


def _require(condition: bool) -> None:
    assert condition


def test_reasons_of_dismissals_cost_the_sum_of_messages_and_items() -> None:
    def work(size: int) -> Callable[[], object]:
        before = {item.msg_id: item for item in items(size)}
        messages: Sequence[InBandMessage] = [
            *(put("u", "c", n, key=f"k{n}") for n in range(size)),
            *(update(f"c.{n}.x") for n in range(size)),
        ]
        return lambda: events_between(before, {}, 0, messages)

    assert python_steps(work(400)) < 6 * python_steps(work(100))


def update(category: str) -> InBandMessage:
    """A message that dismisses a category, and creates an item of it."""
    dismissal = Dismissal(ranges=(Range(category),))
    return structs.replace(create("u", category), dismissal=dismissal)
