"""The commands that send messages to a user, read the state, and watch it."""

import subprocess

import msgspec
import pytest

from tests.cli.conftest import COMMAND_TIMEOUT_SECONDS, Shell, first_json


def test_sent_message_is_shown_counted_and_dismissed(gregor: Shell) -> None:
    sent = gregor("send", "ann", "chat.room7", '{"n": 3}', "--msg-id", "m1")
    assert sent.out.startswith("m1 stored at 20")
    gregor("send", "ann", "invoices", "[17]", "--msg-id", "m2", "--expires", "30d")

    table = gregor("state", "ann").out
    assert all(word in table for word in ("chat.room7", '{"n": 3}', "m1", "invoices", "29 d"))
    assert gregor("count", "ann").out == "2\n"
    assert gregor("count", "ann", "chat.", "x").out == "1\tchat.\n0\tx\n"
    assert gregor("count", "ann", "ch", "--by", "segment").out == "1\tchat\n"
    assert gregor("count", "ann", "ch", "x", "--by", "segment").status == 2

    assert gregor("dismiss", "ann", "m1").status == 0
    assert gregor("dismiss", "ann", "--category", "inv", "--prefix").status == 0
    assert gregor("state", "ann").out == "nothing\n"
    assert gregor("count", "ann").out == "0\n"


def test_json_option_prints_json(gregor: Shell) -> None:
    sent = gregor("send", "ben", "note", "hello", "--json").json
    assert sent["status"] == "stored"
    state = gregor("state", "ben", "--json").json
    (item,) = state["items"]
    assert (item["msg_id"], item["ctime"], item["body"]) == (
        sent["msg_id"],
        sent["ctime"],
        "hello",
    )
    assert len(state["hash"]) == 64
    assert gregor("count", "ben", "no", "x", "--json").json["counts"] == {"no": 1, "x": 0}
    theme = gregor("put", "ben", "theme", "dark", "--json").json
    logged = gregor("log", "ben", "--json").lines
    assert [line["ctime"] for line in logged] == [sent["ctime"], theme["ctime"]]
    assert gregor("dismiss", "ben", sent["msg_id"], "--json").json["status"] == "stored"


@pytest.mark.parametrize(
    ("typed", "body"),
    [
        *(('{"a": 1}', {"a": 1}), ("17", 17), ("true", True), ("plain words", "plain words")),
        *(("3 new, 1.2.3", "3 new, 1.2.3"), ("[urgent] call", "[urgent] call"), ("", "")),
    ],
)
def test_body_that_is_not_json_is_text(gregor: Shell, typed: str, body: object) -> None:
    uid = f"body-{typed}"
    gregor("send", uid, "note", typed)
    (item,) = gregor("state", uid, "--json").json["items"]
    assert item["body"] == body


LIKE_JSON = ["{bad}", "{'a': 1}", "[1,]", '"open', "[bad]", "NaN", "-Infinity", "007", ".5"]


@pytest.mark.parametrize("typed", [*LIKE_JSON, '"\\ud83d"', "[" * 2000 + "]" * 2000])
def test_body_that_only_looks_like_json_is_refused(gregor: Shell, typed: str) -> None:
    result = gregor("send", "refused", "note", "--", typed)
    assert result.status == 2
    assert "--text" in result.err
    assert gregor("count", "refused").out == "0\n"


@pytest.mark.parametrize("typed", [*LIKE_JSON, '{"a": 1}', "17"])
def test_body_is_text_with_the_option_text(gregor: Shell, typed: str) -> None:
    uid = f"text-{typed}"
    gregor("send", uid, "note", "--text", "--", typed)
    (item,) = gregor("state", uid, "--json").json["items"]
    assert item["body"] == typed


def test_body_is_stored_as_it_was_typed_and_shown_on_one_line(gregor: Shell) -> None:
    typed = '{\n  "a":\t[1.10, 2e0,\r\n 12345678901234567890123]\n}\n'
    gregor("send", "jon", "note", "-", stdin=typed)
    for command in ("state", "log"):
        (line,) = gregor(command, "jon", "--json").out.splitlines()
        assert '{"a":[1.10,2e0,12345678901234567890123]}' in line
    with gregor.running("watch", "jon", "--json", stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        created = first_json(watching.stdout, event="created")
        assert created["item"]["body"]["a"][2] == 12345678901234567890123


def test_body_dash_reads_stdin(gregor: Shell) -> None:
    gregor("send", "cat/ä", "note", "-", stdin='{"from": "stdin"}\n')
    (item,) = gregor("state", "cat/ä", "--json").json["items"]
    assert item["body"] == {"from": "stdin"}


def test_message_with_known_id_is_a_duplicate_or_a_conflict(gregor: Shell) -> None:
    send = ("send", "dan", "note", "1", "--msg-id", "m")
    gregor(*send)
    assert gregor(*send).out.startswith("m is a duplicate, stored at ")
    assert "not visible" not in gregor(*send).out
    assert gregor("dismiss", "dan", "m", "other").out.endswith("; 1 dismissed\n")
    assert "not visible" in gregor(*send).out
    assert gregor(*send, "--json").json["status"] == "duplicate"
    conflicting = gregor("send", "dan", "note", "2", "--msg-id", "m")
    assert conflicting.failed_with("other contents", "conflict")


def test_put_leaves_one_item_of_the_key_and_get_prints_it(gregor: Shell) -> None:
    assert gregor("get", "eve", "theme").failed_with("eve", "no visible item", "theme")
    gregor("put", "eve", "theme", "light", "--msg-id", "m1")
    assert gregor("put", "eve", "theme", "dark").out.endswith("; replaces m1\n")
    assert gregor("get", "eve", "theme").out == '"dark"\n'
    item = gregor("get", "eve", "theme", "--json").json
    assert (item["category"], item["key"], item["body"]) == ("theme", "theme", "dark")
    assert gregor("state", "eve", "--json").json["items"] == [item]
    assert gregor("dismiss", "eve", "--key", "theme").out.endswith("; 1 dismissed\n")
    assert gregor("get", "eve", "theme").status == 1


def test_value_of_a_device_is_beside_that_of_all(gregor: Shell) -> None:
    put = ("put", "kay", "sound", "--key", "volume")
    gregor(*put, "7")
    gregor(*put, "3", "--device", "phone")
    assert gregor("get", "kay", "volume").out == "7\n"
    assert gregor("get", "kay", "volume", "--device", "tablet").out == "7\n"
    assert gregor("get", "kay", "volume", "--device", "phone").out == "3\n"


def test_keys_and_starts_are_shown(gregor: Shell) -> None:
    begins = "2020-01-31T12:00:00Z"
    gregor("put", "lou", "call", "1", "--key", "k17", "--starts", begins, "--msg-id", "m")
    table = gregor("state", "lou").out
    assert table.split()[:7] == ["category", "key", "msg_id", "age", "began", "body", "call"]
    assert " k17 " in table
    assert " d ago " in table
    (logged,) = gregor("log", "lou").out.splitlines()
    assert logged.endswith("m  + call 1 (key k17, from 2020-01-31 12:00:00)")
    gregor("dismiss", "lou", "--key", "k17", "--category", "c", "--scheduled", "--until", "-1h")
    (_, logged) = gregor("log", "lou").out.splitlines()
    assert "- c and scheduled until 20" in logged
    assert "- key k17 until 20" in logged
    gregor("send", "max", "plain", "1")
    assert gregor("state", "max").out.split()[:4] == ["category", "msg_id", "age", "body"]


def test_item_that_begins_later_is_not_visible_before(gregor: Shell) -> None:
    sent = gregor("send", "nia", "note", "1", "--starts", "2h", "--msg-id", "m")
    assert "; its item is not visible before 20" in sent.out
    assert gregor("count", "nia").out == "0\n"
    assert len(gregor("state", "nia", "--at", "3h", "--json").json["items"]) == 1
    assert gregor("dismiss", "nia", "--category", "note").out.endswith("; 0 dismissed\n")
    scheduled = gregor("dismiss", "nia", "--category", "note", "--scheduled")
    assert scheduled.out.endswith("; 1 dismissed\n")


def test_snoozed_item_is_shown_again_later(gregor: Shell) -> None:
    gregor("send", "oda", "note", "1", "--msg-id", "m", "--expires", "1d")
    assert "; its item is not visible before 20" in gregor("snooze", "oda", "m", "2h").out
    assert gregor("state", "oda").out == "nothing\n"
    (item,) = gregor("state", "oda", "--at", "3h", "--json").json["items"]
    assert item["starts_at"] == item["ctime"] + 7_200_000_000
    assert gregor("snooze", "oda", "m", "2h").failed_with("no visible item", "`msg_id`")
    gregor("put", "oda", "call", "1", "--msg-id", "k")
    snoozed = gregor("snooze", "oda", "k", "2h", "--json").json
    assert (snoozed["replaced"], snoozed["visible"]) == ("k", False)


def test_state_shows_some_categories_and_the_newest_first(gregor: Shell) -> None:
    for category in ("a.1", "b.1", "c.1", "a.2"):
        gregor("send", "pia", category, "1")

    def categories(*options: str) -> list[str]:
        items = gregor("state", "pia", *options, "--json").json["items"]
        return [item["category"] for item in items]

    assert categories("--prefix", "a.", "--prefix", "c.") == ["a.1", "c.1", "a.2"]
    assert categories("--newest", "--limit", "2") == ["a.2", "c.1"]
    assert gregor("state", "pia", "--limit", "3").out.endswith("\nand more\n")
    assert "and more" not in gregor("state", "pia", "--limit", "4").out


def test_item_with_device_is_visible_on_that_device_only(gregor: Shell) -> None:
    gregor("send", "fay", "note", "1", "--device", "phone")
    assert gregor("count", "fay", "--device", "phone").out == "1\n"
    assert gregor("count", "fay", "--device", "tablet").out == "0\n"
    assert gregor("state", "fay", "--device", "tablet").out == "nothing\n"


def test_state_and_log_accept_a_past_time(gregor: Shell) -> None:
    sent = gregor("send", "gus", "note", "1", "--msg-id", "m", "--json").json
    dismissed = gregor("dismiss", "gus", "m", "--json").json
    state_at = ("state", "gus", "--json", "--at")
    assert gregor(*state_at, "-1h").json["items"] == []
    assert len(gregor(*state_at, str(sent["ctime"])).json["items"]) == 1
    assert gregor(*state_at, str(dismissed["ctime"])).json["items"] == []
    assert gregor("log", "gus", "--since", str(dismissed["ctime"] + 1)).out == "nothing\n"
    assert "- m" in gregor("log", "gus", "--since", str(dismissed["ctime"])).out
    assert "- m" in gregor("log", "gus", "--after", str(sent["ctime"])).out
    assert gregor("log", "gus", "--after", str(dismissed["ctime"])).out == "nothing\n"
    # A replica with a cursor from an hour ago needs neither the item nor its dismissal.
    assert gregor("log", "gus", "--since", "-1h").out == "nothing\n"


def test_dismiss_until_keeps_later_items(gregor: Shell) -> None:
    gregor("send", "hal", "note", "1")
    gregor("dismiss", "hal", "--category", "note", "--until", "-1h")
    assert gregor("count", "hal").out == "1\n"


def test_control_characters_of_a_sender_are_not_printed(gregor: Shell) -> None:
    gregor("send", "ivy", "note\x1b[31m[bold]", "[red]hello[/red]")
    table = gregor("state", "ivy").out
    assert "\x1b" not in table
    assert "[bold]" in table
    assert '"[red]hello[/red]"' in table
    assert "\x1b" not in gregor("log", "ivy").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("dismiss", "ann"),
        ("dismiss", "ann", "m1", "--prefix"),
        ("send", "ann", "note", "1", "--expires", "soon"),
        ("send", "ann", "note", "1", "--msg-id", ""),
        ("send", "ann", "note", "1", "--device", ""),
        ("send", "ann", "note", "1", "--expires", ""),
        ("send", "ann", "typing", "1", "--out-of-band", "--msg-id", ""),
        ("send", "ann", "note", "1", "--msg-id", "a", "--msg-id", "b"),
        ("dismiss", "ann", "m1", "--msg-id", ""),
        ("dismiss", "ann", "m1", "--until", ""),
        ("dismiss", "ann", "m1", "--scheduled"),
        ("dismiss", "ann", "--key", "k", "--prefix"),
        ("put", "ann", "note", "1", "--key", ""),
        ("put", "ann", "note", "1", "--starts", "soon"),
        ("put", "ann", "note"),
        ("get", "ann"),
        ("get", "ann", "note", "--device", ""),
        ("snooze", "ann", "m1"),
        ("snooze", "ann", "m1", "tomorrow"),
        ("state", "ann", "--limit", "0"),
        ("state", "ann", "--limit", "501"),
        ("watch", "ann", "--prefix", "a", "--prefix", "b"),
        ("state", "ann", "--device", ""),
        ("watch", "ann", "--device", ""),
        ("--config", "a.toml", "--config", "b.toml", "state", "ann"),
        ("send", "ann", "typing", "1", "--out-of-band", "--starts", "2h"),
        ("state", "ann", "--at", "yesterday"),
        ("log", "ann", "--since", "2026-01-01"),
    ],
)
def test_wrong_usage_exits_with_2(gregor: Shell, arguments: tuple[str, ...]) -> None:
    result = gregor(*arguments)
    assert result.status == 2
    assert "Usage:" in result.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("send", "ann", "note", "1", "--expires", "-5s"), ("under a second",)),
        (("send", "ann", "c" * 256, "1"), ("`category`", "255 bytes")),
        (("send", "ann", "note", "x" * 70_000), ("`body`", "65536")),
        (("state", "u" * 200), ("`uid`",)),
        (("put", "ann", "note", "1", "--key", "é" * 128), ("`key`", "255 bytes")),
        (("get", "ann", "é" * 128), ("`key`", "255 bytes")),
        (("dismiss", "ann", "--key", "é" * 128), ("`key`", "255 bytes")),
        (("put", "ann", "note", "1", "--starts", "2h", "--expires", "1h"), ("`starts`", "expiry")),
        (("put", "ann", "note", "1", "--starts", "1700000000"), ("`starts`", "before 2001")),
        (("snooze", "ann", "m", "--", "-1h"), ("no visible item",)),
    ],
)
def test_invalid_message_fails_with_one_line(
    gregor: Shell, arguments: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert gregor(*arguments).failed_with(*expected)


@pytest.mark.parametrize(
    "command", [("state", "ann"), ("send", "ann", "c", "1"), ("watch", "ann"), ("replay", "-")]
)
def test_missing_server_fails_with_how_to_start_one(shell: Shell, command: tuple[str, ...]) -> None:
    result = shell(*command, "--url", "http://127.0.0.1:1")
    assert result.failed_with("http://127.0.0.1:1", "gregor serve", "--url")


def test_invalid_url_fails_with_an_example(shell: Shell) -> None:
    assert shell("state", "ann", "--url", "nonsense").failed_with("nonsense", "http://HOST:9911")


# Devices


def test_watch_prints_events_as_json(gregor: Shell) -> None:
    watch = ("watch", "kim", "--json", "--prefix", "chat.")
    with gregor.running(*watch, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        first_json(watching.stdout, event="synced")
        gregor("send", "kim", "other", "1")
        gregor("send", "kim", "chat.room7", "1", "--msg-id", "m")
        gregor("dismiss", "kim", "m")
        gregor("send", "kim", "typing", "1", "--out-of-band")
        assert first_json(watching.stdout)["item"]["msg_id"] == "m"
        assert first_json(watching.stdout, event="dismissed")["why"] == "dismissed"
        assert first_json(watching.stdout) == {
            "event": "out_of_band",
            "system": "typing",
            "body": 1,
        }


@pytest.mark.parametrize("json", [False, True])
def test_watch_says_that_the_user_was_erased_and_ends(gregor: Shell, json: bool) -> None:
    options = ["--json"] if json else []
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with gregor.running("watch", f"eva{json}", *options, **streams) as watching:
        assert watching.stdout is not None
        for _ in range(2):
            watching.stdout.readline()
        gregor("send", f"eva{json}", "note", "1", "--msg-id", "m")
        watching.stdout.readline()
        gregor("erase", f"eva{json}")
        output, error = watching.communicate(timeout=COMMAND_TIMEOUT_SECONDS)
        gone, erased, _ = output.splitlines()
        if json:
            assert msgspec.json.decode(gone)["why"] == "dismissed"
            assert msgspec.json.decode(erased).keys() == {"event", "epoch"}
        else:
            assert gone == "- note  m (dismissed)"
            assert erased.startswith("erased: the user was erased on the server")
        assert "watch again" in error
        assert watching.returncode == 1


def test_watch_prints_plain_lines_to_a_pipe(gregor: Shell) -> None:
    with gregor.running("watch", "lea", stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert {watching.stdout.readline(), watching.stdout.readline()} == {"online\n", "synced\n"}
        gregor("send", "lea", "note", "1", "--msg-id", "m")
        assert watching.stdout.readline() == "+ note 1  m\n"
        gregor("put", "lea", "theme", "dark", "--msg-id", "m2")
        assert watching.stdout.readline() == '+ theme "dark"  m2 (key theme)\n'
