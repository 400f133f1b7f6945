"""`gregor shards`, and the steps in docs/operations.md that add a shard."""

import asyncio
from collections.abc import Sequence

import pytest

from gregor.cli.sample import SAMPLE
from tests.cli.conftest import Shell
from tests.fleet.servers import PostgreSQL


def stores(**urls: str) -> list[str]:
    return [word for name, url in urls.items() for word in ("--store", f"{name}={url}")]


def files(names: Sequence[str]) -> list[str]:
    return stores(**{name: f"sqlite:///{name}.db" for name in names})


def test_empty_databases_share_the_buckets_evenly(shell: Shell) -> None:
    options = files("abc")
    for _ in range(2):  # migrate is idempotent
        assert shell("migrate", *options).status == 0
    status = shell("shards", "status", "--json", *options).json
    assert sorted(shard["buckets"] for shard in status.values()) == [1365, 1365, 1366]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("a", "add --store b=URL"),
        ("abc", "gregor migrate --store a=URL --store b=URL --store c=URL"),
    ],
)
def test_stores_that_do_not_match_the_shard_map_are_rejected(
    shell: Shell, names: str, expected: str
) -> None:
    shell("migrate", *files("ab"))
    shell("migrate", "--store", "sqlite:///c.db")
    assert shell("shards", "status", *files(names)).failed_with(expected)


def test_one_shard_of_several_alone_is_rejected(shell: Shell) -> None:
    shell("migrate", *files("ab"))
    alone = shell("serve", "--store", "sqlite:///a.db", "--listen", "127.0.0.1:0")
    assert alone.failed_with("sqlite:///a.db", "shard 'a' of several")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--store", "sqlite://"), "name the shards"),
        (("--store", "sqlite:///a", "--store", "sqlite:///b"), "--store NAME=URL"),
        (("--store", "a=sqlite:///a", "--store", "a=sqlite:///b"), "the same name"),
        (("--store", "a=oracle://x", "--store", "b=sqlite://"), "not a store that is known"),
    ],
)
def test_stores_that_cannot_be_shards_are_rejected(
    shell: Shell, arguments: tuple[str, ...], expected: str
) -> None:
    assert shell("shards", "status", *arguments).failed_with(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--bucket", "7"), "given together"),
        (("--to", "b"), "given together"),
        (("--bucket", "7", "--to", "x"), "there is no --store x=URL"),
        (("--bucket", "4096", "--to", "b"), "--bucket"),
    ],
)
def test_invalid_move_options_exit_with_2(
    shell: Shell, arguments: tuple[str, ...], expected: str
) -> None:
    result = shell("shards", "move", *files("ab"), *arguments)
    assert result.status == 2
    assert expected in result.err


def test_shards_can_come_from_a_file_or_a_variable(shell: Shell) -> None:
    (shell.folder / "gregor.toml").write_text(
        '[store]\na = "sqlite:///a.db"\nb = "sqlite:///b.db"\n'
    )
    assert shell("--config", "gregor.toml", "migrate").status == 0
    variable = {"GREGOR_STORE": "a=sqlite:///a.db b=sqlite:///b.db"}
    assert shell("shards", "status", "--json", env=variable).json.keys() == {"a", "b"}
    moved = shell("--config", "gregor.toml", "shards", "move", "--bucket", "3000", "--to", "a")
    assert moved.out.startswith("moved 1 buckets with 0 users")


def test_shard_is_added_as_documented(shell: Shell, postgresql_server: PostgreSQL) -> None:
    with asyncio.Runner() as runner:
        urls = {n: runner.run(postgresql_server.create_database()) for n in "abc"}
    two, three = stores(a=urls["a"], b=urls["b"]), stores(**urls)
    assert shell("migrate", *two).status == 0
    with shell.serving(*two):
        assert shell("replay", "--json", str(SAMPLE)).json["stored"] == 5_042
        assert shell("migrate", *three).status == 0
        assert "to c" in shell("shards", "plan", *three).out
    with shell.serving(*three):
        moved = shell("shards", "move", "--json", *three).json
        assert moved["buckets"] > 0
        assert moved["longest_pause_seconds"] > 0
        assert shell("shards", "move", *three).out == "nothing to move\n"
        assert shell("replay", "--json", str(SAMPLE)).json["duplicates"] == 5_042
    messages = [s["messages"] for s in shell("shards", "status", "--json", *three).json.values()]
    assert sum(messages) == 5_042
    assert max(messages) < 1.2 * min(messages)
    assert "left behind" in shell("shards", "verify", *three).out
    assert "removed" in shell("shards", "verify", "--prune", *three).out
    assert "no copies" in shell("shards", "verify", *three).out
