"""The URL of a pub/sub: the addresses of its servers, credentials and options.

    SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]...][/PATH][?OPTION=VALUE&...]

Credentials, path and options are percent-encoded.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from gregor.errors import SetupError
from gregor.urls import redacted

URL_FORMS = (
    "redis://HOST:PORT/DB or nats://HOST:PORT, or for several servers "
    "redis+sentinel://HOST,HOST/MASTER, redis+cluster://HOST,HOST or nats://HOST,HOST"
)

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+)(?::(\d{1,5}))?")
_FILES = frozenset(
    {
        "creds",
        "nkey",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "ssl_ca_certs",
        "ssl_certfile",
        "ssl_keyfile",
    }
)


class Address(NamedTuple):
    """Where a server listens. `port` is None for the usual port."""

    host: str
    port: int | None = None


@dataclass(frozen=True)
class ServerURL:
    """A parsed URL. `path` is decoded, without its first slash."""

    name: str  # the URL without its secrets
    scheme: str
    addresses: tuple[Address, ...]
    path: str
    username: str = field(repr=False)
    password: str = field(repr=False)
    options: Mapping[str, str] = field(repr=False)

    def invalid(self, problem: str) -> SetupError:
        """The error for a URL that has this problem."""
        return SetupError(f"--pubsub {self.name}: {problem}")


def parse_server_url(url: str, options: Collection[str]) -> ServerURL:
    """Parse a URL whose scheme is known, and which may have these options. Raises SetupError, which
    names what is wrong and shows no secret."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    username, _, password = credentials.partition(":")
    addresses = [_ADDRESS.fullmatch(host) for host in hosts.split(",")] if hosts else []
    # An @ or # behind the addresses may be the rest of a password that is not percent-encoded.
    if "@" in path + query or "#" in url or not all(addresses):
        raise SetupError(
            f"{redacted(url)} is not a valid URL: use --pubsub {URL_FORMS}; percent-encode "
            "each of / ? # @ : in a password (/ is %2F)"
        )
    parsed = ServerURL(
        name=redacted(url),
        scheme=scheme,
        addresses=tuple(_address(match) for match in addresses if match is not None),
        path=unquote(path),
        username=unquote(username),
        password=unquote(password),
        options=dict(parse_qsl(query, keep_blank_values=True)),
    )
    _check_options(parsed, options)
    return parsed


def with_default_port(address: Address, port: int) -> Address:
    """The address, with this port if it has none."""
    return address if address.port is not None else address._replace(port=port)


def _address(match: re.Match[str]) -> Address:
    host, port = match.groups()
    return Address(host.strip("[]"), None if port is None else int(port))


def _check_options(url: ServerURL, known: Collection[str]) -> None:
    for name, value in url.options.items():
        if name not in known:
            choice = f"the options are {', '.join(sorted(known))}" if known else "it has none"
            raise url.invalid(f"unknown option `{name}`; {choice}")
        if name in _FILES and not os.access(value, os.R_OK):
            raise url.invalid(f"the file {value} of the option `{name}` cannot be read")
