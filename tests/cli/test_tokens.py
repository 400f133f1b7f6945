"""Access with signed tokens, from the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def gregor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder: Path = tmp_path_factory.mktemp("signed")
    shell = Shell(folder)
    shell.environment["GREGOR_JWT_SECRET"] = SECRET
    with shell.serving("--auth", "jwt"):
        yield shell


def token(gregor: Shell, *arguments: str) -> str:
    return gregor("token", *arguments).out.strip()


def test_a_service_writes_for_all_and_a_device_reads_its_own(gregor: Shell) -> None:
    service = token(gregor, "backend", "--role", "service")
    assert gregor("send", "ann", "note", "1", "--token", service).status == 0
    ann = token(gregor, "ann", "--expires", "1h")
    assert gregor("count", "ann", "--token", ann).out == "1\n"
    assert gregor("count", "ann", env={"GREGOR_TOKEN": ann}).out == "1\n"


def test_without_a_token_it_says_how_to_give_one(gregor: Shell) -> None:
    assert gregor("state", "ann").complained("a token is needed", "--token", "GREGOR_TOKEN")


def test_a_device_is_nobody_else(gregor: Shell) -> None:
    ben = token(gregor, "ben")
    assert gregor("state", "ann", "--token", ben).complained("another user's")
    assert gregor("send", "ann", "note", "1", "--token", ben).complained("another user's")


def test_a_token_ends_and_a_forged_one_never_holds(gregor: Shell) -> None:
    ended = token(gregor, "ann", "--expires", "2020-01-01T00:00:00Z")
    assert gregor("state", "ann", "--token", ended).complained("does not hold", "expired")
    forged = gregor("token", "ann", env={"GREGOR_JWT_SECRET": SECRET[::-1]}).out.strip()
    assert gregor("state", "ann", "--token", forged).complained("does not hold")
    assert gregor("watch", "ann", "--token", forged).complained("does not hold")


def test_scripts_get_json(gregor: Shell) -> None:
    made = gregor("token", "ann", "--expires", "2030-01-01T00:00:00Z", "--json").json
    assert made["token"].count(".") == 2
    assert made["expires_at"] == "2030-01-01T00:00:00Z"
    assert (made["uid"], made["role"]) == ("ann", "device")


def test_without_the_secret_no_token_is_made(shell: Shell) -> None:
    assert shell("token", "ann").complained("GREGOR_JWT_SECRET", "gregor serve")


def test_a_role_that_is_none_is_wrong_usage(gregor: Shell) -> None:
    assert gregor("token", "ann", "--role", "king").status == 2
