"""`gregor erase`: deletes everything of a user, on a running server or in a stopped store."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.core.arguments import identifier
from gregor.core.message import MAX_UID, UID

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.protocol.answers import EraseAnswer


def erase(
    ctx: typer.Context,
    uid: options.UserID,
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: options.JSON = False,
) -> None:
    """Delete everything of a user, for good, also on the user's devices.

    [dim]$[/] gregor erase alice
    [dim]$[/] gregor erase alice --store sqlite:///gregor.db    [dim]while no server runs on it[/]

    The user's devices hear of it at once, or when they come back. Tokens that
    were made for them until then do not hold any more.
    """
    if store and (url is not None or token is not None):
        raise typer.BadParameter("--store is a store without a server: leave out --url and --token")
    settings = options.load_settings(ctx, url=url, token=token, store=tuple(store or ()) or None)
    checked = identifier("uid", uid, MAX_UID)
    _confirm(checked, yes)
    answer = run(_erase_in_store(settings, checked) if store else _erase(settings, checked))
    if json:
        output.print_json({"uid": uid, "epoch": answer.epoch, "pending": answer.pending})
        return
    print(f"erased {output.printable(uid)} at {answer.epoch}")
    for shard in answer.pending:
        output.print_error(
            f"shard {shard} was away: what it still has of the user is removed before it serves"
        )


def _confirm(uid: UID, yes: bool) -> None:
    """Ask on a terminal. Raises typer.Abort if the answer is no."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Delete everything of {output.printable(uid)}, for good?", abort=True)


async def _erase(settings: "Settings", uid: UID) -> "EraseAnswer":
    from gregor.cli.remote import request

    return await request(settings, lambda server: server.erase(uid))


async def _erase_in_store(settings: "Settings", uid: UID) -> "EraseAnswer":
    from gregor.cli.stopped_store import opened
    from gregor.protocol.answers import EraseAnswer

    async with opened(settings) as parts:
        erasure, pending = await parts.state_machine.erase(uid)
    return EraseAnswer(uid, erasure.epoch, pending)
