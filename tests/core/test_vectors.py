"""This implementation passes the vectors in spec/vectors, which are shared by all languages."""

import base64
from hashlib import sha256
from itertools import permutations
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.item_index import ItemIndex
from gregor.core.message import DeviceID, InBandMessage, MsgID, parse_message, seen_on
from gregor.core.state import Item
from gregor.core.sync import After, Since, Start, snapshot_of
from gregor.testing import oracle
from tests.core.test_laws import (
    ctimes_and_ids,
    known_up_to,
    messages_since,
    replay_on_device,
)

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


class HashQuery(Struct, forbid_unknown_fields=True):
    as_of: Time
    hash: str
    device_id: DeviceID | None = None


class HashCase(Struct, forbid_unknown_fields=True):
    name: str
    items: list[Item]
    asks: list[HashQuery]


class View(Struct, forbid_unknown_fields=True):
    visible: list[MsgID]
    device_id: DeviceID | None = None
    at: Time | None = None
    known: Time | None = None
    now: Time = 0

    def expected(self, messages: list[InBandMessage]) -> list[MsgID]:
        """What the oracle says. It knows no pages; a page is a state that knows fewer messages."""
        if self.known is not None:
            messages = [message for message in messages if message.ctime <= self.known]
            names = oracle.visible(messages, self.device_id, self.at or 0)
        else:
            names = oracle.visible(messages, self.device_id, self.now, self.at)
        return [msg_id for _, msg_id in names]

    def seen_in(self, facts: Facts) -> list[MsgID]:
        if self.at is None:
            state = facts.state(self.device_id, self.now)
        else:
            state = facts.state_at(self.device_id, self.at, self.known)
        return [item.msg_id for item in state]


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


class DigestCase(Struct, forbid_unknown_fields=True):
    name: str
    messages: list[str]
    canonical: str
    digest: str


class DigestFile(Struct, forbid_unknown_fields=True):
    about: str
    cases: list[DigestCase]


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

DIGEST_CASES = msgspec.json.decode((VECTORS / "digest.json").read_bytes(), type=DigestFile).cases


def name_of(case: HashCase | VisibilityCase | SinceCase | DigestCase) -> str:
    return case.name


@pytest.mark.parametrize("case", HASH_CASES, ids=name_of)
def test_hash_vector(case: HashCase) -> None:
    for query in case.asks:
        for items in (case.items, reversed(case.items)):
            assert Facts.of(items).hash(query.device_id, query.as_of) == query.hash
        seen = [item for item in case.items if seen_on(item.device_id, query.device_id)]
        assert ItemIndex.of(seen).hash(query.as_of) == query.hash, "as a device keeps it up"


@pytest.mark.parametrize("case", DIGEST_CASES, ids=name_of)
def test_digest_vector(case: DigestCase) -> None:
    whole = sha256(case.canonical.encode()).digest()
    assert base64.urlsafe_b64encode(whole[:16]).decode() == case.digest + "=="
    for text in case.messages:
        message = parse_message(text, stamped=True)
        assert isinstance(message, InBandMessage)
        assert message.contents() == case.canonical.encode()
        assert message.contents_digest() == case.digest


def test_no_two_digest_vectors_are_equal() -> None:
    assert len({case.digest for case in DIGEST_CASES}) == len(DIGEST_CASES)


@pytest.mark.parametrize("case", VISIBILITY_CASES, ids=name_of)
def test_visibility_vector(case: VisibilityCase) -> None:
    for view in case.views:
        assert view.expected(case.messages) == view.visible, view
    for order in permutations(case.messages[:5]):
        facts = Facts().replay_all([*case.messages[5:], *order, *order[:1]])
        for view in case.views:
            assert view.seen_in(facts) == view.visible, view


@pytest.mark.parametrize("case", SINCE_CASES, ids=name_of)
def test_since_vector(case: SinceCase) -> None:
    for query in case.asks:
        device_id, start, now = query.device_id, query.start, query.now
        assert messages_since(case.log, device_id, start, now) == query.messages, query
        expected = oracle.visible(case.log, device_id, now)
        for last in {start.first - 1, start.known}:
            known = known_up_to(case.log, last)
            facts = known.replay_all(query.messages)
            for replica in (facts, replay_on_device(known.pruned(), query.messages)):
                assert ctimes_and_ids(replica.state(device_id, now)) == expected
        whole = Facts().replay_all(case.log)
        snapshot = snapshot_of(whole, device_id, now).facts()
        assert ctimes_and_ids(snapshot.state(device_id, now)) == expected
        assert snapshot.items.hash(now) == whole.hash(device_id, now), "what has not begun is in it"
