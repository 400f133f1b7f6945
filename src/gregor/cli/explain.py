"""`gregor explain`: what became of an item, as a story."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.core.arguments import identifier
from gregor.core.instant import Time
from gregor.core.item_history import (
    Author,
    IDRule,
    ItemEvent,
    ItemHistory,
    ItemState,
    KeyRule,
    PutRule,
    RangeRule,
    Rule,
)
from gregor.core.message import MAX_MSG_ID, MAX_UID, UID, MsgID

if TYPE_CHECKING:
    from gregor.config import Settings


def explain(
    ctx: typer.Context,
    uid: options.UserID,
    msg_id: Annotated[
        str,
        typer.Argument(
            metavar="MSG_ID", help="The id of the item, as in gregor log.", show_default=False
        ),
    ],
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
    json: options.JSON = False,
) -> None:
    """Show what became of an item, and why: who made it, who ended it, when, and by
    which rule.

    [dim]$[/] gregor explain alice 5f0c…
    [dim]$[/] gregor explain alice 5f0c… --json
    [dim]$[/] gregor explain alice 5f0c… --store sqlite:///gregor.db    [dim]while no server runs[/]
    """
    if store and (url is not None or token is not None):
        raise typer.BadParameter("--store is a store without a server: leave out --url and --token")
    settings = options.load_settings(ctx, url=url, token=token, store=tuple(store or ()) or None)
    user = identifier("uid", uid, MAX_UID)
    item = identifier("msg_id", msg_id, MAX_MSG_ID)
    history = run((_read_store if store else _ask)(settings, user, item))
    if json:
        output.print_json(history)
        return
    for line in story(history):
        print(line)


async def _ask(settings: "Settings", uid: UID, msg_id: MsgID) -> ItemHistory:
    from gregor.cli.remote import request

    return await request(settings, lambda server: server.history(uid, msg_id))


async def _read_store(settings: "Settings", uid: UID, msg_id: MsgID) -> ItemHistory:
    from gregor.cli.stopped_store import opened

    async with opened(settings) as parts:
        return await parts.state_machine.item_history(uid, msg_id)


# The story


def story(history: ItemHistory) -> Iterator[str]:
    """A line that says what is so now, and one for each event."""
    item, uid = output.printable(history.msg_id), output.printable(history.uid)
    yield f"Item {item} of {uid} {_STATES[history.state]}."
    for event in history.events:
        when = " " * len(output.format_time(0)) if event.at is None else _format(event.at)
        yield f"  {when}  {_sentence(history, event)}"


_STATES: dict[ItemState, str] = {
    "visible": "is visible",
    "scheduled": "is scheduled: it has not begun yet",
    "dismissed": "was dismissed",
    "replaced": "was replaced by a later one",
    "expired": "has expired",
    "pruned": "is past, and its contents are forgotten",
    "unknown": "is not known: it has not arrived, is forgotten, or the message creates no item",
}


def _format(time: Time) -> str:
    return output.format_time(time)


def _sentence(history: ItemHistory, event: ItemEvent) -> str:
    match event.what:
        case "created" if history.state == "pruned":
            return "the message was stored"
        case "created":
            return f"created by {_author(event)}"
        case "started":
            return "began to be visible, as its creator had said"
        case "expired":
            return "expired, as its creator had said"
        case "pruned":
            return "later its contents were forgotten, because it was past for long"
        case "dismissed" | "replaced":
            return f"{event.what} by {_cause(event)}{_because(event.rule)}"


def _cause(event: ItemEvent) -> str:
    if event.by is None:
        return "a message that is forgotten"
    return f"{_author(event)}, with message {output.printable(event.by.msg_id)}"


def _author(event: ItemEvent) -> str:
    author: Author | None = None if event.by is None else event.by.author
    if author is None:
        return "somebody who is not known"
    kind, _, name = output.printable(author).partition(":")
    match kind:
        case "device":
            return f"the device {name}"
        case "user":
            return "one of the user's devices"
        case _:
            return f"the service {name}" if name else "a service"


def _because(rule: Rule | None) -> str:
    match rule:
        case IDRule():
            return ", which names its id"
        case RangeRule(category, prefix, scheduled, end):
            what = f"all in {output.printable(category)}{'*' if prefix else ''}"
            begun = ", begun or not," if scheduled else ""
            return f", which dismisses {what}{begun} up to {_format(end)}"
        case KeyRule(key, end):
            return f", which dismisses its key {output.printable(key)} up to {_format(end)}"
        case PutRule(key):
            return f", which has put another item under its key {output.printable(key)}"
        case None:
            return ""
