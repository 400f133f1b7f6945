"""A missing extra is named by the error of the part that needs it."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest

import gregor
from gregor.errors import SetupError
from gregor.extras import EXTRAS, required_extra

ROOT = Path(gregor.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_module_of_a_missing_extra_is_a_setup_error_with_the_line_to_type() -> None:
    with pytest.raises(SetupError) as raised, required_extra("nats"):
        raise ModuleNotFoundError("No module named 'nats'", name="nats")
    assert raised.value.message == "NATS needs the extra `nats`: pip install 'gregor-sync[nats]'"


def test_missing_extra_is_an_import_error_for_programs_that_probe() -> None:
    with pytest.raises(ImportError), required_extra("redis"):
        raise ModuleNotFoundError("No module named 'redis'", name="redis")


@pytest.mark.parametrize(
    "defect",
    [
        ModuleNotFoundError("No module named 'nats.aio'", name="nats.aio"),
        ModuleNotFoundError("No module named 'redis'", name="redis"),
        ImportError("cannot import name 'Client' from 'nats'", name="nats"),
    ],
    ids=["part of the extra", "another extra", "another version"],
)
def test_other_import_error_is_raised_unchanged(defect: ImportError) -> None:
    with pytest.raises(ImportError) as raised, required_extra("nats"):
        raise defect
    assert raised.value is defect


def third_party_modules() -> set[str]:
    """The top-level modules that the package imports, apart from its own and Python's."""
    names: set[str] = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=aliases):
                    names |= {alias.name.partition(".")[0] for alias in aliases}
                case ast.ImportFrom(module=str(module)):
                    names.add(module.partition(".")[0])
    return names - sys.stdlib_module_names - {"gregor"}


def installed_modules(requirements: list[str]) -> set[str]:
    """The modules that the distributions of these requirements contain."""
    wanted = {
        requirement.partition(">")[0].partition("[")[0].lower().replace("_", "-")
        for requirement in requirements
    }
    return {
        module
        for module, distributions in packages_distributions().items()
        if wanted & {name.lower().replace("_", "-") for name in distributions}
    }


@pytest.mark.parametrize("name", EXTRAS)
def test_modules_of_an_extra_are_those_that_it_installs(name: str) -> None:
    installed = installed_modules(PROJECT["optional-dependencies"][name])
    dependencies = {"pydantic"}  # which pydantic-settings installs
    assert EXTRAS[name].modules - dependencies <= installed


def test_every_module_that_the_package_imports_comes_with_the_base_or_an_extra() -> None:
    base = installed_modules(PROJECT["dependencies"])
    optional = {"uvloop"}  # used if it is there; on Windows it is not
    extras = {module for extra in EXTRAS.values() for module in extra.modules}
    assert third_party_modules() <= base | extras | optional
    assert all(find_spec(module) for module in extras)


def test_extra_all_contains_all_extras() -> None:
    declared = PROJECT["optional-dependencies"]
    assert set(declared) == {*EXTRAS, "all", "dev"}
    assert declared["all"] == [f"gregor-sync[{','.join(EXTRAS)}]"]
