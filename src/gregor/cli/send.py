"""`gregor send` and `gregor dismiss`: one message to one user."""

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gregor.cli import options, output
from gregor.cli.running import run
from gregor.core import message as messages
from gregor.core.instant import to_rfc3339
from gregor.core.message import Dismissal, InBandMessage, Message, Range, new_msg_id
from gregor.errors import GregorError

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.protocol.frames import Result

MessageID = Annotated[
    str | None,
    typer.Option(
        "--msg-id",
        metavar="ID",
        help="Sent again under the same id, a message counts once.",
        show_default="a new one",
    ),
]


def send(
    ctx: typer.Context,
    uid: options.UserID,
    category: Annotated[
        str,
        typer.Argument(
            metavar="CATEGORY", help="Dotted, such as chat.unread.room7.", show_default=False
        ),
    ],
    body: Annotated[
        str,
        typer.Argument(
            metavar="BODY", help="JSON; what is not JSON is text; - is stdin.", show_default=False
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="After 90s, or at 2027-01-31T12:00:00Z.", show_default="never"
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="ID", help="Show it there only.", show_default=False),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Dismiss all else in the category.")
    ] = False,
    msg_id: MessageID = None,
    out_of_band: Annotated[
        bool,
        typer.Option(
            "--out-of-band",
            help="Only pass it to the devices connected now; CATEGORY is then its system.",
        ),
    ] = False,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Tell all devices of a user something.

    [dim]$[/] gregor send alice invoices '{"id": 17}' --expires 30d
    [dim]$[/] gregor send alice settings.theme dark --replace
    [dim]$[/] gregor send alice typing '{"room": 7}' --out-of-band
    """
    content = _body(sys.stdin.read() if body == "-" else body)
    message: Message
    if out_of_band:
        if expires or device or replace or msg_id:
            raise typer.BadParameter("--out-of-band goes with none of the other options")
        message = messages.out_of_band(uid, category, content)
    else:
        make = messages.replace if replace else messages.create
        message = make(
            uid, category, content, dtime=options.when(expires), device_id=device, msg_id=msg_id
        )
    _deliver(options.settings(ctx, url=url, token=token), message, json)


def dismiss(
    ctx: typer.Context,
    uid: options.UserID,
    msg_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MSG_ID]...", help="Of items.", show_default=False),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CATEGORY", help="All items of it; can be repeated.", show_default=False
        ),
    ] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="And of all categories that begin like it.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only what was created until then.", show_default="now"),
    ] = None,
    msg_id: MessageID = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Take items away from all devices of a user, by their ids or by category.

    [dim]$[/] gregor dismiss alice 5f0e5d1c6b7a4e0e8f3f0a1b2c3d4e5f
    [dim]$[/] gregor dismiss alice --category chat.unread.room7
    [dim]$[/] gregor dismiss alice --category chat. --prefix --until -1h
    """
    if not (msg_ids or category):
        raise typer.BadParameter("say what to dismiss: MSG_ID, or --category")
    if not category and (prefix or until):
        raise typer.BadParameter("--prefix and --until belong to --category")
    end = options.when(until)
    ranges = tuple(Range(name, end, prefix=prefix) for name in category or ())
    dismissal = Dismissal(tuple(msg_ids or ()), ranges)
    message = InBandMessage(uid, msg_id or new_msg_id(), dismissal=dismissal)
    _deliver(options.settings(ctx, url=url, token=token), message, json)


def _body(text: str) -> messages.JSON:
    try:
        value: messages.JSON = msgspec.json.decode(text)
        return value
    except msgspec.DecodeError:
        return text.rstrip("\n")


def _deliver(settings: "Settings", message: Message, json: bool) -> None:
    from gregor.cli.remote import ask

    (result,) = run(ask(settings, lambda server: server.send([message])))
    if json:
        output.document(result)
    if result.error is not None:
        raise _Rejected(f"{result.error.message} ({result.error.code})")
    if not json:
        print(_in_words(result))


def _in_words(result: "Result") -> str:
    match result.status:
        case "passed":
            return "passed to the devices that are connected now"
        case "duplicate":
            return f"{result.msg_id} was known already, since {to_rfc3339(result.ctime or 0)}"
        case _:
            return f"{result.msg_id} stored at {to_rfc3339(result.ctime or 0)}"


class _Rejected(GregorError):
    """The server rejected the message. Change it."""
