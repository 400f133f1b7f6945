"""`gregor send`, `put`, `snooze` and `dismiss`: send one message to one user."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.cli.typed_body import read_body
from gregor.clock import now
from gregor.core import message as messages
from gregor.core.instant import Time, to_rfc3339
from gregor.core.message import Dismissal, InBandMessage, KeyDismissal, Message, Range, new_msg_id
from gregor.errors import GregorError

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.protocol.frames import Result


def send(
    ctx: typer.Context,
    uid: options.UserID,
    category: options.Category,
    body: options.Body,
    starts: options.Starts = None,
    expires: options.Expires = None,
    device: options.Scope = None,
    text: options.Text = False,
    msg_id: options.MessageID = None,
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
    [dim]$[/] gregor send alice reminders "call Bob" --starts 2h
    [dim]$[/] gregor send alice typing '{"room": 7}' --out-of-band
    """
    content = read_body(body, text)
    message: Message
    if out_of_band:
        if (starts, expires, device, msg_id) != (None, None, None, None):
            raise typer.BadParameter(
                "--out-of-band cannot be combined with --starts, --expires, --device or --msg-id"
            )
        message = messages.out_of_band(uid, category, content)
    else:
        message = messages.create(
            uid,
            category,
            content,
            starts=options.parse_time(starts),
            expires=options.parse_time(expires),
            device_id=device,
            msg_id=msg_id,
        )
    _send(options.load_settings(ctx, url=url, token=token), message, json)


def put(
    ctx: typer.Context,
    uid: options.UserID,
    category: options.Category,
    body: options.Body,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            callback=options.not_empty,
            help="The item takes the place of the one with the same key.",
            show_default="CATEGORY",
        ),
    ] = None,
    starts: options.Starts = None,
    expires: options.Expires = None,
    device: options.Scope = None,
    text: options.Text = False,
    msg_id: options.MessageID = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Set a value: create an item in place of the one before it.

    [dim]$[/] gregor put alice settings.theme dark
    [dim]$[/] gregor put alice uploads '{"percent": 40}' --key upload17
    [dim]$[/] gregor put alice settings.volume 7 --device phone
    """
    message = messages.put(
        uid,
        category,
        read_body(body, text),
        key=key,
        starts=options.parse_time(starts),
        expires=options.parse_time(expires),
        device_id=device,
        msg_id=msg_id,
    )
    _send(options.load_settings(ctx, url=url, token=token), message, json)


def snooze(
    ctx: typer.Context,
    uid: options.UserID,
    msg_id: Annotated[
        str, typer.Argument(metavar="MSG_ID", help="The id of the item.", show_default=False)
    ],
    until: Annotated[
        str,
        typer.Argument(
            metavar="TIME",
            help="When to show it again: a duration such as 2h, or a time.",
            show_default=False,
        ),
    ],
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Hide an item on all devices of a user until later.

    [dim]$[/] gregor snooze alice 5f0e5d1c6b7a4e0e8f3f0a1b2c3d4e5f 2h
    [dim]$[/] gregor snooze alice invoice17 2027-01-31T08:00:00Z
    """
    instant = options.parse_time(until)
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli.remote import request

    result = run(request(settings, lambda server: server.snooze(uid, msg_id, instant)))
    print_result(result, creates=True, json=json)


def dismiss(
    ctx: typer.Context,
    uid: options.UserID,
    msg_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MSG_ID]...", help="Ids of items.", show_default=False),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="The items of this key; can be repeated.", show_default=False
        ),
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
    scheduled: Annotated[
        bool, typer.Option("--scheduled", help="Also items of it that have not begun.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only items of the key or category up to this time.",
            show_default="now",
        ),
    ] = None,
    msg_id: options.MessageID = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Dismiss items on all devices of a user, by id, by key or by category.

    [dim]$[/] gregor dismiss alice 5f0e5d1c6b7a4e0e8f3f0a1b2c3d4e5f
    [dim]$[/] gregor dismiss alice --key settings.theme
    [dim]$[/] gregor dismiss alice --category chat. --prefix --until -1h
    """
    if not (msg_ids or category or key):
        raise typer.BadParameter("give a MSG_ID, --key or --category")
    if not category and (prefix or scheduled):
        raise typer.BadParameter("--prefix and --scheduled need --category")
    if not (category or key) and until is not None:
        raise typer.BadParameter("--until needs --key or --category")
    end = options.parse_time(until)
    ranges = [Range(name, end, prefix=prefix, scheduled=scheduled) for name in category or ()]
    keys = [KeyDismissal(name, end) for name in key or ()]
    dismissal = Dismissal(tuple(msg_ids or ()), tuple(ranges), tuple(keys))
    message = InBandMessage(uid, new_msg_id() if msg_id is None else msg_id, dismissal=dismissal)
    _send(options.load_settings(ctx, url=url, token=token), message, json)


def _send(settings: "Settings", message: Message, json: bool) -> None:
    from gregor.cli.remote import request

    (result,) = run(request(settings, lambda server: server.send([message])))
    creates = isinstance(message, InBandMessage) and message.creation is not None
    print_result(result, creates=creates, json=json)
    if result.error is not None:
        raise _Rejected(f"{result.error.message} ({result.error.code})")


def print_result(result: "Result", creates: bool, json: bool) -> None:
    """Print the result of a message; without --json, an error is reported elsewhere."""
    if json:
        output.print_json(result)
    elif result.error is None:
        print("; ".join((_outcome(result), *_effects(result, creates))))


def _outcome(result: "Result") -> str:
    msg_id = output.printable(result.msg_id or "")
    match result.status:
        case "relayed":
            return "relayed to the devices that are connected now"
        case "duplicate":
            return f"{msg_id} is a duplicate, stored at {to_rfc3339(result.ctime or 0)}"
        case _:
            return f"{msg_id} stored at {to_rfc3339(result.ctime or 0)}"


def _effects(result: "Result", creates: bool) -> Iterator[str]:
    """What came of a message that is stored, where that may surprise."""
    if result.replaced is not None:
        yield f"replaces {output.printable(result.replaced)}"
    if creates and not result.visible:
        yield _not_visible(result.starts_at)
    if not creates and result.dismissed is not None:
        yield f"{result.dismissed} dismissed"


def _not_visible(starts_at: Time | None) -> str:
    if starts_at is not None and starts_at > now():
        return f"its item is not visible before {to_rfc3339(starts_at)}"
    return "its item is not visible, because it is dismissed or expired"


class _Rejected(GregorError):
    """The server rejected the message. Change it before sending it again."""
