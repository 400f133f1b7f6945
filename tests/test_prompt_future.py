"""Who awaits a PromptFuture goes on at once, unless a task has set its result."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gregor.prompt_future import PromptFuture

Finish = Callable[["asyncio.Future[Any]"], object]


def prompt_future() -> PromptFuture[Any]:
    return PromptFuture(loop=asyncio.get_running_loop())


class Waiting:
    """A task that awaits a future, and notes what became of it."""

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self.outcomes: list[object] = []
        self.task = asyncio.create_task(self._wait(future))

    async def _wait(self, future: asyncio.Future[Any]) -> None:
        try:
            self.outcomes.append(await future)
        except (KeyError, asyncio.CancelledError) as error:
            self.outcomes.append(type(error))


ENDS: list[tuple[Finish, object]] = [
    (lambda future: future.set_result(5), 5),
    (lambda future: future.set_exception(KeyError("planned")), KeyError),
]


async def in_event_loop(finish: Callable[[], object]) -> None:
    """Call this as the event loop calls what it has to do, and not a task."""
    called: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def call() -> None:
        finish()
        called.set_result(None)

    asyncio.get_running_loop().call_soon(call)
    await called


@pytest.mark.parametrize(("finish", "outcome"), ENDS)
async def test_who_awaits_goes_on_before_the_event_loop_has_set_its_result(
    finish: Finish, outcome: object
) -> None:
    future = prompt_future()
    waiting = [Waiting(future), Waiting(future)]
    await asyncio.sleep(0)
    seen: list[list[object]] = []

    def finish_and_look() -> None:
        finish(future)
        seen.extend(list(each.outcomes) for each in waiting)

    await in_event_loop(finish_and_look)
    assert seen == [[outcome], [outcome]]


@pytest.mark.parametrize(("finish", "outcome"), ENDS)
async def test_who_awaits_goes_on_in_the_next_turn_if_a_task_has_set_its_result(
    finish: Finish, outcome: object
) -> None:
    future = prompt_future()
    waiting = Waiting(future)
    await asyncio.sleep(0)
    finish(future)
    assert waiting.outcomes == []
    await asyncio.sleep(0)
    assert waiting.outcomes == [outcome]


async def test_who_awaits_what_a_continued_task_has_done_goes_on_in_the_same_turn() -> None:
    """In the order in which they were done, each as soon as the one before it waits."""
    first, second, third = prompt_future(), prompt_future(), prompt_future()
    steps: list[object] = []

    async def pass_on() -> None:
        steps.append(await first)
        second.set_result("second")
        third.set_result("third")
        steps.append("passed on")
        await asyncio.sleep(0)
        steps.append("next turn")

    async def note(future: asyncio.Future[Any]) -> None:
        steps.append(await future)

    tasks = [asyncio.create_task(each) for each in (note(second), pass_on(), note(third))]
    await asyncio.sleep(0)
    seen: list[object] = []

    def finish_and_look() -> None:
        first.set_result("first")
        seen.extend(steps)

    await in_event_loop(finish_and_look)
    await asyncio.gather(*tasks)
    assert seen == ["first", "passed on", "second", "third"]
    assert steps[len(seen) :] == ["next turn"]


class Ending(BaseException):
    """What ends a process, and is not for a task."""


async def test_callbacks_after_one_that_ends_the_process_are_called_in_the_next_turn() -> None:
    loop = asyncio.get_running_loop()
    future = prompt_future()
    called: list[str] = []
    ended: list[type[BaseException]] = []

    def end(future: object) -> None:
        raise Ending

    for callback in (end, partial(_note, called, "second")):
        future.add_done_callback(callback)

    def finish() -> None:
        try:
            future.set_result(None)
        except Ending as error:
            ended.append(type(error))

    await in_event_loop(finish)
    await asyncio.sleep(0)
    assert (ended, called) == ([Ending], ["second"])
    other = prompt_future()
    other.add_done_callback(partial(_note, called, "third"))
    loop.call_soon(other.set_result, None)
    await asyncio.sleep(0)
    assert called == ["second", "third"]


async def test_who_comes_later_gets_the_result_too() -> None:
    future = prompt_future()
    future.set_result(5)
    assert await future == 5
    assert await asyncio.wait_for(future, 60) == 5


async def test_task_that_is_cancelled_leaves_the_future() -> None:
    future = prompt_future()
    waiting = Waiting(future)
    await asyncio.sleep(0)
    waiting.task.cancel()
    await waiting.task
    assert waiting.outcomes == [asyncio.CancelledError]
    assert future.cancelled()


async def test_time_out_is_one_for_who_awaits_too() -> None:
    """It sets its state after it has cancelled the task, which must not have gone on by then."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await prompt_future()


async def test_callbacks_are_called_once_and_those_that_were_removed_are_not() -> None:
    future = prompt_future()
    called: list[str] = []
    removed, kept = partial(_note, called, "removed"), partial(_note, called, "kept")
    for callback in (removed, kept, removed):
        future.add_done_callback(callback)
    assert future.remove_done_callback(removed) == 2
    future.set_result(None)
    assert called == []
    await asyncio.sleep(0)
    assert called == ["kept"]


def _note(called: list[str], name: str, future: object) -> None:
    called.append(name)
