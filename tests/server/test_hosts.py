"""The names by which a server without authentication may be asked."""

import pytest
from starlette.datastructures import Headers

from gregor.errors import Forbidden, SetupError
from gregor.server.hosts import AllowedHosts

ALLOW = ("gregor.test", "Named.Example", "192.0.2.7", "2001:db8::7")


def answers(*hosts: str) -> bool:
    raw = [(b"host", host.encode("latin-1")) for host in hosts]
    try:
        AllowedHosts(ALLOW).require(Headers(raw=raw))
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:9911", True),
        ("LOCALHOST:1", True),
        ("127.0.0.1", True),
        ("127.0.0.1:65535", True),
        ("127.1.2.3:80", True),
        ("[::1]", True),
        ("[::1]:9911", True),
        ("gregor.test", True),  # by its name
        ("GREGOR.test:9911", True),
        ("named.example", True),
        ("192.0.2.7:9911", True),
        ("[2001:db8::7]:9911", True),
        ("evil.example", False),  # a name that its page gave to this machine
        ("evil.example:9911", False),
        ("other.gregor.test", False),
        ("gregor.test.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("evil.localhost", False),
        ("localhost.", False),
        ("localhost@evil.example", False),
        ("evil.example#localhost", False),
        ("0.0.0.0:9911", False),
        ("192.0.2.8", False),
        ("[::]", False),
        ("[2001:db8::8]", False),
        ("::1", False),
        ("[", False),
        ("[::1", False),
        ("127.0.0.1:", False),
        ("127.0.0.1:99999999", False),
        ("127.0.0.1 evil.example", False),
        ("", False),
        ("\xff\xfe", False),
    ],
)
def test_server_answers_to_names_of_this_machine(host: str, expected: bool) -> None:
    assert answers(host) is expected


def test_request_names_one_host() -> None:
    assert not answers()
    assert not answers("localhost", "evil.example")
    assert not answers("localhost", "localhost")


@pytest.mark.parametrize(
    "allowed", ["", "*", "*.example", "http://gregor.test", "gregor.test:9911", "a b", "ä.example"]
)
def test_host_that_is_none_raises_setup_error(allowed: str) -> None:
    with pytest.raises(SetupError, match="allow_host") as raised:
        AllowedHosts(["gregor.test", allowed])
    assert raised.value.field == "allow_host"
