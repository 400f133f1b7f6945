"""What holds for the device's session after any sequence of frames and calls."""

from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from gregor.core.instant import Time
from gregor.core.state_hash import hash_of
from gregor.errors import Action
from gregor.limits import Limits
from gregor.protocol.client_session import Apply, ClientSession, Effect, Replace, Wipe
from gregor.protocol.effects import Send
from gregor.protocol.frames import (
    Error,
    Frame,
    Messages,
    SyncPage,
    UserErased,
    Verify,
    Welcome,
    encode,
)
from gregor.protocol.sync_state import TRANSITIONS, Syncing, UpToDate

Step: TypeAlias = Frame | bool | None

HASH = hash_of(())
times = st.integers(0, 12)
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(lambda prev, size: Messages(prev, (), prev + size), times, st.integers(1, 3)),
    st.builds(
        lambda prev, size, more: SyncPage("changes", prev, prev + size, 50, HASH, more),
        times,
        st.integers(0, 3),
        st.booleans(),
    ),
    st.builds(
        lambda cursor, more: SyncPage("snapshot", 0, cursor, 50, HASH, more), times, st.booleans()
    ),
    st.builds(lambda epoch: Welcome("u", "d1", 50, Limits(), epoch), times | st.none()),
    st.builds(UserErased, times),
    st.just(Error("resync", "again", Action.RESYNC)),
    st.booleans(),  # the result of a comparison of hashes
    st.none(),  # the application asks for a sync
)


def carry_out(session: ClientSession, step: Step) -> list[Effect]:
    match step:
        case bool():
            return session.hash_compared(step)
        case None:
            return session.verify()
        case frame:
            return session.receive(encode(frame))


@given(st.lists(steps, max_size=40))
def test_law_any_sequence_of_frames_follows_the_table_and_cursor_only_moves_with_the_replica(
    history: list[Step],
) -> None:
    session = ClientSession("t", "d1", 5)
    replica_cursor = 5
    for step in history:
        before = session.state
        effects = carry_out(session, step)
        for effect in effects:
            if isinstance(effect, Apply | Replace):
                replica_cursor = effect.cursor
        assert session.cursor == replica_cursor
        targets = {target for row in TRANSITIONS[type(before)].values() for target in row}
        assert type(session.state) in {type(before), *targets}


@given(st.lists(steps, max_size=40))
def test_law_device_that_stops_being_up_to_date_has_been_sent_a_page_or_asks_for_a_sync(
    history: list[Step],
) -> None:
    session = ClientSession("t", "d1", 5)
    for step in history:
        was_up_to_date = isinstance(session.state, UpToDate)
        effects = carry_out(session, step)
        if was_up_to_date and isinstance(session.state, Syncing):
            asked = any(isinstance(e, Send) and isinstance(e.frame, Verify) for e in effects)
            assert asked or isinstance(step, SyncPage | Welcome)


@given(st.none() | times, st.lists(steps, max_size=40))
def test_law_device_is_wiped_by_each_later_epoch_and_by_no_other(
    epoch: Time | None, history: list[Step]
) -> None:
    session = ClientSession("t", "d1", 5, epoch)
    for step in history:
        known = session.epoch
        wiped = [effect for effect in carry_out(session, step) if isinstance(effect, Wipe)]
        told = step.epoch if isinstance(step, UserErased | Welcome) else None
        is_news = told is not None and (known is None or told > known)
        # A device that has none takes the epoch of a welcome.
        is_erase = is_news and not (known is None and isinstance(step, Welcome))
        assert wiped == ([Wipe(told)] if is_erase else [])
