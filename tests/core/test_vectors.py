"""This implementation passes the vectors in spec/vectors, which are shared by all languages."""

from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, MsgID
from gregor.core.state_hash import hash_of
from gregor.core.sync import After, Since, Start
from gregor.testing import oracle
from tests.core.test_laws import (
    ctimes_and_ids,
    known_up_to,
    messages_since,
    replay_on_device,
)

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


class HashCase(Struct, forbid_unknown_fields=True):
    name: str
    items: list[tuple[Time, MsgID]]
    hash: str


class View(Struct, forbid_unknown_fields=True):
    visible: list[MsgID]
    device_id: DeviceID | None = None
    at: Time | None = None
    now: Time = 0


class VisibilityCase(Struct, forbid_unknown_fields=True):
    name: str
    messages: list[InBandMessage]
    views: list[View]


class SinceQuery(Struct, forbid_unknown_fields=True):
    now: Time
    messages: list[InBandMessage]
    since: Time | None = None
    after: Time | None = None
    device_id: DeviceID | None = None

    @property
    def start(self) -> Start:
        if self.since is not None:
            return Since(self.since)
        assert self.after is not None
        return After(self.after)


class SinceCase(Struct, forbid_unknown_fields=True):
    name: str
    log: list[InBandMessage]
    asks: list[SinceQuery]


class HashFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[HashCase]


class VisibilityFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[VisibilityCase]


class SinceFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[SinceCase]


HASH_CASES = msgspec.json.decode((VECTORS / "hash.json").read_bytes(), type=HashFile).cases
VISIBILITY_CASES = msgspec.json.decode(
    (VECTORS / "visibility.json").read_bytes(), type=VisibilityFile
).cases
SINCE_CASES = msgspec.json.decode((VECTORS / "since.json").read_bytes(), type=SinceFile).cases


def name_of(case: HashCase | VisibilityCase | SinceCase) -> str:
    return case.name


@pytest.mark.parametrize("case", HASH_CASES, ids=name_of)
def test_hash_vector(case: HashCase) -> None:
    assert hash_of(case.items) == case.hash
    assert hash_of(reversed(case.items)) == case.hash


@pytest.mark.parametrize("case", VISIBILITY_CASES, ids=name_of)
def test_visibility_vector(case: VisibilityCase) -> None:
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


@pytest.mark.parametrize("case", SINCE_CASES, ids=name_of)
def test_since_vector(case: SinceCase) -> None:
    for query in case.asks:
        device_id, start, now = query.device_id, query.start, query.now
        assert messages_since(case.log, device_id, start, now) == query.messages
        expected = oracle.visible(case.log, device_id, now)
        for last in {start.first - 1, start.known}:
            known = known_up_to(case.log, last)
            facts = known.replay_all(query.messages)
            for replica in (facts, replay_on_device(known.pruned(), query.messages)):
                assert ctimes_and_ids(replica.state(device_id, now)) == expected
