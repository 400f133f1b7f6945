"""`gregor state`, `gregor count` and `gregor log`: read a user's state from the server."""

from enum import StrEnum
from typing import Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run


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
    prefix: options.Prefix = "",
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show a user's live items, as the user's devices show them.

    [dim]$[/] gregor state alice
    [dim]$[/] gregor state alice --prefix chat. --device phone
    [dim]$[/] gregor state alice --at -1h --json
    """
    instant = options.parse_time(at)
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    answer = run(
        request(settings, lambda server: server.state(uid, device, at=instant, prefix=prefix))
    )
    if json:
        output.print_json(answer)
    elif answer.items:
        output.console().print(output.item_table(answer.items, answer.as_of))
    else:
        print("nothing")


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
    """Count a user's live items, for badges.

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
