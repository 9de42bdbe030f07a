"""The layout holds: imports point downwards, each library has its place, few modules touch files, files stay short."""

import ast
import pathlib
import sys
from collections.abc import Iterator

import jaxguard

ROOT = pathlib.Path(jaxguard.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
LONGEST = 360

LEVELS = (
    {"errors", "execution", "logs", "program_cache", "rounding"},
    {"memory", "programs"},
    {"meshes"},
    {"checkpoints", "conformal", "environment", "graph", "kernels", "methods"},
    {"types"},
    {"adapters", "attacks", "data", "endpoints", "models", "report", "surgery", "training"},
    {"activations", "evaluation", "inversion", "scores"},
    {"weight_change", "fusion", "pruning"},
    {"defenses", "suspects", "theft"},
    {"detection", "fingerprints"},
    {"codescan", "fleet"},
    {"ownership", "repairs", "scanning"},
    {"demo", "extending"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Modules and packages from the bottom up; one imports from the levels below it only, and never from its own."""

LEVEL = {unit: level for level, units in enumerate(LEVELS) for unit in units}

THIRD_PARTY = {
    "flax": {"adapters", "models"},
    "equinox": {"adapters"},
    "annotated_types": {"methods", "attacks", "defenses", "endpoints", "fingerprints", "theft"},
    "optax": {"training", "inversion", "defenses", "kernels", "pruning", "theft", "fingerprints"},
    "ott": {"kernels"},
    "ot": {"kernels"},
    "orbax": {"checkpoints", "training"},
    "tensorstore": {"checkpoints"},
    "tensorflow_datasets": {"data"},
    "blake3": {"checkpoints"},
    "matplotlib": {"report"},
    "msgpack": {"checkpoints"},
    "pyfive": {"checkpoints"},
    "jinja2": {"report"},
    "pyarrow": {"checkpoints", "fleet", "report"},
    "ray": {"fleet"},
    "PIL": {"data", "endpoints", "fingerprints", "report"},
    "skimage": {"fingerprints"},
    "httpx": {"endpoints"},
    "tenacity": {"endpoints"},
    "typer": {"cli"},
    "rich": {"cli", "report"},
}
"""Library -> the units that may import it."""

KNOWN_TO = {
    "graph": {"jaxguard", "jax", "numpy", *sys.stdlib_module_names},
    "kernels": {"jaxguard", "jax", "numpy", "chex", "scipy", "optax", "ott", "ot", *sys.stdlib_module_names},
}
"""Unit -> all it may import."""

FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch", "tensorflow"}
"""Libraries that run code from files, or that the product does without."""

FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "memmap", "fromfile", "tofile"}
NUMPY_FILE_CALLS = {"load", "save", "savez", "savez_compressed", "loadtxt", "savetxt", "genfromtxt"}
OPENS_FILES = {"checkpoints", "data", "report", "cli", "execution"}
"""Units that may; execution reads how much memory a container has."""


def unit_of(path: pathlib.Path) -> str:
    """First part of a module's name: `graph` of graph/axes.py, `audit` of audit.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports() -> Iterator[tuple[str, str, str]]:
    """Unit, full name and place of everything that is imported, also inside functions."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from ((unit_of(path), name, f"{path}:{node.lineno}") for name in names)


def file_calls() -> Iterator[tuple[str, str]]:
    """Unit and place of every call that opens, reads or writes a file."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                owner, _, name = ast.unparse(node.func).rpartition(".")
                if name in FILE_CALLS or (owner in ("np", "numpy", "jnp") and name in NUMPY_FILE_CALLS):
                    yield unit_of(path), f"{path}:{node.lineno}"


def test_every_unit_has_its_level():
    assert {unit_of(path) for path in FILES} == LEVEL.keys()


def test_imports_point_downwards():
    inside = [(unit, name.split(".")[1], place) for unit, name, place in imports() if name.startswith("jaxguard.")]
    assert len(inside) > 100
    # `from jaxguard import __version__` names no unit
    upwards = [(p, u) for unit, u, p in inside if u in LEVEL and u != unit and LEVEL[u] >= LEVEL[unit]]
    assert upwards == []
    assert [place for _, name, place in imports() if name.startswith(".")] == []


def test_libraries_have_their_place():
    outside = [(unit, name.split(".")[0], place) for unit, name, place in imports()]
    assert [row for row in outside if row[1] in FORBIDDEN] == []
    assert [row for row in outside if row[0] not in THIRD_PARTY.get(row[1], {row[0]})] == []
    assert [row for row in outside if row[1] not in KNOWN_TO.get(row[0], {row[1]})] == []
    assert {row[1] for row in outside} >= THIRD_PARTY.keys()
    solvers = [pathlib.Path(place).parent.name for _, name, place in outside if name in ("ott", "ot")]
    assert set(solvers) == {"transport"}


def test_few_modules_touch_files():
    assert [place for unit, place in file_calls() if unit not in OPENS_FILES] == []
    assert {unit for unit, _ in file_calls()} >= {"checkpoints", "data", "report"}


THREADS = {
    "execution.py": "compute, for everything else",
    "codescan.py": "reads the starts of files",
    "endpoints/endpoint.py": "waits for answers",
    "fleet/cluster.py": "asks for the state of files",
    "fleet/compiling.py": "waits for the compiler",
    "fleet/stream.py": "reads checkpoints",
}
"""Files with thread pools, and what these do."""


def test_one_module_knows_the_machine():
    """The backend is asked for, and threads that compute are started, in `execution` alone."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}
    assert {name for name, text in texts.items() if "default_backend" in text} == {"execution.py"}
    assert {name for name, text in texts.items() if "ThreadPoolExecutor" in text} <= THREADS.keys()


def test_one_module_compiles():
    """What is compiled elsewhere, or names a precision of its own, would not follow `jaxguard.precision`."""
    mine = {"programs.py", "rounding.py"}
    nodes = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if path.name not in mine]
    assert [path for path, node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax.jit"] == []
    assert [path for path, node in nodes if isinstance(node, ast.keyword) and node.arg == "precision"] == []


def test_files_are_short():
    assert [(path, length) for path in FILES if (length := len(path.read_text().splitlines())) > LONGEST] == []
