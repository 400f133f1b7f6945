"""Which address a client has: behind proxies that are trusted, the one that they name.

A proxy appends the address that it sees to what its client sent. So of the forwarded addresses only
the last ones are to be believed, as long as each was written by a trusted proxy.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self, TypeAlias

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
Address: TypeAlias = IPv4Address | IPv6Address

_FORWARDED_FOR = re.compile(r"""(?:^|;)\s*for\s*=\s*("[^"]*"|[^\s;,"]*)""", re.IGNORECASE)
_HOST = re.compile(r"\[([^\]]*)\](?::\w+)?|([^:]*)(?::\w+)?|(.*:.*:.*)")


class Networks:
    """A set of networks of IP addresses."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Networks as 10.0.0.0/8 or single addresses. Raises ValueError if one is none."""
        return cls([ip_network(text, strict=False) for text in texts])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._networks == other._networks

    def __hash__(self) -> int:
        return hash(self._networks)

    def __contains__(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and any(address in network for network in self._networks)


NO_NETWORKS = Networks()


@lru_cache(4_096)  # it is asked several times for each connection
def parse_address(host: str) -> Address | None:
    """The IP address that is written here; None if it is none, as the path of a Unix socket. An
    IPv4 address that is written as an IPv6 one is an IPv4 address."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def plain_host(host: str) -> str:
    """The host in the one form in which it is compared and counted."""
    address = parse_address(host)
    return host if address is None else str(address)


def counted_address(host: str, trusted: Networks) -> str | None:
    """Under which name the connections and errors of this host are counted: the network /64 for
    IPv6, of which one customer has all addresses. None for hosts that stand for many users: this
    machine, and trusted proxies that do not say whom they forward."""
    address = parse_address(host)
    if address is None or address.is_loopback or host in trusted:
        return None
    if isinstance(address, IPv6Address):
        return str(ip_network((address, 64), strict=False))
    return str(address)


def forwarded_host(headers: Headers, trusted: Networks) -> str | None:
    """The client that trusted proxies name in the headers of a request: the last address that is
    not a trusted proxy's. None if they name none. `X-Forwarded-For` counts before `Forwarded`."""
    headers = list(headers)
    nearest = None
    for text in reversed([*_x_forwarded_for(headers)] or [*_forwarded(headers)]):
        address = parse_address(_without_port(text))
        if address is None:
            return nearest
        nearest = str(address)
        if nearest not in trusted:
            return nearest
    return nearest


def _x_forwarded_for(headers: Headers) -> Iterator[str]:
    for name, value in headers:
        if name == b"x-forwarded-for":
            yield from (part.strip() for part in value.decode("latin-1").split(","))


def _forwarded(headers: Headers) -> Iterator[str]:
    """The `for` of each hop (RFC 7239); empty for a hop that does not say it."""
    for name, value in headers:
        if name == b"forwarded":
            for hop in value.decode("latin-1").split(","):
                match = _FORWARDED_FOR.search(hop)
                yield "" if match is None else match[1].strip('"')


def _without_port(text: str) -> str:
    match = _HOST.fullmatch(text)
    return "" if match is None else next((g for g in match.groups() if g is not None), "")
