"""PgBouncer, in front of a real PostgreSQL."""

import asyncio
import os
import pwd
import signal
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from tests.fleet.servers import ManagedServer

PoolMode = Literal["session", "transaction", "statement"]


class PgBouncer(ManagedServer):
    """Debian's PgBouncer, with its default settings besides those that are given."""

    wheel, program, variable = "", "/usr/sbin/pgbouncer", "GREGOR_TEST_PGBOUNCER"
    _stop_signal: ClassVar = signal.SIGINT

    def __init__(self, server_url: str, pool_mode: PoolMode, **settings: str) -> None:
        super().__init__()
        self._server_url = server_url
        self._settings = {"pool_mode": pool_mode, **settings}

    def _url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/gregor"

    async def _prepare(self) -> None:
        await super()._prepare()
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            self._user = "nobody"
            os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
        self.configure()

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
