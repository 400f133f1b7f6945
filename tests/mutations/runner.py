"""Plants a bug in a copy of the package, and runs the test that must notice it."""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping
from compileall import compile_dir
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import timeouts
from tests.mutations.mutations import Mutation

ROOT = Path(__file__).parents[2]

FORKSERVER = multiprocessing.get_context("forkserver")
"""Starts processes that have imported what tests need, except gregor: these imports would take most
of a test's time."""
FORKSERVER.set_forkserver_preload(
    [
        *("hypothesis.stateful", "pytest_asyncio.plugin"),
        *("asyncpg", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg"),
        *("alembic.context", "alembic.command", "greenlet"),
        *("nats", "pydantic_settings", "redis.asyncio", "starlette.applications"),
        *("httptools", "httpx", "jwt", "prometheus_client", "rich.console"),
        *("uvicorn", "uvicorn.protocols.http.httptools_impl", "websockets.asyncio.server"),
        *("immutables", "msgspec.json", "pytest_timeout", "_hypothesis_pytestplugin"),
    ]
)
PLUGINS = ("pytest_asyncio.plugin", "_hypothesis_pytestplugin", "pytest_timeout")
TEST_TIMEOUT_SECONDS = 120
MUTATED_TIMEOUT_SECONDS = 3.0  # for what may never come, because of the bug
TEST_RAN = 100
"""Added to pytest's exit code. Without it, a process that dies before its test would look like a
failed test: the exit code of both is 1."""


def run(mutation: Mutation, servers: Mapping[str, str] = {}) -> str | None:
    """Plant the bug in a copy of gregor and run the test on it. Returns why the test did not catch
    it, or None. `servers` are the environment variables with the URLs of running servers."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "gregor", mutation.file)
        # Only the mutated file needs to be compiled again.
        stale = shutil.ignore_patterns(f"{path.stem}.*.pyc")
        shutil.copytree(_compiled_package(), Path(directory, "gregor"), ignore=stale)
        text = path.read_text()
        found = text.count(mutation.old)
        if found != 1:
            return f"the text to mutate occurs {found} times in {mutation.file}, not once"
        path.write_text(text.replace(mutation.old, mutation.new))
        return _test(mutation.test, directory, servers)


@cache
def _compiled_package() -> Path:
    package = ROOT / "src" / "gregor"
    compile_dir(package, quiet=2)
    return package


def _test(node_id: str, directory: str, servers: Mapping[str, str]) -> str | None:
    output = Path(directory, "output")
    child = FORKSERVER.Process(target=_pytest, args=(node_id, directory, output, servers))
    child.start()
    child.join(TEST_TIMEOUT_SECONDS)
    if child.exitcode is None:
        child.kill()
        child.join()
    if child.exitcode == TEST_RAN + pytest.ExitCode.TESTS_FAILED:
        return None
    if child.exitcode == TEST_RAN + pytest.ExitCode.OK:
        return f"{node_id} passes with the bug"
    log = output.read_text()[-4000:] if output.exists() else ""
    return f"{node_id} could not be run (exit code {child.exitcode}):\n{log}"


def _pytest(node_id: str, directory: str, output: Path, servers: Mapping[str, str]) -> None:
    """Run one test in a child process that has not imported gregor yet."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ |= {"PYTHONPATH": directory, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **servers}
    timeouts.TIMEOUT_SECONDS = MUTATED_TIMEOUT_SECONDS  # before the test imports it
    sys.path.insert(0, directory)
    options = [option for plugin in PLUGINS for option in ("-p", plugin)]
    options += ["-x", "-q", "--no-header", "--assert=plain", "--hypothesis-profile=first-failure"]
    # Runs at the same time must not remove each other's directories.
    options += [f"--basetemp={directory}/tmp"]
    # Ignore resources that a failing test does not close.
    options += ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    sys.exit(TEST_RAN + pytest.main([*options, node_id]))
