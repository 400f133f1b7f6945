"""The output of commands: tables and text for people, JSON for scripts.

Rich is imported where it is used: `gregor serve` prints nothing with it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from gregor.core.facts import (
    DismissedKey,
    DismissedRange,
    dismissed_keys,
    dismissed_ranges,
)
from gregor.core.instant import SECOND, Time, to_rfc3339
from gregor.core.message import InBandMessage
from gregor.core.state import Item
from gregor.protocol.json_line import json_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

PIPE_WIDTH = 1_000  # characters; lines in a pipe are not wrapped


def console() -> "Console":
    """The console on stdout."""
    from rich.console import Console

    stdout = Console(highlight=False)
    return stdout if stdout.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def print_error(message: str) -> None:
    """Print an error to stderr as one plain line."""
    from rich.console import Console

    line = printable(" ".join(message.split()))
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"gregor: {line}")


def print_json(value: object) -> None:
    """Print one JSON document on one line."""
    print(json_line(msgspec.json.encode(value).decode()), flush=True)


def printable(text: str) -> str:
    """Untrusted text without control characters that a terminal would interpret."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def json_text(json: msgspec.Raw) -> str:
    """JSON on one line, safe for a terminal."""
    return printable(msgspec.json.format(bytes(json).decode(), indent=0))


def format_time(time: Time) -> str:
    """A time for people, in UTC, to the second."""
    return to_rfc3339(time)[:19].replace("T", " ")


def format_duration(microseconds: int) -> str:
    """A duration in the largest unit that fits twice; 0 s if it is negative."""
    seconds = max(0, microseconds // SECOND)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


# Items and messages


def item_table(items: Iterable[Item], now: Time) -> "Table":
    """A table of visible items, one line each, without the columns in which all are empty. On a
    narrow terminal only the categories and bodies are cut off."""
    from rich.text import Text

    rows = [_cells(item, now) for item in items]
    names = [name for name in _COLUMNS if name in _ALWAYS or any(row[name] for row in rows)]
    table = plain_table(*names)
    for column in table.columns[1:-1]:
        column.no_wrap = True
    for row in rows:
        table.add_row(*(Text(row[name], no_wrap=True, overflow="ellipsis") for name in names))
    return table


_COLUMNS = ("category", "key", "msg_id", "age", "began", "expires in", "body")
_ALWAYS = ("category", "msg_id", "age", "body")


def _cells(item: Item, now: Time) -> dict[str, str]:
    """The cells of an item, by the names of their columns."""
    return {
        "category": printable(item.category),
        "key": "" if item.key is None else printable(item.key),
        "msg_id": printable(item.msg_id),
        "age": format_duration(now - item.ctime),
        "began": "" if item.starts_at is None else f"{format_duration(now - item.starts_at)} ago",
        "expires in": "" if item.expires_at is None else format_duration(item.expires_at - now),
        "body": json_text(item.raw_body),
    }


def log_line(message: InBandMessage) -> str:
    """A message as one line: ctime, msg_id, and what it creates (+) and dismisses (-)."""
    parts = [format_time(message.ctime), printable(message.msg_id)]
    if message.creation is not None:
        category, body = printable(message.creation.category), json_text(message.creation.raw_body)
        parts.append(f"+ {category} {body}{_details(message)}")
    if message.dismissal is not None:
        parts += [f"- {printable(msg_id)}" for msg_id in message.dismissal.msg_ids]
        parts += [f"- {_range_text(range_)}" for range_ in dismissed_ranges(message)]
        parts += [f"- {_key_text(key)}" for key in dismissed_keys(message)]
    return "  ".join(parts)


def _details(message: InBandMessage) -> str:
    """What is special about the item of a message, in brackets."""
    details = []
    if message.key is not None:
        details.append(f"key {printable(message.key)}")
    if message.device_id is not None:
        details.append(f"on {printable(message.device_id)}")
    if message.starts_at is not None:
        details.append(f"from {format_time(message.starts_at)}")
    if message.expires_at is not None:
        details.append(f"until {format_time(message.expires_at)}")
    return f" ({', '.join(details)})" if details else ""


def _range_text(range_: DismissedRange) -> str:
    text = printable(range_.category) + ("*" if range_.prefix else "")
    if range_.scheduled:
        text += " and scheduled"
    if range_.end != range_.ctime:
        text += f" until {format_time(range_.end)}"
    if range_.skip_msg_ids:
        text += f" except {printable(', '.join(range_.skip_msg_ids))}"
    return text


def _key_text(key: DismissedKey) -> str:
    text = f"key {printable(key.key)}"
    return text if key.end == key.ctime else f"{text} until {format_time(key.end)}"


# Tables and progress bars


def plain_table(*columns: str) -> "Table":
    """An empty table without borders."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table


def figures_table(figures: Mapping[str, int | float | str]) -> "Table":
    """A table with one row: each figure under its name."""
    table = plain_table()
    for name in figures:
        table.add_column(name.replace("messages_per_second", "messages/s"), justify="right")
    table.add_row(*(f"{f:,}" if isinstance(f, int | float) else f for f in figures.values()))
    return table


def progress() -> "Progress":
    """A progress bar on stderr if that is a terminal, otherwise nothing. The field `status` of a
    task is shown beside its bar."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    stderr = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    )


@contextmanager
def counting_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar. The yielded function sets how many steps are done, and the total."""
    with progress() as bars:
        bar = bars.add_task(description, total=None, status="")

        def update(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, status=f"{done:,} of {total:,}")

        yield update
