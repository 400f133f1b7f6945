"""Which web pages may use a server: by the name of their origin, or because it is the server's."""

import pytest
from starlette.datastructures import Headers

from gregor.errors import Forbidden, SetupError
from gregor.server.origins import AllowedOrigins

HOST = "gregor.example:9911"

ALLOWED = [
    # what is allowed, what a browser sends, and whether its page may use the server
    ("https://app.example.com", "https://app.example.com", True),
    ("https://app.example.com", "http://app.example.com", False),
    ("https://app.example.com", "https://app.example.com:8443", False),
    ("https://app.example.com", "https://app.example.com.evil.example", False),
    ("https://app.example.com", "https://evil.example/https://app.example.com", False),
    ("https://app.example.com", "https://appxexample.com", False),
    ("https://app.example.com", "https://example.com", False),
    ("https://app.example.com", "https://a.app.example.com", False),
    ("https://app.example.com", "null", False),
    ("https://app.example.com", "", False),
    ("https://App.Example.COM", "https://app.example.com", True),
    ("https://app.example.com:443", "https://app.example.com", True),
    ("http://app.example.com:80", "http://app.example.com", True),
    ("https://app.example.com:80", "https://app.example.com:80", True),
    ("https://app.example.com:80", "https://app.example.com", False),
    ("http://localhost:5173", "http://localhost:5173", True),
    ("http://localhost:5173", "http://localhost:5174", False),
    ("http://localhost:5173", "http://localhost", False),
    ("http://[::1]:5173", "http://[::1]:5173", True),
    ("https://192.0.2.1", "https://192.0.2.1", True),
    ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example", True),
    ("capacitor://localhost", "capacitor://localhost", True),
    ("capacitor://localhost", "http://localhost", False),
    ("https://*.example.com", "https://app.example.com", True),
    ("https://*.example.com", "https://a.b.c.example.com", True),
    ("https://*.example.com", "https://pr-17_x.example.com", True),
    ("https://*.example.com", "https://example.com", False),
    ("https://*.example.com", "https://.example.com", False),
    ("https://*.example.com", "https://a..example.com", False),
    ("https://*.example.com", "https://evilexample.com", False),
    ("https://*.example.com", "https://evil.example/.example.com", False),
    ("https://*.example.com", "https://evil.example#.example.com", False),
    ("https://*.example.com", "https://evil.example:1@a.example.com", False),
    ("https://*.example.com", "https://a.example.com.evil.example", False),
    ("https://*.example.com", "http://app.example.com", False),
    ("https://*.example.com", "https://app.example.com:8443", False),
    ("https://*.example.com", "https://app.example.com\n", False),
    ("https://*.example.com:8443", "https://app.example.com:8443", True),
]


def may_use(origins: AllowedOrigins, origin: str | None, host: str | None = HOST) -> bool:
    headers = {"origin": origin, "host": host}
    try:
        origins.require(Headers({name: text for name, text in headers.items() if text is not None}))
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(("allowed", "origin", "expected"), ALLOWED)
def test_page_may_use_a_server_that_allows_its_origin(
    allowed: str, origin: str, expected: bool
) -> None:
    assert may_use(AllowedOrigins([allowed]), origin) is expected
    assert may_use(AllowedOrigins(["https://one.example", allowed]), origin) is expected
    assert not may_use(AllowedOrigins(), origin)


@pytest.mark.parametrize(
    ("origin", "host", "expected"),
    [
        ("http://gregor.example:9911", "gregor.example:9911", True),
        ("http://gregor.example:9911", "GREGOR.example:9911", True),
        ("https://gregor.example:9911", "gregor.example:9911", True),  # TLS ended before
        ("https://gregor.example", "gregor.example", True),
        ("https://gregor.example", "gregor.example:443", True),
        ("http://gregor.example", "gregor.example:80", True),
        ("http://[::1]:9911", "[::1]:9911", True),
        ("http://gregor.example", "gregor.example:9911", False),
        ("http://gregor.example", "gregor.example:443", False),
        ("http://gregor.example:9912", "gregor.example:9911", False),
        ("http://evil.example", "gregor.example", False),
        ("http://gregor.example.evil.example", "gregor.example", False),
        ("null", "gregor.example", False),
        ("null", "", False),
        ("null", None, False),
        ("file://", "", False),
    ],
)
def test_page_may_use_the_server_that_it_comes_from(
    origin: str, host: str | None, expected: bool
) -> None:
    assert may_use(AllowedOrigins(), origin, host) is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost", True),
        ("http://localhost:3000", True),
        ("https://localhost:3000", True),
        ("http://127.0.0.1:5173", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:5", True),
        ("https://named.example", True),  # by its name
        ("https://other.example", False),
        ("http://gregor.example:9911", False),  # the name of this machine, which any page can give
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost.evil.example", False),
        ("http://localhost@evil.example", False),
        ("http://evil.example/localhost", False),
        ("http://[", False),
        ("http://[::1", False),
        ("file://", False),
        ("null", False),
        ("", False),
        ("\xff\xfe", False),
    ],
)
def test_page_of_this_machine_may_use_a_server_without_authentication(
    origin: str, expected: bool
) -> None:
    assert may_use(AllowedOrigins(["https://named.example"], only_local=True), origin) is expected


@pytest.mark.parametrize("only_local", [False, True])
def test_client_that_is_no_page_may_use_every_server(only_local: bool) -> None:
    assert may_use(AllowedOrigins(only_local=only_local), None)


@pytest.mark.parametrize(
    "allowed",
    [
        "",
        "*",
        "null",
        "app.example.com",
        "//app.example.com",
        "https://",
        "https://*",
        "https://*.",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?x",
        "https://user@app.example.com",
        "https://app.*.com",
        "https://*app.example.com",
        "https://*.*.example.com",
        "https://app.example.com:*",
        "https://app.example.com:",
        "https://app.example.com:99999",
        "https://app..example.com",
        "https://app.example.com,https://b.example.com",
        "https://a.example.com https://b.example.com",
        "https://*.[::1]",
        "https://bücher.example",
        "https://app.example.com\n",
    ],
)
def test_setting_that_is_no_origin_is_named(allowed: str) -> None:
    with pytest.raises(SetupError, match="is no origin; give SCHEME://HOST") as raised:
        AllowedOrigins(["https://app.example.com", allowed])
    assert f"`{allowed}`" in raised.value.message
    assert raised.value.field == "allow_origin"
