"""The table of primitives is complete, true of the installed JAX, true of the arithmetic, and the only one."""

import ast
import gc
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex
from packaging.specifiers import SpecifierSet

import jaxguard
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph
from jaxguard.graph.primitives import PRIMITIVES, Call, Channels, Expansion, Form

ROOT = pathlib.Path(jaxguard.__file__).parent
WINDOW = ((1, 2, 2), (1, 1, 1), "VALID")
EDGES = [(0, 0, 0), (1, 2, 0), (0, -1, 1)]

EXAMPLES = {
    "add": (2, lax.add),
    "sub": (2, lax.sub),
    "mul": (2, lax.mul),
    "div": (2, lax.div),
    "neg": (1, lax.neg),
    "abs": (1, lax.abs),
    "max": (2, lax.max),
    "min": (2, lax.min),
    "sign": (1, lax.sign),
    "clamp": (3, lax.clamp),
    "select_n": (2, lambda x, y: lax.select_n(np.arange(3) > 1, x[0, 0], y[0, 0])),
    "eq": (2, lax.eq),
    "ne": (2, lax.ne),
    "gt": (2, lax.gt),
    "ge": (2, lax.ge),
    "lt": (2, lax.lt),
    "le": (2, lax.le),
    "copy": (1, lambda x: jnp.array(x, copy=True)),
    "reduce_precision": (1, lambda x: lax.reduce_precision(x, 11, 52)),
    "device_put": (1, lambda x: jax.device_put(x, jax.devices()[0])),
    "optimization_barrier": (1, lax.optimization_barrier),
    "transpose": (1, jnp.transpose),
    "reshape": (1, jnp.ravel),
    "squeeze": (1, lambda x: lax.squeeze(x[:1], (0,))),
    "rev": (1, lambda x: lax.rev(x, (1,))),
    "slice": (1, lambda x: lax.slice(x, (0, 1, 0), (2, 3, 3))),
    "dynamic_slice": (1, lambda x: lax.dynamic_slice(x, (0, 1, 0), (2, 1, 3))),
    "gather": (1, lambda x: x[:, np.array([2, 0])]),
    "broadcast_in_dim": (1, lambda x: x[:, None]),
    "tile": (1, lambda x: lax.tile(x, (2, 1, 1))),
    "concatenate": (2, lambda x, y: lax.concatenate([x, y], 1)),
    "pad": (2, lambda x, y: lax.pad(x, y[0, 0, 0], EDGES)),
    "reduce_sum": (1, lambda x: x.sum(1)),
    "reduce_max": (1, lambda x: x.max(1)),
    "reduce_min": (1, lambda x: x.min(1)),
    "reduce_window_sum": (1, lambda x: lax.reduce_window(x, 0.0, lax.add, *WINDOW)),
    "reduce_window_max": (1, lambda x: lax.reduce_window(x, -np.inf, lax.max, *WINDOW)),
    "reduce_window_min": (1, lambda x: lax.reduce_window(x, np.inf, lax.min, *WINDOW)),
    "cumsum": (1, lambda x: lax.cumsum(x, 1)),
    "cummax": (1, lambda x: lax.cummax(x, 1)),
    "cummin": (1, lambda x: lax.cummin(x, 1)),
    "dot_general": (2, lambda x, y: jnp.einsum("bij,bkj->bik", x, y)),
    "conv_general_dilated": (2, lambda x, y: lax.conv_general_dilated(x, y, (1,), "SAME")),
}
"""Name -> number of operands, each 2 x 3 x 3, and a function of them that applies the primitive."""


UNTESTED = {
    "add_any",
    "convert_element_type",
    "name",
    "pvary",
    "sharding_constraint",
    "stop_gradient",
    "and",
    "or",
    "not",
    "xor",
}
"""Those that cannot be called by themselves on float64 arrays."""


def names_in(jaxpr):
    """Names of the primitives in a jaxpr, and in those inside it."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for parameter in jax.tree.leaves(dict(eqn.params), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from names_in(inner)


def traced_names(apply_fn, *inputs):
    closed = jax.make_jaxpr(apply_fn)(*inputs)
    return set(names_in(getattr(closed, "jaxpr", closed)))


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_row_states_each_field(name):
    row = PRIMITIVES[name]
    assert row.name == name
    assert callable(row.ties)
    assert isinstance(row.channels, Channels)
    assert isinstance(row.form, Form)
    assert row.call is None or (isinstance(row.call, Call) and isinstance(row.call.expansion, Expansion))
    assert row.jax == "any" or SpecifierSet(row.jax)


def test_every_name_is_a_primitive_of_the_installed_jax():
    real = {primitive.name for primitive in gc.get_objects() if isinstance(primitive, jex.Primitive)}
    installed = {
        name for name, row in PRIMITIVES.items() if row.jax == "any" or jax.__version__ in SpecifierSet(row.jax)
    }
    assert installed <= real
    assert not (PRIMITIVES.keys() - installed) & real


def test_every_form_is_under_test():
    stated = {name for name, row in PRIMITIVES.items() if row.form not in (Form.OPAQUE, Form.ROOT)}
    assert stated - EXAMPLES.keys() - UNTESTED == {name for name in stated if name.endswith("_to")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_form_is_true_of_the_arithmetic(name):
    """Second differences along a line vanish: along a short one where a function is piecewise linear."""
    (arity, apply), form = EXAMPLES[name], PRIMITIVES[name].form
    rng = np.random.default_rng(0)
    operands = [rng.normal(size=(2, 3, 3)) for _ in range(arity)]
    step = 3.0 if form in (Form.LINEAR, Form.MULTILINEAR, Form.LINEAR_IN_FIRST) else 1e-6
    alone = {Form.MULTILINEAR: range(arity), Form.LINEAR_IN_FIRST: (0,)}.get(form, (None,))
    with jax.enable_x64(True):
        assert name in traced_names(apply, *operands)
        for which in alone:
            ways = [rng.normal(size=x.shape) * (which in (None, k)) for k, x in enumerate(operands)]
            before, here, after = (
                np.asarray(apply(*(x + s * step * way for x, way in zip(operands, ways, strict=True))), np.float64)
                for s in (-1, 0, 1)
            )
            np.testing.assert_allclose(before + after, 2 * here, atol=1e-12)
            is_constant = form is Form.COMPARISON or name == "sign"
            assert np.array_equal(before, after) == is_constant


def test_a_primitive_without_a_row_is_named_with_its_source_line():
    def apply_fn(v, x):
        return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((2, 4), np.float32), x @ v["a"]) @ v["head"]

    v = {"a": jnp.ones((3, 4)), "head": jnp.ones((4, 2))}
    with pytest.raises(GraphError, match=r"`pure_callback` at .*test_primitives\.py.*graph\.primitives\.PRIMITIVES"):
        channel_graph(apply_fn, v, jnp.ones((2, 3)), strict=True)


def test_no_other_place_lists_primitives():
    listed = {}
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text()
        reads_equations = any(word in source for word in ("jaxguard.graph", "jax.extend", "jaxpr", "eqns"))
        if path.name == "primitives.py" or not reads_equations:
            continue
        for node in ast.walk(ast.parse(source)):
            words = []
            if isinstance(node, ast.Dict):
                words = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            elif isinstance(node, ast.Set | ast.Tuple | ast.List):
                words = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words = node.value.split() if PRIMITIVES.keys() >= set(node.value.split()) else []
            names = {word for word in words if isinstance(word, str) and word in PRIMITIVES}
            if len(names) > 1:
                listed[f"{path.relative_to(ROOT)}:{node.lineno}"] = names
    assert not listed
