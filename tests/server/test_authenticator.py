"""An authenticator of the host, which may wait, fail, or hang."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gregor.errors import GregorError, Unauthenticated, Unavailable
from gregor.server import Identity, Role
from gregor.server.service import DEFAULT_TIMEOUTS, Timeouts
from tests.server.harness import RawDevice, Served, open_settings, serving, until
from tests.server.test_http import problem

TOKEN = "alice's session"


class SessionDatabase:
    """An Authenticator that looks up sessions. It waits while it is `frozen`, and raises the
    `error`, if there is one."""

    def __init__(self) -> None:
        self.sessions = {TOKEN: Identity("alice", Role.DEVICE)}
        self.error: Exception | None = None
        self.waiting = 0
        self._thawed = asyncio.Event()
        self._thawed.set()

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def identify(self, token: str | None) -> Identity:
        self.waiting += 1
        try:
            await self._thawed.wait()
        finally:
            self.waiting -= 1
        if self.error is not None:
            raise self.error
        if token not in self.sessions:
            raise Unauthenticated("the session has ended")
        return self.sessions[token]


class Harness:
    """A server with a SessionDatabase."""

    def __init__(self, sessions: SessionDatabase, served: Served) -> None:
        self.sessions = sessions
        self.served = served

    async def get(self, token: str = TOKEN) -> tuple[int, str | None]:
        """The status and the error code of a request with this token."""
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self.served.http.get("/v1/users/alice/state", headers=headers)
        return (200, None) if answer.status_code == 200 else problem(answer)[:2]

    @asynccontextmanager
    async def hello(self, token: str = TOKEN) -> AsyncIterator[RawDevice]:
        """A device that has sent its hello."""
        async with await RawDevice.connect(self.served.url) as device:
            await device.send("hello", token=token, device_id="d", protocol=2)
            yield device


@asynccontextmanager
async def harness(timeouts: Timeouts = DEFAULT_TIMEOUTS) -> AsyncIterator[Harness]:
    sessions = SessionDatabase()
    async with serving(open_settings(), authenticator=sessions, timeouts=timeouts) as served:
        yield Harness(sessions, served)


async def test_request_and_device_wait_for_the_authenticator() -> None:
    async with harness() as h, asyncio.TaskGroup() as tasks, h.hello() as device:
        h.sessions.freeze()
        async with h.hello() as later_device:
            request = tasks.create_task(h.get())
            await until(lambda: h.sessions.waiting == 2)
            h.sessions.thaw()
            assert (await device.receive())["uid"] == "alice"
            assert (await later_device.receive())["uid"] == "alice"
            assert await request == (200, None)


async def test_authenticator_that_hangs_is_unavailable() -> None:
    async with harness(Timeouts(authentication=0.05)) as h:
        h.sessions.freeze()
        assert await h.get() == (503, "unavailable")
        async with h.hello() as device:
            error = await device.receive()
            assert (error["code"], error["action"]) == ("unavailable", "retry")
            assert await device.wait_closed() == 1013
        assert h.sessions.waiting == 0


async def test_wait_for_the_authenticator_counts_towards_the_hello_timeout() -> None:
    async with harness(Timeouts(hello=0.2, authentication=1000)) as h:
        h.sessions.freeze()
        async with h.hello() as device:
            assert (await device.receive())["code"] == "unavailable"
            assert await device.wait_closed() == 1013


@pytest.mark.parametrize(
    ("error", "status", "close_code"),
    [
        (Unauthenticated("the session has ended"), 401, 4001),
        (Unavailable("the database of sessions is down"), 503, 1013),
        (TimeoutError(), 503, 1013),
    ],
    ids=["unauthenticated", "unavailable", "time-out"],
)
async def test_error_of_the_authenticator_is_reported(
    error: Exception, status: int, close_code: int
) -> None:
    async with harness() as h:
        h.sessions.error = error
        code = error.code if isinstance(error, GregorError) else "unavailable"
        assert await h.get() == (status, code)
        async with h.hello() as device:
            assert (await device.receive())["code"] == code
            assert await device.wait_closed() == close_code


async def test_bug_of_the_authenticator_ends_one_connection_and_is_logged_without_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with harness() as h, h.hello() as other:
        await other.receive_type("sync")
        h.sessions.error = KeyError(TOKEN)
        assert await h.get() == (500, "internal")
        async with h.hello() as device:
            error = await device.receive()
            assert (error["code"], TOKEN in error["message"]) == ("internal", False)
            assert await device.wait_closed() == 1011
        await other.assert_usable()
        h.sessions.error = None
        assert await h.get() == (200, None)
    records = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in records] == ["the authenticator failed"] * 2
    assert "KeyError" in caplog.text
    assert "in identify" in caplog.text  # the traceback shows where
    assert TOKEN not in caplog.text
    caplog.clear()


async def test_identity_with_an_invalid_uid_is_refused() -> None:
    async with harness() as h:
        h.sessions.sessions["nobody"] = Identity("", Role.DEVICE)
        assert await h.get("nobody") == (401, "unauthenticated")
        async with h.hello("nobody") as device:
            assert await device.wait_closed() == 4001


@pytest.mark.parametrize("identity", [None, 5, Identity("alice", Role.DEVICE, "tomorrow")])  # type: ignore[arg-type]
async def test_absurd_identity_is_an_internal_error_of_one_connection(
    identity: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness() as h:
        h.sessions.sessions["absurd"] = identity
        assert await h.get("absurd") == (500, "internal")
        async with h.hello("absurd") as device:
            assert ((await device.receive())["action"], await device.wait_closed()) == (
                "retry",
                1011,
            )
        assert await h.get() == (200, None)
    caplog.clear()


async def test_device_that_leaves_while_the_authenticator_waits_is_not_connected() -> None:
    async with harness() as h:
        h.sessions.freeze()
        async with h.hello():
            await until(lambda: h.sessions.waiting == 1)
        h.sessions.thaw()
        await until(lambda: len(h.served.server.service.connections) == 0)
        assert h.served.server.node.device_count("alice") == 0


async def test_server_that_drains_while_the_authenticator_waits_sends_the_device_away() -> None:
    async with harness() as h:
        h.sessions.freeze()
        async with h.hello() as device:
            await until(lambda: h.sessions.waiting == 1)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(h.served.server.drain())
                assert (await device.receive())["type"] == "goaway"
                assert await device.wait_closed() == 1012
                h.sessions.thaw()
