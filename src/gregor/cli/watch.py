"""`gregor watch`: a device in the terminal."""

import asyncio
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import msgspec
import typer

from gregor.cli import options, output
from gregor.cli.running import run
from gregor.core.instant import SECOND

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from gregor.client import Client, Event
    from gregor.client.events import Subscription
    from gregor.config import Settings

REDRAW_SECONDS = 0.2
MOST_NEWS = 5


def watch(
    ctx: typer.Context,
    uid: options.UserID,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="ID", help="Be this device.", show_default="one of its own"
        ),
    ] = None,
    prefix: options.Prefix = "",
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Be a device of a user, and show its state live; as JSON, one event a line.

    [dim]$[/] gregor watch alice
    [dim]$[/] gregor watch alice --prefix chat. --device phone
    [dim]$[/] gregor watch alice --json | jq .event
    """
    settings = options.settings(ctx, url=url, token=token)
    on_screen = output.console().is_terminal and not json
    with suppress(KeyboardInterrupt):
        run(_watch(settings, uid, device or f"watch-{uuid4().hex[:8]}", prefix, on_screen, json))


async def _watch(
    settings: "Settings", uid: str, device: str, prefix: str, on_screen: bool, json: bool
) -> None:
    from gregor.cli.remote import remote
    from gregor.client import Client

    # A client would wait for its server for ever; that none was there at all is a mistake.
    async with remote(settings) as server:
        await server.greet()
    # A server with --auth open takes the bare uid as a token.
    token = settings.token.get_secret_value() if settings.token else uid
    async with Client(settings.url, token, device_id=device, uid=uid) as client:
        events = client.events()
        await client.wait_synced()
        if on_screen:
            await _draw(client, events, prefix)
            return
        async for event in events:
            if _concerns(event, prefix):
                print(_document(event) if json else _in_words(event), flush=True)
            if client.failure is not None:
                raise client.failure


async def _draw(client: "Client", events: "Subscription", prefix: str) -> None:
    """Keep a table of the state on the screen, until the client gives up."""
    from rich.live import Live

    news: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        hearing = tasks.create_task(_hear(events, prefix, news))
        with Live(console=output.console(), auto_refresh=False) as live:
            while client.failure is None:
                live.update(_picture(client, prefix, news, live.console.height), refresh=True)
                await asyncio.sleep(REDRAW_SECONDS)
        hearing.cancel()
    if client.failure is not None:
        raise client.failure


async def _hear(events: "Subscription", prefix: str, news: list[str]) -> None:
    async for event in events:
        if _concerns(event, prefix):
            news.append(_in_words(event))
            del news[:-MOST_NEWS]


def _picture(client: "Client", prefix: str, news: list[str], height: int) -> "Group":
    from rich.console import Group
    from rich.text import Text

    now = round(time() * SECOND)
    shown = client.state().with_prefix(prefix).items
    room = max(3, height - len(news) - 6)
    status = ("online", "green") if client.online else ("offline", "red")
    head = Text.assemble(
        (client.uid or "", "bold"), f" on {client.device_id}  ", status, f"  {len(shown)} items"
    )
    older = len(shown) - room
    more = [Text(f"and {older} older", "dim")] if older > 0 else []
    table = output.items(reversed(shown[-room:]), now)
    return Group(head, Text(), table, *more, Text(), *(_line(text) for text in news))


def _line(text: str) -> "Text":
    from rich.text import Text

    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _concerns(event: "Event", prefix: str) -> bool:
    item = getattr(event, "item", None)
    return item is None or item.category.startswith(prefix)


def _in_words(event: "Event") -> str:
    from gregor.client import Created, Dismissed, Offline, PassedBy, Rejected

    match event:
        case Created(item):
            body = output.text_of(item.raw_body)
            return f"+ {output.printable(item.category)} {body}  {output.printable(item.msg_id)}"
        case Dismissed(item, why):
            category, msg_id = output.printable(item.category), output.printable(item.msg_id)
            return f"- {category}  {msg_id} ({why})"
        case PassedBy(system, body):
            content = msgspec.json.encode(body).decode()
            return output.printable(f"~ {system} {content}")
        case Offline(reason):
            return f"offline: {output.printable(reason)}"
        case Rejected(message, problem):
            return f"rejected {message.msg_id}: {problem.message}"
        case _:
            return _name(event)


def _document(event: "Event") -> str:
    contents = msgspec.to_builtins(event, builtin_types=(msgspec.Raw,))
    return msgspec.json.encode({"event": _name(event), **contents}).decode()


def _name(event: "Event") -> str:
    name = type(event).__name__.lower()
    return "out_of_band" if name == "passedby" else name
