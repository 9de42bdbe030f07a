"""OTBR against its published loop, what its flags change, and what it refuses."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import zoo

from jaxguard import models, weight_change
from jaxguard.defenses import Data
from jaxguard.defenses.otbr import choose, otbr, repairs
from jaxguard.errors import DefenseError, OptionError
from jaxguard.inversion import synthesise
from jaxguard.repairs import relative_change
from jaxguard.weight_change import rank

KEY = jax.random.key(0)
PARITY = {
    "layers": "convolutions",
    "exclude": "shortcut",
    "decimals": 4,
    "chain": "parameter_order",
    "canonical": False,
    "solver": "exact",
}
QUICK = {"steps": 2, "batch_size": 8}


@functools.cache
def of(name):
    apply_fn, variables, images = zoo.case(name)
    return zoo.network(apply_fn, variables, images), variables


def leaf(variables, path):
    for part in path.split("/"):
        variables = variables[part]
    return np.asarray(variables, np.float64)


def oit(kernel):
    """`[out, in, taps]`."""
    return kernel.reshape(-1, *kernel.shape[2:]).transpose(2, 1, 0)


# ---------------------------------------------------------------- the published loop


def reference(kernels, scores, gamma, weight):
    """Stages 1 (its end) and 2 as written down, in NumPy with POT's plans; kernels `[o, i, taps]`.

    Plans are not unique where several channels are pruned, so mass is spread evenly over these.
    """
    flat = np.concatenate(scores)
    order = sorted(range(len(flat)), key=lambda k: -flat[k])[: int(gamma * len(flat))]
    masks = np.split(np.isin(np.arange(len(flat)), order), np.cumsum([len(s) for s in scores])[:-1])
    first = next(k for k, mask in enumerate(masks) if mask.any())
    fused, columns = list(kernels), np.eye(kernels[first].shape[1])
    for k in range(first, len(kernels)):
        theirs, mask, wanted = kernels[k], masks[k], scores[k] / scores[k].sum()
        ours = np.where(mask[:, None, None], 0, theirs)
        moved = np.einsum("oit,ij->ojt", ours, columns)
        gaps = ours.reshape(len(ours), 1, -1) - theirs.reshape(1, len(theirs), -1)
        plan = ot.emd(np.full(len(ours), 1 / len(ours)), wanted, np.linalg.norm(gaps, axis=-1))
        if mask.any():
            plan[mask] = plan[mask].mean(0)
        # A rounded NWC of zero would divide by zero; such a channel is the nearest of the pruned model, mostly itself.
        empty = wanted == 0
        columns = plan / np.where(empty, 1, wanted)
        columns[:, empty] = np.eye(len(ours))[:, empty]
        fused[k] = weight * np.einsum("ij,i...->j...", columns, moved) + (1 - weight) * theirs
    return masks, fused


def test_with_the_reference_s_flags_it_is_the_published_loop():
    network, variables = of("preactresnet18:width=0.125")
    flags = {**PARITY, "canonical": True}
    repaired, report = otbr(network, Data(), KEY, gamma=0.1, **flags, **QUICK)
    graph = network.graph
    paths = [graph.producer(layer.name).kernel.path for layer in report.layers]
    assert len(paths) == 17
    kernels = [oit(leaf(variables, path)) for path in paths]
    scores = [layer.scores.astype(np.float64) for layer in report.layers]
    masks, fused = reference(kernels, scores, 0.1, 0.5)
    assert not any(mask[score == 0].any() for mask, score in zip(masks, scores, strict=True))
    for path, layer, mask, expected in zip(paths, report.layers, masks, fused, strict=True):
        np.testing.assert_array_equal(layer.mask, mask)
        np.testing.assert_allclose(oit(leaf(repaired.variables, path)), expected, rtol=1e-3, atol=2e-4, err_msg=path)
    assert relative_change(variables, repaired.variables).keys() <= set(paths)


def test_rounding_and_the_plans_of_pot_are_flags():
    network, _ = of("cnn")
    _, report = otbr(network, Data(), KEY, gamma=0.1, **PARITY, **QUICK, label_high=9)
    for layer in report.layers:
        np.testing.assert_array_equal(layer.scores, np.round(layer.scores, 4))
    assert [layer.name for layer in report.layers] == [f"conv{k}" for k in range(1, 7)]


# ---------------------------------------------------------------- what it does


def test_all_values_of_gamma_at_once_are_each_alone():
    network, variables = of("cnn")
    graph = network.graph
    moved = jax.tree.map(lambda x, y: x + 0.01 * y, variables, zoo.randomise(shapes_of(variables), seed=3))
    ranking = rank(graph, variables, moved)
    gammas = (0.0, 0.05, 0.2)
    together = repairs(network, ranking, gammas)
    for gamma, one in zip(gammas, together, strict=True):
        (alone,) = repairs(network, ranking, [gamma])
        jax.tree.map(np.testing.assert_array_equal, one.variables, alone.variables)
        assert one.gamma == gamma and bool(one.alignments) == (gamma > 0)
    jax.tree.map(np.testing.assert_array_equal, together[0].variables, variables)


def shapes_of(variables):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)


def test_channels_of_sets_that_lost_none_stay():
    """In the dataflow only the pruned channels' sets are carried over, biases and norms with them."""
    network, variables = of("cnn")
    graph = network.graph

    def bump(path, x):
        is_moved = "conv3/kernel" in jax.tree_util.keystr(path, simple=True, separator="/")
        return x + np.broadcast_to(np.arange(x.shape[-1], dtype=np.float32), x.shape) if is_moved else x

    moved = jax.tree.map_with_path(bump, variables)
    (repair,) = repairs(network, rank(graph, variables, moved), [0.05])
    assert [alignment.name for alignment in repair.alignments] == ["conv3"]
    changed = relative_change(variables, repair.variables).keys()
    assert {"params/conv3/kernel", "params/bn3/scale", "params/conv4/kernel"} <= changed
    assert not any("conv1" in path or "conv5" in path for path in changed)


def test_a_layer_without_weight_change_is_no_error():
    """Its target masses would be all zero, and a rounded NWC of zero would divide by zero."""
    network, variables = of("cnn")
    ranking = rank(network.graph, variables, variables)
    (repair,) = repairs(network, ranking, [0.2])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(repair.variables))
    scores = [np.where(np.arange(len(s)) == 0, 1.0, 0.0) for s in ranking.scores]
    (repair,) = repairs(network, ranking._replace(scores=scores), [0.01])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(repair.variables))


@pytest.mark.parametrize("solver", ["exact", "sinkhorn"])
def test_solvers_give_nearly_the_same_model(solver):
    network, variables = of("cnn")
    exact, _ = otbr(network, Data(), KEY, gamma=0.1, solver="exact", **QUICK)
    other, _ = otbr(network, Data(), KEY, gamma=0.1, solver=solver, **QUICK)
    images = zoo.images(16, 16, 3)
    logits = [jax.jit(network.apply_fn)(tree, images) for tree in (variables, exact.variables, other.variables)]
    moved = np.abs(logits[1] - logits[0]).max()
    assert np.abs(logits[2] - logits[1]).max() < (1e-4 if solver == "exact" else 0.1) * moved


def test_the_rule_counts_what_moved_three_times_as_far_as_the_median():
    scores = [np.array([1.0, 1.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0, 2.9, 1.0, 9.0])]
    assert choose(scores) == 0.2
    assert choose([np.ones(8)]) == 1 / 8
    assert choose(scores, factor=5.0) == 0.1


def test_a_chosen_gamma_is_reported_with_its_reason():
    network, _ = of("cnn")
    _, report = otbr(network, Data(), KEY, **QUICK)
    cut = sum(int(layer.mask.sum()) for layer in report.layers)
    total = sum(len(layer.mask) for layer in report.layers)
    assert cut == round(report.chosen["gamma"] * total) >= 1
    assert report.notes[0].startswith(f"gamma = {report.chosen['gamma']:.3g} was chosen without images: in {cut} of")
    assert "No training mode is known" in report.notes[1]


def test_noise_of_another_size_and_labels_are_what_is_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr(
        weight_change,
        "unlearn_noise",
        lambda network, key, *, image_shape, num_labels, **_: (
            seen.append((image_shape, num_labels))
            or weight_change.Unlearned(network.variables, np.zeros(1), np.zeros(0))
        ),
    )
    network, _ = of("cnn")
    otbr(network, Data(), KEY, gamma=0.0)
    otbr(network, Data(), KEY, gamma=0.0, noise_size=32, label_high=9)
    assert seen == [((16, 16, 3), None), ((32, 32, 3), 9)]


# ---------------------------------------------------------------- statistics


def with_training():
    model = models.build("cnn:width=0.25", num_classes=10, input_shape=(8, 8, 1))
    variables = model.init(KEY)
    return zoo.network(model.apply_fn, variables, jnp.zeros((1, 8, 8, 1)), model.train_fn), variables


def test_statistics_estimated_anew_are_those_of_synthesised_images_and_parameters_stay(monkeypatch):
    module = importlib.import_module("jaxguard.defenses.otbr")
    monkeypatch.setattr(module, "IMAGES_PER_CLASS", 2)
    monkeypatch.setattr(module, "synthesise", functools.partial(synthesise, steps=20))
    network, variables = with_training()
    options = {**QUICK, "gamma": 0.1, "weight": 1.0}
    stored, _ = otbr(network, Data(), KEY, **options)
    anew, report = otbr(network, Data(), KEY, statistics="synthesised", **options)
    same = jax.tree.map(np.array_equal, stored.variables["params"], anew.variables["params"])
    assert jax.tree.all(same)
    made = synthesise(
        network.graph, variables, jax.random.fold_in(KEY, 1), labels=np.repeat(np.arange(10), 2), steps=20
    )
    first = jax.lax.conv_general_dilated(
        made.images,
        stored.variables["params"]["conv1"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = anew.variables["batch_stats"]["bn1"]
    np.testing.assert_allclose(found["mean"], first.mean((0, 1, 2)), atol=0.01 * float(first.std()))
    np.testing.assert_allclose(found["var"], first.var((0, 1, 2)), rtol=0.05, atol=0.01)
    assert "re-estimated on 20 synthesised images" in report.notes[-1]


def test_statistics_cannot_be_estimated_without_a_training_mode():
    network, _ = of("cnn")
    with pytest.raises(DefenseError, match=r"expected a network with a training mode.*statistics='stored'"):
        otbr(network, Data(), KEY, gamma=0.1, statistics="synthesised", **QUICK)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 1.5), ("weight", -0.1), ("steps", 0), ("layers", "all"), ("factor", 0.0), ("statistics", "noise")],
)
def test_bad_options_are_refused(name, value):
    network, _ = of("cnn")
    with pytest.raises(OptionError, match=f"expected .* for {name} of otbr, got {value!r}"):
        otbr(network, Data(), KEY, **{name: value})


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(DefenseError, match=r"expected label_high <= 10, .* got 11"):
        otbr(of("cnn")[0], Data(), KEY, label_high=11)
