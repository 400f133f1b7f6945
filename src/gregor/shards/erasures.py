"""Erased users, and what is left of them on shards that do not hold them: old copies of buckets.

The shard that holds a user records, in the transaction that erases the user, that the others may
have old copies. The record goes when they are removed, which may be much later, if a shard is away.
"""

from collections.abc import Sequence

from gregor.errors import Unavailable
from gregor.stores.sql import erase
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import PendingErasure


async def remove_copies(recorder: SQLStateMachine, name: str, machine: SQLStateMachine) -> bool:
    """Remove from the shard with this name what the recorder has recorded for it; return whether
    all of that is done, which is not known if the recorder does not answer. A bucket may move to
    the shard at the same time. Idempotent. Raises Unavailable if the shard does not answer."""
    while True:
        try:
            pending = await _pending(recorder, name)
        except Unavailable:
            return False
        if not pending:
            return True
        await _remove(machine, pending)
        try:
            await recorder.database.write(lambda c: erase.forget_pending(c, pending))  # noqa: B023
        except Unavailable:
            return False


async def _pending(recorder: SQLStateMachine, name: str) -> Sequence[PendingErasure]:
    return await recorder.database.read(lambda c: erase.pending_erasures(c, name))


async def _remove(machine: SQLStateMachine, pending: Sequence[PendingErasure]) -> None:
    if await machine.database.write(lambda c: erase.remove_copies(c, pending)):
        await machine.database.scrub()
