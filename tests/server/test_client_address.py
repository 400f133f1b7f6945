"""Which address a client has behind proxies, and under which name it is counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.server.client_address import Networks, counted_address, forwarded_host

TRUSTED = Networks.parse(["10.0.0.0/8", "fd00::/8"])

trusted_hosts = st.ip_addresses(network="10.0.0.0/8").map(str)
clients = st.one_of(
    st.ip_addresses(network="203.0.113.0/24").map(str),
    st.ip_addresses(network="2001:db8::/32").map(str),
)


def x_forwarded_for(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


@given(st.text(st.characters(max_codepoint=255)), clients, st.lists(trusted_hosts, max_size=3))
def test_whatever_a_client_writes_its_address_is_what_the_proxy_saw(
    invented: str, client: str, proxies: list[str]
) -> None:
    headers = x_forwarded_for(", ".join([invented, client, *proxies]))
    assert forwarded_host(headers, TRUSTED) == client
    apart = x_forwarded_for(invented, client, *proxies)
    assert forwarded_host(apart, TRUSTED) == client


@given(st.binary())
def test_any_header_is_an_address_or_none(value: bytes) -> None:
    for name in (b"x-forwarded-for", b"forwarded"):
        found = forwarded_host([(name, value)], TRUSTED)
        assert found is None or Networks.parse([found])


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::9]:4711", "2001:db8::9"),
        ("2001:db8::9", "2001:db8::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),  # one of the proxies' own machines
        ("unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.9, unknown", None),
        ("", None),
    ],
)
def test_forwarded_address_is_the_last_one_that_is_not_a_trusted_proxys(
    value: str, host: str | None
) -> None:
    assert forwarded_host(x_forwarded_for(value), TRUSTED) == host


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('for="[2001:db8::9]:4711";proto=https', "2001:db8::9"),
        ("for=198.51.100.1, by=10.0.0.1;For=203.0.113.9;proto=https", "203.0.113.9"),
        ("for=203.0.113.9, for=10.0.0.2", "203.0.113.9"),
        ("for=203.0.113.9, proto=https", None),
        ("for=_hidden", None),
    ],
)
def test_forwarded_is_read_as_rfc_7239_says(value: str, host: str | None) -> None:
    assert forwarded_host([(b"forwarded", value.encode())], TRUSTED) == host


def test_x_forwarded_for_counts_before_forwarded() -> None:
    headers = [(b"forwarded", b"for=198.51.100.1"), *x_forwarded_for("203.0.113.9")]
    assert forwarded_host(headers, TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("10.1.2.3", None),
        ("/run/a.socket", None),
        ("testclient", None),
    ],
)
def test_addresses_of_one_customer_are_counted_together_and_those_of_many_not(
    host: str, address: str | None
) -> None:
    assert counted_address(host, TRUSTED) == address
