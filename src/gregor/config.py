"""Settings. Precedence: command line, then `GREGOR_…` environment variables, then a TOML file.

A setting with a secret may be in a file of its own, which `GREGOR_…_FILE` names.
"""

import ipaddress
import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from gregor.errors import SetupError
from gregor.extras import required_extra
from gregor.limits import DEFAULT_LIMITS, SETTINGS, Limits
from gregor.urls import read_secret

with required_extra("server"):
    from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        NoDecode,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
        TomlConfigSettingsSource,
    )


# Where operators find metrics and the like, unless everybody who is answered may see them.
ADMIN_LISTEN = "127.0.0.1:9912"

# Longer than clients keep an idle connection, so that none sends on one that is being closed.
KEEP_ALIVE_SECONDS = 75

# Load balancers that ask for the readiness every half second or second notice within this time.
LAME_DUCK_SECONDS = 2.0

# Settings that hold secrets, and so may be in a file each.
IN_FILES = ("store", "pubsub", "jwt_secret", "token")


class Auth(StrEnum):
    """How callers are authenticated."""

    OPEN = "open"
    JWT = "jwt"


LARGEST_COUNT = 2**53 - 1
"""Clients are told the limits, in JSON: what every one of them can hold."""

Count: TypeAlias = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A limit; 0: none."""


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise ValueError("give HOST:PORT, such as 127.0.0.1:9911 or [::1]:9911")
    return value


def _listen_or_nothing(value: str | None) -> str | None:
    return _listen(value) if value else value


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def _text(value: Any) -> Any:
    """A number of a TOML file, as it would be typed."""
    return str(value) if isinstance(value, int) else value


def _words(value: Any) -> Any:
    """A list of texts; one string may hold several, as in an environment variable."""
    return tuple(value.split()) if isinstance(value, str) else value


def _store(value: Any) -> Any:
    """Accept one URL, a TOML table of name and URL for each shard, or one string with several
    NAME=URL, as in an environment variable."""
    if isinstance(value, dict):
        value = tuple(f"{name}={url}" for name, url in value.items())
    elif isinstance(value, str):
        urls = re.split(r"\s+(?=[\w+-]+(?:=[\w+]+)?://)", value.strip())
        value = value if len(urls) == 1 else tuple(urls)
    if not value:
        raise ValueError("give the URL of a store, such as sqlite:///gregor.db")
    if isinstance(value, list | tuple):
        value = tuple(value)
        named_stores(value)
    return value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise ValueError(f"{value!r} is no address or network, such as 10.0.0.0/8") from error
    return values


def named_stores(stores: Sequence[str]) -> dict[str | None, str]:
    """The URLs by shard name. Raises ValueError if there are several without distinct names."""
    pairs = [name_and_url(store) for store in stores]
    names = [name for name, _ in pairs]
    if len(pairs) > 1 and None in names:
        raise ValueError("with several stores, each needs the name of its shard: --store NAME=URL")
    if len(set(names)) < len(names):
        raise ValueError("two shards have the same name")
    return dict(pairs)


def name_and_url(store: str) -> tuple[str | None, str]:
    """Split NAME=URL. The name is None if `store` is only a URL."""
    match = re.fullmatch(r"([\w-]+)=([\w+]+://.*)", store, re.DOTALL)
    return (None, store) if match is None else (match[1], match[2])


class Settings(BaseSettings):
    """The settings of the server and of the client commands."""

    model_config = SettingsConfigDict(env_prefix="GREGOR_", extra="forbid", frozen=True)

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9911"
    admin_listen: Annotated[str | None, AfterValidator(_listen_or_nothing)] = None
    # One URL, or NAME=URL for each shard. repr=False: the URLs may contain passwords.
    store: Annotated[str | tuple[str, ...], BeforeValidator(_store), Field(repr=False)] = (
        "sqlite:///gregor.db"
    )
    store_connections: Annotated[int, Field(ge=1)] = 8
    store_seconds: Annotated[float, Field(gt=0)] = 10.0
    migrate: bool = False
    pubsub: Annotated[str | None, Field(repr=False)] = None
    workers: Annotated[int, Field(ge=1)] = 1
    auth: Auth = Auth.OPEN
    jwt_secret: SecretStr | None = None
    # (This layer knows no origins and hosts: see AllowedOrigins and AllowedHosts.)
    allow_origin: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    allow_host: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = ()
    sweep_seconds: Annotated[float, Field(gt=0)] = 5.0
    # Durations such as 90d; 0: for ever. (This layer knows no times: see `retention_of`.)
    history: Annotated[str, BeforeValidator(_text)] = "90d"
    ids: Annotated[str, BeforeValidator(_text)] = "400d"
    lame_duck_seconds: Annotated[float, Field(ge=0)] | None = None
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    keep_alive_seconds: Annotated[int, Field(ge=1)] = KEEP_ALIVE_SECONDS
    # None: as many as there are file descriptors; of one address, 0: any number.
    max_connections: Annotated[int, Field(ge=1)] | None = None
    connections_per_address: Annotated[int, Field(ge=0)] = 1000
    head_seconds: Annotated[float, Field(gt=0)] = 10.0
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    trusted_proxy: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_words), AfterValidator(_networks)
    ] = ()
    proxy_protocol: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_format: Literal["console", "json"] = "console"
    # Limits: see docs/limits.md
    ranges: Count = DEFAULT_LIMITS.ranges
    msg_ids: Count = DEFAULT_LIMITS.msg_ids
    keys: Count = DEFAULT_LIMITS.keys
    skip_msg_ids: Count = DEFAULT_LIMITS.skip_msg_ids
    prefixes: Count = DEFAULT_LIMITS.prefixes
    uids: Count = DEFAULT_LIMITS.uids
    live_items: Count = DEFAULT_LIMITS.live_items
    live_bytes: Count = DEFAULT_LIMITS.live_bytes
    tombstones: Count = DEFAULT_LIMITS.tombstones
    scheduled_items: Count = DEFAULT_LIMITS.scheduled_items
    connections: Count = DEFAULT_LIMITS.connections
    streams: Count = DEFAULT_LIMITS.streams
    consumes_in_flight: Count = DEFAULT_LIMITS.consumes_in_flight
    messages_per_second: Count = DEFAULT_LIMITS.messages_per_second
    bytes_per_second: Count = DEFAULT_LIMITS.bytes_per_second
    syncs_per_second: Count = DEFAULT_LIMITS.syncs_per_second
    frames_per_second: Count = DEFAULT_LIMITS.frames_per_second
    requests_per_second: Count = DEFAULT_LIMITS.requests_per_second
    url: str = "http://127.0.0.1:9911"
    token: SecretStr | None = None
    # Where a source has one of these, it gives the setting of the same name (`_with_files`).
    store_file: Path | None = None
    pubsub_file: Path | None = None
    jwt_secret_file: Path | None = None
    token_file: Path | None = None

    @property
    def stores(self) -> dict[str | None, str]:
        """The URLs of the databases by shard name; a single database has the name None."""
        return named_stores([self.store] if isinstance(self.store, str) else self.store)

    @property
    def limits(self) -> Limits:
        """What a server with these settings accepts."""
        return Limits(**{name: getattr(self, name) for name in SETTINGS})

    @property
    def lame_duck(self) -> float:
        """How long a server that was told to stop still serves as before, in seconds. Without a
        pub/sub there is no other server to which a load balancer could turn meanwhile."""
        if self.lame_duck_seconds is not None:
            return self.lame_duck_seconds
        return 0.0 if self.pubsub is None else LAME_DUCK_SECONDS

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port to listen on."""
        return _address(self.listen)

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """The host and the port of metrics and the like; None: none of their own."""
        if self.admin_listen is None and self.auth is Auth.JWT:
            return _address(ADMIN_LISTEN)
        return _address(self.admin_listen) if self.admin_listen else None

    @property
    def all_on_one_address(self) -> bool:
        """Whether metrics and the like are where the devices are: as long as only this machine is
        answered, and nothing else is said."""
        return self.auth is Auth.OPEN and self.admin_address is None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the addresses."""
        addresses = [self.address, *([self.admin_address] if self.admin_address else [])]
        return all(is_loopback(host) for host, _ in addresses)


@lru_cache(128)
def is_loopback(host: str) -> bool:
    """Whether the host is a loopback name or address, which no other machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Environment(EnvSettingsSource):
    """The `GREGOR_…` variables."""

    def __call__(self) -> dict[str, Any]:
        return _with_files(super().__call__())


class _TOML(TomlConfigSettingsSource):
    """The file of `--config`."""

    def __call__(self) -> dict[str, Any]:
        return _with_files(super().__call__())


def _with_files(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of one source, with those that it says are in files."""
    paths = {name: given[f"{name}_file"] for name in IN_FILES if f"{name}_file" in given}
    if both := sorted(paths.keys() & given.keys()):
        raise SetupError(f"give the setting `{both[0]}` or `{both[0]}_file`, and not both")
    others = {
        name: value for name, value in given.items() if name.removesuffix("_file") not in paths
    }
    return others | {name: _in_file(name, Path(path)) for name, path in paths.items()}


def _in_file(name: str, path: Path) -> str:
    try:
        secret = read_secret(path)
    except SetupError as error:
        raise SetupError(f"setting `{name}_file`: {error.message}", field=name) from error
    if name != "store":
        return secret
    if name_and_url(secret)[0] is not None or len(secret.split()) > 1:
        raise SetupError(
            f"setting `store_file`: the file {path} must hold one URL; for shards, name a file for "
            "each in `store`, as NAME=file:///PATH"
        )
    return path.absolute().as_uri()  # not what it holds: a new password must not need a restart


def load(file: Path | None = None, **given: Any) -> Settings:
    """Load the settings: `given` values that are not None, then the environment, then the file.
    Raises SetupError, which names the invalid setting and the reason."""

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = _TOML(settings_cls, toml_file=file)
            return init_settings, _Environment(settings_cls), toml

    if file is not None and not file.is_file():
        raise SetupError(f"the configuration file {file} does not exist")
    try:
        return FromFile(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = f"unknown setting; the settings are {', '.join(Settings.model_fields)}"
        raise SetupError(f"setting `{name}`: {reason}", field=name) from error
    except ValueError as error:  # TOML that does not parse
        raise SetupError(f"{file}: {error}") from error
