"""`gregor send` and `gregor dismiss`: send one message to one user."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.core import message as messages
from gregor.core.instant import to_rfc3339
from gregor.core.message import Creation, Dismissal, InBandMessage, Message, Range, new_msg_id
from gregor.errors import GregorError

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.protocol.frames import Result

MessageID = Annotated[
    str | None,
    typer.Option(
        "--msg-id",
        metavar="ID",
        callback=options.not_empty,
        help="Sending is idempotent: a message with the same id is stored once.",
        show_default="a new one",
    ),
]


def send(
    ctx: typer.Context,
    uid: options.UserID,
    category: Annotated[
        str,
        typer.Argument(
            metavar="CATEGORY", help="Dotted, for example chat.unread.room7.", show_default=False
        ),
    ],
    body: Annotated[
        str,
        typer.Argument(
            metavar="BODY", help="JSON, or plain text; - reads stdin.", show_default=False
        ),
    ],
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="A duration such as 90s, or a time such as 2027-01-31T12:00:00Z.",
            show_default="never",
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="ID",
            callback=options.not_empty,
            help="Show it on this device only.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="BODY is plain text, even if it looks like JSON.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Dismiss all other items in the category.")
    ] = False,
    msg_id: MessageID = None,
    out_of_band: Annotated[
        bool,
        typer.Option(
            "--out-of-band",
            help="Send to the devices connected now and do not store it; CATEGORY is its system.",
        ),
    ] = False,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Send a message to all devices of a user.

    [dim]$[/] gregor send alice invoices '{"id": 17}' --expires 30d
    [dim]$[/] gregor send alice settings.theme dark --replace
    [dim]$[/] gregor send alice typing '{"room": 7}' --out-of-band
    """
    content = _body(sys.stdin.read() if body == "-" else body, text)
    message: Message
    if out_of_band:
        if replace or (expires, device, msg_id) != (None, None, None):
            raise typer.BadParameter(
                "--out-of-band cannot be combined with --expires, --device, --replace or --msg-id"
            )
        message = messages.out_of_band(uid, category, content)
    else:
        new_message = messages.replace if replace else messages.create
        message = new_message(
            uid,
            category,
            content,
            expires=options.parse_time(expires),
            device_id=device,
            msg_id=msg_id,
        )
    _send(options.load_settings(ctx, url=url, token=token), message, json)


def dismiss(
    ctx: typer.Context,
    uid: options.UserID,
    msg_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MSG_ID]...", help="Ids of items.", show_default=False),
    ] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CATEGORY",
            help="All items of this category; can be repeated.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Also all categories that begin with it.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only items created up to this time.", show_default="now"
        ),
    ] = None,
    msg_id: MessageID = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Dismiss items on all devices of a user, by id or by category.

    [dim]$[/] gregor dismiss alice 5f0e5d1c6b7a4e0e8f3f0a1b2c3d4e5f
    [dim]$[/] gregor dismiss alice --category chat.unread.room7
    [dim]$[/] gregor dismiss alice --category chat. --prefix --until -1h
    """
    if not (msg_ids or category):
        raise typer.BadParameter("give a MSG_ID or --category")
    if not category and (prefix or until is not None):
        raise typer.BadParameter("--prefix and --until need --category")
    end = options.parse_time(until)
    ranges = tuple(Range(name, end, prefix=prefix) for name in category or ())
    dismissal = Dismissal(tuple(msg_ids or ()), ranges)
    message = InBandMessage(uid, new_msg_id() if msg_id is None else msg_id, dismissal=dismissal)
    _send(options.load_settings(ctx, url=url, token=token), message, json)


# Objects, strings, arrays, numbers, and what other languages write in their place; but not
# "[urgent] call back", "3 new" or "1.2.3".
_LIKE_JSON = re.compile(
    r"""\s*(
        [{"] | \[\s*[]{"'\d[+-] | \[\s*(true|false|null)\b | \[[\w\s,]*\]\s*$
        | [+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$ | [+-]?(NaN|Infinity)\s*$
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def _body(typed: str, is_text: bool) -> messages.JSON:
    """The body: JSON as it was typed, or text."""
    if is_text:
        return typed.rstrip("\n")
    try:
        json = typed.encode()
        msgspec.json.decode(json)
        return msgspec.Raw(json.strip())
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if _LIKE_JSON.match(typed) or isinstance(error, UnicodeError):
            raise typer.BadParameter(
                f"BODY looks like JSON, but is not: {error}; with --text it is sent as plain text"
            ) from error
        return typed.rstrip("\n")


def _send(settings: "Settings", message: Message, json: bool) -> None:
    from gregor.cli.remote import request

    (result,) = run(request(settings, lambda server: server.send([message])))
    if json:
        output.print_json(result)
    if result.error is not None:
        raise _Rejected(f"{result.error.message} ({result.error.code})")
    if not json:
        print(_result_text(result) + _effect_text(message, result))


def _result_text(result: "Result") -> str:
    msg_id = output.printable(result.msg_id or "")
    match result.status:
        case "relayed":
            return "relayed to the devices that are connected now"
        case "duplicate":
            return f"{msg_id} is a duplicate, stored at {to_rfc3339(result.ctime or 0)}"
        case _:
            return f"{msg_id} stored at {to_rfc3339(result.ctime or 0)}"


def _effect_text(message: Message, result: "Result") -> str:
    """What came of a message that is stored, where that may surprise."""
    match message:
        case InBandMessage(creation=Creation()) if not result.visible:
            return "; its item is not visible, because it is dismissed or expired"
        case InBandMessage(creation=None) if result.dismissed is not None:
            return f"; {result.dismissed} dismissed"
        case _:
            return ""


class _Rejected(GregorError):
    """The server rejected the message. Change it before sending it again."""
