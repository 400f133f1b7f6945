"""What a round is judged by finds what it is there to find."""

from gregor.cli.devices import Overheard, Retold
from gregor.core.message import create
from gregor.core.state import Changes, Item, Snapshot, Sync
from gregor.protocol.frames import encode, pages
from tests.faults.world import needlessly_retold


class Tape:
    """A Transport on which these frames are still to come."""

    def __init__(self, frames: list[str]) -> None:
        self._frames = frames

    async def send(self, text: str) -> None: ...

    async def close(self) -> None: ...

    async def receive(self) -> str:
        return self._frames.pop(0)


def items(number: int) -> tuple[Item, ...]:
    made = (Item.of(create("ann", "mail", "x" * 1_000).stamp(n + 1, n)) for n in range(number))
    return tuple(item for item in made if item is not None)


async def test_a_snapshot_in_many_pages_is_heard_of_once() -> None:
    syncs = [
        Sync(Snapshot(items(1_000)), 1_000, 2_000, "h"),
        Sync(Changes((create("ann", "mail").stamp(1_001, 1_000),)), 1_001, 2_000, "h"),
        Sync(Snapshot(items(3)), 1_002, 2_000, "h"),
    ]
    frames = [encode(page) for sync in syncs for page in pages(sync, 1_000)]
    assert len(frames) > len(syncs)
    heard: list[tuple[int, int]] = []
    overheard = Overheard(Tape(list(frames)), lambda cursor, items: heard.append((cursor, items)))
    assert [await overheard.receive() for _ in frames] == frames
    assert heard == [(1_000, 1_000), (1_002, 3)]


def test_who_missed_little_needs_no_snapshot() -> None:
    logs = {"ann": range(1, 101)}
    much = Retold("phone", "ann", known=10, cursor=100, items=73)
    little = Retold("phone", "ann", known=10, cursor=100, items=74)
    assert needlessly_retold([much, little], logs) == [
        "phone of ann missed 90 messages and got a snapshot of 74 items"
    ]
