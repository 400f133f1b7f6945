"""An expected failure is told in its own words, wherever in a group of tasks it happened."""

import pytest

from gregor.cli.main import reason
from gregor.errors import StorageUnavailable
from gregor.storage.database import StorageBroken

BROKEN = StorageBroken("the disk did not confirm a write")


def test_an_error_is_told_in_its_own_words() -> None:
    assert reason(BROKEN) == "the disk did not confirm a write"


def test_an_error_is_found_in_the_groups_that_tasks_make_of_it() -> None:
    inner = ExceptionGroup("inner", [ValueError("a consequence"), BROKEN])
    assert reason(ExceptionGroup("outer", [KeyError("x"), inner])) == BROKEN.message


def test_of_several_the_first_is_told() -> None:
    assert reason(ExceptionGroup("", [BROKEN, StorageUnavailable("later")])) == BROKEN.message


def test_a_defect_stays_what_it_is() -> None:
    defect = ExceptionGroup("", [ValueError("a defect")])
    with pytest.raises(ExceptionGroup) as caught:
        reason(defect)
    assert caught.value is defect
