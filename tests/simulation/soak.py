"""A soak: round after round of messages and faults, after each of which everything is ended.

Then nothing is live and nothing is unsent, so each device and its store must hold a constant,
whatever has passed, and however often the device was connected.
"""

import asyncio

from gregor.core.facts import Facts
from gregor.core.message import UID, Category, InBandMessage, create, dismiss, dismiss_category
from tests.simulation.simulation import (
    USERS,
    Disagreement,
    SimulatedDevice,
    Simulation,
    carry_out,
)

ROOTS = ("mail", "chat", "theme")
FORGETTING_SECONDS = 130  # the longest expiry, and a minute after it


class Soak(Simulation):
    """A simulation of several rounds. `messages` is how many a backend and devices have written."""

    def __init__(self, seed: int, rounds: int) -> None:
        super().__init__(seed)
        self.messages = 0
        self._rounds = rounds

    async def run_rounds(self) -> None:
        for _ in range(self._rounds):
            await self.run_round()
            await self._end_everything()
            await self.settle()
            for device in self.devices:
                _require_constant(device)
        written = [len(device.accepted) for device in self.devices]
        self.messages = len(self.acknowledged) + sum(written)

    async def _end_everything(self) -> None:
        """Dismiss all that there is and what has not arrived, let an item expire, and give the
        nodes a reason to tell the time."""
        for uid in USERS:
            await self.send([self._end_of(uid, root) for root in ROOTS])
            await self.send([dismiss(uid, self.new_msg_id(), msg_id=self.new_msg_id())])
            await self.send([create(uid, "brief", expires="1s", msg_id=self.new_msg_id())])
        await asyncio.sleep(FORGETTING_SECONDS)
        for uid in USERS:
            await self.send([self._end_of(uid, "mail")])

    def _end_of(self, uid: UID, root: Category) -> InBandMessage:
        return dismiss_category(uid, root, prefix=True, scheduled=True, msg_id=self.new_msg_id())


def _require_constant(device: SimulatedDevice) -> None:
    assert device.client is not None
    replica = device.client.replica
    kinds = {kind for kind, _ in device.store.records}
    held = (replica.facts, replica.shown, dict(replica.outbox), dict(replica.hidden))
    if held != (Facts(), Facts(), {}, {}) or not kinds <= {"device", "owner", "rejected"}:
        raise Disagreement(f"{device.name} still holds {held}, and its store {kinds}")


def soak(seed: int, rounds: int) -> Soak:
    """Run one soak. Raises Disagreement, with the end of the trace, if a device holds more than a
    constant."""
    simulation = Soak(seed, rounds)
    carry_out(simulation)
    return simulation
