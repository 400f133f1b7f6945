"""`gregor token`: makes an access token."""

from time import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gregor.cli import options, output
from gregor.core.instant import SECOND, Time, to_rfc3339
from gregor.errors import SetupError

if TYPE_CHECKING:
    from gregor.config import Settings

NEVER = "never"


def token(
    ctx: typer.Context,
    uid: options.UserID,
    role: Annotated[
        Literal["device", "service"],
        typer.Option(help="A device acts for its own user only, a service for all users."),
    ] = "device",
    expires: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="A duration such as 12h, a time such as 2027-01-01T00:00:00Z, or never.",
        ),
    ] = "30d",
    json: options.JSON = False,
) -> None:
    """Make a token for a server with --auth jwt, signed with its GREGOR_JWT_SECRET.

    [dim]$[/] gregor token alice --expires 12h
    [dim]$[/] export GREGOR_TOKEN=$(gregor token backend --role service)

    A token can be used by anyone who has it, until it expires.
    """
    settings = options.load_settings(ctx)
    expiry = options.parse_time(None if expires == NEVER else expires)
    expires_at = None if expiry is None else expiry.after(round(time() * SECOND))
    encoded = _encode(settings, uid, role, expires_at)
    if json:
        expires_text = None if expires_at is None else to_rfc3339(expires_at)
        output.print_json({"token": encoded, "uid": uid, "role": role, "expires_at": expires_text})
    else:
        print(encoded)


def _encode(settings: "Settings", uid: str, role: str, expires_at: Time | None) -> str:
    from gregor.server.auth import Identity, Role, make_token

    if settings.jwt_secret is None:
        raise SetupError(
            "a token is signed with the server's secret: set GREGOR_JWT_SECRET to the same value "
            "as for `gregor serve --auth jwt`"
        )
    secret = settings.jwt_secret.get_secret_value()
    return make_token(secret, Identity(uid, Role(role), expires_at))
