"""What every state machine of record promises: the docstrings of `gregor.interfaces`, executed.

Subclass it, name the class `Test…`, and give it the fixture `open_machine`:

    class TestMine(StateMachineConformance):
        @pytest.fixture
        def open_machine(self) -> OpenMachine:
            return my_machine  # my_machine(clock) is an async context manager

A machine that survives its process subclasses DurableStateMachineConformance instead, and what it
opens a second time must be the same store. Needs pytest, pytest-asyncio in auto mode and
Hypothesis, which opens a machine once for many examples; each is a user of its own in there.

Where the defects of the original Gregor are shown not to be ours (the numbers are those of our
reference of it; each test begins `test_dNN_`):

- D1 to D12, D15, D23, D25, D26: here, and what D15 costs in SQL in tests/storage/test_cost.py;
- D13, D14, D16, D17, D21, D22, D24, of the device: tests/client/test_defects.py;
- D18, D19, D20, D27, of the node: tests/server/test_defects.py.

It also holds the cases of the original's own engine suite by their names (`test_all_devices`,
`test_per_device`, …). Its reminders do not exist in ours.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import (
    UID,
    DeviceID,
    Dismissal,
    InBandMessage,
    MsgID,
    create,
    dismiss,
    dismiss_category,
    out_of_band,
    replace,
)
from gregor.core.state import Changes, Facts, Snapshot, State, Sync, hash_of
from gregor.errors import Conflict
from gregor.interfaces import (
    Duplicate,
    Outcome,
    Rejected,
    StateMachineOfRecord,
    Stored,
)
from gregor.state_machines.memory import MemoryStateMachine
from gregor.testing import oracle
from gregor.testing.clock import ManualClock
from gregor.testing.strategies import (
    History,
    devices,
    histories,
    messages,
    of_user,
    shuffled,
    times,
)

OpenMachine: TypeAlias = Callable[
    [Callable[[], Time]], AbstractAsyncContextManager[StateMachineOfRecord]
]

EPOCH = 1_600_000_000 * SECOND
BEGINNING = TimeOrOffset(time=0)

_numbers = count()


def new_uid() -> UID:
    """A user of whom nobody has heard."""
    return f"user-{next(_numbers)}"


def names(state: State) -> list[tuple[Time, MsgID]]:
    return [item.order() for item in state]


def shown(state: State) -> list[object]:
    """The bodies of what is visible, in order."""
    return [item.body for item in state]


def apply(replica: Facts, sync: Sync) -> Facts:
    """What a device does with a sync: changes are added, a snapshot takes the place of all."""
    match sync.content:
        case Changes(messages):
            return replica.replay_all(messages)
        case Snapshot() as snapshot:
            return snapshot.facts()


def heard_on(device_id: DeviceID | None, messages: Iterable[InBandMessage]) -> list[InBandMessage]:
    """What a node passes on of these messages to one device."""
    addressed = (message.addressed_to(device_id) for message in messages)
    return [message for message in addressed if message is not None]


async def consumed(machine: StateMachineOfRecord, message: InBandMessage) -> InBandMessage:
    """Consume, and return the message as it was stored."""
    stored = await machine.consume_message(message)
    assert isinstance(stored, InBandMessage)
    return stored


async def log_of(machine: StateMachineOfRecord, uid: UID) -> Sequence[InBandMessage]:
    return await machine.in_band_messages_since(uid, None, BEGINNING)


class StateMachineConformance:
    """One suite for all state machines of record."""

    @pytest.fixture
    def open_machine(self) -> OpenMachine:
        raise NotImplementedError("a subclass says how its machine is opened")

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock(EPOCH)

    @pytest.fixture
    def uid(self) -> UID:
        return new_uid()

    @pytest.fixture
    async def machine(
        self, open_machine: OpenMachine, clock: ManualClock
    ) -> AsyncIterator[StateMachineOfRecord]:
        async with open_machine(clock) as machine:
            yield machine

    # The laws

    @settings(max_examples=40)
    @given(histories().flatmap(lambda history: st.tuples(st.just(history), shuffled(history))))
    async def test_law_any_order_and_repetition_gives_the_same_state(
        self,
        machine: StateMachineOfRecord,
        clock: ManualClock,
        world: tuple[History, list[InBandMessage]],
    ) -> None:
        history, disordered = world
        clock.now, uid = EPOCH, new_uid()
        for message in of_user(uid, disordered):
            await machine.consume_message(message)
        for at in sorted({message.ctime for message in history}):
            for device_id in (None, "d1"):
                state = await machine.state(uid, device_id, TimeOrOffset(time=at))
                assert names(state) == oracle.visible(history, device_id, EPOCH, at)
        clock.now = 40
        assert names(await machine.state(uid)) == oracle.visible(history, None, 40)
        assert await machine.ctimes([uid]) == {uid: history[-1].ctime if history else 0}

    @settings(max_examples=60)
    @given(histories(), devices, times)
    async def test_law_past_states_are_exact(
        self,
        machine: StateMachineOfRecord,
        clock: ManualClock,
        history: History,
        device_id: DeviceID | None,
        at: Time,
    ) -> None:
        clock.now, uid = EPOCH, new_uid()
        await machine.consume_messages(of_user(uid, history))
        state = await machine.state(uid, device_id, TimeOrOffset(time=at))
        assert names(state) == oracle.visible(history, device_id, EPOCH, at)
        ago = TimeOrOffset(offset=at - EPOCH)
        assert await machine.state(uid, device_id, ago) == state

    @settings(max_examples=60)
    @given(histories(), devices, times, times)
    async def test_law_known_before_and_messages_since_make_the_present(
        self,
        machine: StateMachineOfRecord,
        clock: ManualClock,
        history: History,
        device_id: DeviceID | None,
        start: Time,
        now: Time,
    ) -> None:
        clock.now, uid = now, new_uid()
        await machine.consume_messages(of_user(uid, history))
        before = Facts().replay_all(message for message in history if message.ctime < start)
        since = await machine.in_band_messages_since(uid, device_id, TimeOrOffset(time=start))
        replica = before.replay_all(since).state(device_id, now)
        assert replica == await machine.state(uid, device_id)
        assert names(replica) == oracle.visible(history, device_id, now)

    @settings(max_examples=60)
    @given(histories(), devices, times, times, st.integers(0, 8))
    async def test_law_a_sync_brings_any_replica_to_the_present_and_it_stays_there(
        self,
        machine: StateMachineOfRecord,
        clock: ManualClock,
        history: History,
        device_id: DeviceID | None,
        cursor: Time,
        now: Time,
        stored: int,
    ) -> None:
        clock.now, uid = now, new_uid()
        past, to_come = of_user(uid, history[:stored]), of_user(uid, history[stored:])
        await machine.consume_messages(past)
        replica = Facts().replay_all(heard_on(device_id, [m for m in past if m.ctime <= cursor]))
        sync = await machine.sync(uid, device_id, cursor)
        replica = apply(replica.forget(cursor), sync)
        assert replica.state(device_id, sync.as_of).hash() == sync.hash
        assert names(replica.state(device_id, now)) == oracle.visible(past, device_id, now)
        await machine.consume_messages(to_come)
        replica = replica.forget(sync.cursor).replay_all(heard_on(device_id, to_come))
        assert replica.state(device_id, now) == await machine.state(uid, device_id)

    @settings(max_examples=80)
    @given(
        st.lists(
            st.tuples(times, st.lists(st.tuples(messages(), st.none() | times), max_size=4)),
            max_size=6,
        ),
        devices,
        times,
    )
    async def test_law_every_outcome_is_that_of_the_yardstick(
        self,
        machine: StateMachineOfRecord,
        clock: ManualClock,
        batches: list[tuple[Time, list[tuple[InBandMessage, Time | None]]]],
        device_id: DeviceID | None,
        start: Time,
    ) -> None:
        """New messages and replays mixed, ids and ctimes that collide, a clock that jumps."""
        uid, yardstick = new_uid(), MemoryStateMachine(clock)
        for now, batch in batches:
            clock.now = now
            sent = of_user(uid, [message.stamp(ctime or 0, 0) for message, ctime in batch])
            ours = await machine.consume_messages(sent)
            theirs = await yardstick.consume_messages(sent)
            assert [told(outcome) for outcome in ours] == [told(outcome) for outcome in theirs]
            for device in (None, device_id):
                ours_shown = await answers(machine, uid, device, start)
                assert ours_shown == await answers(yardstick, uid, device, start)

    # The promises of interfaces.py

    async def test_an_unknown_user_has_an_empty_state(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        assert await machine.state(uid) == State((), EPOCH)
        assert await machine.state(uid, "d1", TimeOrOffset(time=3)) == State((), 3)
        assert list(await log_of(machine, uid)) == []
        assert await machine.ctimes([uid]) == {uid: 0}
        sync = await machine.sync(uid, "d1", 0)
        assert sync == Sync(Snapshot(), 0, EPOCH, hash_of(()))

    async def test_a_message_comes_back_as_everyone_will_see_it(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        sent = create(uid, "inbox", {"n": 1}, device_id="d1", dtime="2099-01-01T00:00:00Z")
        stored = await consumed(machine, sent)
        assert stored == sent.stamp(EPOCH, 0)
        assert list(await log_of(machine, uid)) == [stored]

    async def test_an_out_of_band_message_passes_and_leaves_nothing(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        message = out_of_band(uid, "typing", {"in": "room"})
        assert await machine.consume_message(message) == message
        assert await machine.ctimes([uid]) == {uid: 0}
        assert list(await log_of(machine, uid)) == []

    async def test_a_message_that_is_sent_twice_is_stored_once(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        sent = replace(uid, "setting", "dark", msg_id="m")
        stored = await consumed(machine, sent)
        clock.now += SECOND
        assert await consumed(machine, sent) == stored
        assert list(await machine.consume_messages([sent, stored])) == [Duplicate(stored)] * 2
        assert list(await log_of(machine, uid)) == [stored]
        assert await machine.ctimes([uid]) == {uid: EPOCH}

    async def test_a_message_twice_in_one_batch_is_stored_once(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        first, again = await machine.consume_messages([create(uid, "a", msg_id="m")] * 2)
        assert isinstance(first, Stored)
        assert again == Duplicate(first.message)

    async def test_the_same_json_written_differently_is_the_same_message(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        await consumed(machine, create(uid, "a", {"x": 1, "y": [2]}, msg_id="m"))
        rewritten = msgspec.Raw(b'{ "y": [2],\n "x": 1 }')
        again = create(uid, "a", rewritten, msg_id="m")
        (outcome,) = await machine.consume_messages([again])
        assert isinstance(outcome, Duplicate)

    async def test_a_known_id_with_other_contents_is_a_conflict_and_changes_nothing(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a", "first", msg_id="m"))
        others = [
            create(uid, "a", "second", msg_id="m"),
            create(uid, "b", "first", msg_id="m"),
            create(uid, "a", "first", device_id="d1", msg_id="m"),
            create(uid, "a", "first", dtime=EPOCH, msg_id="m"),
            dismiss(uid, "m", msg_id="m"),
            create(uid, "a", "second", msg_id="m").stamp(5, 0),
        ]
        for other, outcome in zip(others, await machine.consume_messages(others), strict=True):
            assert isinstance(outcome, Rejected)
            assert outcome.message == other
            assert outcome.error.code == "conflict"
        with pytest.raises(Conflict):
            await machine.consume_message(others[0])
        assert list(await log_of(machine, uid)) == [stored]
        assert shown(await machine.state(uid)) == ["first"]

    async def test_an_id_is_remembered_when_its_item_is_long_dead(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a", msg_id="m"))
        await consumed(machine, dismiss(uid, "m"))
        assert await consumed(machine, create(uid, "a", msg_id="m")) == stored
        assert len(await machine.state(uid)) == 0

    async def test_one_users_ids_are_nothing_to_another(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        other = new_uid()
        await consumed(machine, create(uid, "a", "mine", msg_id="m"))
        await consumed(machine, create(other, "a", "theirs", msg_id="m"))
        await consumed(machine, dismiss(uid, "m"))
        await consumed(machine, dismiss_category(uid, "a"))
        assert shown(await machine.state(uid)) == []
        assert shown(await machine.state(other)) == ["theirs"]

    async def test_ctime_increases_strictly_though_the_clock_runs_backwards(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        ctimes = []
        for now in (EPOCH, EPOCH, EPOCH - SECOND, EPOCH + SECOND, 7):
            clock.now = now
            ctimes.append((await consumed(machine, create(uid, "a"))).ctime)
        assert ctimes == [EPOCH, EPOCH + 1, EPOCH + 2, EPOCH + SECOND, EPOCH + SECOND + 1]

    async def test_each_message_knows_its_predecessor(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        prev = 0
        for batch in (1, 3, 2):
            clock.now += 5
            for outcome in await machine.consume_messages([create(uid, "a") for _ in range(batch)]):
                assert isinstance(outcome, Stored)
                assert outcome.message.prev == prev
                prev = outcome.message.ctime
        assert await machine.ctimes([uid]) == {uid: prev}

    async def test_a_replay_keeps_its_ctime_and_moves_the_users_clock_up(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        ahead = EPOCH + SECOND
        replayed = await consumed(machine, create(uid, "a", msg_id="r").stamp(ahead, 77))
        assert (replayed.ctime, replayed.prev) == (ahead, 0)
        new = await consumed(machine, create(uid, "a"))
        assert (new.ctime, new.prev) == (ahead + 1, ahead)

    async def test_a_replay_from_the_past_takes_its_place_between_its_neighbours(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        first, last, middle, earliest = (
            create(uid, "a", msg_id=f"r{ctime}").stamp(ctime, 0) for ctime in (10, 30, 20, 5)
        )
        outcomes = await machine.consume_messages([first, last, middle, earliest])
        assert [type(outcome) for outcome in outcomes] == [Stored] * 4
        log = await log_of(machine, uid)
        assert [(m.prev, m.ctime) for m in log] == [(0, 5), (5, 10), (10, 20), (20, 30)]
        assert await machine.ctimes([uid]) == {uid: 30}
        (again,) = await machine.consume_messages([last])
        assert again == Duplicate(last.stamp(30, 20))

    async def test_no_two_messages_of_a_user_have_one_ctime(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a"))
        (outcome,) = await machine.consume_messages([create(uid, "b").stamp(stored.ctime, 0)])
        assert isinstance(outcome, Rejected)
        assert outcome.error.code == "conflict"
        assert list(await log_of(machine, uid)) == [stored]

    async def test_one_bad_message_rejects_itself_and_not_its_neighbours(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        await consumed(machine, create(uid, "a", 0, msg_id="taken"))
        batch = [
            create(uid, "a", 1),
            create(uid, "a", "other", msg_id="taken"),
            create(new_uid(), "a"),
            create(uid, "a", 2),
        ]
        outcomes = await machine.consume_messages(batch)
        assert [type(outcome) for outcome in outcomes] == [Stored, Rejected, Stored, Stored]
        assert shown(await machine.state(uid)) == [0, 1, 2]

    async def test_nothing_to_consume_is_no_trouble(self, machine: StateMachineOfRecord) -> None:
        assert list(await machine.consume_messages([])) == []

    async def test_ctimes_are_told_of_every_user_that_is_asked_about(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a"))
        assert await machine.ctimes([uid, "nobody"]) == {uid: stored.ctime, "nobody": 0}
        assert await machine.ctimes([]) == {}

    async def test_a_caller_who_gives_up_does_not_undo_the_commit(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        impatient = asyncio.create_task(machine.consume_message(create(uid, "a", msg_id="m")))
        neighbour = asyncio.create_task(machine.consume_message(create(uid, "b")))
        await asyncio.sleep(0)  # both have begun
        impatient.cancel()
        await neighbour
        (outcome,) = await machine.consume_messages([create(uid, "a", msg_id="m")])
        assert isinstance(outcome, Duplicate)

    async def test_concurrent_callers_share_one_clock_without_a_gap(
        self, machine: StateMachineOfRecord, clock: ManualClock
    ) -> None:
        uids = [new_uid() for _ in range(5)]
        async with asyncio.TaskGroup() as senders:
            for number in range(100):
                message = create(uids[number % 5], "a", number)
                senders.create_task(machine.consume_message(message))
        for uid in uids:
            log = await log_of(machine, uid)
            assert len(log) == 20
            assert [m.prev for m in log] == [0, *(m.ctime for m in log[:-1])]

    async def test_names_are_compared_byte_for_byte(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        categories = ["a", "A", "a%", "a_", "a_b", "axb", "ä", "a.b", "😀x", "😀"]
        for category in categories:
            await consumed(machine, create(uid, category, category))
        await consumed(machine, dismiss_category(uid, "a_"))
        await consumed(machine, dismiss_category(uid, "a%", prefix=True))
        assert shown(await machine.state(uid)) == ["a", "A", "a_b", "axb", "ä", "a.b", "😀x", "😀"]
        await consumed(machine, dismiss_category(uid, "a_", prefix=True))
        await consumed(machine, dismiss_category(uid, "😀", prefix=True))
        assert shown(await machine.state(uid)) == ["a", "A", "axb", "ä", "a.b"]

    async def test_an_expiry_at_the_beginning_of_time_is_an_expiry(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        await consumed(machine, create(uid, "a", dtime=0))
        assert len(await machine.state(uid)) == 0

    async def test_an_item_dies_with_its_expiry_at_that_instant(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        await consumed(machine, create(uid, "a", "absolute", dtime=EPOCH + 5))
        await consumed(machine, create(uid, "a", "offset", dtime=TimeOrOffset(offset=4)))
        clock.now = EPOCH + 4
        assert shown(await machine.state(uid)) == ["absolute", "offset"]
        clock.now = EPOCH + 5
        assert shown(await machine.state(uid)) == []
        assert shown(await machine.state(uid, None, TimeOrOffset(offset=-1))) == [
            "absolute",
            "offset",
        ]

    async def test_a_dismissal_counts_though_the_clock_then_runs_backwards(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """Also where the item had expired by then: another node's clock may not yet say so."""
        await consumed(machine, create(uid, "a", dtime=TimeOrOffset(offset=10)))
        clock.now += 20
        await consumed(machine, dismiss_category(uid, "a"))
        clock.now = EPOCH
        assert len(await machine.state(uid)) == 0
        assert (await machine.sync(uid, None, 0)).content == Snapshot()

    # Syncing

    async def test_a_sync_from_the_beginning_is_a_snapshot(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a", "x"))
        sync = await machine.sync(uid, None, 0)
        assert isinstance(sync.content, Snapshot)
        assert [item.order() for item in sync.content.items] == [(stored.ctime, stored.msg_id)]
        assert (sync.cursor, sync.as_of) == (stored.ctime, EPOCH)

    async def test_a_sync_from_ahead_of_the_users_clock_is_a_snapshot(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The device remembers more than the store: a backup was restored."""
        stored = await consumed(machine, create(uid, "a", "x"))
        sync = await machine.sync(uid, None, stored.ctime + 1)
        assert isinstance(sync.content, Snapshot)
        assert sync.cursor == stored.ctime

    async def test_a_sync_from_the_users_clock_is_no_change(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        stored = await consumed(machine, create(uid, "a", "x"))
        sync = await machine.sync(uid, None, stored.ctime)
        assert sync.content == Changes(())
        assert sync.hash == (await machine.state(uid)).hash()

    async def test_a_sync_is_whichever_is_smaller(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        first = await consumed(machine, create(uid, "a", "x"))
        few = [await consumed(machine, replace(uid, "a", n)) for n in range(3)]
        sync = await machine.sync(uid, None, first.ctime)
        assert isinstance(sync.content, Changes)
        assert [m.msg_id for m in sync.content.messages] == [m.msg_id for m in few]
        await machine.consume_messages([replace(uid, "a", n) for n in range(100)])
        sync = await machine.sync(uid, None, first.ctime)
        assert isinstance(sync.content, Snapshot)
        assert [item.body for item in sync.content.items] == [99]

    async def test_a_snapshot_holds_the_tombstones_of_what_may_still_come(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        await consumed(machine, dismiss(uid, "later"))
        await consumed(machine, dismiss_category(uid, "a", end_time=TimeOrOffset(offset=SECOND)))
        sync = await machine.sync(uid, None, 0)
        assert isinstance(sync.content, Snapshot)
        replica = sync.content.facts()
        later = [create(uid, "b", msg_id="later"), create(uid, "a")]
        replica = replica.replay_all([await consumed(machine, message) for message in later])
        assert len(replica.state(None, EPOCH)) == len(await machine.state(uid)) == 0

    # The cases of the original's own suite

    async def test_all_devices(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """Also: historic reads."""

        async def counts(at: TimeOrOffset | None = None) -> tuple[int, int]:
            state = await machine.state(uid, None, at)
            return len(state), len([item for item in state if item.category == "foos"])

        assert await counts() == (0, 0)
        await consumed(machine, create(uid, "foos", "f1", msg_id="m1"))
        clock.now = EPOCH + SECOND
        assert await counts() == (1, 1)
        await consumed(machine, dismiss(uid, "m1"))
        assert await counts() == (0, 0)
        after_dismissal = TimeOrOffset(time=clock.now)
        clock.now = EPOCH + 2 * SECOND
        expiry = EPOCH + 5 * SECOND
        f2 = create(uid, "foos", "f2")
        await machine.consume_messages(
            [f2, create(uid, "foos", "f3", dtime=expiry), create(uid, "bars", "b1")]
        )
        clock.now += 2  # the three have successive ctimes
        assert await counts() == (3, 2)
        with_three = TimeOrOffset(time=clock.now)
        clock.now = EPOCH + 6 * SECOND
        after_expiry = clock.now
        assert shown(await machine.state(uid)) == ["f2", "b1"]
        assert await counts(after_dismissal) == (0, 0)
        assert await counts(with_three) == (3, 2)
        await consumed(machine, create(uid, "bars", "b3"))
        clock.now = EPOCH + 10 * SECOND
        b4 = create(uid, "bars", "b4")
        await consumed(machine, b4)
        clock.now = EPOCH + 11 * SECOND
        await consumed(machine, dismiss_category(uid, "bars", end_time=after_expiry))
        assert shown(await machine.state(uid)) == ["f2", "b4"]
        since = await machine.in_band_messages_since(uid, None, TimeOrOffset(time=EPOCH))
        creations = [m.msg_id for m in since if m.creation is not None]
        assert creations == [f2.msg_id, b4.msg_id]
        (dismissal,) = [m.dismissal for m in since if m.dismissal and m.dismissal.ranges]
        assert dismissal.ranges[0].end_time == TimeOrOffset(time=after_expiry)
        assert (await machine.state(uid)).count("f") == 1

    async def test_per_device(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        async def everywhere() -> tuple[list[object], list[object], list[object]]:
            states = [await machine.state(uid, device_id) for device_id in (None, "d1", "d2")]
            every, first, second = (shown(state) for state in states)
            return every, first, second

        assert await everywhere() == ([], [], [])
        await consumed(machine, create(uid, "foos", "f1", device_id="d1", msg_id="m1"))
        assert await everywhere() == (["f1"], ["f1"], [])
        await consumed(machine, create(uid, "foos", "f2", device_id="d2"))
        assert await everywhere() == (["f1", "f2"], ["f1"], ["f2"])
        await consumed(machine, dismiss(uid, "m1"))
        assert await everywhere() == (["f2"], [], ["f2"])
        clock.now += SECOND
        await consumed(machine, create(uid, "foos", "f3"))
        assert await everywhere() == (["f2", "f3"], ["f3"], ["f2", "f3"])

    async def test_dismissals_of_items_that_the_replica_cannot_have_are_left_out(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """The original's filter of future dismissals: items before, at and after the cutoff."""
        cutoff = EPOCH
        made = {"before": -300 * SECOND, "at": 0, "after": 180 * SECOND}
        for number, (name, offset) in enumerate(made.items()):
            clock.now = cutoff + offset
            await consumed(machine, create(uid, "test", msg_id=name, body=number))
        clock.now = cutoff + 360 * SECOND
        for name in made:
            await consumed(machine, dismiss(uid, name, msg_id=f"dismiss {name}"))
        since = await machine.in_band_messages_since(uid, None, TimeOrOffset(time=cutoff))
        assert [m.msg_id for m in since] == ["dismiss before"]

    async def test_the_hash_does_not_depend_on_the_order_of_arrival(
        self, machine: StateMachineOfRecord
    ) -> None:
        """The original's serialisation test: twelve items, three in a tick."""
        items = [(tick * SECOND + n, f"{tick}-{n}") for tick in range(1, 5) for n in range(3)]
        hashes = set()
        for order in (items, items[::-1], items[::2] + items[1::2]):
            uid = new_uid()
            for ctime, msg_id in order:
                await consumed(machine, create(uid, "a", msg_id=msg_id).stamp(ctime, 0))
            hashes.add((await machine.state(uid)).hash())
        assert hashes == {hash_of(items)}

    # What the original got wrong

    async def test_d01_a_dismissal_before_its_creation_still_kills_it(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original lost a dismissal whose item had yet to arrive; the item lived for ever."""
        await consumed(machine, dismiss(uid, "m"))
        await consumed(machine, create(uid, "a", msg_id="m"))
        assert len(await machine.state(uid)) == 0
        replayed = new_uid()
        await consumed(machine, dismiss(replayed, "m").stamp(20, 0))
        await consumed(machine, create(replayed, "a", msg_id="m").stamp(10, 0))
        assert len(await machine.state(replayed)) == 0

    async def test_d02_a_range_before_a_creation_that_it_covers_still_kills_it(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original applied a range to what was there, and to nothing that came later."""
        await consumed(machine, dismiss_category(uid, "a").stamp(20, 0))
        for category, ctime in (("a", 10), ("a", 21), ("b", 11)):
            await consumed(machine, create(uid, category, ctime).stamp(ctime, 0))
        assert shown(await machine.state(uid)) == [11, 21]

    async def test_d03_of_two_replacements_one_value_is_left_in_either_order(
        self, machine: StateMachineOfRecord
    ) -> None:
        """The original was left with one value or two, depending on which came first."""
        for order in ((10, 20), (20, 10)):
            uid = new_uid()
            for ctime in order:
                await consumed(machine, replace(uid, "setting", ctime).stamp(ctime, 0))
            assert shown(await machine.state(uid)) == [20]

    async def test_d04_one_id_never_has_two_contents(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """In the original the first to arrive won, silently, and differently on each replica.
        Here the second is told of a conflict; and a join of replicas does not depend on order."""
        one, two = (create(uid, "a", body, msg_id="m").stamp(5, 0) for body in ("one", "two"))
        await consumed(machine, one)
        with pytest.raises(Conflict):
            await consumed(machine, two)
        joined = Facts().replay_all([one, two]), Facts().replay_all([two, one])
        assert joined[0] == joined[1]

    async def test_d05_a_dismissed_item_that_is_delivered_again_stays_dead(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original kept no tombstones over a restart; for that see the durable suite. A
        replica that was reset to a snapshot holds them, too."""
        stored = await consumed(machine, create(uid, "a", msg_id="m"))
        await consumed(machine, dismiss(uid, "m"))
        await consumed(machine, stored)
        assert len(await machine.state(uid)) == 0

    async def test_d06_a_past_state_is_exact_whatever_was_dismissed_since(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original forgot when an item had died: it was missing from its own past."""
        await consumed(machine, create(uid, "a", msg_id="m").stamp(2, 0))
        await consumed(machine, dismiss(uid, "m").stamp(5, 0))
        seen = [len(await machine.state(uid, None, TimeOrOffset(time=t))) for t in range(1, 7)]
        assert seen == [0, 1, 1, 1, 0, 0]

    async def test_d06_the_earliest_death_counts_though_it_is_told_last(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """In the original the last dismissal to arrive set the time of death."""
        await consumed(machine, create(uid, "a", msg_id="m").stamp(2, 0))
        earlier = [
            dismiss(uid, "m").stamp(5, 0),
            dismiss_category(uid, "a", end_time=2).stamp(4, 0),
        ]
        for dismissal in (dismiss(uid, "m").stamp(9, 0), *earlier):
            await consumed(machine, dismissal)
            death = dismissal.ctime
            assert len(await machine.state(uid, None, TimeOrOffset(time=death - 1))) == 1
            assert len(await machine.state(uid, None, TimeOrOffset(time=death))) == 0

    async def test_d07_a_sync_keeps_the_creation_of_an_update(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original dropped an update whose dismissal was not needed, creation and all."""
        await consumed(machine, create(uid, "a", msg_id="m1"))
        update = InBandMessage(
            uid, "m2", creation=create(uid, "a", "new").creation, dismissal=Dismissal(("m1",))
        )
        await consumed(machine, update)
        (since,) = await machine.in_band_messages_since(uid, None, TimeOrOffset(time=EPOCH))
        assert since.creation == update.creation
        assert not since.dismissal

    async def test_d08_a_sync_keeps_the_dismissal_of_an_update_whose_own_item_is_dead(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original left the update out with its item, and nobody heard of the other death."""
        first = await consumed(machine, create(uid, "a", msg_id="m1"))
        creation = create(uid, "a", "new").creation
        await consumed(
            machine, InBandMessage(uid, "m2", creation=creation, dismissal=Dismissal(("m1",)))
        )
        await consumed(machine, dismiss(uid, "m2"))
        replica = Facts().replay(first)
        since = await machine.in_band_messages_since(uid, None, TimeOrOffset(time=first.ctime + 1))
        assert len(replica.replay_all(since).state(None, EPOCH)) == 0
        assert [m.creation for m in since] == [None]

    async def test_d09_a_dismissal_from_one_device_reaches_the_others(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """The original withheld a device-scoped message as a whole, its dismissal too."""
        first = await consumed(machine, create(uid, "a", msg_id="m"))
        scoped = msgspec.structs.replace(dismiss(uid, "m"), device_id="d1")
        await consumed(machine, scoped)
        since = TimeOrOffset(time=first.ctime + 1)
        (message,) = await machine.in_band_messages_since(uid, "d2", since)
        assert message.dismissal == Dismissal(("m",))
        assert len(await machine.state(uid, "d2")) == 0

    async def test_d10_dismissals_move_the_cursor_and_nothing_moves_it_back(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """The original's cursor was the last creation to arrive. An item whose ctime a sender had
        set into the past was skipped for ever; here only the store of record sets ctimes."""
        cursors = []
        for message in (create(uid, "a", msg_id="m"), dismiss(uid, "m"), create(uid, "b")):
            clock.now -= SECOND
            await consumed(machine, message)
            cursors.append((await machine.sync(uid, None, 0)).cursor)
        assert cursors == sorted(set(cursors))
        late = await consumed(machine, create(uid, "old").stamp(5, 0))
        assert late.ctime == 5
        assert (await machine.sync(uid, None, 0)).cursor == cursors[-1]

    async def test_d11_an_expiry_by_offset_is_the_same_everywhere(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """The original lost an offset when it saved its state, and its hash never fitted again."""
        stored = await consumed(machine, create(uid, "a", dtime=TimeOrOffset(offset=10)))
        sync = await machine.sync(uid, None, 0)
        assert isinstance(sync.content, Snapshot)
        assert sync.content.items[0].expires_at == stored.ctime + 10
        for replica in (sync.content.facts(), Facts().replay(stored)):
            assert replica.state(None, EPOCH).hash() == sync.hash
            assert len(replica.state(None, EPOCH + 10)) == 0

    async def test_d12_a_hash_is_of_the_instant_at_which_its_messages_were_read(
        self, machine: StateMachineOfRecord, clock: ManualClock, uid: UID
    ) -> None:
        """The original read messages and hash one after the other, by two clocks: an item that
        expired meanwhile made them differ, and the device fetched everything anew."""
        first = await consumed(machine, create(uid, "a"))
        await consumed(machine, create(uid, "a", dtime=TimeOrOffset(offset=10)))
        for cursor in (0, first.ctime):
            clock.now = EPOCH
            sync = await machine.sync(uid, None, cursor)
            clock.now = EPOCH + 100
            replica = apply(Facts().replay(first), sync)
            assert sync.as_of == EPOCH
            assert replica.state(None, sync.as_of).hash() == sync.hash
            assert replica.state(None, clock.now).hash() != sync.hash

    async def test_d15_a_long_history_does_not_grow_a_sync(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """In the original everything scanned all that had ever been."""
        await machine.consume_messages([replace(uid, "badge", n) for n in range(400)])
        sync = await machine.sync(uid, None, 1)
        assert isinstance(sync.content, Snapshot)
        assert len(sync.content) == 1

    async def test_d23_readers_never_see_half_a_message(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """Parts of the original's state were read and written without its lock."""
        await consumed(machine, replace(uid, "setting", 0))

        async def read() -> list[int]:
            return [len(await machine.state(uid)) for _ in range(20)]

        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(read()) for _ in range(3)]
            for number in range(20):
                tasks.create_task(machine.consume_message(replace(uid, "setting", number)))
        assert {size for reader in readers for size in reader.result()} == {1}

    async def test_d26_an_update_that_dismisses_several_is_synced_whole(
        self, machine: StateMachineOfRecord, uid: UID
    ) -> None:
        """In the original such a message broke every sync that covered it."""
        await machine.consume_messages([create(uid, "a", msg_id=f"m{n}") for n in range(3)])
        creation = create(uid, "a", "new").creation
        dismissal = Dismissal(
            ("m0", "m1", "m1", "unknown"),
            dismiss_category(uid, "b").dismissal.ranges * 2,  # type: ignore[union-attr]
        )
        update = await consumed(
            machine, InBandMessage(uid, "u", creation=creation, dismissal=dismissal)
        )
        since = TimeOrOffset(time=update.ctime)
        assert list(await machine.in_band_messages_since(uid, None, since)) == [update]
        assert [item.msg_id for item in await machine.state(uid)] == ["m2", "u"]


class DurableStateMachineConformance(StateMachineConformance):
    """What is asked of a machine whose store outlives it. A machine that `open_machine` opens
    after another has closed finds what that one has stored."""

    @settings(max_examples=10)
    @given(histories(), st.data())
    async def test_law_nothing_resurrects_after_a_restart(
        self,
        open_machine: OpenMachine,
        history: History,
        data: st.DataObject,
    ) -> None:
        uid, clock = new_uid(), ManualClock(EPOCH)
        told = data.draw(shuffled(history))
        split = data.draw(st.integers(0, len(told)))
        for part in (told[:split], told[split:], told):
            async with open_machine(clock) as machine:
                await machine.consume_messages(of_user(uid, part))
        async with open_machine(clock) as machine:
            assert names(await machine.state(uid)) == oracle.visible(history, None, EPOCH)

    async def test_what_was_stored_is_there_after_a_restart(
        self, open_machine: OpenMachine, uid: UID
    ) -> None:
        clock = ManualClock(EPOCH)
        async with open_machine(clock) as machine:
            stored = await consumed(machine, create(uid, "a", "x", msg_id="m"))
        clock.now = 5
        async with open_machine(clock) as machine:
            assert list(await log_of(machine, uid)) == [stored]
            assert await consumed(machine, create(uid, "a", "x", msg_id="m")) == stored
            following = await consumed(machine, create(uid, "a"))
            assert (following.ctime, following.prev) == (stored.ctime + 1, stored.ctime)

    async def test_d05_tombstones_survive_a_restart(
        self, open_machine: OpenMachine, uid: UID
    ) -> None:
        """After save and restore the original let a delivery of a dismissed item resurrect it."""
        clock = ManualClock(EPOCH)
        async with open_machine(clock) as machine:
            await consumed(machine, dismiss(uid, "by id"))
            await consumed(machine, dismiss_category(uid, "a", end_time=EPOCH + 50))
        async with open_machine(clock) as machine:
            await consumed(machine, create(uid, "b", msg_id="by id"))
            await consumed(machine, create(uid, "a", msg_id="by range"))
            assert len(await machine.state(uid)) == 0

    async def test_d25_a_message_is_stored_whole_or_not_at_all(
        self, open_machine: OpenMachine, uid: UID
    ) -> None:
        """The original wrote what belongs together in two steps. What was accepted when a machine
        is closed is stored before it has closed."""
        clock = ManualClock(EPOCH)
        async with open_machine(clock) as machine:
            sent = [
                asyncio.create_task(machine.consume_message(replace(uid, "a", n))) for n in (1, 2)
            ]
            await asyncio.sleep(0)  # both have begun
        await asyncio.gather(*sent)
        async with open_machine(clock) as machine:
            assert shown(await machine.state(uid)) == [2]
            assert len(await machine.state(uid, None, TimeOrOffset(time=EPOCH))) == 1


def told(outcome: Outcome) -> tuple[object, ...]:
    """An outcome as something that can be compared: errors by their codes."""
    match outcome:
        case Rejected(message, error):
            return Rejected, message, error.code
        case _:
            return type(outcome), outcome.message


async def answers(
    machine: StateMachineOfRecord, uid: UID, device_id: DeviceID | None, t: Time
) -> tuple[object, ...]:
    """All that a machine says of a user on a device, now and from the time `t` on."""
    when = TimeOrOffset(time=t)
    return (
        await machine.state(uid, device_id),
        await machine.state(uid, device_id, when),
        list(await machine.in_band_messages_since(uid, device_id, when)),
        outline(await machine.sync(uid, device_id, t)),
    )


def outline(sync: Sync) -> tuple[object, ...]:
    """A sync, but for how it names the tombstones."""
    match sync.content:
        case Changes(messages):
            content: tuple[object, ...] = messages
        case Snapshot(items):
            content = items
    return type(sync.content), content, sync.cursor, sync.as_of, sync.hash
