"""`gregor prune`: forgets now what is past for long."""

from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.errors import InvalidMessage

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.protocol.answers import PruneAnswer

# A server answers when it has done it, in small steps between which others write.
PRUNE_SECONDS = 24 * 3600.0


def prune(
    ctx: typer.Context,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Forget what has been past for longer than this, such as 30d.",
            show_default="the --history of the server: 90d",
        ),
    ] = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
    json: options.JSON = False,
) -> None:
    """Forget now what is past: the contents of what was dismissed, replaced or has
    expired, and of dismissals. What is live stays, however old.

    Servers do so by themselves. They may run meanwhile, and are asked to do it,
    unless you name a --store. Its SQLite file must not be open in a server.

    [dim]$[/] gregor prune
    [dim]$[/] gregor prune --older-than 30d
    [dim]$[/] gregor prune --store sqlite:///gregor.db --older-than 30d
    """
    if store and url is not None:
        raise typer.BadParameter("--url and --store exclude each other")
    older = None if older_than is None else _checked(older_than)
    given = tuple(store) if store else None
    settings = options.load_settings(ctx, url=url, token=token, store=given)
    answer = run(_prune_store(settings, older) if store else _ask(settings, older_than))
    if json:
        output.print_json(answer)
    else:
        print(
            f"{answer.contents:,} messages of {answer.users:,} users have lost their contents,"
            f" and {answer.ids:,} ids are forgotten"
        )


def _checked(older_than: str) -> int:
    from gregor.core.arguments import duration

    try:
        return duration("--older-than", older_than)
    except InvalidMessage as error:
        raise typer.BadParameter(error.message) from error


async def _ask(settings: "Settings", older_than: str | None) -> "PruneAnswer":
    import msgspec

    from gregor.cli.remote import producer
    from gregor.client.calls import Call
    from gregor.protocol.answers import PruneAnswer
    from gregor.protocol.requests import PruneRequest

    content = msgspec.json.encode(PruneRequest(older_than))
    read = msgspec.json.Decoder(PruneAnswer).decode
    async with producer(settings, timeout=PRUNE_SECONDS) as server:
        return await server.perform(Call("POST", "/v1/prune", read, content=content))


async def _prune_store(settings: "Settings", older_than: int | None) -> "PruneAnswer":
    from gregor.cli.stopped_store import opened
    from gregor.clock import now
    from gregor.node.pruning import PAUSES, Pruner
    from gregor.protocol.answers import PruneAnswer
    from gregor.server.composition import prunable, retention_of
    from gregor.stores.sql.store_url import is_shared

    # Nobody else writes to files; other stores may have servers.
    pauses = PAUSES if any(map(is_shared, settings.stores.values())) else 0
    async with opened(settings) as parts:
        retention = retention_of(settings)
        pruner = Pruner(prunable(parts.state_machine), retention, now, pauses=pauses)
        return PruneAnswer(*await pruner.prune(older_than))
