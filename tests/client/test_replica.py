"""The laws of a replica: whatever happens to it, and in whatever order, it loses nothing that was
written on it, agrees with its store of record, and tells each change once."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gregor.client.events import Created, Dismissed
from gregor.client.replica import Replica, events_between
from gregor.client.store import alterations, restored
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, MsgID, create, dismiss, dismiss_category, replace
from gregor.core.state import Changes, Item, Snapshot, Sync
from gregor.errors import Conflict, HistoryForgotten, InvalidMessage, SetupError, TooLarge
from gregor.interfaces import Rejected, Stored
from gregor.protocol.frames import Result
from gregor.state_machines.memory import MemoryStateMachine
from gregor.testing import strategies
from gregor.testing.clock import ManualClock

DEVICE = "d1"


class ReplicaOfRecord(RuleBasedStateMachine):
    """One device beside the state machine of record that it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(100)
        self.machine = MemoryStateMachine(self.clock)
        self.replica = Replica(DEVICE)
        self.records: dict[tuple[str, str], bytes] = {}
        self.save(None, self.replica)
        self.written: set[MsgID] = set()
        self.stored: set[MsgID] = set()
        self.told: dict[MsgID, Item] = {}

    def save(self, before: Replica | None, after: Replica) -> None:
        for key, record in alterations(before, after).items():
            if record is None:
                del self.records[key]
            else:
                self.records[key] = record

    def become(self, replica: Replica, messages: Sequence[InBandMessage] = ()) -> None:
        self.save(self.replica, replica)
        self.replica = replica
        self.listen(messages)

    def listen(self, messages: Sequence[InBandMessage] = ()) -> None:
        """Believe events, and nothing else."""
        now = self.clock()
        after = self.replica.visible(now)
        for event in events_between(self.told, after, now, messages):
            match event:
                case Created(item):
                    assert item.msg_id not in self.told
                    self.told[item.msg_id] = item
                case Dismissed(item):
                    assert self.told.pop(item.msg_id).msg_id == item.msg_id

    def sync(self, cursor: Time) -> Sync:
        return asyncio.run(self.machine.sync("user", DEVICE, cursor))

    def follow(self, sync: Sync) -> None:
        now = self.clock()
        match sync.content:
            case Changes(messages):
                self.become(self.replica.told(messages, sync.cursor, now), messages)
            case Snapshot() as snapshot:
                self.become(self.replica.replaced(snapshot, sync.cursor))
        assert self.replica.agrees(sync.as_of, sync.hash)

    @rule(microseconds=st.integers(1, 20))
    def time_passes(self, microseconds: int) -> None:
        self.clock.now += microseconds
        self.listen()

    @rule(message=strategies.messages(tuple(f"b{n}" for n in range(6))))
    def a_backend_writes(self, message: InBandMessage) -> None:
        asyncio.run(self.machine.consume_messages([message]))

    @rule(message=strategies.messages())
    def the_device_writes(self, message: InBandMessage) -> None:
        try:
            self.become(self.replica.write(message, self.clock()), [message])
        except Conflict:
            return
        self.written.add(message.msg_id)

    @rule(msg_id=strategies.ids)
    def the_device_hides(self, msg_id: MsgID) -> None:
        self.become(self.replica.hide(msg_id))

    @rule(most=st.integers(1, 4), heard=st.booleans())
    def the_outbox_is_sent(self, most: int, heard: bool) -> None:
        """And the ack may be lost on the way."""
        window = self.replica.window(most, 1_000_000)
        if not self.replica.unsent():
            return
        outcomes = asyncio.run(self.machine.consume_messages(window))
        self.stored |= {o.message.msg_id for o in outcomes if isinstance(o, Stored)}
        if heard:
            results = [Result.of(outcome) for outcome in outcomes]
            pairs = list(zip(window, results, strict=True))
            self.become(self.replica.acknowledged(pairs), window)

    @rule()
    def it_hears_what_is_new(self) -> None:
        self.follow(self.sync(self.replica.cursor))

    @rule()
    def it_hears_everything_anew(self) -> None:
        self.follow(self.sync(0))

    @rule(back=st.integers(0, 30))
    def it_hears_what_it_knows_once_more(self, back: int) -> None:
        messages = asyncio.run(
            self.machine.in_band_messages_since(
                "user", DEVICE, TimeOrOffset(time=max(0, self.replica.cursor - back))
            )
        )
        old = [message for message in messages if message.ctime <= self.replica.cursor]
        before = self.replica.facts
        self.become(self.replica.told(old, self.replica.cursor, self.clock()), old)
        assert self.replica.facts == before

    @rule()
    def it_forgets(self) -> None:
        before = self.replica.visible(self.clock())
        self.become(self.replica.forget(self.clock()))
        assert self.replica.visible(self.clock()) == before

    @rule()
    def it_restarts(self) -> None:
        self.replica = restored(self.records, DEVICE).settled()
        self.listen()

    @invariant()
    def the_listeners_know_what_is_seen(self) -> None:
        assert self.told.keys() == self.replica.visible(self.clock()).keys()

    @invariant()
    def what_is_stored_is_what_is_known(self) -> None:
        now = self.clock()
        again = restored(self.records, DEVICE).settled()
        assert again.facts.state(DEVICE, now) == self.replica.facts.state(DEVICE, now)
        assert again.facts.ids == self.replica.facts.forget(self.replica.cursor).ids
        assert (again.outbox, again.hidden, again.rejected, again.cursor) == (
            self.replica.outbox,
            self.replica.hidden,
            self.replica.rejected,
            self.replica.cursor,
        )

    @invariant()
    def nothing_written_is_lost(self) -> None:
        assert self.written <= {*self.stored, *self.replica.outbox, *self.replica.rejected}

    @precondition(lambda self: bool(self.written))
    @rule()
    def all_is_sent_and_heard(self) -> None:
        """Then a person sees the state of record, but for what they hid."""
        while self.replica.unsent():
            self.the_outbox_is_sent(4, True)
        self.follow(self.sync(self.replica.cursor))
        state = asyncio.run(self.machine.state("user", DEVICE))
        seen = self.replica.state(self.clock())
        assert seen.items == tuple(i for i in state if i.msg_id not in self.replica.hidden)


ReplicaOfRecord.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReplica = ReplicaOfRecord.TestCase


def stamped(message: InBandMessage, ctime: Time) -> InBandMessage:
    return message.stamp(ctime, 0)


def acked(replica: Replica, msg_id: MsgID, ctime: Time) -> Replica:
    message = replica.outbox[msg_id].message
    return replica.acknowledged([(message, Result("stored", ctime=ctime))])


def test_an_acknowledged_message_is_shown_with_its_ctime_until_the_node_tells_it() -> None:
    replica = Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10)
    replica = acked(replica, "m", 30)
    assert [item.ctime for item in replica.state(40)] == [30]
    assert "m" not in replica.facts.items
    assert (replica.unsent(), list(replica.outbox)) == ([], ["m"])
    assert not replica.told([], 30, 40).outbox


def test_an_acknowledged_item_whose_death_the_node_leaves_out_goes() -> None:
    """The node tells nothing of an item that a replica at this cursor cannot have."""
    replica = acked(Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10), "m", 30)
    assert len(replica.told([], 31, 40).state(40)) == 0


def test_an_acknowledged_message_survives_a_restart() -> None:
    replica = acked(Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10), "m", 30)
    records = {k: v for k, v in alterations(None, replica).items() if v is not None}
    again = restored(records, DEVICE).settled()
    assert [item.ctime for item in again.state(40)] == [30]


def test_what_waits_is_shown_after_all_that_is_known() -> None:
    """Even where the device's clock lags behind the node's."""
    replica = Replica(DEVICE).told([stamped(create("u", "mail", msg_id="a"), 100)], 100, 5)
    replica = replica.write(create("u", "mail", msg_id="b"), 5)
    replica = replica.write(create("u", "mail", msg_id="c"), 5)
    assert [(i.msg_id, i.ctime) for i in replica.state(5)] == [("a", 100), ("b", 101), ("c", 102)]
    replica = replica.told([stamped(create("u", "mail", msg_id="d"), 200)], 200, 5)
    assert [i.msg_id for i in replica.state(5)] == ["a", "d", "b", "c"]


def test_a_dismissed_category_takes_what_arrives_before_it_is_sent() -> None:
    """For so it will be when the node gets it."""
    replica = Replica(DEVICE).write(dismiss_category("u", "mail"), 10)
    replica = replica.told([stamped(create("u", "mail", msg_id="a"), 100)], 100, 20)
    assert len(replica.state(20)) == 0


def test_a_message_told_again_does_not_raise_the_dead() -> None:
    creation = stamped(create("u", "mail", msg_id="m"), 10)
    replica = Replica(DEVICE).told([creation, stamped(dismiss("u", "m"), 11)], 11, 20).forget(20)
    assert not replica.facts.ids
    assert len(replica.told([creation], 10, 20).state(20)) == 0


def test_what_was_hidden_is_forgotten_with_its_item() -> None:
    replica = Replica(DEVICE).told([stamped(create("u", "mail", msg_id="m"), 10)], 10, 20)
    hidden = replica.hide("m").hide("unknown")
    assert list(hidden.hidden) == ["m"]
    assert len(hidden.state(20)) == 0
    assert not hidden.told([stamped(dismiss("u", "m"), 11)], 11, 20).hidden


def test_the_dead_do_not_pile_up_while_connected() -> None:
    replica = Replica(DEVICE)
    for n in range(1, 2_400, 2):
        dying = stamped(create("u", "mail", msg_id=f"m{n}"), n)
        replica = replica.told([dying, stamped(dismiss("u", f"m{n}"), n + 1)], n + 1, n)
    assert len(replica.facts.dead) <= 1_001
    assert len(replica.facts.ids) <= 1_001
    with pytest.raises(HistoryForgotten):
        replica.state_at(1)
    assert len(replica.state_at(replica.known_since)) == 0


def test_expired_items_do_not_pile_up() -> None:
    replica = Replica(DEVICE)
    minute = 60 * SECOND
    brief = stamped(create("u", "typing", msg_id="m", dtime="1s"), minute)
    replica = replica.told([brief], minute, minute)
    replica = replica.told([stamped(dismiss("u", "x"), 4 * minute)], 4 * minute, 4 * minute)
    assert not replica.forget(4 * minute).facts.items


def test_a_window_is_bounded_in_messages_and_bytes_but_never_empty() -> None:
    replica = Replica(DEVICE, uid="alice")
    for n in range(5):
        replica = replica.write(create("u", "mail", "x" * 1_000, msg_id=f"m{n}"), n)
    assert [m.msg_id for m in replica.window(2, 100_000)] == ["m0", "m1"]
    assert [m.msg_id for m in replica.window(5, 2_500)] == ["m0", "m1"]
    assert [m.msg_id for m in replica.window(5, 10)] == ["m0"]
    assert {m.uid for m in replica.window(5, 100_000)} == {"alice"}


def test_a_message_that_no_frame_could_carry_is_refused_when_it_is_written() -> None:
    ids = [f"{n:064}" for n in range(10_000)]
    with pytest.raises(TooLarge):
        Replica(DEVICE).write(dismiss("u", *ids), 1)


def test_a_message_with_a_ctime_is_refused() -> None:
    with pytest.raises(InvalidMessage):
        Replica(DEVICE).write(stamped(create("u", "mail"), 7), 1)


def test_another_users_replica_is_refused() -> None:
    replica = Replica(DEVICE).belonging_to("alice")
    assert replica.belonging_to("alice") == replica
    with pytest.raises(SetupError):
        replica.belonging_to("bob")


def test_rejected_messages_are_kept_in_order_and_bounded() -> None:
    replica = Replica(DEVICE)
    for n in range(1_200):
        replica = replica.write(create("u", "mail", msg_id=f"m{n}"), n)
    error = Result.of(Rejected(create("u", "mail"), Conflict("known"))).error
    pairs = [(m, Result("rejected", error=error)) for m in replica.unsent()]
    replica = replica.acknowledged(pairs)
    assert [r.message.msg_id for r in replica.refused()] == [f"m{n}" for n in range(200, 1_200)]
    assert len(replica.state(2_000)) == 0


@given(strategies.histories())
def test_a_replica_that_is_told_a_history_shows_it(history: strategies.History) -> None:
    cursor = history[-1].ctime if history else 0
    replica = Replica(DEVICE).told(history, cursor, 0)
    for now in range(0, 100, 7):
        assert replica.state(now).items == replica.facts.state(DEVICE, now).items
    if replica.facts.dead:
        assert replica.state_at(1).as_of == 1


def test_the_last_of_several_replaces_stays() -> None:
    replica = Replica(DEVICE)
    for value in ("dark", "light", "blue"):
        replica = replica.write(replace("u", "theme", value), 1)
    assert [item.body for item in replica.state(1)] == ["blue"]


def test_what_waits_does_not_vanish_under_what_the_node_dismisses_meanwhile() -> None:
    """It has no ctime yet, so nobody can say that a range of the node's covers it."""
    far = dismiss_category("self", "a", end_time=TimeOrOffset(offset=SECOND)).stamp(50, 0)
    replica = Replica(DEVICE).write(create("self", "a", msg_id="mine"), 10)
    assert "mine" in replica.told([far], 50, 60).visible(60)


def test_what_the_node_has_told_us_of_ours_is_not_shown_from_the_outbox_again() -> None:
    """Its acknowledgement was lost, and it has died since: the node has the truth about it."""
    mine = create("self", "a", msg_id="mine")
    replica = Replica(DEVICE).write(mine, 10)
    replica = replica.told([mine.stamp(20, 0), dismiss("self", "mine").stamp(30, 20)], 30, 40)
    assert "mine" not in replica.forget(40).visible(40)
    assert [message.msg_id for message in replica.unsent()] == ["mine"]


def test_what_the_node_took_before_a_message_that_it_tells_us_is_not_shown_again() -> None:
    """It takes ours in order, and leaves out the creation of what is dead by now."""
    replica = Replica(DEVICE).write(create("self", "a", msg_id="mine"), 10)
    replica = replica.write(dismiss("self", "mine", msg_id="end"), 11)
    told = dismiss_category("self", "b", msg_id="end").stamp(30, 20)
    assert "mine" not in replica.told([told], 30, 40).visible(40)
