"""`gregor shards`, and the page on adding one, step by step."""

import asyncio
from collections.abc import Sequence

import pytest

from gregor.data import SAMPLE
from gregor.testing.backends import PostgreSQL
from tests.cli.conftest import Shell


def stores(**urls: str) -> list[str]:
    return [word for name, url in urls.items() for word in ("--store", f"{name}={url}")]


def files(names: Sequence[str]) -> list[str]:
    return stores(**{name: f"sqlite:///{name}.db" for name in names})


def test_empty_databases_share_the_buckets_evenly(shell: Shell) -> None:
    ours = files("abc")
    for _ in range(2):  # twice is once
        assert shell("migrate", *ours).status == 0
    status = shell("shards", "status", "--json", *ours).json
    assert sorted(shard["buckets"] for shard in status.values()) == [1365, 1365, 1366]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("a", "add --store b=URL"),
        ("abc", "gregor migrate --store a=URL --store b=URL --store c=URL"),
    ],
)
def test_what_does_not_fit_the_map_is_refused(shell: Shell, names: str, words: str) -> None:
    shell("migrate", *files("ab"))
    shell("migrate", "--store", "sqlite:///c.db")
    assert shell("shards", "status", *files(names)).complained(words)


def test_one_of_several_alone_is_refused(shell: Shell) -> None:
    shell("migrate", *files("ab"))
    alone = shell("serve", "--store", "sqlite:///a.db", "--listen", "127.0.0.1:0")
    assert alone.complained("sqlite:///a.db", "shard 'a' of several")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--store", "sqlite://"), "name the shards"),
        (("--store", "sqlite:///a", "--store", "sqlite:///b"), "--store NAME=URL"),
        (("--store", "a=sqlite:///a", "--store", "a=sqlite:///b"), "the same name"),
        (("--store", "a=oracle://x", "--store", "b=sqlite://"), "not a store that is known"),
    ],
)
def test_stores_that_cannot_be_shards(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    assert shell("shards", "status", *arguments).complained(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bucket", "7"), "belong together"),
        (("--to", "b"), "belong together"),
        (("--bucket", "7", "--to", "x"), "there is no --store x=URL"),
        (("--bucket", "4096", "--to", "b"), "--bucket"),
    ],
)
def test_moves_that_make_no_sense(shell: Shell, arguments: tuple[str, ...], words: str) -> None:
    refused = shell("shards", "move", *files("ab"), *arguments)
    assert refused.status == 2
    assert words in refused.err


def test_shards_from_a_file_and_from_a_variable(shell: Shell) -> None:
    (shell.folder / "gregor.toml").write_text(
        '[store]\na = "sqlite:///a.db"\nb = "sqlite:///b.db"\n'
    )
    assert shell("--config", "gregor.toml", "migrate").status == 0
    both = {"GREGOR_STORE": "a=sqlite:///a.db b=sqlite:///b.db"}
    assert shell("shards", "status", "--json", env=both).json.keys() == {"a", "b"}
    named = shell("--config", "gregor.toml", "shards", "move", "--bucket", "3000", "--to", "a")
    assert named.out.startswith("moved 1 buckets with 0 users")


def test_a_shard_is_added_as_the_page_says(shell: Shell, postgresql_server: PostgreSQL) -> None:
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
        assert moved["longest_pause_seconds"] < 0.5
        assert shell("shards", "move", *three).out == "nothing to move\n"
        assert shell("replay", "--json", str(SAMPLE)).json["duplicates"] == 5_042
    messages = [s["messages"] for s in shell("shards", "status", "--json", *three).json.values()]
    assert sum(messages) == 5_042
    assert max(messages) < 1.2 * min(messages)
    assert "left behind" in shell("shards", "verify", *three).out
    assert "removed" in shell("shards", "verify", "--prune", *three).out
    assert "no copies" in shell("shards", "verify", *three).out
