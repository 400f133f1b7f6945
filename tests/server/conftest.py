"""Every test here talks to a real server over loopback sockets."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.server.world import Served, jwt_settings, serving


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a caller does may end in a traceback of ours."""
    yield
    logged = [record for record in caplog.get_records("call") if record.exc_info]
    # uvicorn itself writes one when a text frame is not UTF-8.
    assert [record for record in logged if "Invalid UTF-8" not in record.getMessage()] == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Served]:
    """One server for a module whose tests each have users of their own. It takes any uid as a
    token, and does not wait long for a hello."""
    async with serving(hello_seconds=0.3) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def guarded() -> AsyncIterator[Served]:
    """The same, for signed tokens."""
    async with serving(jwt_settings()) as served:
        yield served


@pytest.fixture
def uid(request: pytest.FixtureRequest) -> str:
    """A user that only this test knows."""
    name: str = request.node.name
    return name
