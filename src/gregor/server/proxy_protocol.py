"""The PROXY protocol, versions 1 and 2: with it a proxy that forwards bytes says who its client is.

The header stands before everything else, before TLS too. It may arrive in any pieces.
See https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple, TypeAlias

from gregor.errors import Malformed

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2_HEAD = 16  # bytes: the signature, the version, the family, the length
V1 = b"PROXY "
MAX_V1 = 107  # bytes
MAX_V2 = 2048  # bytes; TLVs follow the addresses, such as a certificate's name
LOCAL, PROXY = 0x20, 0x21  # the commands

_V1_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?"
    rb"|(TCP4|TCP6) ([0-9A-Fa-f.:]{2,39}) [0-9A-Fa-f.:]{2,39} ([0-9]{1,5}) [0-9]{1,5})\r\n"
)


class ProxyHeader(NamedTuple):
    """A whole header: how many bytes it has, and the client's address; None if the connection is
    the proxy's own, as a health check is, or if it does not know."""

    size: int
    client: tuple[str, int] | None


class HeaderIncomplete:
    """All bytes so far belong to the header, and more are to come."""


INCOMPLETE = HeaderIncomplete()
Parsed: TypeAlias = ProxyHeader | HeaderIncomplete


def parse(data: bytes) -> Parsed:
    """The header with which this begins. Raises Malformed as soon as it cannot be one."""
    if data.startswith(SIGNATURE[: len(data)]):
        return _parse_v2(data)
    if data.startswith(V1[: len(data)]):
        return _parse_v1(data)
    raise Malformed("no header of the PROXY protocol")


def _parse_v1(data: bytes) -> Parsed:
    line, end, _ = data[:MAX_V1].partition(b"\r\n")
    if not end:
        if len(data) >= MAX_V1:
            raise Malformed("the line of the PROXY protocol has no end")
        return INCOMPLETE
    match = _V1_LINE.fullmatch(line + end)
    if match is None:
        raise Malformed("an invalid line of the PROXY protocol")
    size = len(line) + len(end)
    family, host, port = match.groups()
    if family is None:
        return ProxyHeader(size, None)
    return ProxyHeader(size, (_address(family, host.decode()), _port(int(port))))


def _address(family: bytes, text: str) -> str:
    try:
        return str(IPv4Address(text) if family == b"TCP4" else IPv6Address(text))
    except ValueError as error:
        raise Malformed("an invalid address in the line of the PROXY protocol") from error


def _port(number: int) -> int:
    if number > 65535:
        raise Malformed("an invalid port in the line of the PROXY protocol")
    return number


def _parse_v2(data: bytes) -> Parsed:
    if len(data) < V2_HEAD:
        return INCOMPLETE
    command, family = data[12], data[13]
    if command not in (LOCAL, PROXY):
        raise Malformed("an unknown command of the PROXY protocol")
    size = V2_HEAD + int.from_bytes(data[14:16], "big")
    if size > MAX_V2:
        raise Malformed(f"a header of the PROXY protocol has at most {MAX_V2} bytes here")
    if len(data) < size:
        return INCOMPLETE
    client = _v2_client(family, data[V2_HEAD:size]) if command == PROXY else None
    return ProxyHeader(size, client)


def _v2_client(family: int, block: bytes) -> tuple[str, int] | None:
    """The source in the block of addresses; None for families that are not TCP over IP."""
    match family:  # TCP over IPv4, TCP over IPv6
        case 0x11 if len(block) >= 12:
            return str(IPv4Address(block[:4])), int.from_bytes(block[8:10], "big")
        case 0x21 if len(block) >= 36:
            return str(IPv6Address(block[:16])), int.from_bytes(block[32:34], "big")
        case 0x11 | 0x21:
            raise Malformed("the addresses of the PROXY protocol are cut off")
        case _:
            return None
