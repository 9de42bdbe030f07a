"""What every public kernel and score keeps, row by row of `kernel_contract.ROWS`."""

import functools
import importlib
import inspect
import json
import os
import pathlib
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import kernel_contract as contract
import numpy as np
import pytest
from jax import export

from jaxguard import kernels, scores

PLATFORMS = ("cpu", "cuda", "tpu")
rows = pytest.mark.parametrize("row", contract.ROWS, ids=lambda row: row.name)


def modules():
    yield from (module.name for module in pkgutil.walk_packages(kernels.__path__, "jaxguard.kernels."))
    # Reading structures is no computation on arrays: `structural` is a package of its own.
    yield from (module.name for module in pkgutil.iter_modules(scores.__path__, "jaxguard.scores.") if not module.ispkg)


def public_functions():
    """Public functions of all modules of kernels and scores, by name; those that a package hands on under its own."""
    found = {}
    for module in modules():
        for name, value in vars(importlib.import_module(module)).items():
            own = getattr(value, "__module__", "").startswith(".".join(module.split(".")[:2]))
            if own and callable(value) and not inspect.isclass(value) and not name.startswith("_"):
                if module.startswith("jaxguard.scores") and value.__module__ != module:
                    continue
                place = f"{module}.{name}".removeprefix("jaxguard.").removeprefix("kernels.")
                shortest = min(place, found.get(inspect.unwrap(value), place), key=len)
                found[inspect.unwrap(value)] = shortest
    return set(found.values())


def test_the_table_is_complete():
    named = {row.name.split()[0] for row in contract.ROWS}
    assert public_functions() == named | contract.NOT_KERNELS.keys()
    assert not named & contract.NOT_KERNELS.keys()


@rows
def test_compiled_and_mapped_it_is_a_loop(row):
    expected = contract.in_loop(row, 2)
    mapped = jax.jit(jax.vmap(row.call))(*contract.stacked(row, 2))
    contract.require_close(mapped, expected, row.rtol)
    compiled = jax.jit(row.call)(*row.args(0))
    contract.require_close(compiled, jax.tree.map(lambda leaf: leaf[0], expected), row.rtol)


@pytest.fixture(scope="session")
def failures():
    """Of each row on eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={contract.DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(pathlib.Path(contract.__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@rows
def test_on_eight_devices_it_is_the_same(row, failures):
    assert failures[row.name] == []


@rows
def test_it_lowers_everywhere(row):
    args = row.args(0)
    if row.on_host:
        jax.jit(row.call).lower(*args)  # JAX lowers calls to the host only where the platform is at hand
        return
    exported = export.export(jax.jit(row.call), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS
    if row.name.split(".")[0] in ("eigenvalues", "lipschitz", "spectrum", "correlation"):
        assert "custom_call" not in exported.mlir_module()  # neither LAPACK nor a library of one vendor


@rows
def test_equal_shapes_are_compiled_once(row):
    compiled = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    inputs = [row.args(seed) for seed in range(3)]
    row.call(*inputs[0])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for args in inputs[1:]:
            row.call(*args)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


@pytest.mark.parametrize("row", [row for row in contract.ROWS if row.grad], ids=lambda row: row.name)
def test_its_gradient_is_the_slope(row):
    first, *others = row.args(0)

    def total(first):
        leaves = jax.tree.leaves(row.call(first, *others))
        return functools.reduce(jnp.add, [jnp.sum(jnp.sin(leaf)) for leaf in leaves])

    gradient = jax.jit(jax.grad(total))(first)
    assert np.isfinite(gradient).all()
    direction = jnp.asarray(np.random.default_rng(9).normal(size=first.shape), first.dtype)
    step = 1e-2 / float(jnp.linalg.norm(direction))
    slope = (total(first + step * direction) - total(first - step * direction)) / (2 * step)
    scale = float(jnp.linalg.norm(gradient) * jnp.linalg.norm(direction))
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(slope), abs=max(0.02 * scale, 1e-3))
