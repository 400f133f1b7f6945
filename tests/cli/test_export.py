"""`gregor export`, `gregor import` and `gregor backup`, with servers and with files."""

import gzip
import signal
import subprocess
from pathlib import Path

import pytest

from gregor.core.export import ExportedMessage, ExportedUser, ExportEnd, encode_line, head_line
from gregor.core.message import create
from tests.cli.conftest import COMMAND, Shell

STORE = ("--store", "sqlite:///gregor.db")
OTHER = ("--store", "sqlite:///other.db")


def send(shell: Shell, uid: str, *numbers: int) -> None:
    for number in numbers:
        assert shell("send", uid, "chat", str(number)).status == 0


def bodies(shell: Shell, uid: str) -> list[int]:
    items = shell("state", uid, "--json").json["items"]
    return sorted(item["body"] for item in items)


def test_users_go_from_server_to_file_to_store_to_server(shell: Shell) -> None:
    with shell.serving(*STORE):
        send(shell, "ann", 1, 2)
        send(shell, "bob", 3)
        assert shell("export", "all.jsonl").out == ""
        alone = shell("export", "--user", "ann").out
        hash_ = shell("state", "ann", "--json").json["hash"]
    assert [next(iter(line)) for line in map(_json, alone.splitlines())] == [
        "gregor_export",
        "user",
        "message",
        "message",
        "end",
    ]
    exported = (shell.folder / "all.jsonl").read_text()
    assert shell("export", *STORE).out == exported
    assert shell("migrate", *OTHER).status == 0
    assert shell("import", "all.jsonl", *OTHER, "--json").json == {
        "users": 2,
        "stored": 3,
        "known": 0,
        "refused": 0,
        "complete": True,
        "problems": [],
    }
    assert shell("export", *OTHER).out == exported
    with shell.serving(*OTHER):
        assert bodies(shell, "ann") == [1, 2]
        assert shell("state", "ann", "--json").json["hash"] == hash_
        again = shell("import", "all.jsonl")
        assert again.status == 0
        assert "known" in again.out


def _json(line: str) -> dict[str, object]:
    import json

    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_broken_and_truncated_files_are_named_and_the_rest_is_in(shell: Shell) -> None:
    with shell.serving(*STORE):
        send(shell, "ann", 1)
        lines = shell("export").out.splitlines(keepends=True)
    shell("migrate", *OTHER)
    (shell.folder / "bad.gz").write_bytes(
        gzip.compress("".join([*lines[:2], "broken\n", lines[2]]).encode())
    )
    result = shell("import", "bad.gz", *OTHER)
    assert result.status == 1
    assert "line 3: not JSON" in result.err
    assert "cut short" in result.err
    assert shell("export", *OTHER).out.splitlines()[2:3] == [lines[2].strip()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("import", "missing.jsonl"), ["missing.jsonl", "cannot be read"]),
        (("export", "there"), ["there exists", "another name"]),
        (("backup", "there"), ["there exists", "another name"]),
        (("export", "new", *STORE), ["there is no such file"]),
        (("backup", "new", "--store", "postgresql:///g"), ["one SQLite file"]),
        (("export", "new"), ["no server answers"]),
        (("import", "there"), ["no server answers"]),
        (("export", "folder/new", *STORE), ["folder/new.part cannot be written"]),
    ],
)
def test_errors_say_what_to_do(shell: Shell, arguments: tuple[str, ...], words: list[str]) -> None:
    (shell.folder / "there").write_text('{"gregor_export":1}\n')
    result = shell(*arguments, env={"GREGOR_URL": "http://127.0.0.1:9"})
    assert result.failed_with(*words)
    assert not (shell.folder / "new").exists()


def test_other_file_is_refused_by_a_server(shell: Shell) -> None:
    (shell.folder / "later").write_text('{"gregor_export":2}\n')
    with shell.serving(*STORE):
        assert shell("import", "later").failed_with("version 2", "import it with")


def test_backup_of_a_running_server_is_a_store(shell: Shell) -> None:
    with shell.serving(*STORE):
        send(shell, "ann", 1, 2)
        assert shell("backup", "copy.db").status == 0
        send(shell, "ann", 3)
        assert shell("backup", "in-use.db", *STORE).failed_with("is open in another process")
    assert (shell.folder / "copy.db").stat().st_mode & 0o077 == 0
    assert not [*shell.folder.glob("*.part"), *shell.folder.glob(".gregor-backup-*")]
    assert shell("backup", "stopped.db", *STORE).status == 0
    with shell.serving("--store", "sqlite:///copy.db"):
        assert bodies(shell, "ann") == [1, 2]
    with shell.serving("--store", "sqlite:///stopped.db"):
        assert bodies(shell, "ann") == [1, 2, 3]


def big_export(path: Path, users: int, messages: int) -> bytes:
    lines = [head_line()]
    for user in range(users):
        uid = f"user{user:03}"
        lines.append(encode_line(ExportedUser(uid, 1000 + messages, 0, 0, 7)))
        for n in range(1, messages):
            message = create(uid, "c", n, msg_id=f"{n}").stamp(1000 + n, 999 + n if n > 1 else 0)
            lines.append(encode_line(ExportedMessage.of(message, "service:s")))
    lines.append(encode_line(ExportEnd(users, users * (messages - 1))))
    text = b"".join(lines)
    path.write_bytes(text)
    return text


def test_import_that_is_killed_at_any_moment_ends_right_when_it_is_run_again(
    shell: Shell,
) -> None:
    text = big_export(shell.folder / "big.jsonl", users=3, messages=2_000)
    shell("migrate", *STORE)
    for share in (0.2, 0.5, 0.9):
        process = subprocess.Popen(
            (*COMMAND, "import", "-", *STORE),
            stdin=subprocess.PIPE,
            cwd=shell.folder,
            env=shell.environment,
        )
        assert process.stdin is not None
        process.stdin.write(text[: int(len(text) * share)])  # a pipe holds 64 KB: most is read
        process.stdin.flush()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
    result = shell("import", "big.jsonl", *STORE, "--json").json
    assert result["complete"]
    assert not result["refused"]
    assert result["known"] > 0
    assert shell("export", *STORE).out.encode() == text
