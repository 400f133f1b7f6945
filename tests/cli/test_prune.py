"""`gregor prune`: on a running server, and on a store without one."""

import time

import pytest

from tests.cli.conftest import Shell


def replace(shell: Shell, uid: str) -> None:
    """Store an item twice, and let a moment pass."""
    for number in range(2):
        assert shell("put", uid, "badge", str(number)).status == 0
    time.sleep(0.002)


def test_running_server_is_asked_to_prune(gregor: Shell) -> None:
    replace(gregor, "ann")
    assert gregor("prune", "--json").json == {"users": 0, "contents": 0, "ids": 0}
    pruned = gregor("prune", "--older-than", "1us")
    assert "1 messages of 1 users have lost their contents, and 0 ids" in pruned.out
    assert gregor("state", "ann", "--json").json["items"][0]["body"] == 1


def test_store_without_a_server_is_pruned(shell: Shell) -> None:
    with shell.serving("--store", "sqlite:///gregor.db"):
        replace(shell, "ann")
        options = ("--store", "sqlite:///gregor.db", "--older-than", "1us")
        assert shell("prune", *options).failed_with("open in another process")
    assert shell("prune", *options, "--json").json == {"users": 1, "contents": 1, "ids": 0}
    assert shell("prune", *options, "--json").json == {"users": 0, "contents": 0, "ids": 0}


def test_shards_without_a_server_are_pruned(shell: Shell) -> None:
    stores = [f"{name}=sqlite:///{name}.db" for name in "abc"]
    options = [word for store in stores for word in ("--store", store)]
    with shell.serving(*options):
        for number in range(6):
            replace(shell, f"user {number}")
    pruned = shell("prune", *options, "--older-than", "1us", "--json")
    assert pruned.json == {"users": 6, "contents": 6, "ids": 0}


@pytest.mark.parametrize(
    ("older_than", "reason"),
    [
        ("0d", "more than 0"),
        ("-30d", "more than 0"),
        ("100000d", "before 2001"),
    ],
)
def test_time_that_makes_no_sense_is_refused_by_server_and_store(
    gregor: Shell, older_than: str, reason: str
) -> None:
    gregor("migrate", "--store", "sqlite:///other.db")
    for store in ((), ("--store", "sqlite:///other.db")):
        refused = gregor("prune", *store, f"--older-than={older_than}")
        assert refused.failed_with("older_than", reason)


@pytest.mark.parametrize("older_than", ["30", "", "soon"])
def test_text_that_is_no_duration_is_wrong_usage(shell: Shell, older_than: str) -> None:
    refused = shell("prune", "--older-than", older_than)
    assert refused.status == 2
    assert "duration" in refused.err


def test_url_and_store_exclude_each_other(shell: Shell) -> None:
    refused = shell("prune", "--url", "http://localhost:1", "--store", "sqlite:///gregor.db")
    assert refused.status == 2


def test_file_that_does_not_exist_is_not_created(shell: Shell) -> None:
    assert shell("prune", "--store", "sqlite:///gregor.db").failed_with("no such file")
    assert list(shell.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--history", "30d", "--ids", "20d"), ("`ids`", "longer than `history`")),
        (("--history", "30"), ("`history`", "bare number")),
        (("--history=-1d",), ("`history`", "give a duration")),
    ],
)
def test_server_does_not_start_with_times_that_make_no_sense(
    shell: Shell, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert shell("serve", *options).failed_with(*words)


def test_server_warns_of_a_short_history(shell: Shell) -> None:
    with shell.serving("--history", "7d", "--ids", "30d") as process:
        assert process.stderr is not None
        assert '"event":"short history"' in process.stderr.readline().replace(": ", ":")
