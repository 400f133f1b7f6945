"""The commands that send a notification, and show those of a user."""

from tests.cli.conftest import Shell


def test_notification_is_shown_until_it_is_dismissed(gregor: Shell) -> None:
    sent = gregor("notify", "nina", "likes", "Ann liked your photo", "--key", "photo7")
    assert " stored at 20" in sent.out
    body = '{"title": "Sent", "url": "/orders/17"}'
    gregor("notify", "nina", "orders.17", body, "--msg-id", "sent17", "--expires", "30d")
    gregor("dismiss", "nina", "--key", "unread:photo7")

    table = gregor("inbox", "nina").out
    assert table.startswith("1 unread of 2\n")
    rows = [line.split()[:3] for line in table.splitlines()[2:]]
    assert rows[0] == ["●", "orders.17", "sent17"]
    assert rows[1][:2] == ["likes", "photo7"]
    assert '"title": "Ann liked your photo"' in table

    gregor("dismiss", "nina", "--key", "photo7", "--key", "sent17", "--key", "unread:sent17")
    assert gregor("inbox", "nina").out == "nothing\n"


def test_inbox_as_json_has_the_chosen_topic_on_the_device(gregor: Shell) -> None:
    gregor("notify", "otto", "likes.photo7", "here", "--device", "phone")
    gregor("notify", "otto", "likes", "everywhere", "--key", "k")
    gregor("notify", "otto", "chat", "other", "--starts", "1h")
    (entry,) = gregor("inbox", "otto", "--topic", "likes", "--device", "tv", "--json").json
    assert (entry["key"], entry["topic"], entry["unread"]) == ("k", "likes", True)
    assert entry["body"] == {"title": "everywhere"}
    assert len(gregor("inbox", "otto", "--device", "phone", "--json").json) == 2


def test_same_notification_again_is_a_duplicate(gregor: Shell) -> None:
    for word in ("stored", "duplicate"):
        assert (
            gregor("notify", "pia", "likes", "x", "--msg-id", "m1", "--json").json["status"] == word
        )


def test_invalid_notification_is_refused(gregor: Shell) -> None:
    def refused(*arguments: str) -> str:
        result = gregor("notify", "rosa", *arguments)
        assert result.status == 1
        return result.err

    assert "`key` must be 1 to 248 bytes" in refused("likes", "x", "--key", "x" * 249)
    assert "`body.url`" in refused("likes", '{"url": "javascript:alert(1)"}')
    assert "`body` must be an object" in refused("likes", "[1]")
    assert "`topic` has an empty segment" in refused("likes.", "x")
    assert gregor("inbox", "rosa", "--topic", ".").failed_with("`topic`")
