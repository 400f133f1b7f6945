"""Gregor behind PgBouncer: pooling by session works, and other kinds are refused at the start."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from gregor.client.producer import AsyncProducer
from gregor.core.message import create
from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at
from tests.environments.pgbouncer import PgBouncer, PoolMode
from tests.fleet.fleet import NodeProcess
from tests.fleet.servers import POLL_SECONDS, PostgreSQL, Redis

DEADLINE_SECONDS = 60.0


async def open_error(url: str) -> str:
    with pytest.raises(SetupError) as raised:
        async with database_at(url, migrate):
            pass
    return raised.value.message


# By session


@pytest.fixture
async def by_session(postgresql_url: str) -> AsyncIterator[PgBouncer]:
    async with PgBouncer(postgresql_url, "session") as pgbouncer:
        yield pgbouncer


async def test_session_has_our_settings_and_those_of_the_url(by_session: PgBouncer) -> None:
    async with database_at(f"{by_session.url}?options=-c%20work_mem=1MB", migrate) as database:
        rows = await database.read(lambda c: c.execute_sql("SELECT name, setting FROM pg_settings"))
    in_use = dict(rows)
    assert in_use["plan_cache_mode"] == "force_custom_plan"
    assert in_use["work_mem"] == "1024"


async def test_session_is_clean_for_the_next_client(by_session: PgBouncer) -> None:
    for _ in range(3):  # with the same connections to PostgreSQL, and the same statement names
        async with database_at(by_session.url, migrate) as database:
            await asyncio.gather(
                *(database.read(lambda c: c.execute_sql("SELECT 1")) for _ in range(8))
            )


async def send_until_stored(producer: AsyncProducer, msg_id: str) -> None:
    message = create("u", "a", msg_id, msg_id=msg_id)
    while True:
        try:
            (result,) = await producer.send([message])
        except GregorError:
            await asyncio.sleep(POLL_SECONDS)
        else:
            if result.status in ("stored", "duplicate"):
                return


async def test_restarts_of_pgbouncer_under_load_lose_nothing_and_need_no_restart_of_a_node(
    by_session: PgBouncer, redis_server: Redis
) -> None:
    async with database_at(by_session.url, migrate):
        pass
    ids = [f"m{n}" for n in range(400)]
    stored: list[str] = []

    async def send(producer: AsyncProducer, part: list[str]) -> None:
        for msg_id in part:
            await send_until_stored(producer, msg_id)
            stored.append(msg_id)

    async def restart_when(count: int) -> None:
        while len(stored) < count:  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(POLL_SECONDS)
        await by_session.kill()
        await by_session.start()

    async with (
        NodeProcess([by_session.url], redis_server.url) as node,
        AsyncProducer(node.url) as producer,
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        async with asyncio.TaskGroup() as tasks:
            for first in range(8):
                tasks.create_task(send(producer, ids[first::8]))
            tasks.create_task(restart_when(50))
        await restart_when(len(ids))  # and once more, while nothing is sent
        state = await producer.state("u")
        assert sorted(item.msg_id for item in state.items) == sorted(ids)
        assert node.pid


async def read_often(database: Database) -> None:
    """200 concurrent reads. Each of them must succeed."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(200):
            tasks.create_task(database.read(lambda c: c.execute_sql("SELECT pg_sleep(0.01)")))


@pytest.mark.parametrize("limit", ["default_pool_size", "max_client_conn"])
async def test_node_waits_for_its_own_connections_at_a_limit(
    postgresql_url: str, limit: str
) -> None:
    async with (
        PgBouncer(postgresql_url, "session", **{limit: "3"}) as pgbouncer,
        database_at(pgbouncer.url, migrate) as database,
    ):
        await read_often(database)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read_often(database))
            tasks.create_task(write_until_stored(database))


async def write_until_stored(database: Database) -> None:
    """The readers may have to give up a connection first."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            with suppress(StorageUnavailable):
                await database.write(insert_user)
                return


def insert_user(connection: DatabaseConnection) -> None:
    connection.execute_sql("INSERT INTO users (uid, ctime, bucket) VALUES ('u', 0, 0)")


async def test_options_that_pgbouncer_refuses_are_named(by_session: PgBouncer) -> None:
    message = await open_error(f"{by_session.url}?options=endpoint%3Dx")
    assert "unsupported startup parameter: options" in message
    assert "start PostgreSQL" not in message


# By transaction or statement


@pytest.mark.parametrize("round_robin", ["0", "1"])
@pytest.mark.parametrize("others", [0, 3])
async def test_transaction_pooling_is_refused_in_one_sentence(
    postgresql_url: str, round_robin: str, others: int
) -> None:
    """Also while others use the pool, so that there are several connections to PostgreSQL."""
    async with (
        PgBouncer(postgresql_url, "transaction", server_round_robin=round_robin) as pgbouncer,
        asyncio.TaskGroup() as tasks,
    ):
        busy = [tasks.create_task(use(pgbouncer.url)) for _ in range(others)]
        message = await open_error(pgbouncer.url)
        for other in busy:
            other.cancel()
    assert "pools by transaction" in message
    assert "pool_mode = session" in message
    assert "\n" not in message


async def use(url: str) -> None:
    """Be another client of a pool, without a pause."""

    connection = await asyncpg.connect(url)
    try:
        while True:
            await connection.execute("SELECT pg_sleep(0.001)")
    finally:
        connection.terminate()


async def test_statement_pooling_is_refused_in_one_sentence(postgresql_url: str) -> None:
    async with PgBouncer(postgresql_url, "statement") as pgbouncer:
        message = await open_error(pgbouncer.url)
    assert "transaction blocks not allowed in statement pooling mode" in message
    assert "pool_mode = session" in message


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_nothing_is_set_in_sessions_that_others_share(
    postgresql_server: PostgreSQL, postgresql_url: str, mode: PoolMode
) -> None:

    async with PgBouncer(postgresql_url, mode) as pgbouncer:
        await open_error(pgbouncer.url)
        connection = await asyncpg.connect(pgbouncer.url, statement_cache_size=0)
        try:
            assert await connection.fetchval("SELECT current_setting('enable_seqscan')") == "on"
        finally:
            await connection.close()


async def test_pooling_that_changes_under_a_running_node_is_named(by_session: PgBouncer) -> None:
    async with database_at(by_session.url, migrate) as database:
        await read_often(database)
        await by_session.kill()
        by_session.configure(pool_mode="transaction")
        await by_session.start()
        with pytest.raises(ExceptionGroup) as raised:
            await read_until_failure(database)
    assert raised.group_contains(StorageUnavailable, match="pool_mode = session")


async def read_until_failure(database: Database) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            await read_often(database)


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for `localhost` that signs itself, and its key."""
    certificate, key = tmp_path / "root.crt", tmp_path / "root.key"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *curve, *names, *files], check=True)
    return certificate, key


@pytest.fixture
async def with_tls(postgresql_url: str, certificate: tuple[Path, Path]) -> AsyncIterator[PgBouncer]:
    async with PgBouncer(postgresql_url, "session", certificate) as pgbouncer:
        yield pgbouncer


async def test_certificate_and_name_of_the_server_are_checked_with_a_file(
    with_tls: PgBouncer, certificate: tuple[Path, Path]
) -> None:
    keys = f"sslmode=verify-full&sslrootcert={certificate[0]}"
    by_name = with_tls.url.replace("127.0.0.1", "localhost")
    async with database_at(f"{by_name}?{keys}", migrate) as database:
        await database.write(insert_user)
    assert "127.0.0.1" in await open_error(f"{with_tls.url}?{keys}")


async def test_certificate_and_name_of_the_server_are_checked_with_those_of_the_system(
    with_tls: PgBouncer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = with_tls.url.replace("127.0.0.1", "localhost")
    message = await open_error(f"{by_name}?sslrootcert=system")
    assert "CERTIFICATE_VERIFY_FAILED" in message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with database_at(f"{by_name}?sslrootcert=system", migrate) as database:
        await database.write(insert_user)
    assert "127.0.0.1" in await open_error(f"{with_tls.url}?sslrootcert=system")


@pytest.mark.parametrize("root", ["system", "FILE"])
async def test_server_can_ask_for_a_certificate(
    postgresql_url: str,
    certificate: tuple[Path, Path],
    root: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, key = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    own = {"client_tls_sslmode": "verify-ca", "client_tls_ca_file": "client_tls_cert_file"}
    async with PgBouncer(postgresql_url, "session", certificate, **own) as pgbouncer:
        url = pgbouncer.url.replace("127.0.0.1", "localhost")
        url += f"?sslmode=verify-full&sslrootcert={root.replace('FILE', str(file))}"
        await open_error(url)
        async with database_at(f"{url}&sslcert={file}&sslkey={key}", migrate) as database:
            await database.write(insert_user)
