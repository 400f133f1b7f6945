"""`gregor erase`: on a running server, and in a store without one."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.cli.conftest import COMMAND, COMMAND_TIMEOUT_SECONDS, CommandResult, Shell
from tests.cli.test_shards import files

FILE = ("--store", "sqlite:///gregor.db")


def on_terminal(shell: Shell, answer: str, *arguments: str) -> CommandResult:
    """Run a command whose stdin is a terminal, at which this is typed."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        process = subprocess.run(
            (*COMMAND, *arguments),
            stdin=theirs,
            capture_output=True,
            text=True,
            cwd=shell.folder,
            env=shell.environment,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    return CommandResult(process.returncode, process.stdout, process.stderr)


def count(shell: Shell, uid: str) -> str:
    return shell("count", uid).out.strip()


# On a server


def test_user_is_erased_on_the_server(gregor: Shell) -> None:
    gregor("send", "ann/1", "note", "hello")
    erased = gregor("erase", "ann/1")
    assert (erased.status, erased.err) == (0, "")
    assert erased.out.startswith("erased ann/1 at ")
    assert count(gregor, "ann/1") == "0"


def test_unknown_user_is_erased_and_twice(gregor: Shell) -> None:
    first, second = (gregor("erase", "nobody", "--json").json for _ in range(2))
    assert first == {"uid": "nobody", "epoch": first["epoch"], "pending": []}
    assert second["epoch"] > first["epoch"]


@contextmanager
def answering(answer: object) -> Iterator[str]:
    """A server that answers everything so. Yields its URL."""

    class Answering(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_that_were_away_are_named(shell: Shell) -> None:
    with answering({"uid": "ann", "epoch": 7, "pending": ["b", "c"]}) as url:
        erased = shell("erase", "ann", "--url", url)
        assert (erased.status, erased.out) == (0, "erased ann at 7\n")
        assert ["shard b was away" in line for line in erased.err.splitlines()] == [True, False]
        assert shell("erase", "ann", "--url", url, "--json").json["pending"] == ["b", "c"]


def test_erase_without_a_server_fails_with_how_to_start_one(shell: Shell) -> None:
    failed = shell("erase", "ann", "--url", "http://127.0.0.1:1")
    assert failed.failed_with("no server answers", "--url")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("",), 1, "uid"),
        (("..",), 1, "uid"),
        (("x" * 129,), 1, "128"),
        (("ann", *FILE, "--url", "http://127.0.0.1:9911"), 2, "--store"),
        (("ann", *FILE, "--token", "t"), 2, "--store"),
        (("ann", *FILE), 1, "no such file"),
        (("ann", "--store", "oracle://x"), 1, "not a store that is known"),
        ((), 2, "UID"),
    ],
)
def test_wrong_usage_erases_nothing(
    shell: Shell, arguments: tuple[str, ...], status: int, words: str
) -> None:
    refused = shell("erase", *arguments)
    assert refused.status == status
    assert words in " ".join(refused.err.split())
    assert list(shell.folder.iterdir()) == []


# In a store


@pytest.fixture
def stopped(shell: Shell) -> Shell:
    """A shell with a store in which ann and bob have an item each, and no server."""
    with shell.serving(*FILE):
        for uid in ("ann", "bob"):
            shell("send", uid, "note", f"secret of {uid}")
    return shell


def counts_later(shell: Shell) -> list[str]:
    with shell.serving(*FILE):
        return [count(shell, uid) for uid in ("ann", "bob")]


def test_user_is_erased_in_a_file_without_a_server(stopped: Shell) -> None:
    erased = stopped("erase", "ann", *FILE)
    assert erased.out.startswith("erased ann at ")
    stored = b"".join(path.read_bytes() for path in Path(stopped.folder).glob("gregor.db*"))
    assert b"secret of ann" not in stored
    assert b"secret of bob" in stored
    assert counts_later(stopped) == ["0", "1"]


def test_store_that_a_server_uses_is_left_to_it(shell: Shell) -> None:
    with shell.serving(*FILE):
        shell("send", "ann", "note", "1")
        assert shell("erase", "ann", *FILE).status == 1
        assert count(shell, "ann") == "1"


def test_user_is_erased_in_shards_without_a_server(shell: Shell) -> None:
    stores = files("ab")
    assert shell("migrate", *stores).status == 0
    with shell.serving(*stores):
        shell("send", "ann", "note", "1")
    assert shell("erase", "ann", "--json", *stores).json["pending"] == []
    with shell.serving(*stores):
        assert count(shell, "ann") == "0"


# The question


@pytest.mark.parametrize(
    ("typed", "options", "expected"),
    [("y\n", (), "0"), ("n\n", (), "1"), ("\n", (), "1"), ("", ("--yes",), "0")],
)
def test_erase_on_a_terminal_asks_unless_it_is_told_yes(
    gregor: Shell, typed: str, options: tuple[str, ...], expected: str
) -> None:
    gregor("send", "zoe", "note", "1", "--msg-id", "m")
    result = on_terminal(gregor, typed, "erase", "zoe", *options)
    assert count(gregor, "zoe") == expected
    assert (result.status == 0) == (expected == "0")
    assert ("Delete everything of zoe" in result.out + result.err) == (not options)
