"""A coroutine that waits for the work of a thread gets its result or its error."""

import asyncio
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from gregor.job import Job


def failing() -> None:
    raise KeyError("planned")


def in_thread(job: Job[Any]) -> None:
    """Run it, and return when the event loop is about to hear of its end."""
    thread = Thread(target=job.run)
    thread.start()
    thread.join()


async def test_result_and_error_of_the_work_are_those_of_its_future() -> None:
    job = Job(lambda: 5)
    in_thread(job)
    assert await job.done == 5
    failed = Job(failing)
    in_thread(failed)
    with pytest.raises(KeyError, match="planned"):
        await failed.done


async def test_all_who_wait_get_the_result() -> None:
    job = Job(lambda: 5)
    waiting = [asyncio.create_task(asyncio.wait_for(_result_of(job), 60)) for _ in range(3)]
    await asyncio.sleep(0)
    in_thread(job)
    assert await asyncio.gather(*waiting) == [5, 5, 5]
    assert await job.done == 5, "who comes later gets it too"


async def _result_of(job: Job[int]) -> int:
    return await job.done


async def test_work_that_nobody_waits_for_is_not_done() -> None:
    done: list[int] = []
    job = Job(lambda: done.append(1))
    waiting = asyncio.create_task(_nothing_of(job))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    in_thread(job)
    assert not done


async def _nothing_of(job: Job[None]) -> None:
    await job.done


@pytest.mark.parametrize("work", [lambda: None, failing])
async def test_outcome_of_work_that_nobody_waits_for_any_more_is_dropped(
    work: Callable[[], None],
) -> None:
    """The thread has done it while the task that waits was cancelled."""
    job = Job(work)
    waiting = asyncio.create_task(_nothing_of(job))
    await asyncio.sleep(0)
    in_thread(job)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert job.done.cancelled()


def test_outcome_is_dropped_if_the_event_loop_has_ended() -> None:
    async def make() -> list[Job[None]]:
        return [Job(lambda: None), Job(failing)]

    for job in asyncio.run(make()):
        job.run()
        assert not job.done.done()
