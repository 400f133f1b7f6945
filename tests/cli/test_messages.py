"""Messages to a user, and what is known of the user, from the command line."""

import subprocess

import pytest

from tests.cli.conftest import Shell, first


def test_what_is_sent_is_shown_counted_and_dismissed(gregor: Shell) -> None:
    sent = gregor("send", "ann", "chat.room7", '{"n": 3}', "--msg-id", "m1")
    assert sent.out.startswith("m1 stored at 20")
    gregor("send", "ann", "invoices", "[17]", "--msg-id", "m2", "--expires", "30d")

    shown = gregor("state", "ann").out
    assert all(word in shown for word in ("chat.room7", '{"n": 3}', "m1", "invoices", "29 d"))
    assert gregor("count", "ann").out == "2\n"
    assert gregor("count", "ann", "chat.", "x").out == "1\tchat.\n0\tx\n"

    assert gregor("dismiss", "ann", "m1").status == 0
    assert gregor("dismiss", "ann", "--category", "inv", "--prefix").status == 0
    assert gregor("state", "ann").out == "nothing\n"
    assert gregor("count", "ann").out == "0\n"


def test_scripts_get_json(gregor: Shell) -> None:
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
    theme = gregor("send", "ben", "theme", "dark", "--replace", "--json").json
    logged = gregor("log", "ben", "--json").lines
    assert [line["ctime"] for line in logged] == [sent["ctime"], theme["ctime"]]
    assert gregor("dismiss", "ben", sent["msg_id"], "--json").json["status"] == "stored"


@pytest.mark.parametrize(
    ("typed", "body"),
    [('{"a": 1}', {"a": 1}), ("17", 17), ("true", True), ("plain words", "plain words")],
)
def test_a_body_is_json_and_if_not_it_is_text(gregor: Shell, typed: str, body: object) -> None:
    uid = f"body-{typed}"
    gregor("send", uid, "note", typed)
    (item,) = gregor("state", uid, "--json").json["items"]
    assert item["body"] == body


def test_a_body_can_come_through_a_pipe(gregor: Shell) -> None:
    gregor("send", "cat/ä", "note", "-", stdin='{"from": "stdin"}\n')
    (item,) = gregor("state", "cat/ä", "--json").json["items"]
    assert item["body"] == {"from": "stdin"}


def test_what_is_sent_again_under_its_id_counts_once(gregor: Shell) -> None:
    send = ("send", "dan", "note", "1", "--msg-id", "m")
    gregor(*send)
    assert "known already" in gregor(*send).out
    assert gregor(*send, "--json").json["status"] == "duplicate"
    other = gregor("send", "dan", "note", "2", "--msg-id", "m")
    assert other.complained("other contents", "conflict")


def test_a_setting_is_replaced(gregor: Shell) -> None:
    gregor("send", "eve", "theme", "light", "--replace")
    gregor("send", "eve", "theme", "dark", "--replace")
    (item,) = gregor("state", "eve", "--json").json["items"]
    assert item["body"] == "dark"


def test_an_item_can_be_for_one_device(gregor: Shell) -> None:
    gregor("send", "fay", "note", "1", "--device", "phone")
    assert gregor("count", "fay", "--device", "phone").out == "1\n"
    assert gregor("count", "fay", "--device", "tablet").out == "0\n"
    assert gregor("state", "fay", "--device", "tablet").out == "nothing\n"


def test_the_past_can_be_asked_for(gregor: Shell) -> None:
    sent = gregor("send", "gus", "note", "1", "--msg-id", "m", "--json").json
    gone = gregor("dismiss", "gus", "m", "--json").json
    at = ("state", "gus", "--json", "--at")
    assert gregor(*at, "-1h").json["items"] == []
    assert len(gregor(*at, str(sent["ctime"])).json["items"]) == 1
    assert gregor(*at, str(gone["ctime"])).json["items"] == []
    assert gregor("log", "gus", "--since", str(gone["ctime"] + 1)).out == "nothing\n"
    assert "- m" in gregor("log", "gus", "--since", str(gone["ctime"])).out
    # Who knew nothing an hour ago needs neither the item nor its dismissal.
    assert gregor("log", "gus", "--since", "-1h").out == "nothing\n"


def test_a_range_may_end_earlier(gregor: Shell) -> None:
    gregor("send", "hal", "note", "1")
    gregor("dismiss", "hal", "--category", "note", "--until", "-1h")
    assert gregor("count", "hal").out == "1\n"


def test_a_terminal_obeys_nothing_that_a_sender_wrote(gregor: Shell) -> None:
    gregor("send", "ivy", "note\x1b[31m[bold]", "[red]hello[/red]")
    shown = gregor("state", "ivy").out
    assert "\x1b" not in shown
    assert "[bold]" in shown
    assert '"[red]hello[/red]"' in shown
    assert "\x1b" not in gregor("log", "ivy").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("dismiss", "ann"),
        ("dismiss", "ann", "m1", "--prefix"),
        ("send", "ann", "note", "1", "--expires", "soon"),
        ("send", "ann", "typing", "1", "--out-of-band", "--replace"),
        ("state", "ann", "--at", "yesterday"),
        ("log", "ann", "--since", "2026-01-01"),
    ],
)
def test_wrong_usage_is_status_2(gregor: Shell, arguments: tuple[str, ...]) -> None:
    said = gregor(*arguments)
    assert said.status == 2
    assert "Usage:" in said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("send", "ann", "note", "1", "--expires", "-5s"), ("negative",)),
        (("send", "ann", "c" * 256, "1"), ("`category`", "255 bytes")),
        (("send", "ann", "note", "x" * 70_000), ("`body`", "65536")),
        (("state", "u" * 200), ("`uid`",)),
    ],
)
def test_what_breaks_a_rule_is_refused_in_one_line(
    gregor: Shell, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert gregor(*arguments).complained(*words)


@pytest.mark.parametrize(
    "command", [("state", "ann"), ("send", "ann", "c", "1"), ("watch", "ann"), ("replay", "-")]
)
def test_without_a_server_it_says_how_to_start_one(shell: Shell, command: tuple[str, ...]) -> None:
    said = shell(*command, "--url", "http://127.0.0.1:1")
    assert said.complained("http://127.0.0.1:1", "gregor serve", "--url")


def test_a_url_that_is_none_is_named(shell: Shell) -> None:
    assert shell("state", "ann", "--url", "nonsense").complained("nonsense", "http://HOST:9911")


# Devices


def test_who_watches_sees_what_happens(gregor: Shell) -> None:
    watch = ("watch", "kim", "--json", "--prefix", "chat.")
    with gregor.started(*watch, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        first(watching.stdout, event="synced")
        gregor("send", "kim", "other", "1")
        gregor("send", "kim", "chat.room7", "1", "--msg-id", "m")
        gregor("dismiss", "kim", "m")
        gregor("send", "kim", "typing", "1", "--out-of-band")
        assert first(watching.stdout)["item"]["msg_id"] == "m"
        assert first(watching.stdout, event="dismissed")["why"] == "dismissed"
        assert first(watching.stdout) == {"event": "out_of_band", "system": "typing", "body": 1}


def test_who_watches_reads_plain_lines_through_a_pipe(gregor: Shell) -> None:
    with gregor.started("watch", "lea", stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert {watching.stdout.readline(), watching.stdout.readline()} == {"online\n", "synced\n"}
        gregor("send", "lea", "note", "1", "--msg-id", "m")
        assert watching.stdout.readline() == "+ note 1  m\n"
