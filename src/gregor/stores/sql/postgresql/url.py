"""URLs of PostgreSQL as libpq writes them: which servers they name, and how to connect to each.

The driver reads most keys itself. It would send those that it does not know to the server, as
settings. So a key is taken here, refused here, or left to the driver by name.
"""

import os
import re
import ssl
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode, urlsplit

from asyncpg.exceptions import ClientConfigurationError

from gregor.errors import SetupError
from gregor.stores.sql.tables import NEWEST_REVISION
from gregor.urls import resolved

Keys = dict[str, str]  # of libpq, with their values

READ_BY_DRIVER = {
    "user",
    "password",
    "dbname",
    "passfile",
    "target_session_attrs",
    "krbsrvname",
    "gsslib",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslpassword",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
}
READ_HERE = {
    "host",
    "port",
    "service",
    "servicefile",
    "connect_timeout",
    "options",
    "application_name",
    "fallback_application_name",
    "channel_binding",
    "gssencmode",
    "client_encoding",
}
# What the driver cannot do. Each key may have the values that ask for nothing else.
ONLY = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "client_encoding": ("auto", "utf8", "UTF8", "utf-8", "UTF-8"),
}
FILES = ("passfile", "sslcert", "sslkey", "sslrootcert", "sslcrl")
_OPTION = re.compile(r"(?:-c\s*|--)([\w.-]+)=((?:\\.|[^\s\\])*)(?:\s+|$)")
# By this name `gregor migrate` recognizes nodes that do not register.
CODE_BEFORE_0005 = "gregor"
TO_WRITE = ("any", "read-write", "primary")

# The driver does not read these variables, or reads them for all servers of the URL at once.
VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "passfile": "PGPASSFILE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
}


class Connecting(NamedTuple):
    """How to connect: the arguments of `asyncpg.connect` for each server that the URL names, in its
    order, and the settings that its `options` give to a session."""

    servers: list[dict[str, Any]]
    settings: Mapping[str, str]


def connecting(url: str) -> Connecting:
    """How to connect to this URL. What is in files (the URL itself, a service) is read each time,
    and so may change. Raises ClientConfigurationError if the URL or one of its files is invalid."""
    keys = _checked(_completed(_keys(_read(url))))
    hosts = list(_hosts_and_ports(keys))
    if len(hosts) > 1:
        # A store writes. Without this, the first server that answers would do: often a standby.
        keys.setdefault("target_session_attrs", "read-write")
    shared = _arguments(keys)
    servers = [shared | {"host": host, "port": port} for host, port in hosts]
    return Connecting(servers, _settings(keys.get("options", "")) or {})


def _read(url: str) -> str:
    try:
        return resolved(url)
    except SetupError as error:
        raise ClientConfigurationError(error.message) from error


# Keys


def _keys(url: str) -> Keys:
    """The keys that the URL gives. An empty value is one that is not given."""
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    keys = {"user": user, "password": password, "dbname": parts.path.removeprefix("/")}
    keys = {key: unquote(value) for key, value in keys.items()} | _hosts(hosts)
    for pair in filter(None, parts.query.split("&")):
        key, separator, value = pair.partition("=")
        if not separator:
            raise ClientConfigurationError(f"`{unquote(key)}` has no value")
        keys[unquote(key)] = unquote(value)
    if keys.get("ssl") == "true":  # as JDBC writes it
        del keys["ssl"]
        keys["sslmode"] = "require"
    return {key: value for key, value in keys.items() if value}


def _hosts(location: str) -> Keys:
    """The keys of `HOST:PORT,HOST:PORT`; an IPv6 address is in brackets."""
    matches = [
        re.fullmatch(r"\[(.*)\](?::(\d*))?|([^:]*)(?::(\d*))?", s) for s in location.split(",")
    ]
    if None in matches:
        raise ClientConfigurationError("each host may have a port, as in HOST:PORT,HOST:PORT")
    found = [(m[1] or m[3] or "", m[2] or m[4] or "") for m in matches if m is not None]
    hosts, ports = zip(*found, strict=True)
    return {
        "host": unquote(",".join(hosts)) if any(hosts) else "",
        "port": ",".join(ports) if any(ports) else "",
    }


def _completed(keys: Keys) -> Keys:
    """With the keys of the service that they name, and those of the environment."""
    service = keys.get("service") or os.environ.get("PGSERVICE")
    if service:
        keys = _service(service, keys.get("servicefile")) | keys
    given = {key: os.environ.get(variable) for key, variable in VARIABLES.items()}
    return {key: value for key, value in given.items() if value} | keys


def _service(name: str, file: str | None) -> Keys:
    """The keys that a file such as ~/.pg_service.conf gives to the name."""
    own = file or os.environ.get("PGSERVICEFILE") or Path.home() / ".pg_service.conf"
    of_system = Path(os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common")) / "pg_service.conf"
    for path in (own, of_system):
        services = ConfigParser(interpolation=None)  # a password may have a "%"
        try:
            services.read(path)
        except ConfigParserError as error:
            raise ClientConfigurationError(f"service {name!r}: {error}") from error
        if name in services:
            return dict(services[name])
    raise ClientConfigurationError(f"service {name!r} is neither in {own} nor in {of_system}")


def _checked(keys: Keys) -> Keys:
    for key, value in keys.items():
        if key not in READ_BY_DRIVER | READ_HERE:
            raise ClientConfigurationError(
                f"the key `{key}` is unknown or not supported. The keys are "
                f"{', '.join(sorted(READ_BY_DRIVER | READ_HERE))}. A setting of the server is "
                "given as options=-c%20NAME=VALUE"
            )
        if value not in ONLY.get(key, (value,)):
            raise ClientConfigurationError(
                f"{key}={value} is not supported by the driver; leave it out"
            )
        if key in FILES and (key, value) != ("sslrootcert", "system"):
            _check_file(key, Path(value))
    attributes = keys.get("target_session_attrs", "any")
    if attributes not in TO_WRITE:
        raise ClientConfigurationError(
            f"target_session_attrs={attributes}: Gregor writes; use read-write or primary"
        )
    return keys


def _check_file(key: str, path: Path) -> None:
    """The driver's own errors do not name the file."""
    if not os.access(path, os.R_OK):
        raise ClientConfigurationError(f"the file of {key}, {path}, cannot be read")
    if key == "passfile" and path.stat().st_mode & 0o077:
        raise ClientConfigurationError(
            f"the passfile {path} is ignored while its group or others have access: "
            f"run chmod 600 {path}"
        )


# Arguments


def _hosts_and_ports(keys: Keys) -> Iterator[tuple[str | None, int | None]]:
    """The host and port of each server; None is the driver's default."""
    hosts, ports = keys.get("host", "").split(","), keys.get("port", "").split(",")
    if len(ports) not in (1, len(hosts)):
        raise ClientConfigurationError(f"there are {len(hosts)} hosts, but {len(ports)} ports")
    for host, port in zip(hosts, repeat(ports[0]) if len(ports) == 1 else ports, strict=False):
        if port and not (port.isdigit() and 0 < int(port) < 65_536):
            raise ClientConfigurationError(f"{port!r} is not a port")
        yield host or None, int(port) if port else None


def _arguments(keys: Keys) -> dict[str, Any]:
    """What is the same for all servers."""
    arguments: dict[str, Any] = {"server_settings": _start_up_settings(keys)}
    if keys.get("sslrootcert") == "system":
        arguments["ssl"] = _tls_of_system(keys)
    if seconds := _connect_timeout(keys):
        arguments["timeout"] = seconds
    for_driver = {key: value for key, value in keys.items() if key in READ_BY_DRIVER}
    return arguments | {"dsn": "postgresql://?" + urlencode(for_driver)}


def _start_up_settings(keys: Keys) -> dict[str, str]:
    """All other settings are set after connecting: poolers accept only a few at the start."""
    name = keys.get("application_name") or keys.get("fallback_application_name")
    if name in (None, CODE_BEFORE_0005):
        name = f"gregor-{NEWEST_REVISION}"
    options = keys.get("options", "")
    if options and _settings(options) is None:
        return {"application_name": name, "options": options}
    return {"application_name": name}


def _settings(options: str) -> Mapping[str, str] | None:
    """The settings of options such as `-c NAME=VALUE --NAME=VALUE`. None if there are others, such
    as those that tell a proxy where to connect to: only the start of a session can have them."""
    if _OPTION.sub("", options).strip():
        return None
    # A backslash keeps the space after it.
    return {
        name.replace("-", "_"): re.sub(r"\\(.)", r"\1", value)
        for name, value in _OPTION.findall(options)
    }


def _connect_timeout(keys: Keys) -> float | None:
    """In seconds; None if it is not given, or has libpq's value for no limit."""
    text = keys.get("connect_timeout", "0")
    try:
        seconds = int(text)
    except ValueError:
        raise ClientConfigurationError(
            f"connect_timeout={text}: give a number of seconds"
        ) from None
    return float(seconds) if seconds > 0 else None


def _tls_of_system(keys: Keys) -> ssl.SSLContext:
    """Certificates are checked against the authorities that this machine trusts."""
    mode = keys.setdefault("sslmode", "verify-full")
    if mode != "verify-full":  # any name would do: everybody can get such a certificate
        raise ClientConfigurationError(
            f"sslrootcert=system needs sslmode=verify-full, and not {mode}"
        )
    context = ssl.create_default_context()
    if "sslcert" in keys:
        context.load_cert_chain(keys["sslcert"], keys.get("sslkey"), keys.get("sslpassword"))
    return context
