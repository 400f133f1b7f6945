"""What holds for the node's session after any sequence of events."""

from collections.abc import Sequence
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gregor.core.message import InBandMessage, create, out_of_band
from gregor.core.state import Item
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.interfaces import HOLDS_FOREVER, Stored
from gregor.protocol import frames, outbound_queue
from gregor.protocol.delivery_state import TRANSITIONS, DeliveryState, ReadingItems, ReadingStore
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Messages, SyncPage
from gregor.protocol.handshake import Phase
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import CatchUp, Effect, ReadItems, ServerSession

Step: TypeAlias = tuple[str, int]

steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.sampled_from(["publish", "publish", "verify"]), st.integers(0, 3)),
    st.tuples(
        st.sampled_from(["next", "next", "next", "synced", "items read", "out of band"]), st.just(0)
    ),
    st.tuples(st.sampled_from(["close", "opened"]), st.just(0)),
)


def items(messages: Sequence[InBandMessage]) -> tuple[Item, ...]:
    return tuple(item for message in messages if (item := Item.of(message)) is not None)


class SessionUnderTest:
    """A session, the log of its user, and the cursor up to which its device knows everything."""

    def __init__(self) -> None:
        self.session = ServerSession()
        self.session.resume("d1", 0, None)
        self.session.reading()
        self.log: list[InBandMessage] = []
        self.known = 0

    def carry_out(self, step: Step) -> None:
        match step:
            case "publish", lost:
                self.publish(lost)
            case "verify", back if self.session.phase is not Phase.AUTHENTICATING:
                cursor = max(0, self.known - back)
                self.session.receive(f'{{"type":"verify","cursor":{cursor}}}')
            case "next", _:
                self.write(self.session.next())
            case "opened" | "synced", _ if self.session.phase is Phase.AUTHENTICATING:
                self.session.opened("u", self.sync(0), 50, HOLDS_FOREVER)
            case "synced", _ if isinstance(self.session.delivery, ReadingStore):
                self.session.synced(self.sync(self.session.delivery.cursor))
            case "items read", _ if isinstance(self.session.delivery, ReadingItems):
                content = self.session.delivery.rest.content
                assert isinstance(content, Snapshot)
                first = content.unread[0][0]
                self.session.items_read(items(self.log[first - 1 : first]))
            case "out of band", _:
                self.session.deliver_out_of_band(out_of_band("u", "s", 1))
            case "opened", _:  # again, which changes nothing
                self.session.opened("u", self.sync(0), 50, HOLDS_FOREVER)
            case "close", _:
                self.session.close(1000, "bye")

    def publish(self, lost: int) -> None:
        """Store some messages that are not published, and one that is."""
        for _ in range(lost + 1):
            device_id = "d2" if len(self.log) % 3 == 0 else None
            message = create("u", "a", device_id=device_id, msg_id=f"m{len(self.log)}")
            self.log.append(message.stamp(len(self.log) + 1, len(self.log)))
        self.session.publish(Publication.of(Stored(self.log[-1])))

    def sync(self, cursor: int) -> Sync:
        """From cursor 0, a snapshot of which one item is read, and two are not."""
        content: Changes | Snapshot = Changes(tuple(self.log[cursor:]))
        if cursor == 0 and len(self.log) > 2:
            content = Snapshot(items(self.log[:1]), unread=((2, 3),))
        return Sync(content, len(self.log), 999, hash_of(()))

    def write(self, effect: Effect | None) -> None:
        """The device receives what continues its cursor, or begins at one that it has asked for."""
        match effect:
            case Send(Messages(prev, _, cursor)):
                assert prev == self.known
                self.known = cursor
            case Send(SyncPage(prev=prev, cursor=cursor)):
                assert prev <= self.known
                self.known = cursor
            case Send() | CatchUp() | ReadItems() | Close() | None:
                pass


def is_allowed(before: DeliveryState | None, following: DeliveryState | None) -> bool:
    if before is None or following is None:
        return following is None  # a conversation that is closed stays closed
    targets = {target for row in TRANSITIONS[type(before)].values() for target in row}
    return type(following) in {type(before), *targets}


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "PAGE_ENTRIES", 2)
    monkeypatch.setattr(outbound_queue, "QUEUE_MESSAGES", 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=60))
def test_law_any_sequence_of_events_follows_the_table_and_cursor_is_at_most_position(
    history: list[Step],
) -> None:
    under_test = SessionUnderTest()
    session = under_test.session
    for step in history:
        before = session.delivery
        under_test.carry_out(step)
        assert is_allowed(before, session.delivery)
        assert session.cursor <= session.position <= len(under_test.log)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps.filter(lambda step: step[0] != "close"), max_size=60))
def test_law_an_open_session_sends_everything_when_the_socket_accepts_data(
    history: list[Step],
) -> None:
    under_test = SessionUnderTest()
    for step in [*history, ("opened", 0), ("verify", 0)]:
        under_test.carry_out(step)
    while (effect := under_test.session.next()) is not None or under_test.session.lagging:
        under_test.write(effect)
        under_test.carry_out(("synced", 0))
        under_test.carry_out(("items read", 0))
    assert under_test.known == len(under_test.log)
