"""What a node concludes from the probes of its peers, and from what the sweep finds."""

import pytest

from gregor.consumers.channels import Verified
from gregor.consumers.peers import (
    FORGOTTEN_AFTER,
    LOSSES_OF_A_SPLIT,
    MAX_PEERS,
    SILENT_AFTER,
    Peers,
    PeerTable,
    Probe,
)
from gregor.consumers.publisher import Publisher
from gregor.errors import Malformed
from gregor.pubsub.memory import Exchange, MemoryPubSub


def table_after(ticks: int, *probes: Probe) -> PeerTable:
    """The table of a node that has heard these probes, then nothing."""
    table = PeerTable()
    for probe in probes:
        table.hear(probe)
    for _ in range(ticks):
        table.tick()
    return table


def test_peer_is_heard_until_it_misses_some_probes() -> None:
    assert (table_after(SILENT_AFTER, Probe("b")).heard, table_after(0).heard) == (1, 0)
    assert not table_after(SILENT_AFTER, Probe("b")).split
    assert table_after(SILENT_AFTER + 1, Probe("b")).heard == 0


def test_silent_peer_means_a_split_until_it_is_heard_or_forgotten() -> None:
    table = table_after(SILENT_AFTER + 1, Probe("b"), Probe("c"))
    assert (table.split, table.suspected, table.silent) == (True, True, ["b", "c"])
    table.hear(Probe("b"))
    assert (table.split, table.silent) == (True, ["c"])
    table.hear(Probe("c"))
    assert (table.split, table.suspected) == (False, False)
    assert not table_after(FORGOTTEN_AFTER + 1, Probe("b")).suspected


def test_number_of_peers_is_bounded() -> None:
    table = table_after(0, *(Probe(f"n{number}") for number in range(MAX_PEERS + 5)))
    assert table.heard == MAX_PEERS


def test_peer_that_shuts_down_is_not_silent() -> None:
    assert not table_after(SILENT_AFTER + 1, Probe("b"), Probe("b", leaving=True)).suspected


def test_repeated_losses_mean_a_split_and_a_single_one_a_suspicion() -> None:
    table = PeerTable()
    table.lose()
    assert (table.suspected, table.split) == (True, False)
    for _ in range(LOSSES_OF_A_SPLIT - 1):
        for _ in range(FORGOTTEN_AFTER):
            table.tick()
        table.lose()
    assert table.split
    for _ in range(FORGOTTEN_AFTER):
        table.tick()
    assert table.split
    table.tick()
    assert not table.suspected


def test_outage_of_the_pubsub_is_no_sign_of_a_split() -> None:
    table = table_after(SILENT_AFTER, Probe("b"))
    for _ in range(LOSSES_OF_A_SPLIT):
        table.lose()
    table.restart()
    assert not table.suspected
    table.tick()
    assert (table.heard, table.suspected) == (1, False)
    for _ in range(SILENT_AFTER):
        table.tick()
    assert table.split  # it has not come back to the same servers


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b'{"node": 7}', b'{"node": "%s"}' % (b"x" * 201), b"\xff", b"[" * 10_000],
)
def test_invalid_probe_is_rejected(payload: bytes) -> None:
    with pytest.raises(Malformed):
        peers().receive(Verified(payload, fresh=True))


def test_probe_of_a_later_version_may_have_more_fields() -> None:
    hearing = peers()
    hearing.receive(Verified(b'{"node": "b", "zone": "eu"}', fresh=True))
    assert hearing.heard == 1


@pytest.mark.parametrize("leaving", [b"false", b"true"])
def test_probe_that_is_published_again_later_says_nothing(leaving: bytes) -> None:
    hearing = peers()
    hearing.receive(Verified(b'{"node": "b"}', fresh=True))
    old = b'{"node": "%s", "leaving": %s}'
    for node in (b"b", b"c"):
        with pytest.raises(Malformed, match="long ago"):
            hearing.receive(Verified(old % (node, leaving), fresh=False))
    assert hearing.heard == 1


def peers() -> Peers:
    return Peers(Publisher(MemoryPubSub(Exchange()), "a"))
