"""What is not used is not loaded: a client and a server start fast, and stay small."""

import subprocess
import sys

import pytest

MIGRATIONS = {"alembic", "sqlalchemy"}
DRIVERS = {"aiohttp", "asyncpg", "nats", "redis"}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("gregor", {"asyncio", "httpx", "pydantic", "websockets"}),
        ("gregor.client", {"httpx", "pydantic", "starlette", "websockets", *MIGRATIONS}),
        ("gregor.server.process", {"httpx", "rich", *MIGRATIONS, *DRIVERS}),
    ],
)
def test_module_loads_only_what_it_uses(module: str, unused: set[str]) -> None:
    program = f"import {module}, sys; print({unused} & set(sys.modules))"
    command = (sys.executable, "-c", program)
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"set()\n"
