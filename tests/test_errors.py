"""An error received over the wire has the class of its code, regardless of what is imported."""

import importlib
import pkgutil

import pytest

import gregor
from gregor.errors import WIRE_ERRORS, Action, GregorError, error_from_code


def all_errors(base: type[GregorError] = GregorError) -> list[type[GregorError]]:
    """The class and all its subclasses in gregor. Other test files may define more."""
    children = [error for child in base.__subclasses__() for error in all_errors(child)]
    return [error for error in (base, *children) if error.__module__.startswith("gregor.")]


@pytest.fixture(scope="module", autouse=True)
def _import_all_modules() -> None:
    """Import the whole package, so that __subclasses__ is complete."""
    for module in pkgutil.walk_packages(gregor.__path__, "gregor."):
        if ".migrations." not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@pytest.mark.parametrize("code", WIRE_ERRORS)
def test_error_has_the_class_of_its_code_and_the_received_action(code: str) -> None:
    error = error_from_code(code, "why", "field", Action.RETRY)
    assert type(error) is WIRE_ERRORS[code]
    assert (error.code, error.message, error.field) == (code, "why", "field")
    assert error.action is Action.RETRY  # as received, even if the class has another one


def test_internal_code_makes_a_plain_gregor_error() -> None:
    assert type(error_from_code("internal", "a defect", None, Action.RETRY)) is GregorError


def test_unknown_code_makes_a_gregor_error_with_that_code_and_action() -> None:
    error = error_from_code("quota", "too many", None, Action.STOP)
    assert type(error) is GregorError
    assert (error.code, error.action) == ("quota", Action.STOP)


def test_every_code_that_is_sent_over_the_wire_is_in_wire_errors() -> None:
    never_sent = {"setup", "wrong-event-loop"}
    codes = {error.code for error in all_errors() if error.__module__ == "gregor.errors"}
    assert codes - never_sent == set(WIRE_ERRORS)


def test_subclass_that_shares_a_code_does_not_replace_its_base() -> None:
    for error in all_errors():
        if error.code in WIRE_ERRORS:  # the others are never sent
            assert issubclass(error, WIRE_ERRORS[error.code])
