"""Two nodes whose pub/sub is up and carries nothing from one to the other."""

import asyncio

from gregor.consumers.peers import FORGOTTEN_AFTER, LOSSES_OF_A_SPLIT, PROBE_SECONDS, SILENT_AFTER
from gregor.core.message import create
from gregor.node.gap_repair import SUSPICION_SWEEP_SECONDS, SWEEP_SECONDS
from gregor.pubsub.interface import Interrupted
from tests.client.harness import on_virtual_time
from tests.node.fakes import BACKEND
from tests.node.test_fleet import NodePair, node_pair, within

NOTICED_SECONDS = (SILENT_AFTER + 2) * PROBE_SECONDS


async def is_split(pair: NodePair) -> None:
    """Wait until node b notices."""
    assert pair.node_b.peers is not None
    peers = pair.node_b.peers
    await within(NOTICED_SECONDS, lambda: peers.split)


@on_virtual_time
async def test_nodes_hear_each_other() -> None:
    async with node_pair() as pair:
        for _ in range(FORGOTTEN_AFTER):
            await asyncio.sleep(PROBE_SECONDS)
            for node in (pair.node_a, pair.node_b):
                assert node.peers is not None
                assert (node.peers.heard, node.peers.split, node.peers.suspected) == (
                    1,
                    False,
                    False,
                )


@on_virtual_time
async def test_message_is_delivered_within_a_fast_sweep_while_a_peer_is_silent() -> None:
    async with node_pair() as pair:
        await asyncio.sleep(PROBE_SECONDS)
        pair.pubsub_b.blackholed = True
        await is_split(pair)
        for number in range(60):
            msg_id = f"m{number}"
            await pair.node_a.inject(BACKEND, [create("u", "c", msg_id=msg_id)])
            await within(SUSPICION_SWEEP_SECONDS + 0.02, lambda: msg_id in pair.listener_b.ids)  # noqa: B023
            await asyncio.sleep(1.7)


@on_virtual_time
async def test_split_that_exists_from_the_start_is_noticed_by_what_the_sweep_finds() -> None:
    async with node_pair(blackholed=True) as pair:
        assert pair.node_b.peers is not None
        for number in range(LOSSES_OF_A_SPLIT):
            assert not pair.node_b.peers.split
            msg_id = f"m{number}"
            await pair.node_a.inject(BACKEND, [create("u", "c", msg_id=msg_id)])
            limit = SUSPICION_SWEEP_SECONDS if number else SWEEP_SECONDS
            await within(limit + 0.02, lambda: msg_id in pair.listener_b.ids)  # noqa: B023
        assert pair.node_b.peers.split
        pair.pubsub_b.blackholed = False
        await asyncio.sleep((FORGOTTEN_AFTER + 1) * PROBE_SECONDS)
        assert not pair.node_b.peers.suspected


@on_virtual_time
async def test_sweep_is_slow_again_when_the_nodes_hear_each_other() -> None:
    async with node_pair() as pair:
        await asyncio.sleep(PROBE_SECONDS)
        pair.pubsub_b.blackholed = True
        await is_split(pair)
        pair.pubsub_b.blackholed = False
        await asyncio.sleep(2 * PROBE_SECONDS)
        pair.store.ctimes_queries.clear()
        await asyncio.sleep(10 * SWEEP_SECONDS)
        assert len(pair.store.ctimes_queries) <= 2 * 2 * 10  # two nodes, and their jitter


@on_virtual_time
async def test_nodes_that_are_connected_to_different_servers_after_an_outage_notice() -> None:
    async with node_pair() as pair:
        await asyncio.sleep(PROBE_SECONDS)
        pair.pubsub_b.put(Interrupted())
        await asyncio.sleep(0)
        pair.pubsub_b.blackholed = True
        await is_split(pair)


@on_virtual_time
async def test_node_that_shuts_down_is_not_missed() -> None:
    pair = NodePair()
    async with pair.node_b:
        assert pair.node_b.peers is not None
        async with pair.node_a:
            await asyncio.sleep(PROBE_SECONDS)
            assert pair.node_b.peers.heard == 1
        await asyncio.sleep(NOTICED_SECONDS)
        assert (pair.node_b.peers.heard, pair.node_b.peers.suspected) == (0, False)
