"""An item's history: what ended it is what the rules say, and what is named is what has killed."""

from collections.abc import Sequence

import pytest
from hypothesis import given

from gregor.core.facts import Facts, is_dismissed_by
from gregor.core.instant import MAX_TIME, Time, TimeOrOffset
from gregor.core.item_history import (
    Authored,
    Cause,
    IDRule,
    ItemEvent,
    ItemHistory,
    KeyRule,
    PutRule,
    RangeRule,
    Rule,
    Trace,
    history_of,
)
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
from gregor.interfaces import MAX_AUTHOR, Caller
from gregor.testing import oracle
from gregor.testing.strategies import (
    MSG_IDS,
    UNKNOWN_IDS,
    History,
    histories_and_instants,
)

UID = "user"
ENDS = ("dismissed", "replaced", "expired")


def at(time: Time) -> TimeOrOffset:
    return TimeOrOffset(time=time)


def author(msg_id: MsgID) -> str:
    return f"service:{msg_id}"


def source(msg_id: MsgID) -> Cause:
    return Cause(msg_id, author(msg_id))


def authored(message: InBandMessage) -> Authored:
    return Authored(message, author(message.msg_id))


def trace_of(messages: Sequence[InBandMessage], msg_id: MsgID) -> Trace:
    """What a store has of an id that holds these messages."""
    facts = Facts().replay_all(messages)
    dismissed = facts.dismissed.get(msg_id)
    died_at = facts.tombstones.get(msg_id) if dismissed is None else dismissed.dismissed_at
    named = [authored(message) for message in messages if message.msg_id == msg_id]
    killers = [authored(message) for message in messages if message.ctime == died_at]
    return Trace(next(iter(named), None), None, died_at, next(iter(killers), None))


def explained(messages: Sequence[InBandMessage], msg_id: MsgID, now: Time) -> ItemHistory:
    return history_of(UID, msg_id, trace_of(messages, msg_id), now)


def dismissal_of(rule: Rule) -> Dismissal:
    """A dismissal with nothing but the rule."""
    match rule:
        case IDRule(msg_id):
            return Dismissal((msg_id,))
        case RangeRule(category, prefix, scheduled, end):
            return Dismissal(ranges=(Range(category, at(end), (), prefix, scheduled),))
        case KeyRule(key, end):
            return Dismissal(keys=(KeyDismissal(key, at(end)),))
        case PutRule():
            raise AssertionError("a creation replaces, and no dismissal")


# The laws


@given(histories_and_instants())
def test_law_the_end_is_that_of_the_oracle(given_: tuple[History, Time]) -> None:
    """An item is live up to its end, and not from then on: asked of the state at each instant."""
    history, now = given_
    for message in history:
        if message.creation is None:
            continue
        story = explained(history, message.msg_id, now)
        ends = [event for event in story.events if event.what in ENDS]
        names = {name for _, name in oracle.live(history, None, now)}
        assert (message.msg_id in names) == (not ends)
        for end in ends:
            assert end.at is not None
            shown = [
                {name for _, name in oracle.visible(history, None, now, time)}
                for time in range(message.ctime, max(now, message.ctime, end.at) + 1)
            ]
            begun = [message.msg_id in names for names in shown]
            assert not any(begun[max(0, end.at - message.ctime) :])
            started = max(message.ctime, message.starts_at or 0)
            assert all(begun[started - message.ctime : max(0, end.at - message.ctime)])


@given(histories_and_instants())
def test_law_the_named_rule_of_the_named_message_ends_the_item(
    given_: tuple[History, Time],
) -> None:
    history, now = given_
    by_id = {message.msg_id: message for message in history}
    for message in history:
        item = Item.of(message)
        for event in explained(history, message.msg_id, now).events:
            if event.what not in ("dismissed", "replaced") or item is None:
                assert event.rule is None
                continue
            assert event.by is not None
            assert event.rule is not None
            killer = by_id[event.by.msg_id]
            assert (event.at, event.by.author) == (killer.ctime, author(killer.msg_id))
            match event.rule:
                case PutRule(key):
                    assert event.what == "replaced"
                    assert (killer.key, killer.device_id) == (key, item.device_id)
                    alone = Facts().replay_all([message, killer])
                    assert alone.dismissed[item.msg_id].dismissed_at == event.at
                case rule:
                    only = InBandMessage(
                        UID,
                        killer.msg_id,
                        killer.ctime,
                        device_id=killer.device_id,
                        dismissal=dismissal_of(rule),
                    )
                    assert event.what == "dismissed"
                    assert is_dismissed_by(item, only)


@given(histories_and_instants())
def test_law_an_end_is_known_by_the_state_and_nothing_follows(
    given_: tuple[History, Time],
) -> None:
    history, now = given_
    for msg_id in (*MSG_IDS, *UNKNOWN_IDS):
        story = explained(history, msg_id, now)
        times = [event.at or 0 for event in story.events]
        assert times == sorted(times)
        ends = [event.what for event in story.events if event.what in ENDS]
        created = [event for event in story.events if event.what == "created"]
        if not created:
            assert story.state == "unknown"
        elif ends:
            assert ends == [story.state]
            assert "started" not in _after_end(story)
        else:
            assert story.state in ("visible", "scheduled")


def _after_end(story: ItemHistory) -> list[str]:
    whats: list[str] = [event.what for event in story.events]
    return whats[next(n for n, what in enumerate(whats) if what in ENDS) :]


# One case of each kind

ITEM = create(UID, "a.b", msg_id="i").stamp(10, 0)
KEYED = put(UID, "a.b", key="k", msg_id="i").stamp(10, 0)
CREATED = ItemEvent(10, "created", source("i"))


def both(msg_id: MsgID, key: str, dismissal: Dismissal) -> InBandMessage:
    creation = Creation("a.b", raw(1), key=key)
    return InBandMessage(UID, msg_id, creation=creation, dismissal=dismissal)


@pytest.mark.parametrize(
    ("item", "killer", "end"),
    [
        (ITEM, dismiss(UID, "x", "i"), ItemEvent(20, "dismissed", rule=IDRule("i"))),
        (
            ITEM,
            dismiss_category(UID, "a.b"),
            ItemEvent(20, "dismissed", rule=RangeRule("a.b", False, False, 20)),
        ),
        (
            ITEM,
            InBandMessage(
                UID, "r", dismissal=Dismissal(ranges=(Range("a.", at(15), prefix=True),))
            ),
            ItemEvent(20, "dismissed", rule=RangeRule("a.", True, False, 15)),
        ),
        (KEYED, dismiss_key(UID, "l", "k"), ItemEvent(20, "dismissed", rule=KeyRule("k", 20))),
        (KEYED, put(UID, "z", key="k"), ItemEvent(20, "replaced", rule=PutRule("k"))),
        # Of two rules of one message, the put is what the sender was told.
        (KEYED, both("b", "k", Dismissal(("i",))), ItemEvent(20, "replaced", rule=PutRule("k"))),
        # Of two ranges, the one that reaches the item.
        (
            ITEM,
            InBandMessage(
                UID, "r", dismissal=Dismissal(ranges=(Range("a.b", at(9)), Range("a", prefix=True)))
            ),
            ItemEvent(20, "dismissed", rule=RangeRule("a", True, False, 20)),
        ),
    ],
)
def test_each_rule(item: InBandMessage, killer: InBandMessage, end: ItemEvent) -> None:
    killer = killer.stamp(20, 10)
    later = dismiss(UID, "i", msg_id="later").stamp(30, 20)
    story = explained([item, killer, later], "i", 40)
    by = source(killer.msg_id)
    assert story.events == (CREATED, ItemEvent(end.at, end.what, by, end.rule))
    assert story.state == end.what


def test_a_story_with_a_start_and_an_expiry() -> None:
    creation = Creation("a", raw(1), expires=at(30), starts=at(20))
    item = InBandMessage(UID, "i", 10, creation=creation)
    started, expired = ItemEvent(20, "started"), ItemEvent(30, "expired")
    dismissed = dismiss(UID, "i", msg_id="late").stamp(35, 10)
    cases = [
        (19, "scheduled", ()),
        (20, "visible", (started,)),
        (30, "expired", (started, expired)),
    ]
    for now, state, events in cases:
        assert explained([item], "i", now) == ItemHistory(UID, "i", state, (CREATED, *events))  # type: ignore[arg-type]
    assert explained([item, dismissed], "i", 40).events == (CREATED, started, expired)


def test_dismissed_before_it_arrived() -> None:
    early = dismiss(UID, "i", msg_id="d").stamp(5, 0)
    dead = ItemEvent(5, "dismissed", source("d"), IDRule("i"))
    assert explained([early], "i", 40) == ItemHistory(UID, "i", "unknown", (dead,))
    assert explained([early, ITEM], "i", 40) == ItemHistory(UID, "i", "dismissed", (dead, CREATED))
    # Only its id can have reached it, even when the dismissal is forgotten.
    nameless = trace_of([early, ITEM], "i")._replace(killer=None)
    by_nobody = ItemEvent(5, "dismissed", None, IDRule("i"))
    assert history_of(UID, "i", nameless, 40).events == (by_nobody, CREATED)


def test_a_death_whose_message_is_forgotten_has_no_cause() -> None:
    killed = trace_of([ITEM, dismiss(UID, "i").stamp(20, 10)], "i")._replace(killer=None)
    assert history_of(UID, "i", killed, 40).events == (CREATED, ItemEvent(20, "dismissed"))


def test_forgotten_contents_and_unknown_ids() -> None:
    pruned = history_of(UID, "i", Trace(forgotten=10), 40)
    events = (ItemEvent(10, "created", Cause("i")), ItemEvent(None, "pruned"))
    assert pruned == ItemHistory(UID, "i", "pruned", events)
    assert explained([], "i", 40) == ItemHistory(UID, "i", "unknown")
    dismissal = dismiss(UID, "x", msg_id="i").stamp(10, 0)
    assert explained([dismissal], "i", MAX_TIME) == ItemHistory(UID, "i", "unknown")


# Authors


def test_devices_do_not_see_the_names_of_services() -> None:
    events = (
        ItemEvent(10, "created", Cause("i", "service:billing")),
        ItemEvent(20, "dismissed", Cause("d", "device:phone"), IDRule("i")),
    )
    shown = ItemHistory(UID, "i", "dismissed", events).without_services()
    assert [event.by for event in shown.events] == [
        Cause("i", "service"),
        Cause("d", "device:phone"),
    ]


@pytest.mark.parametrize(
    ("caller", "scope", "expected"),
    [
        (Caller("billing"), None, "service:billing"),
        (Caller("billing"), "phone", "service:billing"),
        (Caller("alice", "phone", is_service=False), None, "device:phone"),
        (Caller("alice", "phone", is_service=False), "laptop", "device:phone"),
        (Caller("alice", is_service=False), "laptop", "device:laptop"),
        (Caller("alice", is_service=False), None, "user:alice"),
        (Caller("a\0\ud800"), None, "service:a??"),
    ],
)
def test_authors(caller: Caller, scope: str | None, expected: str) -> None:
    assert caller.author_of(create(UID, "a", device_id=scope)) == expected


def test_an_author_is_as_long_as_a_store_takes() -> None:
    author = Caller("é" * 1_000).author_of(ITEM)
    assert len(author.encode()) <= MAX_AUTHOR
    assert author.endswith("é")
