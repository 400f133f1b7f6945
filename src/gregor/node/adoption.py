"""Changes from unsigned channels to those of the store's deployment, while nodes run.

A store has a deployment from schema 0009 on, and nodes use it when no node of an earlier version
runs any more: such a node signs nothing, and hears nothing that is signed. Each node finds out by
itself, at about the same time. First it hears both kinds of channels, then it publishes on the
signed ones, at last it hears only these. Between two steps all other nodes take the first, so that
nothing is lost, also what is in no store.
"""

import asyncio
import logging
from contextlib import suppress

from gregor.consumers.channels import SignedChannels, UnsignedChannels
from gregor.consumers.publisher import Publisher
from gregor.consumers.relay import Relay
from gregor.core.deployment import Deployment
from gregor.errors import Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.node")

ASK_SECONDS = 2.0
OVERLAP_SECONDS = 10.0


class Adoption:
    """Lets a publisher and a relay adopt the deployment of a state machine."""

    def __init__(
        self, state_machine: StateMachineOfRecord, publisher: Publisher, relay: Relay
    ) -> None:
        self._state_machine = state_machine
        self._publisher = publisher
        self._relay = relay

    async def run(self) -> None:
        """Adopt the deployment when there is one; return when that is done."""
        unsigned = self._publisher.channels
        if not isinstance(unsigned, UnsignedChannels):
            return
        log.warning(
            LogEvent(
                "messages between nodes are not signed yet",
                reason="the store has no deployment before schema 0009, and nodes use it when all"
                " of them know that schema",
            )
        )
        deployment = await self._adopted()
        signed = SignedChannels(deployment)
        await self._relay.hear(signed)
        await asyncio.sleep(OVERLAP_SECONDS)
        self._publisher.channels = signed
        await asyncio.sleep(OVERLAP_SECONDS)
        await self._relay.stop_hearing(unsigned)
        log.warning(LogEvent("messages between nodes are signed now", deployment=deployment.id))

    async def _adopted(self) -> Deployment:
        while True:
            await asyncio.sleep(ASK_SECONDS)
            with suppress(Unavailable):
                deployment = await self._state_machine.deployment()
                if deployment is not None:
                    return deployment
