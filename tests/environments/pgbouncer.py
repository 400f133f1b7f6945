"""PgBouncer, in front of a real PostgreSQL."""

import asyncio
import os
import pwd
import shutil
import signal
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from tests.fleet.servers import ManagedServer

PoolMode = Literal["session", "transaction", "statement"]


class PgBouncer(ManagedServer):
    """Debian's PgBouncer, with its default settings besides those that are given."""

    wheel, program, variable = "", "/usr/sbin/pgbouncer", "GREGOR_TEST_PGBOUNCER"
    _stop_signal: ClassVar = signal.SIGINT

    def __init__(
        self,
        server_url: str,
        pool_mode: PoolMode,
        certificate: tuple[Path, Path] | None = None,
        /,
        **settings: str,
    ) -> None:
        super().__init__()
        self._certificate = certificate
        self._server_url = server_url
        self._settings = {"pool_mode": pool_mode, **settings}

    def _url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/gregor"

    async def _prepare(self) -> None:
        await super()._prepare()
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            self._user = "nobody"
            os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
        self.configure(**self._tls())

    def _tls(self) -> dict[str, str]:
        """The settings to require TLS, if there is a certificate; PgBouncer gets copies."""
        if self._certificate is None:
            return {}
        names = ("client_tls_cert_file", "client_tls_key_file")
        for name, file in zip(names, self._certificate, strict=True):
            copy = shutil.copy(file, self.directory / name)
            shutil.chown(copy, self._user or os.geteuid())
        return {"client_tls_sslmode": "require", **{name: name for name in names}, **self._settings}

    def configure(self, **settings: str) -> None:
        """Write the file of settings, which PgBouncer reads when it starts."""
        self._settings |= settings
        server = urlsplit(self._server_url)
        database = f"host={server.hostname} port={server.port} dbname={server.path[1:]}"
        given = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "any",
            **self._settings,
        }
        lines = [f"{name} = {value}" for name, value in given.items()]
        user = f"user={server.username}"
        text = "\n".join(["[databases]", f"gregor = {database} {user}", "[pgbouncer]", *lines, ""])
        (self.directory / "pgbouncer.ini").write_text(text)

    def _command(self) -> list[str]:
        return [self.program, "pgbouncer.ini"]

    async def _is_ready(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
