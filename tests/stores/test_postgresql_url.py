"""URLs of PostgreSQL: what each key of libpq becomes, and the error that names a key."""

import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gregor.errors import SetupError
from gregor.stores.sql.postgresql.url import ONLY, READ_BY_DRIVER, READ_HERE, connecting
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.tables import NEWEST_REVISION


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def servers(url: str) -> list[tuple[Any, Any]]:
    return [(arguments["host"], arguments["port"]) for arguments in connecting(url).servers]


def for_driver(url: str) -> dict[str, str]:
    """The keys that are left to the driver, of the first server."""
    dsn = connecting(url).servers[0]["dsn"]
    return {key: value for key, (value,) in parse_qs(urlsplit(dsn).query).items()}


def argument(url: str, name: str) -> Any:
    return connecting(url).servers[0].get(name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://a/db", [("a", None)]),
        ("postgresql://u:p@a:1,b:2/db", [("a", 1), ("b", 2)]),
        ("postgres://u@a,b:2,[::1]:3/db", [("a", None), ("b", 2), ("::1", 3)]),
        ("postgresql+asyncpg://u@[::1]/db", [("::1", None)]),
        ("postgresql:///db?host=/run/a,b&port=1,2", [("/run/a", 1), ("b", 2)]),
        ("postgresql:///db?host=a,b&port=1", [("a", 1), ("b", 1)]),
        ("postgresql://%2Frun%2Fpostgresql/db", [("/run/postgresql", None)]),
        ("postgresql:///db", [(None, None)]),
    ],
)
def test_servers_of_a_url(url: str, expected: list[tuple[Any, Any]]) -> None:
    assert servers(url) == expected


def test_credentials_and_keys_of_the_driver_are_passed_on() -> None:
    url = "postgresql://us%40er:p%23+w@h/d%20b?sslmode=verify-full&krbsrvname=&target_session_attrs=any"
    assert for_driver(url) == {
        "user": "us@er",
        "password": "p#+w",
        "dbname": "d b",
        "sslmode": "verify-full",
        "target_session_attrs": "any",
    }


def test_key_of_the_query_replaces_that_of_the_address() -> None:
    url = "postgresql://u:p@h:1/d?user=v&host=g&port=2&dbname=e"
    assert servers(url) == [("g", 2)]
    assert for_driver(url) == {"user": "v", "password": "p", "dbname": "e"}


def test_several_servers_are_asked_for_one_to_write_to() -> None:
    assert for_driver("postgresql://a,b/d")["target_session_attrs"] == "read-write"
    assert "target_session_attrs" not in for_driver("postgresql://a/d")
    given = "postgresql://a,b/d?target_session_attrs=primary"
    assert for_driver(given)["target_session_attrs"] == "primary"


def test_application_name_is_ours_unless_it_is_given() -> None:
    for query in ("", "?application_name=gregor"):
        settings = argument(f"postgresql://h/d{query}", "server_settings")
        assert settings == {"application_name": f"gregor-{NEWEST_REVISION}"}
    for key in ("application_name", "fallback_application_name"):
        settings = argument(f"postgresql://h/d?{key}=mine", "server_settings")
        assert settings == {"application_name": "mine"}


def test_options_are_settings_that_are_set_after_connecting() -> None:
    url = r"postgresql://h/d?options=-c%20work_mem=1MB%20--search-path=a%5C%20b%20-cgregor.x=1"
    how = connecting(url)
    assert how.settings == {"work_mem": "1MB", "search_path": "a b", "gregor.x": "1"}
    assert "options" not in how.servers[0]["server_settings"]


def test_options_for_a_proxy_are_sent_at_the_start() -> None:
    how = connecting("postgresql://h/d?options=endpoint%3Dabc")
    assert how.settings == {}
    assert how.servers[0]["server_settings"]["options"] == "endpoint=abc"


def test_connect_timeout_is_in_seconds_and_zero_is_none() -> None:
    assert argument("postgresql://h/d?connect_timeout=3", "timeout") == 3
    assert argument("postgresql://h/d?connect_timeout=0", "timeout") is None


def test_certificates_of_the_system_are_checked_with_the_name_of_the_host() -> None:
    context = argument("postgresql://h/d?sslrootcert=system", "ssl")
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_ssl_true_is_what_jdbc_writes_for_require() -> None:
    assert for_driver("postgresql://h/d?ssl=true") == {"dbname": "d", "sslmode": "require"}


# Files and variables


def test_service_gives_the_keys_that_the_url_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".pg_service.conf").write_text(
        "[prod]\nhost=a,b\nuser=u\npassword=50%\ndbname=d\napplication_name=n\n"
    )
    url = "postgresql:///?service=prod&user=v"
    assert servers(url) == [("a", None), ("b", None)]
    keys = {"user": "v", "password": "50%", "dbname": "d", "target_session_attrs": "read-write"}
    assert for_driver(url) == keys
    assert argument(url, "server_settings") == {"application_name": "n"}
    (tmp_path / "other.conf").write_text("[prod]\nhost=c\n")
    assert servers(f"{url}&servicefile={tmp_path}/other.conf") == [("c", None)]
    monkeypatch.setenv("PGSERVICE", "prod")
    assert servers("postgresql://") == [("a", None), ("b", None)]


def test_variables_of_libpq_are_read_after_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "a,b")
    monkeypatch.setenv("PGPORT", "1,2")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "2")
    assert servers("postgresql:///d") == [("a", 1), ("b", 2)]
    assert connecting("postgresql:///d").settings == {"work_mem": "1MB"}
    assert argument("postgresql:///d?connect_timeout=3", "timeout") == 3


def test_file_that_holds_the_url_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "store"
    for user in ("a", "b"):
        file.write_text(f"postgresql://{user}@h/d\n")
        assert for_driver(file.as_uri())["user"] == user


# Errors


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmod=require", "`sslmod` is unknown or not supported"),
        ("keepalives_idle=5", "`keepalives_idle` is unknown or not supported"),
        ("search_path=x", "options=-c%20NAME=VALUE"),
        ("channel_binding=require", "channel_binding=require is not supported"),
        ("gssencmode=require", "gssencmode=require is not supported"),
        ("client_encoding=latin1", "client_encoding=latin1 is not supported"),
        ("target_session_attrs=standby", "target_session_attrs=standby: Gregor writes"),
        ("target_session_attrs=prefer-standby", "use read-write or primary"),
        ("connect_timeout=soon", "connect_timeout=soon: give a number of seconds"),
        ("sslrootcert=/missing/root.crt", "sslrootcert, /missing/root.crt, cannot be read"),
        ("sslcert=/missing/c", "sslcert, /missing/c, cannot be read"),
        ("passfile=/missing/p", "passfile, /missing/p, cannot be read"),
        ("sslrootcert=system&sslmode=require", "needs sslmode=verify-full, and not require"),
        ("sslmode=maybe", "sslmode"),
        ("service=missing", "service 'missing' is neither in"),
        ("host=a,b&port=1,2,3", "2 hosts, but 3 ports"),
        ("host=a&port=x", "'x' is not a port"),
        ("sslmode", "`sslmode` has no value"),
    ],
)
async def test_key_that_cannot_be_used_is_named(query: str, expected: str) -> None:
    with pytest.raises(SetupError) as raised:
        async with database_at(f"postgresql://u:secret@127.0.0.1:1/d?{query}"):
            pass
    assert expected in raised.value.message
    assert "start PostgreSQL" not in raised.value.message
    assert "secret" not in raised.value.message


async def test_passfile_that_others_can_read_is_named(tmp_path: Path) -> None:
    passfile = tmp_path / "pass"
    passfile.write_text("*:*:*:*:secret")
    passfile.chmod(0o644)
    with pytest.raises(SetupError, match=f"chmod 600 {passfile}"):
        async with database_at(f"postgresql://u@127.0.0.1:1/d?passfile={passfile}"):
            pass


async def test_file_of_the_url_that_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "store"
    with pytest.raises(SetupError, match=f"{file} cannot be read"):
        database_at(file.as_uri())


def test_each_key_is_read_by_one_side() -> None:
    assert not READ_BY_DRIVER & READ_HERE
    assert ONLY.keys() <= READ_HERE


def test_operations_name_each_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert not [key for key in READ_BY_DRIVER | READ_HERE if f"`{key}`" not in text]
