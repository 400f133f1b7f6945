"""Access with signed tokens on the command line."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.conftest import Shell

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def gregor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder: Path = tmp_path_factory.mktemp("jwt")
    shell = Shell(folder)
    shell.environment["GREGOR_JWT_SECRET"] = SECRET
    with shell.serving("--auth", "jwt"):
        yield shell


def token(gregor: Shell, *arguments: str) -> str:
    return gregor("token", *arguments).out.strip()


def test_service_token_writes_for_all_and_device_token_reads_its_own_user(gregor: Shell) -> None:
    service = token(gregor, "backend", "--role", "service")
    assert gregor("send", "ann", "note", "1", "--token", service).status == 0
    ann = token(gregor, "ann", "--expires", "1h")
    assert gregor("count", "ann", "--token", ann).out == "1\n"
    assert gregor("count", "ann", env={"GREGOR_TOKEN": ann}).out == "1\n"


def test_missing_token_fails_with_how_to_give_one(gregor: Shell) -> None:
    assert gregor("state", "ann").failed_with("a token is needed", "--token", "GREGOR_TOKEN")


def test_device_token_is_rejected_for_another_user(gregor: Shell) -> None:
    ben = token(gregor, "ben")
    assert gregor("state", "ann", "--token", ben).failed_with("another user")
    assert gregor("send", "ann", "note", "1", "--token", ben).failed_with("another user")


def test_expired_and_forged_tokens_are_rejected(gregor: Shell) -> None:
    expired = token(gregor, "ann", "--expires", "2020-01-01T00:00:00Z")
    assert gregor("state", "ann", "--token", expired).failed_with("the token has expired")
    forged = gregor("token", "ann", env={"GREGOR_JWT_SECRET": SECRET[::-1]}).out.strip()
    assert gregor("state", "ann", "--token", forged).failed_with("the token is invalid")
    assert gregor("watch", "ann", "--token", forged).failed_with("the token is invalid")


def test_json_option_prints_token_role_and_expiry(gregor: Shell) -> None:
    result = gregor("token", "ann", "--expires", "2030-01-01T00:00:00Z", "--json").json
    assert result["token"].count(".") == 2
    assert result["expires_at"] == "2030-01-01T00:00:00Z"
    assert (result["uid"], result["role"]) == ("ann", "device")


def test_token_expires_in_thirty_days_unless_it_is_told_otherwise(gregor: Shell) -> None:
    expires_at = gregor("token", "ann", "--json").json["expires_at"]
    days = (datetime.fromisoformat(expires_at) - datetime.now(UTC)).total_seconds() / 86_400
    assert 29.9 < days <= 30
    never = gregor("token", "backend", "--role", "service", "--expires", "never", "--json").json
    assert never["expires_at"] is None
    assert gregor("count", "ann", "--token", never["token"]).status == 0


def test_token_without_secret_fails(shell: Shell) -> None:
    assert shell("token", "ann").failed_with("GREGOR_JWT_SECRET", "gregor serve")


def test_unknown_role_exits_with_2(gregor: Shell) -> None:
    assert gregor("token", "ann", "--role", "king").status == 2
