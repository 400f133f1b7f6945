"""The tree shows the architecture: each part has one layer, and imports only point down."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gregor

ROOT = Path(gregor.__file__).parent

# From the top down. The parts of one layer do not import each other.
LAYERS = (
    {"__init__"},  # the public names of the package
    {"cli"},
    {"testing"},
    {"server", "client"},
    {"node"},
    {"shards", "consumers"},
    {"stores", "pubsub"},
    {"protocol"},
    {"interfaces", "clock", "log_event", "backoff", "job"},
    {"core", "config"},
    {"extras", "urls", "limits", "prompt_future"},
    {"errors"},
)
HEIGHT = {part: -number for number, layer in enumerate(LAYERS) for part in layer}

# The same within a folder.
LAYERS_WITHIN = {
    "core": (
        {"history", "export"},
        {"sync", "buckets", "inbox", "item_history"},
        {"facts"},
        {"item_index", "state_page", "range_deaths"},
        {"state", "state_hash"},
        {"visibility", "notification_body"},
        {"message"},
        {"arguments"},
        {"admission", "rates", "holdings"},
        {"instant", "renamed_fields", "deployment"},
    ),
}

# Where one of several parts is chosen at run time, its module is imported when it is chosen, in a
# function: it may need an extra that is not installed, and take long to load. These imports, too,
# point down.
PLUG_IN_POINTS = {
    "gregor.pubsub.remote": {
        "gregor.pubsub.nats",
        "gregor.pubsub.redis",
        "gregor.pubsub.redis_cluster",
        "gregor.pubsub.redis_sentinel",
    },
    "gregor.stores.sql.store_url": {"gregor.stores.sql.postgresql.database"},
    "gregor.stores.sql.migrations": {"gregor.stores.sql.migrations.upgrade"},
    "gregor.client.client": {"gregor.client.websocket"},
    "gregor.client": {"gregor.client.producer"},
}
# These export some names when they are used; type checkers see the import of these names.
LAZY_EXPORTS = {"gregor.client"}

# All that pure code may import: no I/O, no clock, no randomness. The one exception is uuid, for
# the msg_id of a message without one.
PURE_IMPORTS = {
    "core": {
        *(
            "base64",
            "bisect",
            "collections",
            "collections.abc",
            "copy",
            "dataclasses",
            "datetime",
            "enum",
            "functools",
            "hashlib",
            "heapq",
            "itertools",
            "re",
            "types",
            "typing",
            "uuid",
        ),
        *("immutables", "msgspec"),
    },
    "protocol": {"collections.abc", "enum", "re", "typing", "msgspec"},
}

MODULES = sorted(path for path in ROOT.rglob("*.py"))
MODULE_NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def part_of(path: Path) -> str:
    """The package or module directly below `gregor` that the file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def name_of(path: Path) -> str:
    """The name by which the module is imported."""
    module = path.parent if is_package(path) else path.with_suffix("")
    return ".".join(("gregor", *module.relative_to(ROOT).parts))


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                submodules = [f"{module}.{alias.name}" for alias in names]
                yield from submodules if module == "gregor" else [module]
            case ast.ImportFrom():
                pytest.fail("use absolute imports, such as from gregor.core.state import State")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=MODULE_NAMES)
def test_imports_only_point_down(path: Path) -> None:
    part = part_of(path)
    imported = [name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("gregor.")]
    upward = [other for other in imported if other != part and HEIGHT[other] >= HEIGHT[part]]
    assert not upward


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    imported = {name_of(path): set(imports(tree_of(path))) for path in MODULES}
    for package in {name for name, path in zip(imported, MODULES, strict=True) if is_package(path)}:
        del imported[package]  # it only exports what its modules define
    tuple(TopologicalSorter(imported).static_order())


@pytest.mark.parametrize("folder", LAYERS_WITHIN)
def test_every_module_of_a_folder_has_a_layer_and_imports_only_point_down(folder: str) -> None:
    height = {
        module: -number for number, layer in enumerate(LAYERS_WITHIN[folder]) for module in layer
    }
    package = f"gregor.{folder}."
    modules = {path.stem: path for path in (ROOT / folder).glob("[!_]*.py")}
    assert modules.keys() == height.keys()
    for module, path in modules.items():
        names = [name for name in imports(tree_of(path)) if name.startswith(package)]
        imported = [name.removeprefix(package).split(".")[0] for name in names]
        assert not [other for other in imported if height[other] >= height[module]], module


@pytest.mark.parametrize("part", PURE_IMPORTS)
def test_core_and_protocol_import_only_pure_modules(part: str) -> None:
    external = {
        name
        for path in MODULES
        if part_of(path) == part
        for name in imports(tree_of(path))
        if not name.startswith("gregor.")
    }
    assert external <= PURE_IMPORTS[part]


@pytest.mark.parametrize("part", PURE_IMPORTS)
def test_core_and_protocol_have_no_await_and_read_no_clock(part: str) -> None:
    for path in MODULES:
        for node in ast.walk(tree_of(path)) if part_of(path) == part else ():
            assert not isinstance(node, ast.AsyncFunctionDef | ast.Await), path
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"now", "utcnow", "today"} or _is_field(node), path


def _is_field(node: ast.Attribute) -> bool:
    """Whether the attribute is a field: `frame.now` is one, `datetime.now` reads a clock."""
    return isinstance(node.value, ast.Name) and node.value.id not in {"datetime", "date"}


@pytest.mark.parametrize("path", MODULES, ids=MODULE_NAMES)
def test_no_import_cycle_is_hidden(path: Path) -> None:
    """No import is under TYPE_CHECKING or in a function, except at the plug-in points.
    The command line may defer any import, to start fast; it is the top layer, where no cycle is
    possible."""
    tree = tree_of(path)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    deferred = {name for function in functions for name in imports(function)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if part_of(path) != "cli":
        assert "TYPE_CHECKING" not in names or name_of(path) in LAZY_EXPORTS
        deferred_parts = {name for name in deferred if name.startswith("gregor")}
        assert deferred_parts == PLUG_IN_POINTS.get(name_of(path), set())


@pytest.mark.parametrize("path", MODULES, ids=MODULE_NAMES)
def test_module_has_a_docstring(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree)
