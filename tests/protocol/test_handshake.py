"""The handshake: every phase, with everything that can happen in it."""

from collections.abc import Callable, Mapping

import msgspec
import pytest

from gregor.errors import ProtocolError
from gregor.protocol.frames import PROTOCOL, Hello
from gregor.protocol.handshake import TRANSITIONS, Handshake, HandshakeEvent, Phase

HELLO = Hello(token="t", device_id="d1", protocol=PROTOCOL)

EVENTS: Mapping[HandshakeEvent, Callable[[Handshake], bool]] = {
    "hello": lambda handshake: handshake.hello(HELLO),
    "authenticated": lambda handshake: handshake.authenticated("u"),
    "resume": lambda handshake: handshake.resume("d1", 7),
    "close": lambda handshake: handshake.close(),
}
PATHS: Mapping[Phase, tuple[HandshakeEvent, ...]] = {
    Phase.GREETING: (),
    Phase.AUTHENTICATING: ("hello",),
    Phase.OPEN: ("hello", "authenticated"),
    Phase.CLOSED: ("close",),
}


def handshake_in(phase: Phase) -> Handshake:
    handshake = Handshake()
    for event in PATHS[phase]:
        EVENTS[event](handshake)
    assert handshake.phase is phase
    return handshake


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", EVENTS)
def test_handshake_moves_as_its_table_says_and_otherwise_stays(
    phase: Phase, event: HandshakeEvent
) -> None:
    handshake = handshake_in(phase)
    following = TRANSITIONS[phase].get(event)
    assert EVENTS[event](handshake) is (following is not None)
    assert handshake.phase is (following or phase)


def test_table_has_every_phase() -> None:
    assert TRANSITIONS.keys() == set(Phase)


def test_user_and_device_are_known_when_the_conversation_is_open() -> None:
    handshake = handshake_in(Phase.OPEN)
    assert (handshake.uid, handshake.device_id) == ("u", "d1")


@pytest.mark.parametrize("epoch", [None, 0, 9])
def test_epoch_is_that_of_the_hello_or_of_the_resumption(epoch: int | None) -> None:
    greeted, resumed = Handshake(), Handshake()
    greeted.hello(msgspec.structs.replace(HELLO, epoch=epoch))
    resumed.resume("d1", epoch)
    assert greeted.epoch == resumed.epoch == epoch


def test_hello_of_another_protocol_raises_and_changes_nothing() -> None:
    handshake = Handshake()
    with pytest.raises(ProtocolError, match="update the older side"):
        handshake.hello(Hello(token="t", device_id="d1", protocol=PROTOCOL + 1))
    assert (handshake.phase, handshake.device_id) == (Phase.GREETING, "")
