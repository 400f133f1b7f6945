"""Large work is done beside the event loop, for at most half of the time."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.server.aside import ASIDE_BYTES, BURST_SECONDS, Aside, Rests

A_LITTLE = 1e-6


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_work_takes_at_most_half_of_the_time_but_for_a_burst(
    jobs: list[tuple[float, float]],
) -> None:
    clock = [0.0]
    rests = Rests(lambda: clock[0])
    worked = rested = 0.0
    for idle, work in jobs:
        clock[0] += idle
        rest = rests.due()
        clock[0] += rest
        rested += rest
        assert worked <= clock[0] - worked + BURST_SECONDS + A_LITTLE
        assert rested <= worked, "it rests no longer than it works"
        clock[0] += work
        rests.worked(work)
        worked += work


@given(st.lists(st.floats(0, 0.1)))
def test_who_works_now_and_then_need_not_rest(jobs: list[float]) -> None:
    clock = [0.0]
    rests = Rests(lambda: clock[0])
    for work in jobs:
        assert rests.due() < A_LITTLE
        clock[0] += work
        rests.worked(work)
        clock[0] += work


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, ASIDE_BYTES, ASIDE_BYTES + 1])
async def test_only_large_work_is_passed_to_a_thread(size: int) -> None:
    thread = await Aside().run("ann", size, threading.current_thread)
    assert (thread is threading.main_thread()) == (size <= ASIDE_BYTES)


@pytest.mark.asyncio
async def test_senders_take_turns() -> None:
    aside, gate, order = Aside(), threading.Event(), list[str]()

    async def work(sender: str, name: str) -> None:
        await aside.run(sender, ASIDE_BYTES + 1, lambda: order.append(name))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(aside.run("eve", ASIDE_BYTES + 1, gate.wait))
        for n in range(3):
            tasks.create_task(work("eve", f"eve {n}"))
        for n in range(2):
            tasks.create_task(work("ann", f"ann {n}"))
        await asyncio.sleep(0)  # until all of it waits
        gate.set()
    assert order.index("ann 1") < order.index("eve 2")
    assert [name for name in order if "eve" in name] == ["eve 0", "eve 1", "eve 2"]


@pytest.mark.asyncio
async def test_errors_come_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await Aside().run("ann", ASIDE_BYTES + 1, lambda: 1 // 0)
