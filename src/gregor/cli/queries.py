"""`gregor state`, `gregor count` and `gregor log`: what the server knows of a user."""

from typing import Annotated

import typer

from gregor.cli import options, output
from gregor.cli.running import run


def state(
    ctx: typer.Context,
    uid: options.UserID,
    device: options.Device = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help=f"As it was: {options.TIME}.", show_default="now"),
    ] = None,
    prefix: options.Prefix = "",
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show what a user's devices show.

    [dim]$[/] gregor state alice
    [dim]$[/] gregor state alice --prefix chat. --device phone
    [dim]$[/] gregor state alice --at -1h --json
    """
    options.when(at)
    settings = options.settings(ctx, url=url, token=token)
    from gregor.cli.remote import ask

    answer = run(ask(settings, lambda server: server.state(uid, device, at=at, prefix=prefix)))
    if json:
        output.document(answer)
    elif answer.items:
        output.console().print(output.items(answer.items, answer.as_of))
    else:
        print("nothing")


def count(
    ctx: typer.Context,
    uid: options.UserID,
    prefixes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PREFIX]...", help="Of categories.", show_default="all"),
    ] = None,
    device: options.Device = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Count a user's items: the numbers on badges.

    [dim]$[/] gregor count alice
    [dim]$[/] gregor count alice chat.unread. invoices
    [dim]$[/] gregor count alice chat. --json
    """
    settings = options.settings(ctx, url=url, token=token)
    from gregor.cli.remote import ask

    answer = run(ask(settings, lambda server: server.count(uid, device, prefixes or [])))
    if json:
        output.document(answer)
    elif not prefixes:
        print(answer.counts[""])
    else:
        for prefix in prefixes:
            print(f"{answer.counts[prefix]}\t{prefix}")


def log(
    ctx: typer.Context,
    uid: options.UserID,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help=f"From {options.TIME}.", show_default="the beginning"),
    ] = None,
    device: options.Device = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Show a user's messages, each reduced to what still matters; as JSON, one a line.

    [dim]$[/] gregor log alice
    [dim]$[/] gregor log alice --since -1h
    [dim]$[/] gregor log alice --device phone --json
    """
    options.when(since)
    settings = options.settings(ctx, url=url, token=token)
    from gregor.cli.remote import ask

    answer = run(ask(settings, lambda server: server.messages(uid, device, since=since)))
    if json:
        for message in answer.messages:
            output.document(message)
    elif answer.messages:
        for message in answer.messages:
            print(output.in_words(message))
    else:
        print("nothing")
