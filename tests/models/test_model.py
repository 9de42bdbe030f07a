"""Pure functions of a model: shapes, modes, normalisation, compute dtype, initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import export

from jaxguard import models
from jaxguard.errors import DataError
from jaxguard.models import layouts

CIFAR = (32, 32, 3)
SPECS = [f"{name}:width=0.0625" for name in zoo.kinds()]
SPECS += ["wideresnet-10-2:width=0.5", "vgg11:width=0.0625,classifier=torchvision", "mlp:hidden=8"]


def small(spec: str = "cnn:width=0.25", **options) -> models.Model:
    return models.build(spec, **{"num_classes": 10, "input_shape": (8, 8, 3), **options})


def images_for(model: models.Model, batch: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, *model.input_shape))


@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_of_architecture_gives_logits_in_both_modes(spec):
    model = models.build(spec, num_classes=7, input_shape=(32, 36, 1))
    images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    logits = jax.eval_shape(model.apply_fn, model.shapes(), images)
    train_logits, variables = jax.eval_shape(model.train_fn, model.shapes(), images)
    assert logits == train_logits == jax.ShapeDtypeStruct((2, 7), jnp.float32)
    assert variables == model.shapes()


@pytest.mark.parametrize(
    "spec", ["cnn:width=0.25", "resnet20:width=0.25", "preactresnet18:width=0.0625", "mlp:hidden=8"]
)
def test_images_of_a_batch_are_judged_one_by_one(spec):
    model = small(spec)
    variables, images = model.init(jax.random.key(0)), images_for(model)
    logits = jax.jit(model.apply_fn)(variables, images)
    alone = jax.jit(model.apply_fn)(variables, images[2:3])
    assert np.ptp(logits) > 1e-3
    np.testing.assert_allclose(alone[0], logits[2], rtol=1e-4, atol=1e-5)


def test_training_mode_moves_the_running_statistics_only():
    model = small()
    variables, images = model.init(jax.random.key(0)), images_for(model)
    _, updated = model.train_fn(variables, images)
    assert all(
        new is old for new, old in zip(*map(jax.tree.leaves, (updated["params"], variables["params"])), strict=True)
    )
    moved = jax.tree.map(lambda new, old: np.any(new != old), updated["batch_stats"], variables["batch_stats"])
    assert jax.tree.all(moved)


def test_running_statistics_follow_the_batch_with_momentum():
    model = small()
    variables, images = model.init(jax.random.key(0)), images_for(model)
    _, updated = jax.jit(model.train_fn)(variables, images)
    stem = jax.lax.conv_general_dilated(
        images, variables["params"]["conv1"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    statistics = updated["batch_stats"]["bn1"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * np.mean(stem, (0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * np.var(stem, (0, 1, 2)), rtol=1e-4)


def test_a_model_without_running_statistics_trains():
    model = small("mlp:hidden=8")
    variables = model.init(jax.random.key(0))
    logits, updated = model.train_fn(variables, images_for(model))
    np.testing.assert_array_equal(logits, model.apply_fn(variables, images_for(model)))
    assert updated.keys() == {"params"}


def test_normalization_happens_inside():
    plain, normalized = small(), small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    variables, images = plain.init(jax.random.key(0)), images_for(plain)
    by_hand = (images - np.float32([[[[0.1, 0.2, 0.3]]]])) / np.float32([[[[0.5, 0.6, 0.7]]]])
    np.testing.assert_allclose(
        normalized.apply_fn(variables, images), plain.apply_fn(variables, by_hand), rtol=1e-5, atol=1e-6
    )


def test_bfloat16_computes_close_to_float32(usual_promotion):  # Flax promotes in its norms
    model, half = small(), small(dtype="bfloat16")
    variables, images = model.init(jax.random.key(0)), images_for(model)
    logits, updated = half.train_fn(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((half.shapes(), updated, logits))} == {np.dtype(np.float32)}
    exact = model.train_fn(variables, images)[0]
    assert 0 < np.max(np.abs(logits - exact)) < 0.05 * np.max(np.abs(exact))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8, 1), np.float32), r"expected images \[B, 8, 8, 3\] for cnn.*, got \[4, 8, 8, 1\]"),
        (np.zeros((8, 8, 3), np.float32), r"got \[8, 8, 3\]"),
        (np.zeros((4, 8, 8, 3), np.uint8), "expected floating-point images .* got uint8; .*255"),
    ],
)
def test_unfit_images_are_refused(images, message, traced):
    model = small()
    apply_fn = jax.jit(model.apply_fn) if traced else model.apply_fn
    with pytest.raises(DataError, match=message):
        apply_fn(model.init(jax.random.key(0)), images)


def test_images_too_small_for_the_pools_are_refused():
    with pytest.raises(DataError, match=r"expected at least 2x2 pixels at a max-pool, got 1x1"):
        models.build("vgg11", num_classes=10, input_shape=(28, 28, 1)).shapes()


def test_initial_weights_depend_on_the_key_only():
    model = small()
    first, again = model.init(jax.random.key(3)), small().init(jax.random.key(3))
    other = model.init(jax.random.key(4))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model.shapes()
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    kernels = [np.asarray(variables["params"]["conv4"]["kernel"]) for variables in (first, other)]
    assert np.all(kernels[0] != kernels[1])
    assert np.all(kernels[0] != first["params"]["conv3"]["kernel"][:, :, :1, :])


def test_initial_weights_have_the_stated_scale():
    leaves = layouts.by_path(
        models.build("preactresnet18:width=0.25", num_classes=10, input_shape=CIFAR).init(jax.random.key(0))
    )
    for path, leaf in leaves.items():
        if leaf.ndim == 4:
            assert np.std(leaf) == pytest.approx(
                np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3])), rel=0.05
            ), path
    assert np.std(leaves["params/linear/kernel"]) == pytest.approx(np.sqrt(1 / 128), rel=0.1)
    assert all(np.all(np.asarray(leaf) == 1) for path, leaf in leaves.items() if path.endswith(("scale", "var")))
    assert all(np.all(np.asarray(leaf) == 0) for path, leaf in leaves.items() if path.endswith(("bias", "mean")))


@pytest.mark.parametrize(
    ("spec", "block", "order"),
    [
        ("preactresnet18", "layer2_0", ["bn1", "conv1", "bn2", "conv2", "shortcut_0"]),
        ("resnet18", "layer2_0", ["conv1", "bn1", "conv2", "bn2", "shortcut_0", "shortcut_1"]),
        ("wideresnet-16-1", "block2_layer_0", ["bn1", "conv1", "bn2", "conv2", "convShortcut"]),
    ],
)
def test_blocks_call_their_layers_in_torch_registration_order(spec, block, order):
    model = models.build(spec, num_classes=10, input_shape=CIFAR)
    paths = list(layouts.by_path(model.shapes()))
    images = jax.ShapeDtypeStruct((1, *CIFAR), jnp.float32)
    jaxpr = jax.make_jaxpr(model.apply_fn)(model.shapes(), images).jaxpr
    path_of = {str(variable): path for variable, path in zip(jaxpr.invars, paths, strict=False)}
    atoms = [str(atom) for equation in jaxpr.eqns for atom in equation.invars]
    read = [path_of[atom] for atom in atoms if atom in path_of]
    layers = [path.split("/")[2] for path in read if path.startswith(f"params/{block}/")]
    assert list(dict.fromkeys(layers)) == order


def test_models_are_hashable_and_compare_by_value():
    assert len({small(), small(), small(num_classes=3), small(dtype="bfloat16")}) == 3


def test_shapes_cannot_be_corrupted_by_a_caller():
    small().shapes()["params"].clear()
    assert small().shapes()["params"]


def test_models_lower_for_every_backend():
    model = small("resnet20:width=0.25")
    images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    exported = export.export(jax.jit(model.apply_fn), platforms=["cpu", "cuda", "tpu"])(model.shapes(), images)
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_networks_of_equal_models_share_graph_and_programs():
    traces = []

    @jax.jit
    def logits(network, images):
        traces.append(network.apply_fn)
        return network(images)

    one, other = (models.build("cnn:width=0.25", num_classes=3, input_shape=(16, 16, 1)) for _ in range(2))
    assert one is not other
    networks = [model.network(model.init(jax.random.key(seed))) for seed, model in enumerate((one, other))]
    for network in networks:
        logits(network, jnp.zeros((2, 16, 16, 1)))
    assert len(traces) == 1
    assert networks[0].graph is networks[1].graph
    wider = models.build("cnn:width=0.5", num_classes=3, input_shape=(16, 16, 1))
    assert wider.network(wider.shapes()).graph is not networks[0].graph
