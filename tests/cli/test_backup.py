"""An SQLite file is backed up by a copy of a stopped server's files, or by a snapshot."""

import shutil
import signal
from pathlib import Path

from tests.cli.conftest import Shell

STORE = ("--store", "sqlite:///gregor.db")


def send(shell: Shell, numbers: range) -> None:
    for number in numbers:
        assert shell("send", "ann", "chat", str(number)).status == 0


def copy_store(shell: Shell) -> Shell:
    """A shell in a folder with copies of gregor.db and, if there is one, gregor.db-wal."""
    copy = Path(shell.folder / "copy")
    copy.mkdir()
    for file in shell.folder.glob("gregor.db*"):
        assert file.name in ("gregor.db", "gregor.db-wal")
        shutil.copy(file, copy)
    return Shell(copy)


def bodies(shell: Shell) -> list[int]:
    items = shell("state", "ann", "--json").json["items"]
    return sorted(item["body"] for item in items)


def test_copy_of_a_stopped_server_has_all_messages(shell: Shell) -> None:
    with shell.serving(*STORE):
        send(shell, range(5))
    copy = copy_store(shell)
    with copy.serving(*STORE):
        assert bodies(copy) == [0, 1, 2, 3, 4]


def test_snapshot_of_a_running_server_has_all_acknowledged_messages(shell: Shell) -> None:
    with shell.serving(*STORE) as process:
        send(shell, range(5))
        process.send_signal(signal.SIGSTOP)  # so that the copy is of one moment, as a snapshot is
        copy = copy_store(shell)
        process.send_signal(signal.SIGCONT)
        send(shell, range(5, 7))
    with copy.serving(*STORE):
        assert bodies(copy) == [0, 1, 2, 3, 4]
