"""The bodies of notifications: what is valid, and which field an error names."""

from typing import Any

import pytest

from gregor.core.notification_body import MAX_ACTIONS, MAX_TITLE, MAX_URL, check_body, valid_fields
from gregor.errors import InvalidMessage

URLS = [
    "https://example.com",
    "http://example.com:8080/a?b=c#d",
    "HTTPS://EXAMPLE.COM/",
    "https://[::1]/",
    "/orders/17",
    "orders/17",
    "?tab=unread",
    "#top",
    "/redirect?to=https://example.com",
    "/a:b",
    "bell.png",
    "/öl",
]
# What browsers make of these is a script, another host, or nothing.
NO_URLS = [
    "",
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "java\nscript:alert(1)",
    "java\tscript:alert(1)",
    " javascript:alert(1)",
    "\x01javascript:alert(1)",
    "data:text/html,hello",
    "data:image/png;base64,AAAA",
    "mailto:alice@example.com",
    "ftp://example.com/",
    "//example.com/",
    "/\\example.com/",
    "\\\\example.com/",
    "/with space",
    "https:",
    "https://",
    "https:///path",
    "https://?a",
    "https://@example.com",
    "http:example.com",
    "example.com:8080/a",
    "/a\x7f",
    "x" * (MAX_URL + 1),
    None,
    17,
]
ACTION = {"id": "open", "label": "Open"}


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("field", ["url", "icon"])
def test_web_addresses_and_paths_are_urls(field: str, url: str) -> None:
    check_body({field: url, "actions": [{"label": "Open", "url": url}]})


@pytest.mark.parametrize("url", NO_URLS)
@pytest.mark.parametrize("field", ["url", "icon"])
def test_scripts_and_other_hosts_in_disguise_are_no_urls(field: str, url: Any) -> None:
    assert invalid_field({field: url}) == f"body.{field}"
    assert invalid_field({"actions": [{"label": "Open", "url": url}]}) == "body.actions[0].url"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": "x" * MAX_TITLE},
        {"title": "Ann liked your photo", "text": "…", "severity": "success"},
        {"actions": []},
        {"actions": [ACTION, {"label": "Open", "url": "/", "style": {"color": "red"}}]},
        {"actions": [{"id": f"{n}", "label": "Open"} for n in range(MAX_ACTIONS)]},
        {"photo": 7, "Title": 7, "titles": [None]},
    ],
)
def test_known_fields_may_be_missing_and_others_are_free(body: Any) -> None:
    check_body(body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (None, "body"),
        ("Ann liked your photo", "body"),
        ([{"title": "x"}], "body"),
        ({"title": 7}, "body.title"),
        ({"title": None}, "body.title"),
        ({"title": ""}, "body.title"),
        ({"title": "x" * (MAX_TITLE + 1)}, "body.title"),
        ({"title": "ö" * (MAX_TITLE // 2 + 1)}, "body.title"),
        ({"text": {"en": "x"}}, "body.text"),
        ({"text": "a\0b"}, "body.text"),
        ({"severity": "Info"}, "body.severity"),
        ({"severity": ["info"]}, "body.severity"),
        ({"severity": {}}, "body.severity"),
        ({"severity": None}, "body.severity"),
        ({"actions": {}}, "body.actions"),
        ({"actions": None}, "body.actions"),
        ({"actions": [{"id": f"{n}", "label": "Open"} for n in range(9)]}, "body.actions"),
        ({"actions": ["open"]}, "body.actions[0]"),
        ({"actions": [ACTION, {"label": "Open"}]}, "body.actions[1]"),
        ({"actions": [{"id": "open"}]}, "body.actions[0].label"),
        ({"actions": [{"id": "open", "label": ""}]}, "body.actions[0].label"),
        ({"actions": [{"id": 7, "label": "Open"}]}, "body.actions[0].id"),
        ({"actions": [{"id": [], "label": "Open"}]}, "body.actions[0].id"),
        ({"actions": [{"id": "x" * 65, "label": "Open"}]}, "body.actions[0].id"),
        ({"actions": [ACTION, ACTION]}, "body.actions[1].id"),
        ({"actions": [{"id": "open", "label": "Open", "url": "x:y"}]}, "body.actions[0].url"),
    ],
)
def test_error_names_the_field(body: Any, field: str) -> None:
    assert invalid_field(body) == field


def test_device_leaves_out_what_is_invalid() -> None:
    body: Any = {"title": "x", "url": "javascript:alert(1)", "actions": [{"id": "x"}], "photo": 7}
    assert valid_fields(body) == {"title": "x", "photo": 7}
    others: list[Any] = [None, "x", ["x"], {}]
    assert [valid_fields(other) for other in others] == [{}] * 4


@pytest.mark.parametrize("url", URLS)
def test_device_shows_what_is_valid(url: str) -> None:
    body: Any = {"title": "x", "url": url, "icon": url, "severity": "info", "actions": [ACTION]}
    assert valid_fields(body) == body


def invalid_field(body: Any) -> str | None:
    with pytest.raises(InvalidMessage) as raised:
        check_body(body)
    assert f"`{raised.value.field}`" in raised.value.message
    return raised.value.field
