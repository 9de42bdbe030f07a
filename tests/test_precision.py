"""One setting of precision: emulated bfloat16 against rounding by hand, and where the setting reaches."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import zoo
from jax.tree_util import Partial

import jaxguard
from jaxguard import execution, meshes, programs, training
from jaxguard.errors import DeviceMemoryError, OptionError
from jaxguard.kernels import correlation, lipschitz
from jaxguard.types import Network

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import precision_table  # noqa: E402

RNG = np.random.default_rng(0)


def rounded(array):
    """To bfloat16 and back, by another library than the one under test."""
    return np.asarray(array, ml_dtypes.bfloat16).astype(np.float32)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def convolved(images, kernel):
    """A valid convolution as a sum of products, in float64."""
    height, width = images.shape[1] - kernel.shape[0] + 1, images.shape[2] - kernel.shape[1] + 1
    return sum(
        np.einsum("bhwi,io->bhwo", images[:, y : y + height, x : x + width].astype(np.float64), kernel[y, x])
        for y in range(kernel.shape[0])
        for x in range(kernel.shape[1])
    )


def conv(images, kernel):
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def in_all_forms(x, w):
    """The same product within a function, a loop, a branch and a custom derivative."""

    @jax.custom_jvp
    def custom(x):
        return x @ w

    custom.defjvp(lambda x, dx: (custom(*x), dx[0] @ w))
    _, scanned = jax.lax.scan(lambda carry, row: (carry, row[None] @ w), 0, x)
    return (
        jax.jit(jnp.matmul)(x, w),
        jax.lax.fori_loop(0, 1, lambda _, y: y + x @ w, jnp.zeros((len(x), w.shape[1]))),
        jax.lax.while_loop(lambda state: state[0] < 1, lambda state: (state[0] + 1, x @ w), (0, jnp.zeros((3, 5))))[1],
        jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ w),
        scanned[:, 0],
        custom(x),
        jax.checkpoint(jnp.matmul)(x, w),
        jax.vmap(lambda row: row @ w)(x),
    )


# ---------------------------------------------------------------- the emulation


def test_convolutions_and_products_round_their_operands_and_sum_in_float32():
    images, kernel, weights = draw(2, 6, 6, 3), draw(3, 3, 3, 4), draw(64, 5)
    jitted = programs.jit(lambda x, k, w: conv(x, k).reshape(2, -1) @ w)
    with jaxguard.precision("bfloat16"):
        found = jitted(images, kernel, weights)
    hidden = convolved(rounded(images), rounded(kernel)).astype(np.float32)
    expected = rounded(hidden.reshape(2, -1)).astype(np.float64) @ rounded(weights)
    # A hidden value beside a tie of bfloat16 may fall on its other side: of 128 values none or a few.
    exact = hidden.reshape(2, -1).astype(np.float64) @ weights
    assert np.abs(found - expected).max() < 0.1 * np.abs(exact - expected).max()


def test_every_form_of_a_product_is_rounded_and_nothing_else():
    x, w = draw(3, 7), draw(7, 5)
    with jaxguard.precision("bfloat16"):
        found = programs.jit(in_all_forms)(x, w)
    for one in found:
        np.testing.assert_allclose(one, rounded(x).astype(np.float64) @ rounded(w), rtol=1e-5, atol=1e-5)
    with jaxguard.precision("bfloat16"):
        np.testing.assert_array_equal(programs.jit(lambda x: (x * x, x.sum(0)))(x)[0], x * x)


def test_the_products_of_gradients_are_rounded_their_results_are_not():
    x, w = draw(4, 7), draw(7, 5)
    with jaxguard.precision("bfloat16"):
        by_x, by_w = programs.jit(jax.grad(lambda x, w: jnp.square(x @ w).sum(), (0, 1)))(x, w)
    upstream = rounded(2 * (rounded(x) @ rounded(w)))
    np.testing.assert_allclose(by_x, upstream.astype(np.float64) @ rounded(w).T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(by_w, rounded(x).T.astype(np.float64) @ upstream, rtol=1e-5, atol=1e-4)
    assert (rounded(by_w) != by_w).any()


def test_operands_of_other_types_stay_as_they_are():
    whole, half = np.arange(300, 306, dtype=np.int32).reshape(2, 3), draw(3, 2).astype(np.float16)
    with jaxguard.precision("bfloat16"):
        assert programs.matmul(whole, whole.T).tolist() == (whole @ whole.T).tolist()
        found = programs.matmul(half, half.T)
    np.testing.assert_array_equal(found, jnp.matmul(half, half.T))


# ---------------------------------------------------------------- where it reaches


def test_a_graph_that_was_traced_before_follows_the_setting():
    network = zoo_network()
    images = draw(4, *network.input_spec.shape)
    run = programs.jit(network.graph.run)
    exact = run(network.variables, images)
    with jaxguard.precision("bfloat16"):
        coarse = run(network.variables, images)
        direct = programs.jit(network.apply_fn)(network.variables, images)
    assert 1e-4 < np.abs(coarse - exact).max() / np.abs(exact).max() < 0.1
    np.testing.assert_allclose(coarse, direct, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(network.variables, images), exact)


def zoo_network() -> Network:
    def apply_fn(variables, images):
        hidden = jax.nn.relu(conv(images, variables["conv"]))
        return hidden.mean((1, 2)) @ variables["head"]

    return Network({"conv": draw(3, 3, 2, 6), "head": draw(6, 4)}, zoo.usual(apply_fn), (6, 6, 2))


@pytest.mark.parametrize("setting", ["highest", "default"])
def test_on_a_cpu_other_settings_change_no_bit(setting):
    network = zoo_network()
    images, kernel = draw(4, *network.input_spec.shape), draw(4, 9, 8)
    plain = jax.jit(network.apply_fn)(network.variables, images)
    gram = jax.jit(lipschitz.gram_matrices)(kernel)
    with jaxguard.precision(setting):
        np.testing.assert_array_equal(programs.jit(network.apply_fn)(network.variables, images), plain)
        np.testing.assert_array_equal(lipschitz.gram_matrices(kernel), gram)


def test_kernels_follow_the_setting():
    rows = correlation.unit_rows(draw(6, 10))
    exact, other = np.asarray(correlation.matrix(rows)), rounded(rows)
    with jaxguard.precision("bfloat16"):
        np.testing.assert_allclose(correlation.matrix(rows), 1 - other @ other.T, atol=1e-6)
    np.testing.assert_allclose(exact, 1 - np.asarray(rows) @ np.asarray(rows).T, atol=1e-6)


def test_a_program_within_another_shares_its_precision():
    x, w = draw(3, 7), draw(7, 5)
    inner = programs.jit(jnp.matmul)
    outer = programs.jit(lambda x, w: inner(x, w) + 0)
    with jaxguard.precision("bfloat16"):
        inside, alone = outer(x, w), inner(x, w)
    np.testing.assert_array_equal(inside, alone)
    np.testing.assert_allclose(alone, rounded(x) @ rounded(w), rtol=1e-5, atol=1e-5)
    assert np.abs(inner(x, w) - alone).max() > 1e-4


def test_threads_inherit_the_setting():
    x = draw(7)
    with jaxguard.precision("bfloat16"):
        found = list(execution.in_threads(lambda k: float(programs.matmul(x * k, x)), [1.0, 2.0], threads=2))
    expected = [float(rounded(x * np.float32(k)) @ rounded(x)) for k in (1, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert programs.numerics() == ("cpu", "highest")


def test_training_is_left_to_jax_unless_the_setting_says_more():
    seen = []

    def step(carry, _):
        seen.append(jax.config.jax_default_matmul_precision)
        return carry, {}

    for k, trains in enumerate((True, False)):
        training.descend(Partial(step), jnp.zeros(k + 1), 1, trains=trains)
    with jaxguard.precision("default"):
        training.descend(Partial(step), jnp.zeros(3), 1, trains=True)
    assert seen == [None, "highest", "default"]


def test_settings_nest_and_end_with_their_context():
    with jaxguard.precision("default"):
        with jaxguard.precision("bfloat16"):
            assert programs.numerics().precision == "bfloat16"
        assert programs.numerics().precision == "default"
        assert jax.config.jax_default_matmul_precision == "default"
    assert jax.config.jax_default_matmul_precision is None
    told = "expected a precision among highest, default, bfloat16, got 'float32'"
    with pytest.raises(OptionError, match=told), jaxguard.precision("float32"):
        pass


# ---------------------------------------------------------------- other machines


@pytest.mark.parametrize(
    ("platform", "setting", "asked", "is_rounded"),
    [
        ("tpu", None, "HIGHEST", False),
        ("tpu", "bfloat16", "DEFAULT", False),
        ("tpu", "default", "HIGH", False),
        ("gpu", None, "HIGHEST", False),
        ("gpu", "bfloat16", "HIGH", True),
    ],
)
def test_accelerators_are_asked_for_it(platform, setting, asked, is_rounded, monkeypatch):
    monkeypatch.setattr(execution, "platform", lambda: platform)
    with jax.default_matmul_precision("high"):  # as of a graph that was traced before
        traced = jax.make_jaxpr(lambda x: x @ x)(np.zeros((2, 2), np.float32))
    jitted = programs.jit(jax.extend.core.jaxpr_as_fun(traced))
    with jaxguard.precision(setting) if setting else jax.named_scope("none"):
        text = jitted.lower(np.zeros((2, 2), np.float32)).as_text()
    assert f"precision = [{asked}, {asked}]" in text
    assert ("reduce_precision" in text) == is_rounded


def test_eight_devices_round_as_one(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, __file__, tmp_path / "eight.npy"], env=environment, check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "eight.npy"), shared(), rtol=1e-6)


def shared():
    """Products of rows that all devices share, and within a shard_map."""
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 7), (7, 5)))
    mesh = meshes.device_mesh()
    split = jax.sharding.PartitionSpec(meshes.DEVICES)
    mapped = jax.shard_map(lambda x: jnp.sin(x @ w), mesh=mesh, in_specs=split, out_specs=split)
    with jaxguard.precision("bfloat16"):
        return np.stack([programs.jit(mapped)(x), np.sin(programs.matmul(meshes.spread(x), w))])


def test_the_page_shows_what_was_measured(tmp_path, monkeypatch):
    result = json.loads((EXPERIMENTS / "results" / "precision.json").read_text())
    monkeypatch.setattr(precision_table, "PAGE", tmp_path / "page.md")
    shown = (EXPERIMENTS.parent / "docs" / "accelerators.md").read_text()
    (tmp_path / "page.md").write_text(shown)
    precision_table.write(result)
    assert (tmp_path / "page.md").read_text() == shown
    assert f"{result['parts']['clp']['decisions']:,} channels" in shown


if __name__ == "__main__":
    np.save(sys.argv[1], shared())


def test_a_program_too_large_for_the_device_is_one_clear_error(monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError(f"{reason}: ran out of memory in memory space hbm.\nmore")

    program = programs.jit(jnp.dot)
    monkeypatch.setattr(program, "_plain", full)
    reason = "RESOURCE_EXHAUSTED"
    message = (
        r"within the [\d.]+ GB of a device, got one .*RESOURCE_EXHAUSTED: ran out of memory .* hbm.\) in dot; lower"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        program(1.0, 2.0)
    reason = "INTERNAL"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        program(1.0, 2.0)
