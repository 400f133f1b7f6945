"""URLs of stores and pub/subs: read from files, and as logs, errors and output may show them."""

import re
from pathlib import Path
from urllib.parse import unquote

from gregor.errors import SetupError

_PARTS = re.compile(r"([a-z][a-z0-9+.-]*://|)([^?#]*)(.*)", re.DOTALL | re.IGNORECASE)
_WITHOUT_TOKENS = ("postgresql://", "postgresql+asyncpg://", "postgres://")
_FILE = "file://"


def resolved(url: str) -> str:
    """The URL; for `file:///PATH`, the one which that file holds now. Raises SetupError, which
    names the file, if it cannot be read or is empty."""
    if not url.startswith(_FILE):
        return url
    return read_secret(Path(unquote(url.removeprefix(_FILE))))


def read_secret(path: Path) -> str:
    """What the file holds, without the end of its line. Raises SetupError, which names the file, if
    it cannot be read or is empty."""
    try:
        secret = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise SetupError(f"the file {path} cannot be read: {reason}") from error
    if not secret:
        raise SetupError(f"the file {path} is empty")
    return secret


def redacted(url: str) -> str:
    """The URL without anything in it that might be a secret, well-formed or not. The options are
    left out, and so is a user name without a password if it may be a token."""
    match = _PARTS.fullmatch(url)
    assert match is not None  # each part may be empty
    scheme, address, options = match.groups()
    if scheme in ("sqlite://", _FILE):  # the rest is the name of a file
        return url
    if "@" in options:
        # Either a password has a "?" or "#" that is not percent-encoded, or an option has an "@".
        # So it is unknown which parts are secret.
        return f"{scheme}…"
    credentials, at, location = address.rpartition("@")
    user, _, password = credentials.partition(":")
    if password:
        return f"{scheme}{user}:***@{location}"
    if at and scheme not in _WITHOUT_TOKENS:
        return f"{scheme}***@{location}"
    return scheme + address
