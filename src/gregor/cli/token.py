"""`gregor token`."""

from time import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gregor.cli import options, output
from gregor.core.instant import SECOND, Time, to_rfc3339
from gregor.errors import SetupError

if TYPE_CHECKING:
    from gregor.config import Settings


def token(
    ctx: typer.Context,
    uid: options.UserID,
    role: Annotated[
        Literal["device", "service"],
        typer.Option(help="A device is its own user only; a service may write and read for all."),
    ] = "device",
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="After 30d, or at 2027-01-01T00:00:00Z.", show_default="never"
        ),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Make a token for a server with --auth jwt, out of its GREGOR_JWT_SECRET.

    [dim]$[/] gregor token alice --expires 30d
    [dim]$[/] export GREGOR_TOKEN=$(gregor token backend --role service)
    """
    settings = options.settings(ctx)
    ends = options.when(expires)
    expires_at = None if ends is None else ends.after(round(time() * SECOND))
    made = _make(settings, uid, role, expires_at)
    if json:
        end = None if expires_at is None else to_rfc3339(expires_at)
        output.document({"token": made, "uid": uid, "role": role, "expires_at": end})
    else:
        print(made)


def _make(settings: "Settings", uid: str, role: str, expires_at: Time | None) -> str:
    from gregor.server.auth import Identity, Role, make_token

    if settings.jwt_secret is None:
        raise SetupError(
            "tokens are made with the server's secret: set GREGOR_JWT_SECRET to the same value "
            "as for `gregor serve --auth jwt`"
        )
    secret = settings.jwt_secret.get_secret_value()
    return make_token(secret, Identity(uid, Role(role), expires_at))
