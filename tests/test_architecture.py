"""The tree tells the architecture, and imports point down only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gregor

ROOT = Path(gregor.__file__).parent

# From the top down. What stands on one line does not know of each other.
LAYERS = (
    {"__init__"},  # what the package shows at its front door
    {"cli"},
    {"bench"},
    {"testing"},
    {"server", "client"},
    {"node"},
    {"state_machines", "consumers"},
    {"storage", "pubsub"},
    {"protocol"},
    {"interfaces", "clock"},
    {"core", "config", "data"},
    {"errors"},
)
HEIGHT = {box: -number for number, layer in enumerate(LAYERS) for box in layer}

# All that pure code needs: nothing here waits, looks at a clock, or draws lots. The one exception
# is the id that a sender who chose none is given.
PURE = {
    "core": {
        *(
            "bisect",
            "collections.abc",
            "datetime",
            "enum",
            "functools",
            "hashlib",
            "re",
            "typing",
            "uuid",
        ),
        *("immutables", "msgspec"),
    },
    "protocol": {"collections.abc", "enum", "typing", "msgspec"},
}

MODULES = sorted(path for path in ROOT.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def box_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                submodules = [f"{module}.{alias.name}" for alias in names]
                yield from submodules if module == "gregor" else [module]
            case ast.ImportFrom():
                pytest.fail("imports are written in full: from gregor.core.state import State")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_every_box_has_its_place() -> None:
    assert {box_of(path) for path in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_point_down_only(path: Path) -> None:
    box = box_of(path)
    ours = [name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("gregor.")]
    upward = [other for other in ours if other != box and HEIGHT[other] >= HEIGHT[box]]
    assert not upward


@pytest.mark.parametrize("box", PURE)
def test_what_decides_is_pure(box: str) -> None:
    outside = {
        name
        for path in MODULES
        if box_of(path) == box
        for name in imports(tree_of(path))
        if not name.startswith("gregor.")
    }
    assert outside <= PURE[box]


@pytest.mark.parametrize("box", PURE)
def test_what_decides_neither_waits_nor_looks_at_a_clock(box: str) -> None:
    for path in MODULES:
        for node in ast.walk(tree_of(path)) if box_of(path) == box else ():
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"now", "utcnow", "today"} or _is_field(node), path


def _is_field(node: ast.Attribute) -> bool:
    """`frame.now` is a time that was sent; `datetime.now` is a clock."""
    return isinstance(node.value, ast.Name) and node.value.id not in {"datetime", "date"}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_cycle_is_hidden(path: Path) -> None:
    """Neither under TYPE_CHECKING nor in a function. The command line may put off what it needs
    only later, so that it starts fast; it is on top, where no cycle can be."""
    tree = tree_of(path)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    put_off = [name for function in functions for name in imports(function)]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if box_of(path) != "cli":
        assert "TYPE_CHECKING" not in names
        assert not [name for name in put_off if name.startswith("gregor")]


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_file_begins_by_saying_what_it_is_for(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree)
