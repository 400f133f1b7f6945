"""Settings: from the command line, from `GREGOR_…` variables, from a TOML file, in this order."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gregor.errors import SetupError


class Auth(StrEnum):
    """How a caller proves who it is."""

    OPEN = "open"
    JWT = "jwt"


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise ValueError("give HOST:PORT, such as 127.0.0.1:9911 or [::1]:9911")
    return value


class Settings(BaseSettings):
    """What a server and the client commands need to know."""

    model_config = SettingsConfigDict(env_prefix="GREGOR_", extra="forbid", frozen=True)

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:9911"
    store: Annotated[str, Field(repr=False)] = "sqlite:///gregor.db"  # passwords may be in URLs
    store_connections: Annotated[int, Field(ge=1)] = 8
    store_seconds: Annotated[float, Field(gt=0)] = 10.0
    migrate: bool = False
    pubsub: Annotated[str | None, Field(repr=False)] = None
    workers: Annotated[int, Field(ge=1)] = 1
    auth: Auth = Auth.OPEN
    jwt_secret: SecretStr | None = None
    sweep_seconds: Annotated[float, Field(gt=0)] = 5.0
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    log_format: Literal["console", "json"] = "console"
    url: str = "http://127.0.0.1:9911"
    token: SecretStr | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.address[0])


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(file: Path | None = None, **given: Any) -> Settings:
    """The settings: what is `given` and not None, then the environment, then the file.
    Raises SetupError, which names what is wrong and where."""

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
            toml = TomlConfigSettingsSource(settings_cls, toml_file=file)
            return init_settings, env_settings, toml

    if file is not None and not file.is_file():
        raise SetupError(f"the configuration file {file} does not exist")
    try:
        return FromFile(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = f"there is none of that name; there are {', '.join(Settings.model_fields)}"
        raise SetupError(f"setting `{name}`: {reason}", field=name) from error
    except ValueError as error:  # TOML that does not parse
        raise SetupError(f"{file}: {error}") from error
