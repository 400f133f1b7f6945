"""The checks of a fault round find the problems that they are meant to find."""

import pytest

from gregor.cli.demo_devices import ReceivedSnapshot, RecordingTransport, Written
from gregor.core.message import create
from gregor.core.state import Item
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.protocol.frames import encode, pages
from tests.faults.harness import unnecessary_snapshots, wrong_writes


class RecordedTransport:
    """A Transport that receives the given frames."""

    def __init__(self, frames: list[str]) -> None:
        self._frames = frames

    async def send(self, text: str) -> None: ...

    async def close(self) -> None: ...

    async def receive(self) -> str:
        return self._frames.pop(0)


def items(number: int) -> tuple[Item, ...]:
    created = (Item.of(create("ann", "mail", "x" * 1_000).stamp(n + 1, n)) for n in range(number))
    return tuple(item for item in created if item is not None)


async def test_snapshot_in_several_pages_is_reported_once() -> None:
    syncs = [
        Sync(Snapshot(items(1_000)), 1_000, 2_000, "h"),
        Sync(Changes((create("ann", "mail").stamp(1_001, 1_000),)), 1_001, 2_000, "h"),
        Sync(Snapshot(items(3)), 1_002, 2_000, "h"),
    ]
    frames = [encode(page) for sync in syncs for page in pages(sync, 1_000)]
    assert len(frames) > len(syncs)
    reported: list[tuple[int, int]] = []
    transport = RecordingTransport(
        RecordedTransport(list(frames)), lambda cursor, items: reported.append((cursor, items))
    )
    assert [await transport.receive() for _ in frames] == frames
    assert reported == [(1_000, 1_000), (1_002, 3)]


def test_snapshot_is_unnecessary_if_few_messages_were_missed() -> None:
    logs = {"ann": range(1, 101)}
    necessary = ReceivedSnapshot("phone", "ann", known=10, cursor=100, items=73)
    unnecessary = ReceivedSnapshot("phone", "ann", known=10, cursor=100, items=74)
    assert unnecessary_snapshots([necessary, unnecessary], logs) == [
        "phone of ann missed 90 messages and got a snapshot of 74 items"
    ]


@pytest.mark.parametrize(
    ("known", "last", "stored", "problem"),
    [
        (0, 0, True, None),
        (0, 0, False, "m, of a device, is lost"),
        (5, 5, True, None),
        (5, 5, False, "m, of a device, is lost"),
        (5, 9, False, None),
        (5, 9, True, "m, which a device wrote before ann was erased, has come back"),
        (0, 9, True, "m, which a device wrote before ann was erased, has come back"),
        (None, 0, False, "m, of a device, is lost"),
        (None, 9, True, None),  # it took the epoch from the node when it sent this
        (None, 9, False, None),  # or it did so before the erase
    ],
)
def test_what_devices_write_is_stored_if_it_comes_after_the_erase(
    known: int | None, last: int, stored: bool, problem: str | None
) -> None:
    ids = {("ann", "m")} if stored else set()
    epochs = {"ann": last} if last else {}
    found = wrong_writes([Written("ann", "m", known)], ids, epochs)
    assert list(found) == ([] if problem is None else [problem])
