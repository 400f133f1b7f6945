"""The names by which this machine may be asked for what needs no token.

A web page can give a name of its own to this machine (DNS rebinding): to the browser its server and
this one are then one origin, and the page may read what it answers. But the request names the host
of that page, and a page cannot change this.
"""

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from gregor.config import is_loopback
from gregor.errors import Forbidden, SetupError

_NAME = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]"
_HOST = re.compile(rf"(?P<name>{_NAME})(?::[0-9]{{1,5}})?")


class AllowedHosts:
    """Loopback names and addresses, and those that are allowed by name; with any port. Raises
    SetupError if one that is to be allowed is no name or address."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(map(_checked, allowed))

    def require(self, headers: Headers) -> None:
        """Raises Forbidden if a request with these headers asks for another host."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_allowed(hosts[0].lower()):
            raise Forbidden(
                "what needs no token is told at names of this machine only, such as localhost and"
                " 127.0.0.1; `allow_host` names others"
            )

    def _is_allowed(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (
            match["name"] in self._allowed or is_loopback(match["name"].strip("[]"))
        )


def _checked(allowed: str) -> str:
    """The name, as it stands in a request."""
    name = f"[{allowed}]" if _is_ipv6(allowed) else allowed.lower()
    if re.fullmatch(_NAME, name) is None:
        raise SetupError(
            f"setting `allow_host`: `{allowed}` is no host; give a name or an address without a"
            " port, such as gregor.test, in ASCII (xn--…)",
            field="allow_host",
        )
    return name


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
