"""A node's entry in the list of nodes that run on a database, which `gregor migrate` reads."""

import asyncio
import logging
import os
import platform
import secrets
from contextlib import suppress
from functools import partial

from gregor.errors import GregorError
from gregor.log_event import LogEvent
from gregor.stores.sql.database import Database
from gregor.stores.sql.schema import register, unregister

log = logging.getLogger("gregor.state_machine")

END_SECONDS = 1.0  # a database that does not answer must not delay a shutdown


class Registration:
    """The entry of this process. `problem` says why it could not be renewed; None if it was."""

    def __init__(self, database: Database) -> None:
        self.problem: str | None = None
        self._database = database
        self._name = f"{platform.node()} (process {os.getpid()}, {secrets.token_hex(3)})"

    async def renew(self) -> None:
        """Say that this node runs."""
        try:
            await self._database.write(partial(register, name=self._name))
        except GregorError as error:
            if self.problem is None:
                log.warning(LogEvent("node not registered", reason=str(error)))
            self.problem = f"the node is not registered: {error}"
        else:
            self.problem = None

    async def end(self) -> None:
        """Say that this node has ended. If that fails, its entry expires by itself."""
        with suppress(GregorError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._database.write(partial(unregister, name=self._name))
