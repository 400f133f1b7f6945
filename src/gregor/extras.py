"""The extras of the package, and the error that names a missing one.

The base install has what a client and a producer need. All other third-party modules come with an
extra, and are imported inside `with required_extra(…)`, most of them when they are first used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gregor.errors import SetupError


class Extra(NamedTuple):
    """What needs the extra, and the third-party modules that the extra installs."""

    purpose: str
    modules: frozenset[str]


EXTRAS = {
    "server": Extra(
        "a server",
        frozenset(
            {
                *("alembic", "httptools", "jwt", "prometheus_client", "pydantic"),
                *("pydantic_settings", "sqlalchemy", "starlette", "uvicorn"),
            }
        ),
    ),
    "postgresql": Extra("PostgreSQL", frozenset({"asyncpg", "greenlet"})),
    "redis": Extra("Redis", frozenset({"redis"})),
    "nats": Extra("NATS", frozenset({"nats", "nkeys"})),
    "cli": Extra("the command line", frozenset({"pydantic_settings", "rich", "typer"})),
    "testing": Extra("gregor.testing", frozenset({"hypothesis", "pytest"})),
}


class MissingExtra(SetupError, ImportError):
    """A part of Gregor is used whose extra is not installed; the message has the line to type.
    It is an ImportError too, for programs that try whether they can import that part."""


@contextmanager
def required_extra(name: str) -> Iterator[None]:
    """Import modules of an extra in this block. Raises MissingExtra if it is not installed. Any
    other ImportError is a defect, and is raised unchanged."""
    extra = EXTRAS[name]
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in extra.modules:
            raise
        raise MissingExtra(
            f"{extra.purpose} needs the extra `{name}`: pip install 'gregor-sync[{name}]'"
        ) from error
