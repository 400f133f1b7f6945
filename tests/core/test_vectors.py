"""spec/vectors, which any client in any language can run, are true of this one."""

from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, MsgID
from gregor.core.state import Facts, hash_of
from gregor.testing import oracle
from tests.core.test_laws import messages_since, names

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


class Hashed(Struct, forbid_unknown_fields=True):
    name: str
    items: list[tuple[Time, MsgID]]
    hash: str


class View(Struct, forbid_unknown_fields=True):
    visible: list[MsgID]
    device_id: DeviceID | None = None
    at: Time | None = None
    now: Time = 0


class Viewed(Struct, forbid_unknown_fields=True):
    name: str
    messages: list[InBandMessage]
    views: list[View]


class Ask(Struct, forbid_unknown_fields=True):
    since: Time
    now: Time
    messages: list[InBandMessage]
    device_id: DeviceID | None = None


class Asked(Struct, forbid_unknown_fields=True):
    name: str
    log: list[InBandMessage]
    asks: list[Ask]


class HashFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[Hashed]


class VisibilityFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[Viewed]


class SinceFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[Asked]


HASHES = msgspec.json.decode((VECTORS / "hash.json").read_bytes(), type=HashFile).cases
VIEWS = msgspec.json.decode((VECTORS / "visibility.json").read_bytes(), type=VisibilityFile).cases
ASKS = msgspec.json.decode((VECTORS / "since.json").read_bytes(), type=SinceFile).cases


def name_of(case: Hashed | Viewed | Asked) -> str:
    return case.name


@pytest.mark.parametrize("case", HASHES, ids=name_of)
def test_hash(case: Hashed) -> None:
    assert hash_of(case.items) == case.hash
    assert hash_of(reversed(case.items)) == case.hash


@pytest.mark.parametrize("case", VIEWS, ids=name_of)
def test_visibility(case: Viewed) -> None:
    for view in case.views:
        expected = oracle.visible(case.messages, view.device_id, view.now, view.at)
        assert [msg_id for _, msg_id in expected] == view.visible
        for order in permutations(case.messages[:5]):
            facts = Facts().replay_all([*case.messages[5:], *order, *order[:1]])
            if view.at is None:
                state = facts.state(view.device_id, view.now)
            else:
                state = facts.state_at(view.device_id, view.at)
            assert [item.msg_id for item in state] == view.visible


@pytest.mark.parametrize("case", ASKS, ids=name_of)
def test_since(case: Asked) -> None:
    for ask in case.asks:
        assert messages_since(case.log, ask.device_id, ask.since, ask.now) == ask.messages
        before = [message for message in case.log if message.ctime < ask.since]
        replica = Facts().replay_all([*before, *ask.messages]).state(ask.device_id, ask.now)
        assert names(replica) == oracle.visible(case.log, ask.device_id, ask.now)
