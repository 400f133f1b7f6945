"""`gregor notify` and `gregor inbox`: send a notification, and show those of a user."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.cli.send import print_result
from gregor.cli.typed_body import read_body
from gregor.core.inbox import ITEMS, MARKERS, InboxEntry, entries, valid_topic
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID
from gregor.core.state import State

if TYPE_CHECKING:
    from rich.table import Table

    from gregor.client import AsyncProducer


def notify(
    ctx: typer.Context,
    uid: options.UserID,
    topic: Annotated[
        str,
        typer.Argument(metavar="TOPIC", help="What it is about, dotted.", show_default=False),
    ],
    body: Annotated[
        str,
        typer.Argument(
            metavar="BODY", help="A JSON object, or its title; - reads stdin.", show_default=False
        ),
    ],
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            callback=options.not_empty,
            help="It takes the place of the notification with the same key.",
            show_default="the msg_id",
        ),
    ] = None,
    starts: options.Starts = None,
    expires: options.Expires = None,
    device: options.Scope = None,
    text: options.Text = False,
    msg_id: options.MessageID = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Put a notification into the inbox of a user, unread.

    [dim]$[/] gregor notify alice likes "Ann liked your photo" --key photo7
    [dim]$[/] gregor notify alice orders '{"title": "Sent", "url": "/orders/17"}' --expires 30d
    """
    typed = read_body(body, text)
    contents = {"title": typed} if isinstance(typed, str) else typed
    begins, ends = options.parse_time(starts), options.parse_time(expires)
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    result = run(
        request(
            settings,
            lambda server: server.notify(
                uid,
                topic,
                contents,
                key=key,
                msg_id=msg_id,
                starts=begins,
                expires=ends,
                device_id=device,
            ),
        )
    )
    print_result(result, creates=True, json=json)


def inbox(
    ctx: typer.Context,
    uid: options.UserID,
    topic: Annotated[
        str | None,
        typer.Option(
            metavar="TOPIC", help="Only of this topic, and of those below it.", show_default="all"
        ),
    ] = None,
    device: options.Device = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show a user's notifications, the newest first, as the user's devices show them.

    [dim]$[/] gregor inbox alice
    [dim]$[/] gregor inbox alice --topic likes --json
    """
    wanted = None if topic is None else valid_topic(topic)
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    state = run(request(settings, lambda server: _read(server, uid, device)))
    shown = entries(state, wanted)
    if json:
        output.print_json([_plain(entry) for entry in shown])
    elif shown:
        print(f"{sum(entry.unread for entry in shown)} unread of {len(shown)}")
        output.console().print(_table(shown, state.as_of))
    else:
        print("nothing")


async def _read(server: "AsyncProducer", uid: UID, device: DeviceID | None) -> State:
    """The notifications and markers that are visible, all as of one instant."""
    pages = [page async for page in server.state_pages(uid, device, prefixes=(ITEMS, MARKERS))]
    return State.of((item for page in pages for item in page.items), pages[0].as_of)


def _plain(entry: InboxEntry) -> dict[str, object]:
    return {
        "key": entry.key,
        "topic": entry.topic,
        "unread": entry.unread,
        "time": entry.item.time,
        "body": entry.item.raw_body,
    }


def _table(shown: Sequence[InboxEntry], now: Time) -> "Table":
    from rich.text import Text

    table = output.plain_table("", "topic", "key", "age", "body")
    for entry in shown:
        cells = (
            "●" if entry.unread else "",
            output.printable(entry.topic),
            output.printable(entry.key),
            output.format_duration(now - entry.item.time),
            output.json_text(entry.item.raw_body),
        )
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    return table
