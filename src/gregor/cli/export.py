"""`gregor export`, `gregor import` and `gregor backup`: stores as files."""

import os
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.core.arguments import identifier
from gregor.core.message import MAX_UID, UID
from gregor.errors import SetupError

if TYPE_CHECKING:
    from gregor.cli.stream import Source
    from gregor.config import Settings
    from gregor.protocol.answers import ImportAnswer

MAX_PRINTED_PROBLEMS = 20


def export(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="By default, or with -, stdout.", show_default=False),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="UID", help="Only this user.", show_default=False),
    ] = None,
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
) -> None:
    """Write all users, or one, to a file, which `gregor import` reads into any store.

    [dim]$[/] gregor export users.jsonl
    [dim]$[/] gregor export --user alice
    [dim]$[/] gregor export users.jsonl --store sqlite:///gregor.db

    JSON Lines with everything: dismissed messages as well, and what is left of
    forgotten ones. Each user is as of one instant. Servers may run meanwhile,
    and are asked, unless you name a --store. Its SQLite file must not be open
    in a server.
    """
    settings = _settings(ctx, url, token, store)
    with _new_file(file) as contents:
        chunks = _exported_from_store(settings, user) if store else _asked_for(settings, user)
        run(_write(chunks, contents, "exporting"))


def import_(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="An export, optionally .gz; - reads stdin.", show_default=False
        ),
    ],
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
    json: options.JSON = False,
) -> None:
    """Read an export into a store. Idempotent.

    [dim]$[/] gregor import users.jsonl
    [dim]$[/] gregor import users.jsonl --store sqlite:///gregor.db

    Users who are there already are merged, message by message. After an
    interruption, run it again. The exit status is 1 if a line was refused, or
    if the file was cut short: each such line is named, and the others are in.
    """
    settings = _settings(ctx, url, token, store)
    from gregor.cli.stream import open_stream

    with open_stream(file) as source:
        answer = run(_import(settings, source, in_store=bool(store)))
    _print(answer, json)
    if answer.refused or not answer.complete:
        raise typer.Exit(1)


def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    url: options.ServerURL = None,
    token: options.Token = None,
    store: options.Stores = None,
) -> None:
    """Copy the SQLite file of a server to this machine, while the server runs.

    [dim]$[/] gregor backup gregor-backup.db
    [dim]$[/] gregor backup gregor-backup.db --store sqlite:///gregor.db    [dim]no server runs[/]

    The copy is as of one instant, and is checked. It is a store itself: to
    restore it, stop the server and put it in the place of the server's file.
    PostgreSQL has tools of its own (docs/operations.md).
    """
    settings = _settings(ctx, url, token, store)
    with _new_file(file) as contents:
        chunks = _copied_from_file(settings) if store else _backup_asked_for(settings)
        run(_write(chunks, contents, "copying"))
        contents.flush()
        _require_sound(contents.name)


def _settings(
    ctx: typer.Context, url: str | None, token: str | None, store: list[str] | None
) -> "Settings":
    if store and (url is not None or token is not None):
        raise typer.BadParameter("--store is a store without a server: leave out --url and --token")
    return options.load_settings(ctx, url=url, token=token, store=tuple(store or ()) or None)


def _checked(user: str) -> UID:
    return identifier("--user", user, MAX_UID)


# Files


@contextmanager
def _new_file(file: Path | None) -> Iterator[IO[bytes]]:
    """A new file, or stdout. The file has its name only when it is whole, and on the disk: until
    then it is named with `.part`. Raises SetupError if there is one of the name."""
    if file is None or str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    if file.exists():
        raise SetupError(f"{file} exists; give another name, or remove it")
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as contents:
            yield contents
            contents.flush()
            os.fsync(contents.fileno())
        part.rename(file)
    except OSError as error:
        raise SetupError(f"{part} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


async def _write(chunks: AsyncIterable[bytes], contents: IO[bytes], doing: str) -> None:
    """Write the chunks; shows how much on a terminal."""
    size = 0
    with output.progress() as progress:
        bar = progress.add_task(doing, total=None, status="")
        async for chunk in chunks:
            contents.write(chunk)
            size += len(chunk)
            progress.update(bar, status=f"{size / 1e6:,.1f} MB")


def _require_sound(path: str) -> None:
    """Raises SetupError if the file is no sound SQLite database."""
    import sqlite3
    from contextlib import closing

    address = f"{Path(path).absolute().as_uri()}?immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as copy:
            found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise SetupError(f"{path} is damaged ({found}); copy again, and check the server's disk")


# From a running server


async def _asked_for(settings: "Settings", user: str | None) -> AsyncIterator[bytes]:
    from gregor.cli.remote import streamed

    path = "/v1/export" if user is None else f"/v1/users/{quote(_checked(user), safe='')}/export"
    async for chunk in streamed(settings, "GET", path):
        yield chunk


async def _backup_asked_for(settings: "Settings") -> AsyncIterator[bytes]:
    from gregor.cli.remote import streamed

    async for chunk in streamed(settings, "GET", "/v1/backup"):
        yield chunk


async def _import(settings: "Settings", source: "Source", *, in_store: bool) -> "ImportAnswer":
    with output.progress() as progress:
        bar = progress.add_task("importing", total=source.size, status="")

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in source.chunks():
                progress.update(bar, completed=source.position)
                yield chunk

        return await (_import_into_store if in_store else _send)(settings, chunks())


async def _send(settings: "Settings", chunks: AsyncIterable[bytes]) -> "ImportAnswer":
    import msgspec

    from gregor.cli.remote import streamed
    from gregor.protocol.answers import ImportAnswer

    parts = [part async for part in streamed(settings, "POST", "/v1/import", chunks)]
    return msgspec.json.decode(b"".join(parts), type=ImportAnswer)


# In a store that no server has


async def _exported_from_store(settings: "Settings", user: str | None) -> AsyncIterator[bytes]:
    from gregor.cli.stopped_store import opened
    from gregor.node.exporting import export

    uid = None if user is None else _checked(user)
    async with opened(settings) as parts:
        async for chunk in export(parts.state_machine, uid):
            yield chunk


async def _import_into_store(settings: "Settings", chunks: AsyncIterable[bytes]) -> "ImportAnswer":
    from gregor.cli.stopped_store import opened
    from gregor.node.importing import import_export

    async with opened(settings) as parts:
        return await import_export(parts.state_machine, chunks)


async def _copied_from_file(settings: "Settings") -> AsyncIterator[bytes]:
    """The file as it is: it is not migrated."""
    from gregor.cli.stopped_store import require_files
    from gregor.stores.sql.sqlite import SQLiteDatabase
    from gregor.stores.sql.store_url import parse_url

    (url,) = settings.stores.values()
    parsed = parse_url(url)
    if parsed.is_shared or None not in settings.stores:
        raise SetupError("--store: `gregor backup` copies one SQLite file (docs/operations.md)")
    require_files(settings)
    async with SQLiteDatabase(parsed.path, None) as database:
        with await database.backup() as contents:
            while chunk := contents.read(1 << 18):
                yield chunk


# The answer


def _print(answer: "ImportAnswer", json: bool) -> None:
    if json:
        output.print_json(answer)
        return
    for problem in answer.problems[:MAX_PRINTED_PROBLEMS]:
        output.print_error(f"line {problem.line}: {problem.reason}")
    omitted = answer.refused - min(len(answer.problems), MAX_PRINTED_PROBLEMS)
    if omitted > 0:
        output.print_error(f"and {omitted:,} more lines")
    if not answer.complete:
        output.print_error(
            "the file was cut short: what it has is in, but its last user may not be complete;"
            " import a whole file"
        )
    figures = {
        "users": answer.users,
        "stored": answer.stored,
        "known": answer.known,
        "refused": answer.refused,
    }
    output.console().print(output.figures_table(figures))
