"""The laws of a replica: for each order of operations, it loses no written message, agrees with
the state machine of record, and reports each change once."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from gregor.client.events import Created, Dismissed
from gregor.client.replica import Replica, events_between, new_rejections
from gregor.client.store import changed_records, load_replica
from gregor.client.writing import alone, clauses, compares_time, with_ends
from gregor.core.facts import Facts, is_dismissed_by
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import (
    Creation,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    MsgID,
    Range,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
    raw,
)
from gregor.core.state import Item
from gregor.core.state_hash import hash_of
from gregor.core.sync import EXPIRY_GRACE, Changes, Snapshot, Sync, just_stored
from gregor.core.visibility import Now, is_live
from gregor.errors import Action, Conflict, HistoryForgotten, InvalidMessage, SetupError, TooLarge
from gregor.interfaces import Rejected, Stored, StoreOutcome
from gregor.protocol.frames import Problem, Result
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import oracle, strategies
from gregor.testing.clock import ManualClock

DEVICE = "d1"
NOW = 1_600_000_000 * SECOND
BACKEND_IDS = tuple(f"b{n}" for n in range(6))
T = TypeVar("T")


def creation_of(item: Item) -> InBandMessage:
    """A stamped message that creates this item."""
    starts, expires = [
        None if time is None else TimeOrOffset(time=time)
        for time in (item.starts_at, item.expires_at)
    ]
    creation = Creation(item.category, item.raw_body, expires, starts, item.key)
    return InBandMessage(
        "user", item.msg_id, item.ctime, device_id=item.device_id, creation=creation
    )


def is_never_seen(item: Item) -> bool:
    """A replay may say so, and a message may not."""
    return None not in (item.starts_at, item.expires_at) and item.time >= (item.expires_at or 0)


def without_dismissal(message: InBandMessage) -> InBandMessage:
    return structs.replace(message, dismissal=None)


def without_ctimes(items: Mapping[MsgID, Item]) -> dict[MsgID, Item]:
    return {id_: structs.replace(item, ctime=0) for id_, item in items.items()}


class ReplicaModel(RuleBasedStateMachine):
    """One device's replica, and the state machine of record that it syncs with."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(100)
        self.machine = MemoryStateMachine(self.clock)
        self.replica = Replica(DEVICE)
        self.records: dict[tuple[str, str], bytes] = {}
        self.outcomes: dict[MsgID, Stored] = {}
        self.mark: Time = 0  # what was stored up to then may not be what was told
        self.unanswered: list[tuple[InBandMessage, Result]] = []  # an ack on its way
        self.save(None, self.replica)
        self.written: set[MsgID] = set()
        self.stored: set[MsgID] = set()
        self.reported: dict[MsgID, Item] = {}

    def save(self, before: Replica | None, after: Replica) -> None:
        for key, record in changed_records(before, after).items():
            if record is None:
                del self.records[key]
            else:
                self.records[key] = record

    def set_replica(self, replica: Replica, messages: Sequence[InBandMessage] = ()) -> None:
        self.check_changed(self.replica, replica)
        self.save(self.replica, replica)
        self.replica = replica
        self.apply_events(messages)

    def check_changed(self, before: Replica, after: Replica) -> None:
        """An operation names all ids for which something has changed."""
        now = self.clock()
        assert changed_records(before, after, after.changed) == changed_records(before, after)
        # The ctime that an unsent item would get changes all the time, and is nobody's news.
        old, new = without_ctimes(before.visible(now)), without_ctimes(after.visible(now))
        changed = {id_ for id_ in old.keys() | new.keys() if old.get(id_) != new.get(id_)}
        assert changed <= after.changed
        assert without_ctimes(after.visible_among([*old, *new], now)) == new

    def apply_events(self, messages: Sequence[InBandMessage] = ()) -> None:
        """Apply the events to the reported items, as a subscriber does."""
        now = self.clock()
        after = self.replica.visible(now)
        for event in events_between(self.reported, after, now, messages):
            match event:
                case Created(item):
                    assert item.msg_id not in self.reported
                    self.reported[item.msg_id] = item
                case Dismissed(item):
                    assert self.reported.pop(item.msg_id).msg_id == item.msg_id

    def sync(self, cursor: Time) -> Sync:
        return asyncio.run(self.machine.sync("user", DEVICE, cursor))

    def apply_sync(self, sync: Sync) -> None:
        match sync.content:
            case Changes(messages):
                self.set_replica(self.replica.apply(messages, sync.cursor), messages)
            case Snapshot() as snapshot:
                self.set_replica(self.replica.apply_snapshot(snapshot, sync.cursor))
        assert self.replica.hash_matches(sync.as_of, sync.hash)
        self.set_replica(self.replica.synced(sync.as_of))
        self.holds_only_what_a_snapshot_holds()

    def holds_only_what_a_snapshot_holds(self) -> None:
        """So what it holds does not depend on what has passed."""
        snapshot = self.sync(0).content
        assert isinstance(snapshot, Snapshot)
        assert self.replica.facts == snapshot.facts()

    def store(self, messages: Sequence[InBandMessage]) -> list[StoreOutcome]:
        outcomes = asyncio.run(self.machine.consume_messages(messages))
        new = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
        self.outcomes |= {outcome.message.msg_id: outcome for outcome in new}
        return outcomes

    @rule(microseconds=st.integers(1, 20) | st.just(EXPIRY_GRACE))
    def advance_clock(self, microseconds: int) -> None:
        self.clock.now += microseconds
        self.apply_events()

    @rule(message=strategies.messages(BACKEND_IDS))
    def write_on_backend(self, message: InBandMessage) -> None:
        self.store([message])

    @rule(message=strategies.messages(BACKEND_IDS), microseconds=st.integers(0, 30))
    def replay_behind_the_clock(self, message: InBandMessage, microseconds: int) -> None:
        ctime = asyncio.run(self.machine.ctime("user")) - microseconds
        if ctime > 0:
            (outcome,) = self.store([message.stamp(ctime, 0)])
            if isinstance(outcome, Stored):
                self.mark = asyncio.run(self.machine.ctime("user"))

    @rule()
    def receive_what_is_stored(self) -> None:
        """As a node sends it to a device that keeps up."""
        for message in self.machine.log("user"):
            if message.prev == self.replica.cursor and message.prev >= self.mark:
                outcome = self.outcomes[message.msg_id]
                part = just_stored(message, outcome.dead, outcome.replaced)
                part = part and part.addressed_to(DEVICE)
                sent = [] if part is None else [part]
                self.set_replica(self.replica.apply(sent, message.ctime), sent)

    def write(self, message: InBandMessage, write: Callable[[], Replica]) -> None:
        with suppress(Conflict, InvalidMessage):
            self.set_replica(write(), [message])
            self.written |= {message.msg_id} & set(self.replica.outbox)

    @rule(message=strategies.messages())
    def write_on_device(self, message: InBandMessage) -> None:
        self.write(message, lambda: self.replica.write(message, self.clock()))

    @rule(
        msg_id=strategies.ids,
        category=strategies.categories,
        prefix=st.booleans(),
        scheduled=st.booleans(),
    )
    def dismiss_category_on_device(
        self, msg_id: MsgID, category: str, prefix: bool, scheduled: bool
    ) -> None:
        message = dismiss_category(
            "user", category, prefix=prefix, scheduled=scheduled, device_id=DEVICE, msg_id=msg_id
        )
        self.write(message, lambda: self.replica.dismiss_seen(message, self.clock()))

    @rule(msg_id=strategies.ids, keys=st.lists(strategies.keys, min_size=1))
    def dismiss_keys_on_device(self, msg_id: MsgID, keys: list[str]) -> None:
        message = dismiss_key("user", *keys, device_id=DEVICE, msg_id=msg_id)
        self.write(message, lambda: self.replica.dismiss_seen(message, self.clock()))

    @rule(new_id=strategies.ids, number=st.integers(0, 5), microseconds=st.integers(0, 30))
    def snooze_on_device(self, new_id: MsgID, number: int, microseconds: int) -> None:
        now, until = self.clock(), TimeOrOffset(offset=microseconds)
        for item in list(self.replica.state(now))[number : number + 1]:
            with suppress(InvalidMessage):
                message = self.replica.snoozed(item.msg_id, until, now)
                message = structs.replace(message, msg_id=new_id)
                self.write(message, partial(self.replica.write, message, now))

    @rule(msg_id=strategies.ids)
    def hide_on_device(self, msg_id: MsgID) -> None:
        self.set_replica(self.replica.hide(msg_id))

    @rule(max_messages=st.integers(1, 4), ack=st.sampled_from(["at once", "late", "never"]))
    def send_outbox(self, max_messages: int, ack: str) -> None:
        """Send one window, if none is unanswered."""
        window = self.replica.window(max_messages, 1_000_000)
        if self.unanswered or not self.replica.unsent():
            return
        outcomes = self.store(window)
        self.stored |= {
            outcome.message.msg_id for outcome in outcomes if isinstance(outcome, Stored)
        }
        results = [Result.of(outcome) for outcome in outcomes]
        self.unanswered = list(zip(window, results, strict=True)) if ack != "never" else []
        if ack == "at once":
            self.receive_late_ack()

    @rule()
    def receive_late_ack(self) -> None:
        pairs, self.unanswered = self.unanswered, []
        self.set_replica(self.replica.apply_results(pairs), [message for message, _ in pairs])

    @rule()
    def sync_from_cursor(self) -> None:
        self.apply_sync(self.sync(self.replica.cursor))

    @rule()
    def sync_from_zero(self) -> None:
        self.apply_sync(self.sync(0))

    @rule(microseconds=st.integers(0, 30))
    def receive_known_messages_again(self, microseconds: int) -> None:
        messages = asyncio.run(
            self.machine.in_band_messages_since(
                "user", DEVICE, TimeOrOffset(time=max(0, self.replica.cursor - microseconds))
            )
        )
        old = [message for message in messages if message.ctime <= self.replica.cursor]
        before = self.replica.facts
        self.set_replica(self.replica.apply(old, self.replica.cursor), old)
        assert self.replica.facts == before

    @rule()
    def restart_device(self) -> None:
        self.unanswered = []
        self.replica = load_replica(self.records, DEVICE).derived()
        self.apply_events()

    @invariant()
    def reported_items_are_visible_items(self) -> None:
        assert self.reported.keys() == self.replica.visible(self.clock()).keys()

    @invariant()
    def shows_what_was_told_what_is_acknowledged_and_what_is_unsent(self) -> None:
        """Acknowledged messages at their ctimes, and unsent ones stamped in order after everything.
        No dismissal that has a ctime concerns what is unsent."""
        now, entries = self.clock(), self.replica.outbox.in_order()
        told = [creation_of(i) for i in self.replica.facts.items.values() if not is_never_seen(i)]
        acknowledged = [
            part
            for entry in entries
            if entry.message.stamped and (part := entry.acknowledged_part(DEVICE)) is not None
        ]
        live = {msg_id for _, msg_id in oracle.live([*told, *acknowledged], None, now)}
        known = [without_dismissal(m) for m in (*told, *acknowledged) if m.msg_id in live]
        taken = {message.msg_id for message in acknowledged}  # the node will refuse these
        unsent, latest = (
            list[InBandMessage](),
            max([self.replica.cursor, *(m.ctime for m in acknowledged)]),
        )
        for entry in entries:
            if not entry.message.stamped and not entry.echoed:
                latest = max(entry.written, latest + 1)
                message, is_taken = entry.message.stamp(latest, 0), entry.message.msg_id in taken
                part = message.reduced(None, message.dismissal) if is_taken else message
                unsent += [] if part is None else [part]
        shown = {msg_id for _, msg_id in oracle.visible([*known, *unsent], DEVICE, now)}
        hidden = {*self.replica.hidden, *self.replica.awaited}
        assert self.replica.visible(now).keys() == shown - hidden

    @invariant()
    def saved_replica_equals_replica(self) -> None:
        now = self.clock()
        loaded = load_replica(self.records, DEVICE).derived()
        assert loaded.facts.state(DEVICE, now) == self.replica.facts.state(DEVICE, now)
        assert loaded.facts == self.replica.facts == self.replica.facts.pruned()
        for field in ("outbox", "hidden", "awaited", "rejected", "cursor"):
            assert getattr(loaded, field) == getattr(self.replica, field), field

    @invariant()
    def what_is_shown_follows_from_facts_and_outbox(self) -> None:
        """However it was kept up: by what an operation changes, or by all that there is."""
        derived, replica, now = self.replica.derived(), self.replica, self.clock()
        assert derived.state(now) == replica.state(now)
        assert derived.overlaid == replica.overlaid
        assert set(derived.shown.dismissed) == set(replica.shown.dismissed)
        assert set(derived.shown.tombstones) == set(replica.shown.tombstones)

    @invariant()
    def written_messages_are_not_lost(self) -> None:
        assert self.written <= {*self.stored, *self.replica.outbox, *self.replica.rejected}

    @precondition(lambda self: bool(self.written))
    @rule()
    def synced_replica_equals_server_state(self) -> None:
        """After the outbox is sent, the visible state is the server's, without the hidden items."""
        self.receive_late_ack()
        while self.replica.unsent():
            self.send_outbox(4, "at once")
        self.apply_sync(self.sync(self.replica.cursor))
        state = asyncio.run(self.machine.state("user", DEVICE))
        visible = self.replica.state(self.clock())
        expected = tuple(item for item in state if item.msg_id not in self.replica.hidden)
        assert visible.items == expected

    @precondition(lambda self: self.machine.log("user"))
    @rule(live=st.booleans())
    def end_of_everything_leaves_nothing(self, live: bool) -> None:
        """With nothing live and nothing unsent, a device and its store hold a constant."""
        self.receive_late_ack()
        while self.replica.unsent():
            self.send_outbox(4, "at once")
        if live:
            self.sync_from_cursor()
        self.store([dismiss_category("user", c, prefix=True, scheduled=True) for c in "aAb%é"])
        self.clock.now += EXPIRY_GRACE
        if live:
            self.receive_what_is_stored()
        else:
            self.sync_from_cursor()
        assert not self.replica.facts.items
        assert not self.replica.outbox
        assert not self.replica.shown.items
        assert not self.replica.shown.dismissed
        assert {kind for kind, _ in self.records} <= {"device", "owner", "rejected", "awaited"}


ReplicaModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReplica = ReplicaModel.TestCase


def stamp(message: InBandMessage, ctime: Time) -> InBandMessage:
    return message.stamp(ctime, 0)


def acknowledge(replica: Replica, msg_id: MsgID, ctime: Time) -> Replica:
    message = replica.outbox[msg_id].message
    return replica.apply_results([(message, Result("stored", ctime=ctime))])


def test_acknowledged_message_is_shown_with_its_ctime_until_cursor_reaches_it() -> None:
    replica = Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10)
    replica = acknowledge(replica, "m", 30)
    assert [item.ctime for item in replica.state(40)] == [30]
    assert "m" not in replica.facts.items
    assert (replica.unsent(), list(replica.outbox)) == ([], ["m"])
    assert not replica.apply([], 30).outbox


def test_acknowledged_item_that_is_dead_at_sync_is_removed() -> None:
    """The node does not send the dismissal of an item that a replica at this cursor cannot have."""
    replica = acknowledge(Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10), "m", 30)
    assert len(replica.apply([], 31).state(40)) == 0


def test_acknowledged_message_survives_restart() -> None:
    replica = acknowledge(Replica(DEVICE).write(create("u", "mail", msg_id="m"), 10), "m", 30)
    records = {k: v for k, v in changed_records(None, replica).items() if v is not None}
    loaded = load_replica(records, DEVICE).derived()
    assert [item.ctime for item in loaded.state(40)] == [30]


def test_unsent_messages_are_shown_after_all_known_items() -> None:
    """Even if the device's clock is behind the node's."""
    replica = Replica(DEVICE).apply([stamp(create("u", "mail", msg_id="a"), 100)], 100)
    replica = replica.write(create("u", "mail", msg_id="b"), 5)
    replica = replica.write(create("u", "mail", msg_id="c"), 5)
    assert [(i.msg_id, i.ctime) for i in replica.state(5)] == [("a", 100), ("b", 101), ("c", 102)]
    replica = replica.apply([stamp(create("u", "mail", msg_id="d"), 200)], 200)
    assert [i.msg_id for i in replica.state(5)] == ["a", "d", "b", "c"]


def test_unsent_category_dismissal_covers_items_that_arrive_before_it_is_sent() -> None:
    """The node will store the dismissal after those items."""
    replica = Replica(DEVICE).write(dismiss_category("u", "mail"), 10)
    replica = replica.apply([stamp(create("u", "mail", msg_id="a"), 100)], 100)
    assert len(replica.state(20)) == 0


def test_repeated_creation_does_not_revive_dismissed_item() -> None:
    creation = stamp(create("u", "mail", msg_id="m"), 10)
    replica = Replica(DEVICE).apply([creation, stamp(dismiss("u", "m"), 11)], 11)
    assert replica.facts == Facts()
    assert len(replica.apply([creation], 10).state(20)) == 0


def test_hidden_id_is_forgotten_with_its_item() -> None:
    replica = Replica(DEVICE).apply([stamp(create("u", "mail", msg_id="m"), 10)], 10)
    hidden = replica.hide("m").hide("unknown")
    assert list(hidden.hidden) == ["m"]
    assert len(hidden.state(20)) == 0
    assert not hidden.apply([stamp(dismiss("u", "m"), 11)], 11).hidden


def test_item_that_is_hidden_before_it_arrives_is_never_shown() -> None:
    """A person has swiped the push notification away."""
    replica = reloaded(Replica(DEVICE).hide("m"))
    replica = replica.apply([stamp(create("u", "mail", msg_id="m"), 10)], 10)
    assert len(replica.state(20)) == len(replica.state_at(20)) == 0
    assert (list(replica.hidden), list(replica.awaited)) == (["m"], [])
    assert not replica.apply([stamp(dismiss("u", "m"), 11)], 11).hidden


def test_ids_hidden_before_their_items_arrive_are_bounded_and_the_oldest_are_forgotten() -> None:
    replica = Replica(DEVICE)
    for n in range(1_003):
        replica = replica.hide(f"m{n}").hide("m500")
    replica = reloaded(replica).hide("last")
    assert len(replica.awaited) == 1_000
    assert [f"m{n}" in replica.awaited for n in (0, 3, 4, 1_002)] == [False, False, True, True]


def reloaded(replica: Replica) -> Replica:
    """The replica after a restart of the device."""
    records = {k: v for k, v in changed_records(None, replica).items() if v is not None}
    return load_replica(records, replica.device_id).derived()


openended = st.one_of(
    st.builds(
        lambda category, prefix, scheduled: dismiss_category(
            "user", category, prefix=prefix, scheduled=scheduled, device_id=DEVICE
        ),
        strategies.categories,
        st.booleans(),
        st.booleans(),
    ),
    st.lists(strategies.keys, min_size=1).map(
        lambda keys: dismiss_key("user", *keys, device_id=DEVICE)
    ),
)


@given(data=st.data(), history=strategies.histories(), dismissal=openended)
def test_law_dismissal_without_an_end_takes_what_the_device_showed_and_nothing_else(
    data: st.DataObject, history: strategies.History, dismissal: InBandMessage
) -> None:
    """Compared with the same history without the dismissal, in what this device sees."""
    told = data.draw(st.integers(0, len(history)))
    own = data.draw(st.lists(strategies.messages(("own1", "own2")), max_size=2))
    acknowledged = data.draw(st.integers(0, len(own)))
    now, clock = NOW + data.draw(st.integers(0, 40)), ManualClock(NOW)
    machine, without = MemoryStateMachine(clock), MemoryStateMachine(clock)
    consumed = [stamp(message, 0) for message in history]

    replica = Replica(DEVICE)
    run(machine.consume_messages(consumed[:told]))
    replica = synced(replica, machine)
    run(machine.consume_messages(consumed[told:]))
    for message in own:
        with suppress(Conflict, InvalidMessage):
            replica = replica.write(message, NOW)
    replica = acknowledged_by(machine, replica, acknowledged)
    shown = {item.msg_id for item in meant_items(replica, dismissal, now)}
    dismissed = replica.dismiss_seen(dismissal, now)
    assert not shown & dismissed.visible(now + 100).keys()

    run(without.consume_messages([*consumed, *outbox_of(replica)]))
    run(machine.consume_messages(dismissed.unsent()))
    for clock.now in (now, now + 100):
        with_it, without_it = [
            [item.msg_id for item in run(each.state("user", DEVICE))] for each in (machine, without)
        ]
        assert with_it == [msg_id for msg_id in without_it if msg_id not in shown]


def meant_items(replica: Replica, message: InBandMessage, now: Time) -> list[Item]:
    """The items that a person sees, or with a key or `scheduled` awaits, and means to dismiss."""
    (clause,) = {type(clause): clause for clause in clauses(message)}.values()
    seen = replica.visible(now).values()
    live = (i for i in replica.shown.items.values() if is_live(i, None, DEVICE, Now(now)))
    candidates = seen if compares_time(clause) else live
    return [item for item in candidates if matches(message, item)]


def run(awaitable: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(awaitable)


def synced(replica: Replica, machine: MemoryStateMachine) -> Replica:
    sync = run(machine.sync("user", DEVICE, 0))
    assert isinstance(sync.content, Snapshot)
    return replica.apply_snapshot(sync.content, sync.cursor)


def acknowledged_by(machine: MemoryStateMachine, replica: Replica, count: int) -> Replica:
    """The replica after the first messages of its outbox are stored, and not yet sent back."""
    window = replica.unsent()[:count]
    outcomes = run(machine.consume_messages(window))
    return replica.apply_results(list(zip(window, map(Result.of, outcomes), strict=True)))


def outbox_of(replica: Replica) -> list[InBandMessage]:
    entries = sorted(replica.outbox.values(), key=lambda entry: entry.number)
    return [stamp(entry.message, 0) for entry in entries]


def matches(message: InBandMessage, item: Item) -> bool:
    return any(is_dismissed_by(item, alone(message, clause)) for clause in clauses(message))


def test_category_dismissal_ends_at_the_cursor_and_names_own_items_beyond_it() -> None:
    """Sent, not yet sent back; and not yet sent. Both are shown, so the person has seen both."""
    replica = Replica(DEVICE).apply([stamp(create("u", "mail", msg_id="told"), 10)], 10)
    for msg_id, category in (("sent", "mail"), ("unsent", "mail"), ("another", "chat")):
        replica = replica.write(create("u", category, msg_id=msg_id), 20)
    replica = replica.apply_results(
        [(replica.unsent()[0], Result("stored", "u", "sent", ctime=15))]
    )
    replica = replica.dismiss_seen(dismiss_category("u", "mail", msg_id="d"), 30)
    written = replica.outbox["d"].message.dismissal
    end = TimeOrOffset(time=10)
    assert written == Dismissal(("sent", "unsent"), (Range("mail", end_time=end),))
    assert [item.msg_id for item in replica.state(40)] == ["another"]


def test_item_that_an_unsent_message_dismisses_is_not_shown_when_it_comes() -> None:
    replica = Replica(DEVICE).write(dismiss("u", "early", msg_id="d"), 10)
    replica = replica.write(create("u", "note", msg_id="own"), 11)
    replica = replica.apply([stamp(create("u", "mail", msg_id="early"), 20)], 20)
    assert [item.msg_id for item in replica.state(30)] == ["own"]
    error = Problem("forbidden", "no", Action.STOP)
    rejected = replica.apply_results([(replica.unsent()[0], Result("rejected", error=error))])
    assert [item.msg_id for item in rejected.state(30)] == ["early", "own"]


def test_unsent_items_follow_all_that_the_node_has_told() -> None:
    replica = Replica(DEVICE)
    for n in range(3):
        replica = replica.write(create("u", "note", msg_id=f"own{n}"), 10)
    replica = replica.apply([stamp(create("u", "mail", msg_id="told"), 50)], 50)
    state = replica.state(60)
    assert [(item.msg_id, item.ctime) for item in state] == [
        ("told", 50),
        *((f"own{n}", 51 + n) for n in range(3)),
    ]
    assert list(replica.state_at(51)) == list(state)[:2]
    ended = Dismissal(ranges=(Range("note", TimeOrOffset(time=50)),))
    replica = replica.write(InBandMessage("u", "d", dismissal=ended), 60)
    assert len(replica.state(70)) == 4


def test_category_dismissal_is_idempotent_and_conflicts_with_another() -> None:
    dismissal = dismiss_category("u", "mail", msg_id="d")
    replica = Replica(DEVICE).dismiss_seen(dismissal, 10)
    later = replica.apply([stamp(create("u", "mail"), 10)], 10)
    assert later.dismiss_seen(dismissal, 20) == later
    with pytest.raises(Conflict):
        later.dismiss_seen(dismiss_category("u", "chat", msg_id="d"), 20)


def test_dismissals_leave_nothing_while_connected() -> None:
    """Neither those of items that were held, nor those of other devices' items, nor ranges."""
    replica = Replica(DEVICE)
    for n in range(1, 300, 3):
        creation = stamp(create("u", "mail", msg_id=f"m{n}"), n)
        replica = replica.apply([creation, stamp(dismiss("u", f"m{n}", "other"), n + 1)], n + 1)
        replica = replica.apply([stamp(dismiss_category("u", "chat"), n + 2)], n + 2)
    assert replica.facts == replica.shown == Facts()
    with pytest.raises(HistoryForgotten):
        replica.state_at(1)
    assert len(replica.state_at(replica.known_since)) == 0


def test_expired_items_are_forgotten_a_minute_later_by_what_a_node_told() -> None:
    """However often a device is told something, and whatever its own clock shows."""
    expiry = 100 * SECOND
    brief = stamp(create("u", "typing", msg_id="m", expires="99s"), SECOND)
    lasting = stamp(create("u", "typing", msg_id="n", expires="199s"), SECOND + 1)
    replica = Replica(DEVICE).apply([brief, lasting], SECOND + 1)
    assert len(replica.synced(expiry + EXPIRY_GRACE - 1).facts.items) == 2
    assert list(replica.synced(expiry + EXPIRY_GRACE).facts.items) == ["n"]
    assert len(replica.apply([], expiry + EXPIRY_GRACE - 1).facts.items) == 2
    replica = replica.apply([], expiry + EXPIRY_GRACE)
    assert list(replica.facts.items) == ["n"]
    assert [item.msg_id for item in replica.state_at(expiry)] == ["n"]
    with pytest.raises(HistoryForgotten):
        replica.state_at(expiry - 1)
    snapshot = Snapshot(tuple(Facts().replay_all([brief, lasting]).items.values()))
    assert list(Replica(DEVICE).apply_snapshot(snapshot, 3 * expiry).facts.items) == []


def test_acknowledged_message_that_is_not_visible_is_not_shown() -> None:
    """Its item was dead when it was stored, so no frame will bring it."""
    message = create("u", "mail", msg_id="m")
    replica = Replica(DEVICE).write(message, 10)
    result = Result("stored", ctime=30, visible=False)
    assert not replica.apply_results([(message, result)]).outbox
    update = InBandMessage("u", "n", creation=message.creation, dismissal=Dismissal(("x",)))
    replica = replica.write(update, 11).apply_results([(update, result)])
    assert [item.msg_id for item in replica.state(40)] == ["m"]
    assert set(replica.outbox) == {"m", "n"}


def test_acknowledged_put_that_is_dead_has_replaced_its_predecessor() -> None:
    """As soon as the node says so, and until a frame brings it."""
    replica = Replica(DEVICE).apply([stamp(put("u", "theme", 1, msg_id="old"), 5)], 5)
    message = put("u", "theme", 2, msg_id="new")
    replica = replica.write(message, 10)
    stored = Result("stored", ctime=30, visible=False, replaced="old")
    replica = reloaded(replica.apply_results([(message, stored)]))
    assert (list(replica.state(40)), list(replica.outbox)) == ([], ["new"])
    replica = replica.apply([stamp(dismiss("u", "old", msg_id="new"), 30)], 30)
    assert (list(replica.state(40)), list(replica.outbox)) == ([], [])


def test_acknowledged_put_that_is_dead_and_has_replaced_nothing_leaves_the_outbox() -> None:
    """No frame about it comes, so none would take it out of the outbox."""
    message = put("u", "theme", 2, msg_id="new")
    result = Result("stored", ctime=30, visible=False)
    assert not Replica(DEVICE).write(message, 10).apply_results([(message, result)]).outbox


def test_duplicate_that_is_not_visible_any_more_is_shown_until_the_device_is_told() -> None:
    """Otherwise it would be shown twice: the frame that brings it may still be on its way."""
    message = create("u", "mail", msg_id="m")
    replica = Replica(DEVICE).write(message, 10)
    result = Result("duplicate", ctime=30, visible=False)
    replica = replica.apply_results([(message, result)])
    assert "m" in replica.visible(40)
    replica = replica.apply([stamp(message, 30)], 30)
    assert "m" in replica.visible(40)
    assert "m" not in replica.apply([stamp(dismiss("u", "m"), 35)], 35).visible(40)


def test_acknowledged_message_that_expired_by_the_nodes_clock_is_shown_by_that_of_the_device() -> (
    None
):
    """Otherwise it would be shown twice: the node sends it, since clocks may differ."""
    message = create("u", "mail", expires="2s", msg_id="m")
    replica = Replica(DEVICE).write(message, 10)
    result = Result("stored", ctime=30, visible=False, expires_at=30 + 2 * SECOND)
    replica = replica.apply_results([(message, result)])
    assert "m" in replica.visible(SECOND)
    assert "m" in replica.apply([stamp(message, 30)], 30).visible(SECOND)


def test_acknowledged_message_for_another_device_leaves_the_outbox_at_once() -> None:
    """No frame about it comes to this device, so none would take it out of the outbox."""
    message = create("u", "mail", device_id="d2", msg_id="m")
    replica = Replica(DEVICE).write(message, 10)
    assert not acknowledge(replica, "m", 30).outbox


def test_window_is_limited_in_messages_and_bytes_but_never_empty() -> None:
    replica = Replica(DEVICE, uid="alice")
    for n in range(5):
        replica = replica.write(create("u", "mail", "x" * 1_000, msg_id=f"m{n}"), n)
    assert [m.msg_id for m in replica.window(2, 100_000)] == ["m0", "m1"]
    assert [m.msg_id for m in replica.window(5, 2_500)] == ["m0", "m1"]
    assert [m.msg_id for m in replica.window(5, 10)] == ["m0"]
    assert {m.uid for m in replica.window(5, 100_000)} == {"alice"}


def test_message_too_large_for_a_frame_is_refused_on_write() -> None:
    ids = [f"{n:064}" for n in range(10_000)]
    with pytest.raises(TooLarge):
        Replica(DEVICE).write(dismiss("u", *ids), 1)


def test_message_with_ctime_is_refused_on_write() -> None:
    with pytest.raises(InvalidMessage):
        Replica(DEVICE).write(stamp(create("u", "mail"), 7), 1)


def test_replica_of_another_user_is_refused() -> None:
    replica = Replica(DEVICE).owned_by("alice")
    assert replica.owned_by("alice") == replica
    with pytest.raises(SetupError):
        replica.owned_by("bob")


def test_rejected_messages_are_kept_in_order_and_bounded() -> None:
    replica = Replica(DEVICE)
    for n in range(1_200):
        replica = replica.write(create("u", "mail", msg_id=f"m{n}"), n)
    error = Result.of(Rejected(create("u", "mail"), Conflict("known"))).error
    pairs = [(m, Result("rejected", error=error)) for m in replica.unsent()]
    replica = replica.apply_results(pairs)
    assert [r.message.msg_id for r in replica.rejected_entries()] == [
        f"m{n}" for n in range(200, 1_200)
    ]
    assert len(replica.state(2_000)) == 0


def test_message_that_is_rejected_again_under_its_id_is_reported_again() -> None:
    results = [Result("rejected", error=Problem.of(Conflict("known")))]
    replica = Replica(DEVICE)
    for body in ("first", "second"):
        message = create("u", "mail", body, msg_id="m")
        written = replica.write(message, 10)
        replica = written.apply_results(list(zip([message], results, strict=True)))
        assert [event.message for event in new_rejections(written, replica)] == [message]


def test_own_item_of_a_rejected_message_is_not_replaced_by_it() -> None:
    keys = Dismissal(keys=(KeyDismissal("k"),))
    message = structs.replace(put("u", "mail", key="k", msg_id="m"), dismissal=keys)
    item = Item("m", 10, "mail", message.creation.raw_body if message.creation else raw(None))
    shown = structs.replace(item, key="k")
    assert events_between({"m": shown}, {}, 20, [message]) == [Dismissed(shown, "dismissed")]


def test_unsent_range_takes_what_begins_before_the_ctime_that_it_can_have_now() -> None:
    begins_at_50 = create("u", "mail", starts=TimeOrOffset(offset=40), msg_id="m")
    replica = Replica(DEVICE).apply([stamp(begins_at_50, 10)], 10)
    first = create("u", "note", msg_id="n0")
    replica = replica.write_all([first, dismiss_category("u", "mail")], 20)
    replica = replica.write_all([create("u", "note", msg_id=f"n{n}") for n in range(1, 9)], 20)
    assert "m" in replica.visible(60)
    acknowledged = replica.apply_results([(first, Result("stored", ctime=60))])
    assert "m" not in acknowledged.visible(60)


def test_other_dismissal_with_an_offset_is_a_conflict_with_one_that_names_ids_alone() -> None:
    replica = Replica(DEVICE).write(dismiss("u", "a", msg_id="d"), 10)
    everything = dismiss_category("u", "mail", end_time=timedelta(0), msg_id="d")
    with pytest.raises(Conflict):
        replica.write(everything, 20)


@given(strategies.histories())
def test_replica_shows_state_of_applied_history(history: strategies.History) -> None:
    cursor = history[-1].ctime if history else 0
    replica = Replica(DEVICE).apply(history, cursor)
    for now in range(0, 100, 7):
        assert replica.state(now).items == replica.facts.state(DEVICE, now).items


def test_last_of_several_puts_remains() -> None:
    replica = Replica(DEVICE)
    for value in ("dark", "light", "blue"):
        replica = replica.write(put("u", "theme", value), 1)
    assert [item.body for item in replica.state(1)] == ["blue"]


def test_dismissal_that_is_acknowledged_does_not_dismiss_unsent_message() -> None:
    """The message has no ctime yet: the node will store it after the dismissal."""
    ended = dismiss("self", "m", msg_id="d")
    replica = Replica(DEVICE).write(ended, 10).write(create("self", "a", msg_id="m"), 11)
    assert "m" not in replica.visible(60)
    assert "m" in acknowledge(replica, "d", 50).visible(60)


def test_echoed_message_is_not_shown_from_outbox() -> None:
    """The acknowledgement was lost, and the item is dead by now: the facts decide."""
    creation = create("self", "a", msg_id="m")
    replica = Replica(DEVICE).write(creation, 10)
    replica = replica.apply([creation.stamp(20, 0), dismiss("self", "m").stamp(30, 20)], 30)
    assert "m" not in replica.visible(40)
    assert [message.msg_id for message in replica.unsent()] == ["m"]


def test_message_written_before_an_echoed_one_is_not_shown_from_outbox() -> None:
    """The node stores the outbox in order, and does not send a creation that is dead by now."""
    replica = Replica(DEVICE).write(create("self", "a", msg_id="m"), 10)
    replica = replica.write(dismiss("self", "m", msg_id="end"), 11)
    echo = dismiss_category("self", "b", msg_id="end").stamp(30, 20)
    assert "m" not in replica.apply([echo], 30).visible(40)


def test_item_that_a_rejected_message_no_longer_dismisses_is_named_as_changed() -> None:
    replica = Replica(DEVICE).apply([stamp(create("u", "mail", msg_id="m"), 10)], 10)
    read = dismiss_category("u", "mail")
    written = replica.write(read, 20)
    assert written.changed == {"m", read.msg_id}
    rejected = written.apply_results([(read, Result("rejected", error=Problem.of(Conflict("x"))))])
    assert rejected.changed == {"m", read.msg_id}
    assert "m" in rejected.visible(20)


def test_hash_of_a_replica_is_of_what_is_live_when_the_node_read_it() -> None:
    """Begun or not; the replica holds what has expired for another minute."""
    replica = Replica(DEVICE).apply(
        [
            stamp(create("u", "mail", msg_id="lasting"), 10),
            stamp(create("u", "mail", starts="9s", msg_id="early"), 11),
            stamp(create("u", "mail", expires="1s", msg_id="brief"), 12),
        ],
        12,
    )
    lasting, brief = [(10, "lasting"), (11, "early")], (12, "brief")
    for as_of in (SECOND, 12 + SECOND - 1):
        assert replica.hash_matches(as_of, hash_of([*lasting, brief]))
    for as_of in (12 + SECOND, 20 * SECOND):
        assert replica.hash_matches(as_of, hash_of(lasting))
    assert len(replica.facts.items) == 3


@pytest.mark.parametrize(
    "dismissal",
    [
        Dismissal(ranges=(Range("mail", TimeOrOffset(time=100)),)),
        Dismissal(keys=(KeyDismissal("k", TimeOrOffset(time=100)),)),
    ],
    ids=["range", "key"],
)
def test_unsent_item_is_shown_again_when_the_cursor_passes_the_end_of_a_dismissal(
    dismissal: Dismissal,
) -> None:
    """The node will store the item after that end."""
    replica = Replica(DEVICE)
    for n in range(50):
        replica = replica.write(create("u", "note", msg_id=f"n{n}"), 5)
    replica = replica.write(put("u", "mail", 1, key="k", msg_id="m"), 5)
    replica = replica.write(InBandMessage("u", "d", dismissal=dismissal), 5)
    assert "m" not in replica.visible(300)
    replica = replica.apply([stamp(create("u", "chat"), 200)], 200)
    assert "m" in replica.visible(300)


def test_message_whose_id_the_facts_have_changes_nothing_before_it_is_answered() -> None:
    """It is a duplicate or a conflict, and neither changes anything."""
    replica = Replica(DEVICE).apply([stamp(put("u", "theme", "dark", msg_id="m"), 10)], 10)
    replica = replica.write(put("u", "theme", "light", msg_id="m"), 20)
    assert [item.body for item in replica.state(30)] == ["dark"]
    assert [message.msg_id for message in replica.unsent()] == ["m"]
    snapshot = Snapshot(tuple(replica.facts.items.values()))
    replica = replica.write(create("u", "note", msg_id="n"), 21).apply_snapshot(snapshot, 10)
    assert [item.msg_id for item in replica.state(30)] == ["m", "n"]


@pytest.mark.parametrize(
    "message",
    [put("u", "theme", "light", msg_id="m"), dismiss_key("u", "theme", msg_id="m")],
    ids=["put", "dismissal"],
)
def test_item_is_shown_again_when_the_unsent_put_or_dismissal_is_rejected(
    message: InBandMessage,
) -> None:
    replica = Replica(DEVICE).apply([stamp(put("u", "theme", "dark", msg_id="t"), 10)], 10)
    replica = replica.write(message, 20)
    for n in range(50):
        replica = replica.write(create("u", "note", msg_id=f"n{n}"), 21)
    assert "t" not in replica.visible(30)
    error = Problem("forbidden", "no", Action.STOP)
    rejected = replica.apply_results([(message, Result("rejected", error=error))])
    assert "t" in rejected.changed
    assert "t" in rejected.visible(30)


def test_counts_agree_with_the_store_on_both_sides_of_a_start_and_an_expiry() -> None:
    clock = ManualClock(NOW)
    machine = MemoryStateMachine(clock)
    run(machine.consume_message(create("user", "mail", starts="10s", expires="20s")))
    replica = synced(Replica(DEVICE), machine)
    counts = {}
    for seconds in (10, 20):
        for clock.now in (NOW + seconds * SECOND - 1, NOW + seconds * SECOND):
            counts[clock.now - NOW] = replica.state(clock.now).count("mail")
            stored = run(machine.count("user", DEVICE, ["mail"]))
            assert stored.by_prefix["mail"] == counts[clock.now - NOW]
    assert list(counts.values()) == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "named",
    [
        dismiss_category("u", "mail", end_time="0s", msg_id="d"),
        dismiss_key("u", "k", end_time="0s", msg_id="d"),
    ],
    ids=["category", "key"],
)
def test_everything_up_to_now_includes_what_a_node_whose_clock_is_ahead_has_told(
    named: InBandMessage,
) -> None:
    told = [put("u", "mail", 1, key="k", msg_id="m"), put("u", "chat", 1, key="l", msg_id="n")]
    ahead = [stamp(message, NOW + SECOND + n) for n, message in enumerate(told)]
    replica = Replica(DEVICE).apply(ahead, NOW + SECOND + 1)
    replica = replica.write(named, NOW)
    assert [item.msg_id for item in replica.state(NOW)] == ["n"]
    written = replica.outbox["d"].message.dismissal
    assert written is not None
    assert written.msg_ids == ("m",)
    past = with_ends(named, TimeOrOffset(offset=-SECOND))
    assert "m" in Replica(DEVICE).apply(ahead, NOW + SECOND + 1).write(past, NOW).visible(NOW)
