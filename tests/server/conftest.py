"""The fixtures of the server tests: real servers on loopback sockets."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from gregor.server.service import Timeouts
from tests.server.harness import Served, jwt_settings, serving


@pytest.fixture(autouse=True)
def _no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test during which the server logs a traceback: no request may cause one."""
    yield
    tracebacks = [record for record in caplog.get_records("call") if record.exc_info]
    assert tracebacks == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Served]:
    """One server for a module whose tests use different users. It accepts any uid as a token, and
    its time-out for a hello is short."""
    async with serving(timeouts=Timeouts(hello=0.3)) as served:
        yield served


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def jwt_server() -> AsyncIterator[Served]:
    """One server for a module that accepts signed tokens only."""
    async with serving(jwt_settings()) as served:
        yield served


@pytest.fixture
def uid(request: pytest.FixtureRequest) -> str:
    """A uid that no other test uses."""
    name: str = request.node.name
    return name
