"""`gregor explain`: the story of an item, from a server and from a stopped store."""

import re

import pytest

from gregor.cli.explain import story
from gregor.core.item_history import (
    Cause,
    IDRule,
    ItemEvent,
    ItemHistory,
    KeyRule,
    PutRule,
    RangeRule,
)
from tests.cli.conftest import Shell

START = 1_767_225_600_000_000  # 2026-01-01
MINUTE = 60_000_000


def told(*events: ItemEvent, state: str = "dismissed") -> list[str]:
    return list(story(ItemHistory("alice", "i", state, events)))  # type: ignore[arg-type]


def test_story_of_an_item_from_a_server(gregor: Shell) -> None:
    gregor("put", "ann", "theme", "dark", "--msg-id", "first")
    gregor("put", "ann", "theme", "light", "--msg-id", "second")
    title, created, replaced = gregor("explain", "ann", "first").out.splitlines()
    assert title == "Item first of ann was replaced by a later one."
    time = r"  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
    assert re.fullmatch(time + "created by a service", created)
    cause = "a service, with message second, which has put another item under its key theme"
    assert re.fullmatch(f"{time}replaced by {cause}", replaced)
    history = gregor("explain", "ann", "second", "--json").json
    assert (history["state"], len(history["events"])) == ("visible", 1)
    assert gregor("explain", "ann", "x").out.startswith("Item x of ann is not known")
    assert gregor("explain", "ann", "x" * 65).failed_with("msg_id", "64")


def test_story_from_a_store_without_a_server(shell: Shell) -> None:
    store = ("--store", "sqlite:///gregor.db")
    with shell.serving(*store):
        shell("send", "ann", "a", "1", "--msg-id", "i")
        shell("dismiss", "ann", "--category", "a")
    lines = shell("explain", "ann", "i", *store).out.splitlines()
    assert lines[0] == "Item i of ann was dismissed."
    assert "which dismisses all in a up to" in lines[2]
    assert shell("explain", "ann", "i", *store, "--json").json["state"] == "dismissed"
    assert shell("explain", "ann", "i", *store, "--url", "http://x").status == 2
    assert shell("explain", "ann", "i", "--store", "sqlite:///no.db").failed_with("no such file")


CREATED = ItemEvent(START, "created", Cause("i", "service:billing"))


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            ItemEvent(START + MINUTE, "dismissed", Cause("d", "device:phone"), IDRule("i")),
            "dismissed by the device phone, with message d, which names its id",
        ),
        (
            ItemEvent(
                START + MINUTE,
                "dismissed",
                Cause("d", "user:alice"),
                RangeRule("a.", True, True, START),
            ),
            "dismissed by one of the user's devices, with message d,"
            " which dismisses all in a.*, begun or not, up to 2026-01-01 00:00:00",
        ),
        (
            ItemEvent(START + MINUTE, "dismissed", Cause("d"), KeyRule("k", START)),
            "dismissed by somebody who is not known, with message d,"
            " which dismisses its key k up to 2026-01-01 00:00:00",
        ),
        (
            ItemEvent(START + MINUTE, "replaced", Cause("p", "service:x\x1b"), PutRule("k")),
            "replaced by the service x\N{REPLACEMENT CHARACTER}, with message p,"
            " which has put another item under its key k",
        ),
        (ItemEvent(START + MINUTE, "dismissed"), "dismissed by a message that is forgotten"),
        (ItemEvent(START + MINUTE, "started"), "began to be visible, as its creator had said"),
        (ItemEvent(START + MINUTE, "expired"), "expired, as its creator had said"),
    ],
)
def test_each_event_is_a_sentence(end: ItemEvent, words: str) -> None:
    assert told(CREATED, end)[1:] == [
        "  2026-01-01 00:00:00  created by the service billing",
        f"  2026-01-01 00:01:00  {words}",
    ]


def test_story_of_what_is_forgotten() -> None:
    lines = told(ItemEvent(START, "created", Cause("i")), ItemEvent(None, "pruned"), state="pruned")
    assert lines == [
        "Item i of alice is past, and its contents are forgotten.",
        "  2026-01-01 00:00:00  the message was stored",
        "                       later its contents were forgotten, because it was past for long",
    ]
