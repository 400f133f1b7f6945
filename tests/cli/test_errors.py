"""An expected error is printed with its own message, also from within an exception group."""

import pytest

from gregor.cli.main import error_message
from gregor.errors import StorageUnavailable
from gregor.stores.sql.database import StorageBroken

BROKEN = StorageBroken("the disk did not confirm a write")


def test_error_is_printed_with_its_own_message() -> None:
    assert error_message(BROKEN) == "the disk did not confirm a write"


def test_error_is_found_in_nested_exception_groups() -> None:
    inner = ExceptionGroup("inner", [ValueError("a consequence"), BROKEN])
    assert error_message(ExceptionGroup("outer", [KeyError("x"), inner])) == BROKEN.message


def test_first_of_several_errors_is_printed() -> None:
    assert (
        error_message(ExceptionGroup("", [BROKEN, StorageUnavailable("later")])) == BROKEN.message
    )


def test_group_without_expected_error_is_raised_unchanged() -> None:
    bug = ExceptionGroup("", [ValueError("a bug")])
    with pytest.raises(ExceptionGroup) as raised:
        error_message(bug)
    assert raised.value is bug
