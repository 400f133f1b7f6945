"""Connections on which little comes at a time rest between the reads."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.server.read_pace import FREE_READS, REST_SECONDS, SMALL_BYTES, ReadPace, RestingFlow
from tests.client.harness import on_virtual_time
from tests.server.test_socket import PlayedTransport


def paced(*sizes: int, at: float = 0.0) -> list[float]:
    """The rests after reads of these sizes, all at one time."""
    pace = ReadPace()
    return [pace.rest(size, at) for size in sizes]


def test_connection_rests_after_a_few_small_reads() -> None:
    *free, first = paced(*[1] * (FREE_READS + 1))
    assert free == [0.0] * FREE_READS
    assert REST_SECONDS / 2 <= first <= REST_SECONDS * 3 / 2


def test_large_reads_are_free() -> None:
    assert paced(*[SMALL_BYTES] * 100) == [0.0] * 100


def test_what_is_complete_begins_anew() -> None:
    pace = ReadPace()
    for _ in range(FREE_READS):
        pace.rest(1, 0.0)
    pace.complete()
    assert pace.rest(1, 0.0) == 0.0


@given(st.lists(st.floats(0.0, 0.3), min_size=50, max_size=200))
def test_law_small_reads_of_a_peer_that_always_has_more_are_few(pauses: list[float]) -> None:
    """Whenever its pieces come: in any time it has the free reads, and at most two for each rest
    that fits into it."""
    pace, now = ReadPace(), 1_000.0
    for pause in pauses:
        now += pace.rest(1, now) + pause
    assert len(pauses) <= FREE_READS + 1 + 2 * (now - 1_000.0) / REST_SECONDS


class Flow:
    """A RestingFlow over a transport that the test plays."""

    def __init__(self) -> None:
        self.transport = PlayedTransport()
        played: Any = self.transport
        self.flow = RestingFlow(played, asyncio.get_running_loop())


@on_virtual_time
async def test_flow_that_rests_is_not_read_before_the_end_whatever_the_app_wants() -> None:
    f = Flow()
    f.flow.rest(1.0)
    f.flow.resume_reading()
    f.flow.rest(5.0)  # it does already
    assert not f.transport.is_reading
    await asyncio.sleep(1.1)
    assert f.transport.is_reading


@on_virtual_time
async def test_flow_that_the_app_has_paused_is_not_read_after_the_rest() -> None:
    f = Flow()
    f.flow.rest(1.0)
    assert f.flow.is_wanted
    f.flow.pause_reading()
    await asyncio.sleep(1.1)
    assert not f.flow.is_wanted
    assert not f.transport.is_reading
    f.flow.resume_reading()
    assert f.transport.is_reading


@pytest.mark.parametrize("wants", [False, True])
@on_virtual_time
async def test_flow_of_a_connection_that_has_ended_is_left_alone(wants: bool) -> None:
    f = Flow()
    f.flow.rest(1.0)
    (f.flow.resume_reading if wants else f.flow.pause_reading)()
    f.flow.end()
    await asyncio.sleep(1.1)
    assert not f.transport.is_reading
