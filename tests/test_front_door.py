"""The package's own names: all there, all lazy, and none shadowed by a module."""

import pathlib
import subprocess
import sys
import types

import pytest

import jaxguard

FLAT = {"load", "scan", "calibrate", "repair", "repair_all", "certify", "verify", "matrix", "precision", "fuse", "save"}
ADAPTERS = {"from_nnx", "to_nnx", "from_linen", "from_equinox", "to_equinox", "from_haiku", "to_haiku"}
VALUES = {"Network", "Verdict"}
NAMESPACES = {
    "attacks", "checkpoints", "data", "defenses", "endpoints", "evaluation", "fingerprints", "fleet", "fusion", "graph",
    "inversion", "kernels", "models", "scores", "suspects", "training", "types",
}  # fmt: skip


def test_the_front_door_is_complete():
    assert set(jaxguard.__all__) == FLAT | ADAPTERS | VALUES | NAMESPACES
    assert set(jaxguard.__all__) <= set(dir(jaxguard))
    assert jaxguard.__all__ == sorted(jaxguard.__all__)


@pytest.mark.parametrize("name", jaxguard.__all__)
def test_every_name_is_there(name):
    found = getattr(jaxguard, name)
    assert isinstance(found, types.ModuleType) == (name in NAMESPACES)
    if name not in NAMESPACES:
        assert found.__name__ == name
        assert found.__doc__


def test_no_module_takes_the_place_of_a_function():
    modules = {path.stem for path in pathlib.Path(jaxguard.__file__).parent.iterdir() if path.suffix in ("", ".py")}
    assert not modules & (FLAT | ADAPTERS | VALUES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = jaxguard.magic


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys; before = set(sys.modules); import jaxguard; dir(jaxguard); new = set(sys.modules) - before;"
        "print([name for name in new if name != 'jaxguard' and name.split('.')[0] not in sys.stdlib_module_names])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_namespaces_start_no_backend():
    program = (
        "import jaxguard; [getattr(jaxguard, name) for name in jaxguard.__all__];"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
