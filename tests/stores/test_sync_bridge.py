"""A synchronous function waits for coroutines as if it were asynchronous."""

import asyncio
from contextvars import ContextVar
from typing import TypeVar

import pytest

from gregor.stores.sql.sync_bridge import run_sync, wait_for

T = TypeVar("T")
caller: ContextVar[str] = ContextVar("caller", default="none")


async def soon(value: T) -> T:
    await asyncio.sleep(0)
    return value


async def failing() -> None:
    await asyncio.sleep(0)
    raise ValueError("in the coroutine")


async def test_result_of_function_is_returned() -> None:
    assert await run_sync(lambda: wait_for(soon(1)) + wait_for(soon(2))) == 3
    assert await run_sync(lambda: "without waiting") == "without waiting"


async def test_error_of_function_is_raised_to_the_caller() -> None:
    def fail_after_waiting() -> None:
        wait_for(soon(1))
        raise ValueError("in the function")

    with pytest.raises(ValueError, match="in the function"):
        await run_sync(fail_after_waiting)


async def test_error_of_coroutine_is_raised_where_the_function_waits() -> None:
    def catch_and_wait_again() -> int:
        with pytest.raises(ValueError, match="in the coroutine"):
            wait_for(failing())
        return wait_for(soon(5))

    assert await run_sync(catch_and_wait_again) == 5
    with pytest.raises(ValueError, match="in the coroutine"):
        await run_sync(lambda: wait_for(failing()))


async def test_cancellation_is_raised_where_the_function_waits() -> None:
    is_waiting = asyncio.Event()
    ended: list[object] = []

    async def forever() -> None:
        is_waiting.set()
        await asyncio.Event().wait()

    def work() -> None:
        try:
            wait_for(forever())
        finally:
            ended.append(wait_for(soon("cleaned up")))  # it may still wait

    task = asyncio.create_task(run_sync(work))
    await is_waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["cleaned up"]


async def test_context_variables_of_the_caller_are_visible() -> None:
    async def named() -> str:
        return caller.get()

    async def run_as(name: str) -> list[str]:
        caller.set(name)
        return await run_sync(lambda: [caller.get(), wait_for(named()), caller.get()])

    ann, bob = await asyncio.gather(run_as("ann"), run_as("bob"))
    assert ann == ["ann"] * 3
    assert bob == ["bob"] * 3


async def test_functions_are_interleaved_while_they_wait() -> None:
    steps: list[str] = []

    def work(name: str) -> None:
        for _ in range(2):
            steps.append(wait_for(soon(name)))

    await asyncio.gather(run_sync(lambda: work("a")), run_sync(lambda: work("b")))
    assert steps == ["a", "b", "a", "b"]


def test_waiting_outside_of_run_sync_is_an_error() -> None:
    awaitable = soon(1)
    with pytest.raises(RuntimeError, match="only inside run_sync"):
        wait_for(awaitable)
    awaitable.close()
