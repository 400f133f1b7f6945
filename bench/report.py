"""The report of the bench: each figure, its baseline from the same run, and the verdict."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table


class Wanted(StrEnum):
    """The side of its threshold on which a figure must be."""

    AT_LEAST = "≥"
    BELOW = "<"


class Figure(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measurement. Its `ratio` must be on the `wanted` side of `threshold`. A figure without a
    threshold is only reported."""

    name: str
    measured: str
    beside: str = ""
    ratio: float | None = None
    wanted: Wanted = Wanted.AT_LEAST
    threshold: float | None = None

    @property
    def met(self) -> bool:
        if self.threshold is None or self.ratio is None:
            return True
        if self.wanted is Wanted.AT_LEAST:
            return self.ratio >= self.threshold
        return self.ratio < self.threshold

    @property
    def verdict(self) -> str:
        if self.threshold is None:
            return ""
        return "met" if self.met else "missed"


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the figures as a table."""
    table = Table(title="Gregor and its baselines", title_justify="left")
    for heading in ("figure", "measured", "beside"):
        table.add_column(heading, overflow="fold")
    for heading in ("ratio", "wanted", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        style = {"met": "green", "missed": "bold red"}.get(figure.verdict, "dim")
        table.add_row(
            figure.name,
            figure.measured,
            figure.beside,
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            "" if figure.threshold is None else f"{figure.wanted} {figure.threshold:g}",
            f"[{style}]{figure.verdict}[/]" if figure.verdict else "",
        )
    console.print(table)


def as_json(figures: Sequence[Figure]) -> str:
    """The figures as a JSON document."""
    document = [
        {**msgspec.to_builtins(figure), "verdict": figure.verdict or None} for figure in figures
    ]
    return msgspec.json.format(msgspec.json.encode({"figures": document}), indent=2).decode()
