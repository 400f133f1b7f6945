"""`gregor state`, `get`, `count` and `log`: read a user's state from the server."""

from enum import StrEnum
from typing import Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.errors import GregorError
from gregor.protocol.requests import MAX_STATE_ITEMS, Order


class Grouping(StrEnum):
    """By what items are counted."""

    SEGMENT = "segment"


def state(
    ctx: typer.Context,
    uid: options.UserID,
    device: options.Device = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help=f"The state at {options.TIME_HELP}.", show_default="now"),
    ] = None,
    prefix: options.Prefixes = None,
    newest: Annotated[
        bool, typer.Option("--newest", help="The newest items first, not the oldest.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_STATE_ITEMS,
            help="At most so many items.",
            show_default="all",
        ),
    ] = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show a user's visible items, as the user's devices show them.

    [dim]$[/] gregor state alice --prefix chat. --device phone
    [dim]$[/] gregor state alice --newest --limit 20
    [dim]$[/] gregor state alice --at -1h --json
    """
    instant = options.parse_time(at)
    order: Order = "newest" if newest else "oldest"
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    answer = run(
        request(
            settings,
            lambda server: server.state(
                uid, device, at=instant, prefixes=prefix or (), order=order, limit=limit
            ),
        )
    )
    if json:
        output.print_json(answer)
    elif answer.items:
        output.console().print(output.item_table(answer.items, answer.as_of))
        if answer.next_page is not None:
            print("and more")
    else:
        print("nothing")


def get(
    ctx: typer.Context,
    uid: options.UserID,
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The key of the item.", show_default=False)
    ],
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="ID",
            callback=options.not_empty,
            help="The value of this device, if it has one of its own.",
            show_default=False,
        ),
    ] = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Print the value that `gregor put` has set; with --json, its whole item. The exit status is 1
    if there is none.

    [dim]$[/] gregor get alice settings.theme
    [dim]$[/] gregor get alice settings.volume --device phone --json
    """
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    item = run(request(settings, lambda server: server.get(uid, key, device)))
    if item is None:
        hint = "; --device reads that of a device" if device is None else ""
        raise _NoItem(f"{uid} has no visible item with the key {key}{hint}")
    if json:
        output.print_json(item)
    else:
        print(output.json_text(item.raw_body))


def count(
    ctx: typer.Context,
    uid: options.UserID,
    prefixes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PREFIX]...", help="Prefixes of categories.", show_default="all"),
    ] = None,
    by: Annotated[
        Grouping | None,
        typer.Option(help="Count each category below one prefix, up to the next dot."),
    ] = None,
    device: options.Device = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Count a user's visible items, for badges.

    [dim]$[/] gregor count alice
    [dim]$[/] gregor count alice chat.unread. invoices
    [dim]$[/] gregor count alice inbox. --by segment --json
    """
    if by is not None and len(prefixes or ()) > 1:
        raise typer.BadParameter("--by segment takes one prefix, not several")
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    given = prefixes or [""]
    if by is None:
        answer = run(request(settings, lambda server: server.count(uid, *given, device_id=device)))
    else:
        answer = run(
            request(
                settings, lambda server: server.count_by_segment(uid, given[0], device_id=device)
            )
        )
    if json:
        output.print_json(answer)
    elif by is None and not prefixes:
        print(answer.counts[""])
    else:
        for category in given if by is None else answer.counts:
            print(f"{answer.counts[category]}\t{output.printable(category)}")


def log(
    ctx: typer.Context,
    uid: options.UserID,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help=f"From {options.TIME_HELP}.", show_default="the beginning"
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(metavar="CURSOR", min=0, help="After this cursor, instead of --since."),
    ] = None,
    device: options.Device = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show a user's messages, each reduced to what still matters. With --json, one per line. The
    ctime of the last one is a cursor: --after it shows what came later.

    [dim]$[/] gregor log alice --since -1h
    [dim]$[/] gregor log alice --after 1767225600000000
    [dim]$[/] gregor log alice --device phone --json
    """
    start = options.parse_time(since)
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import read_messages

    shown = 0
    for message in run(read_messages(settings, uid, device, since=start, after=after)):
        if json:
            output.print_json(message)
        else:
            print(output.log_line(message))
        shown += 1
    if not shown and not json:
        print("nothing")


class _NoItem(GregorError):
    """There is nothing to print."""
