"""`gregor watch`: shows a user's state live, as a device in the terminal."""

import asyncio
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import msgspec
import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.core.instant import SECOND
from gregor.errors import Erased, GregorError, Unavailable
from gregor.protocol.json_line import json_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from gregor.client import Client, Event
    from gregor.client.events import Subscription
    from gregor.config import Settings

REDRAW_SECONDS = 0.2
MAX_RECENT_EVENTS = 5


def watch(
    ctx: typer.Context,
    uid: options.UserID,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="ID",
            callback=options.not_empty,
            help="Connect as this device.",
            show_default="a new one",
        ),
    ] = None,
    prefix: options.Prefix = "",
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Connect as a device of a user and show its state live. With --json, one event per line.

    [dim]$[/] gregor watch alice
    [dim]$[/] gregor watch alice --prefix chat. --device phone
    [dim]$[/] gregor watch alice --json | jq .event
    """
    settings = options.load_settings(ctx, url=url, token=token)
    on_screen = output.console().is_terminal and not json
    with suppress(KeyboardInterrupt):
        run(_watch(settings, uid, device or f"watch-{uuid4().hex[:8]}", prefix, on_screen, json))


async def _watch(
    settings: "Settings", uid: str, device: str, prefix: str, on_screen: bool, json: bool
) -> None:
    from gregor.cli.remote import CommandProducer, request
    from gregor.client import Client, Offline

    # A Client retries forever. If no server answers at the start, report that instead.
    await request(settings, CommandProducer.check_server)
    # A server with --auth open accepts the uid as a token.
    token = settings.token.get_secret_value() if settings.token else uid
    async with Client(settings.url, token, device_id=device, uid=uid) as client:
        events = client.events()
        await client.wait_synced()
        if on_screen:
            await _draw(client, events, prefix)
            return
        async for event in events:
            if _matches(event, prefix):
                print(_event_json(event) if json else _event_text(event), flush=True)
            if isinstance(event, Offline) and event.final:
                raise _failure(client)


async def _draw(client: "Client", events: "Subscription", prefix: str) -> None:
    """Redraw a table of the state until the client fails."""
    from rich.live import Live

    recent: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(_read_events(events, prefix, recent))
        with Live(console=output.console(), auto_refresh=False) as live:
            while client.failure is None:
                live.update(_screen(client, prefix, recent, live.console.height), refresh=True)
                await asyncio.sleep(REDRAW_SECONDS)
        reading.cancel()
    raise _failure(client)


def _failure(client: "Client") -> GregorError:
    """Why the client has stopped trying."""
    match client.failure:
        case Erased(epoch=epoch):
            return Erased("the user was erased; watch again to see what comes now", epoch=epoch)
        case failure:
            return failure or Unavailable("the client has stopped")


async def _read_events(events: "Subscription", prefix: str, recent: list[str]) -> None:
    """Append a line for each event; keep the last MAX_RECENT_EVENTS."""
    async for event in events:
        if _matches(event, prefix):
            recent.append(_event_text(event))
            del recent[:-MAX_RECENT_EVENTS]


def _screen(client: "Client", prefix: str, recent: list[str], height: int) -> "Group":
    """The status line, the newest items that fit, and the recent events."""
    from rich.console import Group
    from rich.text import Text

    now = round(time() * SECOND)
    items = client.state().with_prefix(prefix).items
    max_rows = max(3, height - len(recent) - 6)
    error = client.status.last_error
    reason = "" if error is None else f": {output.printable(error.message)}"
    status = ("online", "green") if client.online else (f"offline{reason}", "red")
    header = Text.assemble(
        (client.uid or "", "bold"), f" on {client.device_id}  ", status, f"  {len(items)} items"
    )
    hidden = len(items) - max_rows
    footer = [Text(f"and {hidden} older", "dim")] if hidden > 0 else []
    table = output.item_table(reversed(items[-max_rows:]), now)
    return Group(header, Text(), table, *footer, Text(), *(_dim_line(text) for text in recent))


def _dim_line(text: str) -> "Text":
    from rich.text import Text

    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _matches(event: "Event", prefix: str) -> bool:
    item = getattr(event, "item", None)
    return item is None or item.category.startswith(prefix)


def _event_text(event: "Event") -> str:
    from gregor.client import Created, Dismissed, Offline, OutOfBandReceived, WriteRejected

    match event:
        case Created(item):
            body = output.json_text(item.raw_body)
            key = "" if item.key is None else f" (key {output.printable(item.key)})"
            category, msg_id = output.printable(item.category), output.printable(item.msg_id)
            return f"+ {category} {body}  {msg_id}{key}"
        case Dismissed(item, why):
            category, msg_id = output.printable(item.category), output.printable(item.msg_id)
            return f"- {category}  {msg_id} ({why})"
        case OutOfBandReceived(system, body):
            content = msgspec.json.encode(body).decode()
            return output.printable(f"~ {system} {content}")
        case Offline(reason):
            return f"offline: {output.printable(reason)}"
        case WriteRejected(message, problem):
            return output.printable(f"rejected {message.msg_id}: {problem.message}")
        case Erased():
            return "erased: the user was erased on the server, and nothing is left on this device"
        case _:
            return _name(event)


def _event_json(event: "Event") -> str:
    if isinstance(event, Erased):
        fields: dict[str, object] = {"epoch": event.epoch}
    else:
        fields = msgspec.to_builtins(event, builtin_types=(msgspec.Raw,))
    return json_line(msgspec.json.encode({"event": _name(event), **fields}).decode())


def _name(event: "Event") -> str:
    name = type(event).__name__
    return {"OutOfBandReceived": "out_of_band", "WriteRejected": "rejected"}.get(name, name.lower())
