"""A pool of connections that does with those it has when the server accepts no more."""

import asyncio

from asyncpg.pool import Pool, PoolConnectionProxy

from gregor.stores.sql.database import PoolUse
from gregor.stores.sql.postgresql.errors import DRIVER_ERRORS
from gregor.stores.sql.postgresql.session import is_refused

# How long a connection that was refused is not tried again; longer if the refusal took its time,
# for which a user has waited.
RETRY_SECONDS = 1.0
RETRY_AFTER_TIMEOUT_SECONDS = 30.0

GIVE_UP_SECONDS = 2.0  # to wait for a connection that can be closed, as it is not in use


class PatientPool:
    """A Pool whose users wait for its own connections while the server is at its limit.

    Each user holds a permit, and there are as many as connections may be. The permit of a
    connection that was refused is withheld for a while, or until another connection could be made,
    and its user waits for another. So there are as many users as connections, and each finds one
    that is connected. The last permit is never withheld.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._permits = asyncio.Semaphore(pool.get_max_size())
        self._users = 0  # with a connection, or connecting
        self._waiting = 0  # for a connection, or for it to be made
        self._withheld = 0

    @property
    def is_busy(self) -> bool:
        """Whether each connection is in use, and no user waits for one to be made."""
        connected: int = self._pool.get_size()
        return 0 < self._users <= connected

    def use(self) -> PoolUse:
        in_use = self._pool.get_size() - self._pool.get_idle_size()
        return PoolUse(in_use, self._pool.get_max_size(), self._waiting)

    async def acquire(self, seconds: float) -> PoolConnectionProxy:
        """A connection, to be released. Raises TimeoutError, or the error of connecting if this
        pool has no other connection."""
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                while (driver := await self._acquire()) is None:
                    pass
                return driver
        finally:
            self._waiting -= 1

    async def _acquire(self) -> PoolConnectionProxy | None:
        """A connection, or None if the server accepted no more."""
        await self._permits.acquire()
        self._users += 1
        connected = self._pool.get_size()
        try:
            driver = await self._pool.acquire()
        except BaseException as error:
            self._users -= 1
            if not self._can_wait(error):
                self._permits.release()
                raise
            is_slow = isinstance(error, TimeoutError)
            self._withhold_permit(RETRY_AFTER_TIMEOUT_SECONDS if is_slow else RETRY_SECONDS)
            return None
        if self._pool.get_size() > connected:
            self._return_withheld()
        return driver

    def _can_wait(self, error: BaseException) -> bool:
        return is_refused(error) and (self._users > 0 or self._pool.get_size() > 0)

    def _withhold_permit(self, seconds: float) -> None:
        if not self._withheld:
            asyncio.get_running_loop().call_later(seconds, self._return_withheld)
        self._withheld += 1

    def _return_withheld(self) -> None:
        for _ in range(self._withheld):
            self._permits.release()
        self._withheld = 0

    async def release(self, driver: PoolConnectionProxy) -> None:
        try:
            await self._pool.release(driver)
        finally:
            self._users -= 1
            self._permits.release()

    async def give_up_one(self) -> bool:
        """Close a connection, and make no other for a while. False if there is none to close."""
        if not self._pool.get_size():
            return False
        try:
            driver = await self.acquire(GIVE_UP_SECONDS)
        except DRIVER_ERRORS:
            return False
        driver.terminate()
        self._users -= 1
        self._withhold_permit(RETRY_SECONDS)
        return True

    async def expire(self) -> None:
        """Use no connection again that is open now."""
        await self._pool.expire_connections()

    def terminate(self) -> None:
        self._pool.terminate()
