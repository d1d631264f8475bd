"""The tree: imports point down, and importing the package stays cheap."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import tfprune

PACKAGE = Path(__file__).parent.parent / "tfprune"
FLOORS = {
    0: (
        "budget",
        "checks",
        "masks",
        "schedules",
        "straight_through",
        "thresholds",
        "largest",
        "radix_select",
        "patterns",
        "reading",
        "sparse_coding",
        "writing",
    ),
    1: ("regularizers", "constraints", "optimizers", "layers"),
    2: ("graph", "costs", "losses"),
    3: ("cuts", "weight_cuts", "importances", "selection", "shares", "surgery"),
    4: ("training", "evaluating", "tails", "callbacks", "runtime"),
    5: ("pruning", "passive", "search", "sensitivities", "lottery"),
    6: (
        "reports",
        "exporting",
        "sparse_files",
        "keras_archives",
        "benchmarking",
        "compat",
    ),
    7: ("cli", "__main__", "__init__"),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
DECIDING = {"cuts", "weight_cuts", "importances", "selection", "shares"}
CHANGING = {"surgery"}
# The homes of private Keras API, each pinned by a test of its own.
PRIVATE_KERAS = {"graph/nodes.py", "graph/rules_ops.py", "layers/swapping.py"}
HEAVY = (
    "matplotlib",
    "sklearn",
    "tensorflow_datasets",
    "tensorflow_model_optimization",
    "rich",
    "typer",
)


def part(path):
    """The name under which `FLOORS` knows the file at `path`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Dotted names of all that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path):
    """The parts of tfprune that a file imports; `__init__` for the package itself."""
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "tfprune":
            head = rest.partition(".")[0]
            yield head if head in FLOOR else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))
EDGES = {(part(file), other) for file in FILES for other in parts_imported(file)}


def test_every_file_has_a_floor():
    assert {part(file) for file in FILES} <= FLOOR.keys()


def test_imports_never_point_up():
    # `python -m tfprune` and the command line are the only users of the whole.
    up = {(a, b) for a, b in EDGES if FLOOR[b] > FLOOR[a]}
    assert not up


def test_imports_on_one_floor_have_one_direction():
    assert not {(a, b) for a, b in EDGES if a != b and (b, a) in EDGES}


def test_deciding_and_changing_never_import_each_other():
    sides = DECIDING | CHANGING
    across = {(a, b) for a, b in EDGES if {a, b} <= sides and DECIDING & {a, b}}
    assert not {edge for edge in across if CHANGING & set(edge)}


def test_no_module_bears_the_name_of_a_public_function():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    public = {
        alias.asname or alias.name
        for node in imports
        if node.module != "tfprune"
        for alias in node.names
    }
    assert {"Graph", "select", "prune", "compact"} <= public
    assert not public & {part(file) for file in FILES}


def test_private_keras_api_has_known_homes():
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in FILES
        if "keras.src" in file.read_text()
    }
    assert users == PRIVATE_KERAS


def test_importing_the_package_imports_nothing_heavy():
    # Keras itself imports some of these where they are installed, which takes long.
    hidden = dict.fromkeys(("matplotlib", "pandas", "sklearn"))
    code = (
        f"import sys; sys.modules.update({hidden}); "
        "import keras; own = set(sys.modules); import tfprune; "
        "print(*{name.partition('.')[0] for name in {*sys.modules} - own})"
    )
    modules = subprocess.check_output(
        [sys.executable, "-c", code], text=True, cwd=PACKAGE.parent
    )
    assert "tfprune" in modules.split()
    assert not set(HEAVY) & set(modules.split())


def test_other_backends_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError, match="Keras on TensorFlow. Received.*'jax'"):
        importlib.reload(tfprune)


@pytest.mark.parametrize("statement", ["import tfprune.graph", "from tfprune import x"])
def test_the_reader_of_imports_sees(tmp_path, statement):
    file = tmp_path / "module.py"
    file.write_text(f"def f():\n    {statement}\n")
    assert list(parts_imported(file)) in (["graph"], ["__init__"])
