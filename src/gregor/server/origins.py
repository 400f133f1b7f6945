"""Origins of web pages: which of them may use a server.

A browser sends the origin of its page with each request to another origin, and with each WebSocket;
other clients send none. An origin is never taken apart here: browsers write each one in one way, so
it is compared as a text.
"""

import re
from collections.abc import Iterable

from starlette.datastructures import Headers

from gregor.errors import Forbidden, SetupError

_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_LABELS = r"(?:[a-z0-9_-]+\.)+"
_LOCAL = r"[a-z][a-z0-9+.-]*://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?"
_NONE = r"(?!)"
_DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_PORT = 65535


class AllowedOrigins:
    """The origins whose pages may use a server: its own, and those that are allowed by name, such
    as `https://app.example.com` or `https://*.example.com`, where `*` stands for one or more
    labels. Raises SetupError if one that is to be allowed is no origin.

    `only_local`: nobody needs a token, so pages of this machine may use it in place of those of its
    own origin. (Any page can give a name of its own to this machine.)"""

    def __init__(self, allowed: Iterable[str] = (), *, only_local: bool = False) -> None:
        patterns = [_pattern_of(origin) for origin in allowed]
        self.pattern = "|".join([*patterns, _LOCAL] if only_local else patterns) or _NONE
        self._only_local = only_local
        self._matches = re.compile(self.pattern).fullmatch

    def require(self, headers: Headers) -> None:
        """Raises Forbidden if a request with these headers comes from a page that may not use the
        server."""
        origin = headers.get("origin")
        if origin is None:
            self._require_no_other_site(headers)
        elif not self._matches(origin) and (
            self._only_local or not _is_own(origin, headers.get("host", ""))
        ):
            raise Forbidden(
                "this server refuses web pages of this origin; `allow_origin` names those it takes"
            )

    def _require_no_other_site(self, headers: Headers) -> None:
        """Without an origin, as of an image, a browser says at least whether a page of another site
        asks. It has no token to send with that, so this matters only where nobody needs one."""
        if self._only_local and headers.get("sec-fetch-site") == "cross-site":
            raise Forbidden("this server refuses web pages of other sites")


def _pattern_of(allowed: str) -> str:
    """The regular expression of the origins that this name allows."""
    match = _ORIGIN.fullmatch(allowed.lower())
    if match is None or int(match["port"] or 0) > MAX_PORT:
        raise SetupError(
            f"setting `allow_origin`: `{allowed}` is no origin; give SCHEME://HOST or "
            "SCHEME://HOST:PORT without a path, such as https://app.example.com, or "
            "https://*.example.com for all names below one, in ASCII (xn--…)",
            field="allow_origin",
        )
    scheme, host = match["scheme"], match["host"]
    labels = _LABELS if host.startswith("*.") else ""
    port = _port_as_written(scheme, match["port"])
    return f"{re.escape(scheme)}://{labels}{re.escape(host.removeprefix('*.') + port)}"


def _port_as_written(scheme: str, port: str | None) -> str:
    """Browsers leave out the default port of the scheme."""
    return "" if port is None or int(port) == _DEFAULT_PORTS.get(scheme) else f":{int(port)}"


def _is_own(origin: str, host: str) -> bool:
    """Whether the page comes from the address that it asks. The scheme is not compared: a server
    behind a proxy that ends TLS does not know its own."""
    scheme, _, address = origin.partition("://")
    own = host.lower().removesuffix(f":{_DEFAULT_PORTS.get(scheme)}")
    return address == own != ""
