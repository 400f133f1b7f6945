"""The versions, unpacked once."""

from pathlib import Path

import pytest

from tests.upgrades.versions import Versions


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    folder: Path = tmp_path_factory.mktemp("versions")
    return Versions(folder)
