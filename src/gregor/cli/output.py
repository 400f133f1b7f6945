"""What commands print: tables and sentences for people, JSON for scripts."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from gregor.core.instant import SECOND, Time, to_rfc3339
from gregor.core.message import InBandMessage
from gregor.core.state import DismissedRange, Item, dismissed_ranges

WIDE = 1_000  # for a pipe, in which nothing should be folded


def console() -> Console:
    """Where answers go."""
    there = Console(highlight=False)
    return there if there.is_terminal else Console(highlight=False, width=WIDE)


def complain(reason: str) -> None:
    """One plain line that says what went wrong, on stderr."""
    line = printable(" ".join(reason.split()))
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(f"gregor: {line}")


def document(value: object) -> None:
    """One JSON document on a line of its own."""
    print(msgspec.json.encode(value).decode(), flush=True)


def printable(text: str) -> str:
    """Text from outside, with nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def text_of(json: msgspec.Raw) -> str:
    """JSON on one line."""
    return printable(msgspec.json.format(bytes(json).decode(), indent=0))


def moment(time: Time) -> str:
    """A time to read, in UTC, to the second."""
    return to_rfc3339(time)[:19].replace("T", " ")


def distance(microseconds: int) -> str:
    """How long ago, or how long from now, in the largest unit that fits."""
    seconds = max(0, microseconds // SECOND)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


# Items and messages


def items(shown: Iterable[Item], now: Time) -> Table:
    """Live items as a table, each on one line: a terminal cuts off categories and bodies that do
    not fit, and nothing else."""
    rows = [
        (
            printable(item.category),
            printable(item.msg_id),
            distance(now - item.ctime),
            "" if item.expires_at is None else distance(item.expires_at - now),
            text_of(item.raw_body),
        )
        for item in shown
    ]
    table = plain("category", "msg_id", "age", "expires in", "body")
    for place in (1, 2, 3):
        table.columns[place].no_wrap = True
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table


def in_words(message: InBandMessage) -> str:
    """One line of a user's log: when, which, and what it creates (+) and dismisses (-)."""
    words = [moment(message.ctime), printable(message.msg_id)]
    if message.creation is not None:
        scope = "" if message.device_id is None else f" (on {printable(message.device_id)})"
        category, body = printable(message.creation.category), text_of(message.creation.raw_body)
        words.append(f"+ {category} {body}{scope}")
    if message.dismissal is not None:
        words += [f"- {printable(msg_id)}" for msg_id in message.dismissal.msg_ids]
        ranges = dismissed_ranges(message.dismissal, message.ctime)
        words += [f"- {_range(range_, message)}" for range_ in ranges]
    return "  ".join(words)


def _range(range_: DismissedRange, message: InBandMessage) -> str:
    words = printable(range_.category) + ("*" if range_.prefix else "")
    if range_.end != range_.ctime:
        words += f" until {moment(range_.end)}"
    if range_.skip_msg_ids:
        kept = ["this" if id_ == message.msg_id else id_ for id_ in range_.skip_msg_ids]
        words += f" but {printable(', '.join(kept))}"
    return words


# Shapes


def plain(*columns: str) -> Table:
    """A table without much ink."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column)
    return table


def row(figures: Mapping[str, int | float | str]) -> Table:
    """A few figures, each under its name."""
    table = plain()
    for name in figures:
        table.add_column(name.replace("messages_per_second", "messages/s"), justify="right")
    table.add_row(*(f"{f:,}" if isinstance(f, int | float) else f for f in figures.values()))
    return table


def progress() -> Progress:
    """A bar on stderr, where that is a terminal, and nothing where it is not. A task says what it
    likes in its field `said`."""
    there = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        console=there,
        disable=not there.is_terminal,
        transient=True,
    )


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """The bar of one task, which is told how many are done, of how many."""
    with progress() as bars:
        bar = bars.add_task(what, total=None, said="")

        def tell(done: int, of: int) -> None:
            bars.update(bar, completed=done, total=of, said=f"{done:,} of {of:,}")

        yield tell
