"""The certificate of a server and its key, read again when their files change.

A new certificate holds for new connections. If it cannot be used, the server keeps the one it has.
"""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from gregor.errors import SetupError
from gregor.log_event import LogEvent
from gregor.server.metrics import Reading, gauge

log = logging.getLogger("gregor.server")

CHECK_SECONDS = 10.0

Stamp: TypeAlias = tuple[tuple[int, int, int], ...]
"""By which a file is known to have changed."""


class TLS:
    """`context` is that of the next handshake."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises SetupError, which says which file cannot be used and why."""
        self._certificate = certificate
        self._key = key
        self._stamp = self._stamp_now()
        self._is_failing = False
        self.context = load(certificate, key)

    def reload(self) -> None:
        """Read the files again. If they cannot be used, keep what there is, and log it."""
        self._stamp = self._stamp_now()
        try:
            self.context = load(self._certificate, self._key)
        except SetupError as error:
            self._is_failing = True
            log.error(LogEvent("kept the old certificate", reason=error.message))
        else:
            self._is_failing = False
            log.info(LogEvent("loaded a new certificate"))

    def check(self) -> None:
        """Reload if a file has changed."""
        if self._stamp_now() != self._stamp:
            self.reload()

    async def check_periodically(self, seconds: float = CHECK_SECONDS) -> None:
        while True:
            await asyncio.sleep(seconds)
            self.check()

    def _stamp_now(self) -> Stamp:
        return (*_stamp(self._certificate), *_stamp(self._key))

    def readings(self) -> Iterator[Reading]:
        yield gauge(
            "tls_reload_failing",
            "1 while the files of the certificate and its key cannot be used, and older ones are",
            lambda: self._is_failing,
        )


def _stamp(path: Path) -> Stamp:
    with suppress(OSError):
        found = path.stat()
        return ((found.st_mtime_ns, found.st_size, found.st_ino),)
    return ()


def load(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context of a server with this certificate. Raises SetupError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _require_readable("tls_cert", certificate)
    _require_readable("tls_key", key)
    _require_certificate(certificate)
    try:
        context.load_cert_chain(certificate, key, _no_password)
    except ssl.SSLError as error:
        reason = "does not belong to the certificate" if _is_mismatch(error) else "is no key in PEM"
        raise SetupError(f"setting `tls_key`: {key} {reason}", field="tls_key") from error
    return context


def _require_readable(name: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        reason = f"setting `{name}`: cannot read {path}: {error.strerror}"
        raise SetupError(reason, field=name) from error


def _require_certificate(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except ssl.SSLError as error:
        reason = f"setting `tls_cert`: {path} is no certificate in PEM"
        raise SetupError(reason, field="tls_cert") from error


def _is_mismatch(error: ssl.SSLError) -> bool:
    return error.reason == "KEY_VALUES_MISMATCH"


def _no_password() -> str:
    """Is asked for the password of a key. A server has nobody to ask."""
    raise SetupError(
        "setting `tls_key`: the key is encrypted; give one without a password", field="tls_key"
    )
