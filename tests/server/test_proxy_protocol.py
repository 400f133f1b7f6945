"""The PROXY protocol: laws of its parser, for any bytes in any pieces."""

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.errors import Malformed
from gregor.server.proxy_protocol import INCOMPLETE, MAX_V2, SIGNATURE, ProxyHeader, parse

ports = st.integers(0, 65535)
hosts = st.ip_addresses()


def v1(host: IPv4Address | IPv6Address, port: int) -> bytes:
    return f"PROXY TCP{host.version} {host} {host} {port} 443\r\n".encode()


def v2(host: IPv4Address | IPv6Address, port: int, tlvs: bytes = b"") -> bytes:
    block = host.packed * 2 + struct.pack("!HH", port, 443) + tlvs
    family = 0x11 if host.version == 4 else 0x21
    return SIGNATURE + struct.pack("!BBH", 0x21, family, len(block)) + block


@given(hosts, ports, st.sampled_from([v1, v2]), st.binary())
def test_header_names_the_client_and_takes_no_byte_of_what_follows(host, port, write, rest) -> None:  # type: ignore[no-untyped-def]
    header = write(host, port)
    assert parse(header + rest) == ProxyHeader(len(header), (str(host), port))


@given(hosts, ports, st.sampled_from([v1, v2]))
def test_each_beginning_of_a_header_is_incomplete(host, port, write) -> None:  # type: ignore[no-untyped-def]
    header = write(host, port)
    assert {parse(header[:size]) for size in range(len(header))} == {INCOMPLETE}


@given(hosts, ports, st.binary(max_size=200))
def test_what_else_a_v2_header_says_is_skipped(host, port, tlvs) -> None:  # type: ignore[no-untyped-def]
    header = v2(host, port, tlvs)
    assert parse(header + b"GET") == ProxyHeader(len(header), (str(host), port))


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda data: b"PROXY " + data),
        st.binary(max_size=300).map(lambda data: SIGNATURE + data),
    )
)
def test_any_bytes_are_a_header_or_incomplete_or_malformed(data: bytes) -> None:
    try:
        header = parse(data)
    except Malformed:
        header = None
    if isinstance(header, ProxyHeader):
        assert header.size <= min(len(data), MAX_V2)
        assert parse(data[: header.size]) == header


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN ff:ff 1 2 3\r\n",
        SIGNATURE + b"\x20\x00\x00\x00",  # LOCAL, as a health check
        SIGNATURE + b"\x21\x31\x00\x00",  # a Unix socket
    ],
)
def test_connection_of_the_proxy_itself_names_no_client(header: bytes) -> None:
    assert parse(header + b"GET") == ProxyHeader(len(header), None)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 70000 2\r\n",
        b"PROXY TCP4 1.2.3.400 1.2.3.4 1 2\r\n",
        b"PROXY " + b"x" * 101,
        SIGNATURE + b"\x31\x11\x00\x0c",
        SIGNATURE + b"\x22\x11\x00\x0c",
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11\x00\x04\x01\x02\x03\x04",
    ],
)
def test_what_is_no_header_is_refused_as_soon_as_that_is_known(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse(data)
