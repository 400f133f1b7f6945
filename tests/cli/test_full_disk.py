"""A disk that is full, as a limit of the process on the size of its files: the system refuses to
write beyond it, as it does beyond the end of a disk."""

import resource
import subprocess

import psutil

from tests.cli.conftest import COMMAND, CommandResult, Shell

STORE = ("--store", "sqlite:///gregor.db")
LIMIT = psutil.RLIMIT_FSIZE
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def sent(shell: Shell) -> CommandResult:
    return shell.process("send", "ann", "chat", "1")


def test_server_on_a_full_disk_refuses_messages_and_continues_when_there_is_space(
    shell: Shell,
) -> None:
    with shell.serving(*STORE) as server:
        assert sent(shell).status == 0
        process = psutil.Process(server.pid)
        used = (shell.folder / "gregor.db-wal").stat().st_size
        process.rlimit(LIMIT, (used, resource.RLIM_INFINITY))
        refused = sent(shell)
        assert refused.failed_with("the store cannot do this now", "try again")
        assert "gregor.db" not in refused.err
        assert shell("count", "ann").out == "1\n"
        process.rlimit(LIMIT, UNLIMITED)
        assert sent(shell).status == 0
        assert shell("count", "ann").out == "2\n"


def test_server_that_starts_on_a_full_disk_says_so(shell: Shell) -> None:
    limited = "ulimit -f 8; exec " + " ".join((*COMMAND, "serve", *STORE))
    done = subprocess.run(
        ("sh", "-c", limited),
        capture_output=True,
        text=True,
        cwd=shell.folder,
        env=shell.environment,
        check=False,
    )
    result = CommandResult(done.returncode, done.stdout, done.stderr)
    assert result.failed_with("gregor.db", "disk is full")
