"""Pruning in the background and on demand, on virtual time: the parts of the store are scripted."""

import asyncio
from collections import deque

import pytest

from gregor.core.arguments import duration
from gregor.core.history import DAY, FOR_EVER, Cutoff, Retention
from gregor.core.instant import SECOND
from gregor.errors import InvalidMessage, LeaseHeld, StorageUnavailable
from gregor.interfaces import PruneStep
from gregor.node.pruning import (
    FIRST_SECONDS,
    LONGEST_PAUSE_SECONDS,
    PAUSES,
    RETRY_SECONDS,
    WALK_SECONDS,
    Forgotten,
    Prunable,
    Pruner,
)
from gregor.testing import virtual_time
from tests.client.harness import on_virtual_time

MORE, LAST = PruneStep("more", 1, 10, 2), PruneStep(None, 0, 5, 1)
WHOLE = Forgotten(1, 15, 3)
HELD = LeaseHeld("another node prunes")
DOWN = StorageUnavailable("the database is down")


class Part:
    """A part of a store: each step takes this time, and has the next of these results, or is the
    last of a walk in which nothing was forgotten."""

    def __init__(self, *results: PruneStep | Exception, seconds: float = 0.1) -> None:
        self.begun: list[float] = []
        self.calls: list[tuple[Cutoff, str]] = []
        self.under_way = 0
        self._results = deque(results)
        self._seconds = seconds

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        assert not self.under_way
        self.under_way += 1
        self.begun.append(loop_time())
        self.calls.append((cutoff, after))
        await asyncio.sleep(self._seconds)
        self.under_way -= 1
        result = self._results.popleft() if self._results else PruneStep(None)
        if isinstance(result, Exception):
            raise result
        return result


def loop_time() -> float:
    return asyncio.get_running_loop().time()


def pruner_of(*parts: Prunable, retention: Retention = Retention()) -> Pruner:  # noqa: B008 (frozen)
    named = {f"part {number}": part for number, part in enumerate(parts)}
    return Pruner(named, retention, virtual_time.clock, seconds=loop_time, jitter=lambda: 0.5)


async def run_for(pruner: Pruner, seconds: float) -> None:
    """Prune in the background for this time."""
    task = asyncio.create_task(pruner.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])


# In the background


@on_virtual_time
async def test_steps_take_less_than_a_tenth_of_the_time() -> None:
    part = Part(*[MORE] * 9, LAST)
    pruner = pruner_of(part)
    await run_for(pruner, FIRST_SECONDS)
    assert pruner.walks[0].forgotten == Forgotten(9, 95, 19)
    assert [after for _, after in part.calls] == ["", *["more"] * 9]
    gaps = [b - a for a, b in zip(part.begun, part.begun[1:], strict=False)]
    assert gaps == pytest.approx([0.1 * (PAUSES + 1)] * 9)
    assert 0.1 / gaps[0] < 0.1


@on_virtual_time
async def test_pause_after_a_step_that_had_to_wait_is_shorter_than_the_lease() -> None:
    part = Part(MORE, seconds=8.0)
    await run_for(pruner_of(part), FIRST_SECONDS)
    assert part.begun[1] - part.begun[0] == pytest.approx(8.0 + LONGEST_PAUSE_SECONDS)


@on_virtual_time
async def test_walk_begins_again_after_hours_with_the_cutoff_of_then() -> None:
    part = Part()
    pruner = pruner_of(part)
    await run_for(pruner, 2 * WALK_SECONDS)
    (first, _), (second, _) = part.calls
    now = virtual_time.START + round(part.begun[0] * SECOND)
    assert first == Cutoff(now - 90 * DAY, now - 400 * DAY)
    assert second.floor - first.floor == round((WALK_SECONDS + 0.1) * SECOND)


@on_virtual_time
async def test_failure_is_counted_and_logged_and_tried_again_while_other_parts_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, sound = Part(MORE, DOWN, DOWN, LAST), Part(MORE, LAST)
    pruner = pruner_of(broken, sound)
    await run_for(pruner, FIRST_SECONDS + 3 * RETRY_SECONDS)
    first, second = pruner.walks
    assert (first.failures, first.forgotten) == (2, WHOLE)
    assert (second.failures, second.forgotten) == (0, WHOLE)
    assert broken.begun[2] - broken.begun[1] == pytest.approx(0.1 + RETRY_SECONDS)
    line = "history not pruned shard='part 0' reason='the database is down'"
    assert [record.getMessage() for record in caplog.records] == [line] * 2


@on_virtual_time
async def test_age_is_that_of_the_last_whole_walk() -> None:
    pruner = pruner_of(Part(LAST, MORE, DOWN, seconds=0))
    (walks,) = pruner.walks
    ages: list[float] = []

    async def look() -> None:
        for seconds in (1, FIRST_SECONDS, WALK_SECONDS):
            await asyncio.sleep(seconds)
            ages.append(walks.age)

    async with asyncio.TaskGroup() as tasks:
        run = tasks.create_task(pruner.run())
        await look()
        run.cancel()
    assert ages == [1, 1 + FIRST_SECONDS / 2, 1 + FIRST_SECONDS / 2 + WALK_SECONDS]


@on_virtual_time
async def test_lease_of_another_node_is_no_failure_and_is_awaited() -> None:
    part = Part(HELD, LAST)
    pruner = pruner_of(part)
    await run_for(pruner, FIRST_SECONDS + RETRY_SECONDS)
    assert (pruner.walks[0].failures, len(part.calls)) == (0, 2)


@on_virtual_time
async def test_defect_ends_the_background_task() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await pruner_of(Part(ZeroDivisionError())).run()
    assert raised.group_contains(ZeroDivisionError)


@on_virtual_time
async def test_nothing_is_pruned_in_the_background_if_history_is_kept_for_ever() -> None:
    part = Part()
    await pruner_of(part, retention=FOR_EVER).run()
    assert part.calls == []


# On demand


@on_virtual_time
async def test_all_parts_are_pruned_at_once_and_the_sum_is_returned() -> None:
    parts = [Part(MORE, LAST), Part(LAST)]
    assert await pruner_of(*parts).prune() == Forgotten(1, 20, 4)
    now = virtual_time.START
    assert parts[1].calls == [(Cutoff(now - 90 * DAY, now - 400 * DAY), "")]


@on_virtual_time
async def test_older_than_replaces_the_time_for_contents_alone() -> None:
    for retention in (Retention(), FOR_EVER):
        part, now = Part(), virtual_time.clock()
        await pruner_of(part, retention=retention).prune(30 * DAY)
        assert part.calls == [(Cutoff(now - 30 * DAY, now - 400 * DAY), "")]


@on_virtual_time
async def test_part_that_fails_is_reported_when_the_others_are_done() -> None:
    slow = Part(MORE, MORE, LAST)
    with pytest.raises(StorageUnavailable):
        await pruner_of(Part(DOWN), slow).prune()
    assert len(slow.calls) == 3


@on_virtual_time
async def test_lease_of_a_node_that_was_killed_is_waited_for() -> None:
    part = Part(*[HELD] * 14, LAST)
    assert await pruner_of(part).prune() == Forgotten(0, 5, 1)
    assert loop_time() > 15
    with pytest.raises(LeaseHeld):
        await pruner_of(Part(*[HELD] * 100)).prune()


@on_virtual_time
async def test_walks_of_one_node_do_not_overlap() -> None:
    """A part asserts it."""
    part = Part(*[MORE, MORE, LAST] * 3)
    pruner = pruner_of(part)
    await asyncio.gather(pruner.prune(), pruner.prune(30 * DAY), run_for(pruner, 60))
    assert len(part.calls) == 9


BAD: list[tuple[object, str]] = [
    ("0", "more than 0"),
    ("0d", "more than 0"),
    ("-30d", "more than 0"),
    ("30", "bare number"),
    (30, "not int"),
    (None, "not None"),
    ("", "duration"),
    ("soon", "duration"),
    ("100000d", "before 2001"),
    ("9" * 30 + "d", "at most"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
@on_virtual_time
async def test_time_that_makes_no_sense_is_refused(value: object, reason: str) -> None:
    part = Part()
    with pytest.raises(InvalidMessage, match=reason) as raised:
        await pruner_of(part).prune(duration("older_than", value))
    assert raised.value.field == "older_than"
    assert part.calls == []


@on_virtual_time
async def test_for_ever_must_be_told_how_much_to_forget() -> None:
    with pytest.raises(InvalidMessage, match="--history 0"):
        await pruner_of(Part(), retention=FOR_EVER).prune()
