"""TLS: a server's own certificate, read again when it changes."""

import asyncio
import logging
import os
import signal
import ssl
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import trustme
from websockets.asyncio.client import connect

from gregor.config import Settings
from gregor.errors import SetupError
from gregor.server.app import Server
from gregor.server.composition import tls_of
from gregor.server.open_connections import ConnectionLimits, OpenConnections
from gregor.server.peer_errors import PeerError, PeerErrors
from gregor.server.tls import TLS
from tests.fleet.servers import Redis
from tests.server.harness import RawDevice, jwt_settings, listening, shared_settings, token, until
from tests.server.log_entries import next_log_entry
from tests.server.test_guarded_http import Guarded, Raw, echo
from tests.timeouts import TIMEOUT_SECONDS


class Files(NamedTuple):
    """The files of a server, and the authority that has signed its certificates."""

    certificate: Path
    key: Path
    authority: trustme.CA

    def renew(self) -> None:
        """Write another certificate and its key."""
        issued = self.authority.issue_cert("localhost")
        self.key.write_bytes(issued.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))

    @property
    def context(self) -> ssl.SSLContext:
        """That of a client which trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    async def serial(self, port: int) -> object:
        """The serial number of the certificate that a server shows."""
        _, writer = await asyncio.open_connection("localhost", port, ssl=self.context)
        shown = writer.get_extra_info("peercert")["serialNumber"]
        writer.close()
        return shown


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path / "cert.pem", tmp_path / "key.pem", trustme.CA())
    found.renew()
    return found


async def test_https_and_websockets_over_tls(files: Files) -> None:
    server = Server.from_settings(jwt_settings())
    service = server.service
    parts = {"connections": service.open_connections, "errors": service.peer_errors}
    tls = TLS(files.certificate, files.key)
    async with server, listening(server.app, **parts, tls=tls) as port:  # type: ignore[arg-type]
        async with httpx.AsyncClient(verify=files.context, timeout=TIMEOUT_SECONDS) as http:
            assert (await http.get(f"https://localhost:{port}/healthz")).status_code == 200
        url = f"wss://localhost:{port}/v1/connect"
        async with connect(
            url,
            ssl=files.context,
            compression=None,
            proxy=None,
            open_timeout=TIMEOUT_SECONDS,
        ) as connection:
            device = RawDevice(connection)
            await device.send("hello", token=token("u"), device_id="d", protocol=2)
            await device.receive_type("sync")
            await device.assert_usable()
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("localhost", port, ssl=ssl.create_default_context())


async def test_versions_before_1_2_are_refused(files: Files) -> None:
    assert TLS(files.certificate, files.key).context.minimum_version is ssl.TLSVersion.TLSv1_2


async def test_new_certificate_holds_for_new_connections(files: Files) -> None:
    tls = TLS(files.certificate, files.key)
    async with listening(echo, tls=tls) as port:
        first = await files.serial(port)
        tls.check()
        assert await files.serial(port) == first
        files.renew()
        tls.check()
        assert await files.serial(port) != first


async def test_certificate_that_cannot_be_used_leaves_the_old_one_and_is_reported(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    tls = TLS(files.certificate, files.key)
    (failing,) = tls.readings()
    old = tls.context
    with caplog.at_level(logging.ERROR, "gregor.server"):
        files.key.write_text("not a key")
        tls.check()
        tls.check()
    assert tls.context is old
    assert failing.value() == 1
    (entry,) = caplog.records
    assert "tls_key" in entry.getMessage()
    files.renew()
    tls.check()
    assert tls.context is not old
    assert failing.value() == 0


ENCRYPTED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgAAAAAAAAAAAICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEAAAAAAAAAAAAAAAAAAAAAAEQAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAAAAAAAAAAAAAAAAAAAAA=
-----END ENCRYPTED PRIVATE KEY-----
"""

BROKEN: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "no certificate": (lambda f: f.certificate.unlink(), "tls_cert", "cannot read"),
    "no key": (lambda f: f.key.unlink(), "tls_key", "cannot read"),
    "a certificate that is none": (
        lambda f: f.certificate.write_text("x"), "tls_cert", "no certificate in PEM",
    ),
    "a key that is none": (lambda f: f.key.write_text("x"), "tls_key", "no key in PEM"),
    "another key": (
        lambda f: f.key.write_bytes(f.authority.issue_cert("x").private_key_pem.bytes()),
        "tls_key",
        "does not belong",
    ),
    "an encrypted key": (lambda f: f.key.write_text(ENCRYPTED), "tls_key", "encrypted"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_error_in_a_file_says_which_and_why(files: Files, name: str) -> None:
    break_, field, reason = BROKEN[name]
    break_(files)
    with pytest.raises(SetupError, match=reason) as raised:
        TLS(files.certificate, files.key)
    assert raised.value.field == field


def test_certificate_needs_its_key() -> None:
    with pytest.raises(SetupError, match="--tls-key"):
        tls_of(Settings(tls_cert=Path("cert.pem")))


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n\r\n"])
async def test_handshake_that_is_none_ends_at_its_deadline(files: Files, sent: bytes) -> None:
    connections = OpenConnections(ConnectionLimits(head=0.3))
    errors = PeerErrors()
    tls = TLS(files.certificate, files.key)
    async with listening(echo, connections=connections, errors=errors, tls=tls) as port:
        async with await Raw.connect(port) as raw:
            await raw.send(sent)
            await raw.rest()
        await until(lambda: connections.number == 0)
        server = Guarded(port, connections, errors)
        assert server.count(PeerError.TLS) <= 1
        await files.serial(port)


async def test_handshakes_that_are_silent_make_room(files: Files) -> None:
    connections = OpenConnections(ConnectionLimits(max_connections=3))
    tls = TLS(files.certificate, files.key)
    async with listening(echo, connections=connections, tls=tls) as port:
        silent = [await Raw.connect(port) for _ in range(10)]
        for _ in range(3):
            await files.serial(port)
        for raw in silent:
            raw.writer.close()


async def test_workers_read_a_new_certificate_at_sighup(
    files: Files, postgresql_url: str, redis_server: Redis
) -> None:
    settings = shared_settings(postgresql_url, pubsub=redis_server.url)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0", "--migrate"),
        *("--store", str(settings.store), "--pubsub", redis_server.url, "--workers", "2"),
        *("--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
        *("--log-format", "json", "--drain-seconds", "0", "--lame-duck-seconds", "0"),
        env=dict(os.environ),
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(60):
            url: str = (await next_log_entry(process, "serving"))["url"]
            assert url.startswith("https://")
            for _ in range(2):
                await next_log_entry(process, "working")
            port = int(url.rpartition(":")[2])
            first = await files.serial(port)
            files.renew()
            process.send_signal(signal.SIGHUP)
            for _ in range(2):
                await next_log_entry(process, "loaded a new certificate")
            assert await files.serial(port) != first
        process.terminate()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
