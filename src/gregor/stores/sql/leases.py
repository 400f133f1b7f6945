"""Leases: what only one node may do at a time, by the clock of the database.

A holder renews its lease while it works. One that was killed loses it when its time has run out.
Each transaction of the work takes the lease itself: then a holder that was frozen for longer than
its lease does nothing when it goes on.
"""

import os
import platform
import secrets
from typing import NamedTuple

from gregor.core.instant import SECOND, Time
from gregor.errors import LeaseHeld
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection

LEASE_TIME: Time = 15 * SECOND
"""How long nobody else does the work of a holder that was killed. Longer than a transaction may
take, and than a holder pauses between two."""


class Lease(NamedTuple):
    """The lease with this name, for one holder."""

    name: str
    holder: str

    @classmethod
    def of_this_process(cls, name: str) -> "Lease":
        """For a holder of its own. (A process may hold several databases, and each once.)"""
        return cls(name, f"{platform.node()} (process {os.getpid()}, {secrets.token_hex(3)})")

    def take(self, connection: DatabaseConnection) -> None:
        """Take the lease, or renew it. Raises LeaseHeld."""
        taken = connection.execute(
            statements.TAKE_LEASE, name=self.name, holder=self.holder, duration=LEASE_TIME
        )
        if not taken:
            raise LeaseHeld(
                f"another node has the lease {self.name!r} of this database; try again in"
                f" {LEASE_TIME // SECOND} s"
            )

    def give_up(self, connection: DatabaseConnection) -> None:
        """Let another holder take it at once. Idempotent."""
        connection.execute(statements.DELETE_LEASE, name=self.name, holder=self.holder)
