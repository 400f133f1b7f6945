"""The other nodes, as this node hears them over the pub/sub, and whether it hears them all.

A pub/sub can be up for every node and still carry nothing from one to another: two nodes that use
different servers, members of a cluster that are cut off from each other, a permission that is
missing. No connection shows that. Two signs do:

- Each node publishes a probe every few seconds. A node that was heard, and is no more, is silent.
- The sweep finds messages in the store that other nodes have stored and that were not received.

While there is a sign, the pub/sub is suspected to be split, and the sweep is fast. A sign lasts
for a minute, since a node that was killed and one that is cut off cannot be distinguished. A
node that shuts down says so.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from gregor.consumers.channels import Verified
from gregor.consumers.publisher import Publisher
from gregor.errors import Malformed
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.pubsub")

PROBE_SECONDS = 2.0
SILENT_AFTER = 3  # probes
FORGOTTEN_AFTER = 30  # probes
MAX_PEERS = 1_000  # while probes are not signed, anybody who may publish can invent more
LOSSES_OF_A_SPLIT = 3
"""So many sweeps, without a minute in between, must have found something. One or two find what was
published while another node was reconnecting."""


class Probe(Struct, frozen=True):
    """What a node publishes to show that it can be heard. `leaving` is its last one."""

    node: Annotated[str, Meta(max_length=200)]
    leaving: bool = False


class PeerTable:
    """What is known of the peers. Pure: time is the number of `tick` calls, so that a process that
    was stalled does not find that its peers were silent."""

    def __init__(self) -> None:
        self._missed: dict[str, int] = {}  # probes of each peer
        self._losses = 0  # sweeps that have found something
        self._ticks_since_loss = 0

    def tick(self) -> None:
        """The time between two probes has passed."""
        aged = {node: missed + 1 for node, missed in self._missed.items()}
        self._missed = {node: n for node, n in aged.items() if n <= FORGOTTEN_AFTER}
        self._ticks_since_loss += 1
        if self._ticks_since_loss > FORGOTTEN_AFTER:
            self._losses = 0

    def hear(self, probe: Probe) -> None:
        """A peer was heard."""
        if probe.leaving:
            self._missed.pop(probe.node, None)
        elif probe.node in self._missed or len(self._missed) < MAX_PEERS:
            self._missed[probe.node] = 0

    def lose(self) -> None:
        """The sweep has found messages that were not received."""
        self._losses += 1
        self._ticks_since_loss = 0

    def restart(self) -> None:
        """The pub/sub was down: nothing could be heard, and peers may still be reconnecting."""
        self._missed = dict.fromkeys(self._missed, 0)
        self._losses = 0

    @property
    def heard(self) -> int:
        """The number of peers that are heard now."""
        return sum(missed <= SILENT_AFTER for missed in self._missed.values())

    @property
    def silent(self) -> list[str]:
        """The peers that were heard within the last minute, and are no more."""
        return [node for node, missed in self._missed.items() if missed > SILENT_AFTER]

    @property
    def suspected(self) -> bool:
        """Whether anything indicates that the pub/sub is split."""
        return self._losses > 0 or bool(self.silent)

    @property
    def split(self) -> bool:
        """Whether the pub/sub is split, as far as can be known."""
        return self._losses >= LOSSES_OF_A_SPLIT or bool(self.silent)


class Peers:
    """Publishes the probes of a node, and listens to those of others. It calls `on_suspicion` when
    a first sign of a split appears. The node runs `run` in a task of its own."""

    def __init__(
        self,
        publisher: Publisher,
        *,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        self._publisher = publisher
        self._pubsub = publisher.pubsub
        self._node = publisher.node
        self.on_suspicion: Callable[[], None] = lambda: None
        self._probe_seconds = probe_seconds
        self._table = PeerTable()
        self._was_suspected = self._was_split = False

    @property
    def heard(self) -> int:
        """The number of other nodes that this node hears."""
        return self._table.heard

    @property
    def suspected(self) -> bool:
        """Whether messages of other nodes may be missing although the pub/sub is up."""
        return self._pubsub.up and self._table.suspected

    @property
    def split(self) -> bool:
        """Whether the pub/sub is up and carries nothing from another node."""
        return self._pubsub.up and self._table.split

    async def run(self) -> None:
        """Publish a probe every few seconds until this is cancelled, then a last one."""
        await self._pubsub.subscribe(self._publisher.channels.nodes)
        try:
            while True:
                await self._publish(Probe(self._node))
                await asyncio.sleep(self._probe_seconds)
                if self._pubsub.up:
                    self._table.tick()
                    self._report()
        finally:
            await self._publish(Probe(self._node, leaving=True))

    async def _publish(self, probe: Probe) -> None:
        if self._pubsub.up:  # otherwise it would count as dropped
            channel = self._publisher.channels.nodes
            await self._publisher.publish(channel, msgspec.json.encode(probe))

    def receive(self, received: Verified) -> None:
        """Take what was published on the channel of the nodes. Raises Malformed if it is not a
        probe, or was sent long ago: who publishes it again must not make a node seem to be heard,
        or to leave."""
        if not received.fresh:
            raise Malformed("a probe was sent long ago, or by a node whose clock is wrong")
        try:
            probe = msgspec.json.decode(received.json, type=Probe)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Malformed("the payload is not a probe") from error
        if probe.node != self._node:
            self._table.hear(probe)
            self._report()

    def notice_loss(self) -> None:
        """The sweep has found messages of other nodes that were not received."""
        if self._pubsub.up:
            self._table.lose()
            self._report()

    def notice_interruption(self) -> None:
        """The pub/sub was down and is up again."""
        self._table.restart()

    def _report(self) -> None:
        suspected, split = self.suspected, self.split
        if suspected and not self._was_suspected:
            self.on_suspicion()
        if split and not self._was_split:
            log.warning(
                LogEvent(
                    "the pub/sub is up, but messages of other nodes do not arrive: "
                    "was a node killed, does it use other servers of the pub/sub, or have these "
                    "lost contact to each other?",
                    silent_nodes=self._table.silent,
                    heard_nodes=self.heard,
                )
            )
        elif self._was_split and not split:
            log.warning(LogEvent("the pub/sub carries messages of other nodes again"))
        self._was_suspected, self._was_split = suspected, split
