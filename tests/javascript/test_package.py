"""The JavaScript client: its own tests, its types, its size, and the package that npm installs."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.javascript.node import JS, run

SOURCES = ("src", "scripts", "package.json", "tsconfig.json", "tsconfig.build.json")
TEXTS = ("LICENSE", "README.md")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is published, built in a folder of its own."""
    folder = tmp_path_factory.mktemp("gregor-sync")
    for name in (*SOURCES, *TEXTS):
        _copy(JS / name, folder / name)
    (folder / "node_modules").symlink_to(JS / "node_modules")
    run("npm", "run", "build", folder=folder)
    run("npm", "pack", folder=folder)
    (archive,) = folder.glob("*.tgz")
    return archive


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def _expected_contents() -> set[str]:
    sources = [path.relative_to(JS / "src") for path in (JS / "src").rglob("*.ts*")]
    built = {
        f"dist/{path.with_suffix(suffix)}"
        for path in sources
        for suffix in (".js", ".js.map", ".d.ts")
    }
    texts = {name for name in TEXTS if (JS / name).exists()}
    return {
        "package.json",
        "dist/gregor.min.js",
        *built,
        *(f"src/{path}" for path in sources),
    } | texts


def test_package_holds_the_sources_what_is_built_of_them_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        contents = {name.removeprefix("package/") for name in tar.getnames()}
    assert contents == _expected_contents()


def test_package_has_no_dependency() -> None:
    package = json.loads((JS / "package.json").read_text())
    assert "dependencies" not in package


def test_sources_and_tests_have_sound_types() -> None:
    run("npm", "run", "check")


def test_client_is_within_its_size() -> None:
    print(run("npm", "run", "size"))


@pytest.mark.timeout(900)  # all tests of the package
def test_vitest_passes() -> None:
    print(run("vitest", "run", "--passWithNoTests"))


def test_package_follows_the_rules_of_npm(archive: Path) -> None:
    run("publint", "run", str(archive), "--strict")


def test_every_entry_point_of_the_package_has_types(archive: Path) -> None:
    script_tag = ("--exclude-entrypoints", "gregor.min.js")
    run("attw", str(archive), "--profile", "esm-only", *script_tag)
