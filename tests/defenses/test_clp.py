import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo
from flax import linen as nn
from safetensors.numpy import load_file

from jaxguard import models
from jaxguard.defenses.clp import clp
from jaxguard.errors import OptionError, UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.kernels import lipschitz
from jaxguard.repairs import relative_change
from jaxguard.scores.channel_bounds import channel_bounds, layer_scores
from jaxguard.types import Network

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "clp_torch.npz"
SPECS = ["preactresnet18:width=0.125", "resnet18:width=0.125", "wideresnet-16-1:width=0.5", "vgg11:width=0.125"]


@functools.cache
def bundled(spec, size=32):
    model = models.build(spec, num_classes=10, input_shape=(size, size, 3))
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return model, zoo.randomise(model.shapes()), channel_graph(model.apply_fn, model.shapes(), images)


def run(graph, variables, **options):
    """The repaired variables and the report."""
    program = graph.program
    image = jax.ShapeDtypeStruct(program.shapes[program.images][1:], program.dtypes[program.images])
    repaired, report = clp(Network(variables, graph.apply_fn, image), **options)
    return repaired.variables, report


@functools.cache
def of(name):
    apply_fn, variables, images = zoo.case(name)
    return apply_fn, variables, images, zoo.graph(name)


def put(variables, path, channel, value):
    """The variables with one channel (last axis) of a leaf set."""
    *parents, leaf = path.split("/")
    copy = jax.tree.map(np.array, variables)
    functools.reduce(lambda tree, name: tree[name], parents, copy)[leaf][..., channel] = value
    return copy


# ---------------------------------------------------------------- an independent reference, from the definition


def registration_order(spec):
    """Convolutions and BatchNorms (torch names) in the order in which the published networks register them."""
    name = spec.partition(":")[0]
    if name.startswith("vgg"):
        convolutions = [0, 4, 8, 11, 15, 18, 22, 25]  # torchvision's indices for VGG-11
        return [f"features.{index + after}" for index in convolutions for after in (0, 1)]
    if name.startswith("wide"):
        order = ["conv1"]
        for stage, block in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)):
            inside = ["bn1", "conv1", "bn2", "conv2", *["convShortcut"] * (stage > 1 and block == 0)]
            order += [f"block{stage}.layer.{block}.{layer}" for layer in inside]
        return [*order, "bn1"]
    preact = name.startswith("preact")
    order = ["conv1"] if preact else ["conv1", "bn1"]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            inside = ["bn1", "conv1", "bn2", "conv2"] if preact else ["conv1", "bn1", "conv2", "bn2"]
            if stage > 1 and block == 0:
                inside += ["shortcut.0"] if preact else ["shortcut.0", "shortcut.1"]
            order += [f"layer{stage}.{block}.{layer}" for layer in inside]
    return order


def sigma(leaves, name):
    """One float64 SVD per channel of an OIHW kernel, split into fan-in and taps."""
    return np.array([np.linalg.svd(w.reshape(len(w), -1).astype(np.float64))[1][0] for w in leaves[f"{name}.weight"]])


def bound(leaves, incoming, norm):
    scale = np.abs(leaves[f"{norm}.weight"].astype(np.float64)) / np.sqrt(leaves[f"{norm}.running_var"])
    return scale * np.max([sigma(leaves, name) for name in incoming], axis=0)


def reference_by_module_order(spec, leaves):
    result, last = {}, None
    for name in registration_order(spec):
        if f"{name}.running_var" in leaves:
            result[f"{last} -> {name}"] = bound(leaves, [last], name)
        else:
            last = name
    return result


def reference_by_dataflow(spec, leaves):
    """Of the pre-activation networks: a norm is reached by everything that was summed since the last shortcut."""
    stream, result = ["conv1"], {}
    names = registration_order(spec)
    for block in dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name and "shortcut" not in name):
        result[f"{block}.bn1"] = bound(leaves, stream, f"{block}.bn1")
        result[f"{block}.bn2"] = bound(leaves, [f"{block}.conv1"], f"{block}.bn2")
        shortcut = [name for name in names if name in (f"{block}.shortcut.0", f"{block}.convShortcut")]
        stream = [f"{block}.conv2", *(shortcut or stream)]
    if "bn1" in names:
        result["bn1"] = bound(leaves, stream, "bn1")
    else:
        result[stream[0]] = sigma(leaves, stream[0])
    return result


def assert_parity(bounds, expected):
    """Scores agree to 1e-5, and cuts wherever a score is farther than that from its threshold."""
    for u in (0.5, 1.0, 2.0, 3.0):
        for layer, wanted in zip(layer_scores(bounds, u), expected, strict=True):
            np.testing.assert_allclose(layer.scores, wanted, rtol=1e-5)
            tau = wanted.mean() + u * wanted.std(ddof=1)
            np.testing.assert_allclose(layer.threshold, tau, rtol=1e-5)
            clear = np.abs(wanted - tau) > 1e-5 * tau
            np.testing.assert_array_equal(layer.mask[clear], (wanted > tau)[clear])
            assert clear.mean() > 0.9


@pytest.mark.parametrize("spec", SPECS)
def test_module_order_is_the_published_loop(spec):
    model, variables, graph = bundled(spec)
    expected = reference_by_module_order(spec, models.unbind(model, variables, "torch"))
    bounds = channel_bounds(graph, variables, pairing="module_order")
    assert [layer.name.replace("/", ".").replace("_", ".") for layer in bounds.layers] == list(expected)
    assert_parity(bounds, list(expected.values()))


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[2]])
def test_dataflow_takes_the_largest_of_what_is_summed(spec):
    model, variables, graph = bundled(spec)
    expected = reference_by_dataflow(spec, models.unbind(model, variables, "torch"))
    bounds = channel_bounds(graph, variables)
    names = [layer.name.rpartition(" -> ")[2].replace("/", ".").replace("_", ".") for layer in bounds.layers]
    assert names == list(expected)
    assert_parity(bounds, list(expected.values()))


@pytest.mark.parametrize("spec", [SPECS[1], SPECS[3]])
def test_without_sums_before_the_norms_both_pairings_agree(spec):
    _, variables, graph = bundled(spec)
    by_flow, by_order = (channel_bounds(graph, variables, pairing=how) for how in ("dataflow", "module_order"))
    assert [layer.name for layer in by_flow.layers] == [layer.name for layer in by_order.layers]
    for a, b in zip(by_flow.scores, by_order.scores, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spec", SPECS)
def test_torch_computed_the_same(spec):
    """Golden numbers of torch 2.13, one SVD per channel; see tests/golden/README.md."""
    golden = np.load(GOLDEN)
    model, variables, graph = bundled(spec)
    leaves = models.unbind(model, variables, "torch")
    weights = sum(np.abs(leaf).sum(dtype=np.float64) for leaf in leaves.values())
    np.testing.assert_allclose(weights, golden[f"{spec}/weights"], rtol=1e-12, err_msg="numpy draws other weights")
    bounds = channel_bounds(graph, variables, pairing="module_order")
    names = [layer.name.replace("/", ".").replace("_", ".") for layer in bounds.layers]
    assert names == golden[f"{spec}/layers"].tolist()
    scores = golden[f"{spec}/scores"]
    np.testing.assert_allclose(np.concatenate(bounds.scores), scores, rtol=1e-5)
    for u, mask in zip(golden["u"], golden[f"{spec}/masks"], strict=True):
        found = layer_scores(bounds, u)
        tau = np.concatenate([np.full(len(layer.scores), layer.threshold) for layer in found])
        clear = np.abs(scores - tau) > 1e-5 * tau
        np.testing.assert_array_equal(np.concatenate([layer.mask for layer in found])[clear], mask[clear])
        assert mask.any() or u == 3


def test_bounds_of_a_third_party_wideresnet(shared_data):
    leaves = load_file(shared_data / "checkpoints" / "c10_bd_wrn16_nad_student.safetensors")
    model = models.infer("wideresnet-16-1", leaves)
    variables, _ = models.bind(model, leaves)
    graph = channel_graph(model.apply_fn, variables, jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    for how, reference in (("module_order", reference_by_module_order), ("dataflow", reference_by_dataflow)):
        expected = reference(model.spec, leaves)
        assert_parity(channel_bounds(graph, variables, pairing=how), list(expected.values()))


# ---------------------------------------------------------------- what is scored


def test_concatenated_channels_are_scored_at_their_offsets():
    _, variables, _, graph = of("densenet")
    *_, last = channel_bounds(graph, variables).scores
    kernels = [variables["params"][f"Conv_{k}"]["kernel"] for k in range(4)]
    norms = [np.linalg.norm(np.asarray(k, np.float64).reshape(9, -1, k.shape[-1]), 2, (0, 1)) for k in kernels]
    norm = variables["params"]["BatchNorm_3"], variables["batch_stats"]["BatchNorm_3"]
    expected = np.concatenate(norms) * np.abs(norm[0]["scale"]) / np.sqrt(norm[1]["var"])
    np.testing.assert_allclose(last, expected, rtol=1e-5)


def test_a_depthwise_bound_is_the_length_of_its_kernel():
    _, variables, _, graph = of("mobile")
    bounds = channel_bounds(graph, variables)
    (score,) = [s for s, layer in zip(bounds.scores, bounds.layers, strict=True) if layer.name.startswith("Conv_2 ->")]
    length = np.linalg.norm(np.reshape(variables["params"]["Conv_2"]["kernel"], (9, 24)), axis=0)
    scale = variables["params"]["BatchNorm_2"]["scale"] / variables["batch_stats"]["BatchNorm_2"]["var"] ** 0.5
    np.testing.assert_allclose(score, length * np.abs(scale), rtol=1e-5)


def test_a_norm_over_heads_and_dims_is_read_in_the_order_of_the_channels():
    shapes = {"w": (6, 2, 4), "scale": (4, 2), "var": (4, 2), "bias": (4, 2), "head": (8, 3)}
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})

    @zoo.usual
    def apply_fn(v, x):
        x = jnp.einsum("bi,ihd->bhd", x, v["w"]) / jnp.sqrt(v["var"].T + 1e-5) * v["scale"].T + v["bias"].T
        return jax.nn.relu(x).reshape(len(x), -1) @ v["head"]

    graph = channel_graph(apply_fn, variables, zoo.images(6))
    bounds = channel_bounds(graph, variables)
    expected = np.linalg.norm(variables["w"], axis=0) * np.abs(variables["scale"].T) / np.sqrt(variables["var"].T)
    np.testing.assert_allclose(bounds.scores[0], expected.reshape(-1), rtol=1e-5)
    repaired, report = run(graph, variables, u=0.5)
    mask = report.layers[0].mask.reshape(2, 4).T
    assert mask.any()
    for leaf in ("scale", "bias"):
        np.testing.assert_array_equal(repaired[leaf], np.where(mask, 0, variables[leaf]))


def convolution(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_folded_norm_is_found_with_its_bias():
    shapes = {"w": (3, 3, 3, 8), "scale": (8,), "var": (8,), "mean": (8,), "bias": (8,), "head": (8, 3)}
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})

    @zoo.usual
    def hidden(v, x):
        m = v["scale"] * jax.lax.rsqrt(v["var"] + 1e-5)
        return jax.nn.relu(convolution(x, v["w"]) * m + (v["bias"] - v["mean"] * m)).mean((1, 2))

    images = zoo.images(8, 8, 3)
    graph = channel_graph(lambda v, x: hidden(v, x) @ v["head"], variables, images)
    repaired, report = run(graph, variables, u=0.5)
    (layer,) = report.layers
    assert layer.mask.any() and (np.abs(hidden(variables, images)).max(0)[layer.mask] > 0).any()
    np.testing.assert_array_equal(hidden(repaired, images)[:, layer.mask], 0)


@pytest.mark.parametrize("gain_shape", [(), (1,)])
def test_a_gain_that_all_channels_share_is_no_norm(gain_shape, usual_promotion):
    shapes = {"w": (3, 3, 3, 8), "gain": gain_shape, "head": (8, 3)}
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})

    def apply_fn(v, x):
        return jax.nn.relu(v["gain"] * convolution(x, v["w"])).mean((1, 2)) @ v["head"]

    graph = channel_graph(apply_fn, variables, zoo.images(8, 8, 3))
    repaired, report = run(graph, variables, u=0.5)
    assert [layer.name for layer in report.layers] == ["w"]
    assert report.layers[0].mask.any()
    np.testing.assert_array_equal(repaired["gain"], variables["gain"])


@pytest.mark.parametrize(("name", "head"), [("mlp", "linear"), ("vit", "Dense_4"), ("cnn", "linear")])
def test_without_a_norm_the_scale_is_one_and_the_output_layer_is_left_alone(name, head):
    _, variables, _, graph = of(name)
    repaired, report = run(graph, variables, u=0.0)
    kernels = dict(zip([p.name for p in graph.producers], graph.kernels(variables), strict=True))
    plain = [layer for layer in report.layers if " -> " not in layer.name]
    assert bool(plain) == (name != "cnn")
    for layer in plain:
        expected = np.linalg.norm(np.asarray(kernels[layer.name], np.float64), 2, (1, 2))
        np.testing.assert_allclose(layer.scores, expected, rtol=1e-5)
        assert layer.mask.any()
    assert head in kernels and head not in {layer.name for layer in report.layers}
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(repaired["params"][head][leaf], variables["params"][head][leaf])


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_kind_of_model_is_scored_and_repaired(name):
    apply_fn, variables, images, graph = of(name)
    repaired, report = run(graph, variables, u=1.0)
    assert all(np.isfinite(layer.scores).all() and (layer.scores > 0).all() for layer in report.layers)
    assert sum(layer.mask.sum() for layer in report.layers) > 0
    logits = jax.jit(apply_fn)
    assert np.isfinite(logits(repaired, images)).all()
    assert np.abs(logits(repaired, images) - logits(variables, images)).max() > 0


def test_nothing_to_score_is_an_error():
    linear = channel_graph(lambda v, x: x @ v, jnp.ones((3, 2)), jnp.ones((1, 3)))
    with pytest.raises(UnscorableError, match="expected a hidden convolution"):
        run(linear, jnp.ones((3, 2)))
    _, variables, _, graph = of("mlp")
    with pytest.raises(UnscorableError, match="expected a BatchNorm"):
        run(graph, variables, pairing="module_order")


def test_repeated_scans_are_traced_once(monkeypatch):
    jax.clear_caches()  # other tests share the network
    counted = tiny.Counted(lipschitz.spectral_norms)
    monkeypatch.setattr(lipschitz, "spectral_norms", counted)
    apply_fn, variables, images = zoo.case("mlp")
    graph = channel_graph(apply_fn, variables, images)
    for factor in (1.0, 2.0, 3.0):
        for u in (1.0, 3.0):
            run(graph, jax.tree.map(lambda x, factor=factor: x * factor, variables), u=u)
    assert counted.calls == 1


# ---------------------------------------------------------------- channels that are dead, broken or undefined


def test_a_dead_channel_scores_zero_and_is_noted():
    _, variables, _, graph = of("cnn")
    for path in ("params/conv3/kernel", "params/bn3/scale"):
        dead = put(variables, path, 5, 0)
        _, report = run(graph, dead)
        layer = report.layers[2]
        assert layer.scores[5] == 0 and not layer.undefined.any() and not layer.mask[5]
        assert any("1 dead channels score 0" in note for note in report.notes)
        np.testing.assert_allclose(layer.threshold, layer.scores.mean() + 3 * layer.scores.std(ddof=1), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("variance", [0.0, -1.0])
def test_a_channel_without_variance_has_no_score_and_does_not_disturb_its_layer(variance, scale):
    _, variables, _, graph = of("cnn")
    broken = put(variables, "batch_stats/bn3/var", 5, variance)
    broken = put(broken, "params/bn3/scale", 5, scale)
    repaired, report = run(graph, broken, u=1.0)
    layer = report.layers[2]
    np.testing.assert_array_equal(layer.undefined, np.arange(len(layer.scores)) == 5)
    assert np.isnan(layer.scores[5]) and not layer.mask[5] and layer.mask.any()
    others = np.delete(layer.scores, 5)
    np.testing.assert_allclose(layer.threshold, others.mean() + others.std(ddof=1), rtol=1e-5)
    assert repaired["params"]["bn3"]["scale"][5] == scale
    assert any("1 channels without a positive variance" in n and "conv3 -> bn3" in n for n in report.notes)
    _, report = run(graph, put(variables, "batch_stats/bn3/var", 5, 0.0), eps=1e-5)
    assert not any(layer.undefined.any() for layer in report.layers)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_not_finite_are_named(bad):
    _, variables, _, graph = of("cnn")
    for path in ("batch_stats/bn1/mean", "params/conv2/kernel", "params/linear/kernel"):
        with pytest.raises(UnscorableError, match=rf"in leaf '{path}' and 0 others"):
            run(graph, put(variables, path, 1, bad))
    broken = put(
        put(put(variables, "params/conv4/kernel", 1, bad), "params/bn2/bias", 0, bad), "params/bn4/bias", 0, bad
    )
    with pytest.raises(UnscorableError, match=r"in leaf 'params/bn2/bias' and 2 others; .*load the checkpoint again"):
        run(graph, broken)


@pytest.mark.parametrize("options", [{"u": -1.0}, {"u": np.nan}, {"eps": -1e-5}, {"eps": np.nan}, {"pairing": "order"}])
def test_options_that_make_no_sense_are_refused(options):
    _, variables, _, graph = of("mlp")
    ((name, value),) = options.items()
    with pytest.raises(OptionError, match=f"expected .* for {name} of clp, got {value!r}"):
        run(graph, variables, **options)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_it_can_be_compiled(name):
    apply_fn, variables, images, _ = of(name)
    network = zoo.network(apply_fn, variables, images)
    repaired = jax.jit(lambda network: clp(network, u=1.0)[0])(network)
    expected, report = clp(network, u=1.0)
    assert sum(layer.mask.sum() for layer in report.layers) > 0
    jax.tree.map(np.testing.assert_array_equal, repaired.variables, expected.variables)


class Norms(nn.Module):
    """A norm without bias, and one without scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True, use_bias=False)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.BatchNorm(use_running_average=True, use_scale=False)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


def test_a_norm_without_a_scale_is_scored_and_cut_before_it():
    apply_fn, variables, images = zoo.linen(Norms(), 8, 8, 3)
    graph = channel_graph(apply_fn, variables, images)
    _, second = channel_bounds(graph, variables).scores
    kernel = np.asarray(variables["params"]["Conv_1"]["kernel"], np.float64).reshape(9, 8, 8)
    expected = np.linalg.norm(kernel, 2, (0, 1)) / np.sqrt(variables["batch_stats"]["BatchNorm_1"]["var"])
    np.testing.assert_allclose(second, expected, rtol=1e-5)
    repaired, report = run(graph, variables, u=0.5)
    gates = {one.name: jnp.asarray(~layer.mask) for one, layer in zip(graph.producers, report.layers, strict=False)}
    np.testing.assert_allclose(apply_fn(repaired, images), graph.run(variables, images, gates), rtol=1e-5, atol=1e-6)
    assert not any(layer.mask.any() for layer in run(graph, variables, u=3.0)[1].layers)


def test_an_infinite_bound_is_cut_and_does_not_move_the_threshold():
    _, variables, _, graph = of("cnn")
    blown = put(put(variables, "params/conv3/kernel", 5, 3e38), "params/bn3/scale", 5, 3e38)
    layer = run(graph, blown)[1].layers[2]
    assert np.isinf(layer.scores[5]) and layer.mask[5] and not layer.undefined[5] and np.isfinite(layer.threshold)


# ---------------------------------------------------------------- cutting


def planted(spec, layer, factor):
    """A network of equally strong channels, in which one convolution channel is blown up."""
    model, variables, graph = bundled(spec, 16)

    def level(path, leaf):
        if path[-1].key in ("scale", "var"):
            return jnp.ones_like(leaf)
        if path[-1].key != "kernel":
            return leaf
        return leaf / jnp.sqrt((leaf**2).sum(tuple(range(leaf.ndim - 1)), keepdims=True)) * 3

    even = jax.tree.map_with_path(level, variables)
    kernel = np.array(even["params"][layer]["kernel"])
    kernel[..., 7] *= factor
    return model, put(even, f"params/{layer}/kernel", slice(None), kernel), graph


def test_a_planted_channel_is_cut_and_no_other():
    model, variables, graph = planted("cnn", "conv6", 4.0)
    repaired, report = run(graph, variables)
    assert {layer.name: np.flatnonzero(layer.mask).tolist() for layer in report.layers if layer.mask.any()} == {
        "conv6 -> bn6": [7]
    }
    assert relative_change(variables, repaired).keys() == {"params/bn6/scale", "params/bn6/bias"}
    for leaf in ("scale", "bias"):
        before, after = variables["params"]["bn6"][leaf], repaired["params"]["bn6"][leaf]
        assert np.flatnonzero(after != before).tolist() == [7] and after[7] == 0
    images = zoo.images(16, 16, 3)
    gate = jnp.ones(len(report.layers[-1].scores)).at[7].set(0)
    np.testing.assert_allclose(
        model.apply_fn(repaired, images), graph.run(variables, images, {"conv6": gate}), rtol=1e-6
    )


@pytest.mark.parametrize("spec", SPECS)
def test_behind_its_norm_a_cut_channel_is_exactly_zero(spec):
    model, variables, graph = bundled(spec)
    repaired, report = run(graph, variables, u=1.0)
    images = zoo.images(32, 32, 3)
    _, state = model.module.apply(repaired, images, capture_intermediates=True, mutable=["intermediates"])
    captured = 0
    for layer in report.layers:
        if " -> " not in layer.name:
            continue
        *parents, norm = layer.name.rpartition(" -> ")[2].split("/")
        found = functools.reduce(lambda tree, name: tree[name], [*parents, norm], state["intermediates"])
        (activations,) = found["__call__"]
        np.testing.assert_array_equal(activations[..., layer.mask], 0)
        assert np.abs(activations[..., ~layer.mask]).max((0, 1, 2)).min() > 0
        captured += layer.mask.sum()
    assert captured > 20


def test_without_a_norm_the_kernel_and_its_bias_are_cut():
    _, variables, _, graph = of("mlp")
    repaired, report = run(graph, variables, u=1.0)
    for layer in report.layers:
        assert layer.mask.any()
        for leaf in ("kernel", "bias"):
            expected = np.where(layer.mask, 0, variables["params"][layer.name][leaf])
            np.testing.assert_array_equal(repaired["params"][layer.name][leaf], expected)


@pytest.mark.parametrize("u", [1e3, np.inf])
def test_a_large_threshold_is_the_identity_and_says_that_nothing_was_cut(u):
    _, variables, _, graph = of("preactresnet18:width=0.125")
    repaired, report = run(graph, variables, u=u)
    for ours, theirs in zip(jax.tree.leaves(repaired), jax.tree.leaves(variables), strict=True):
        assert ours is theirs
    (note,) = report.notes
    assert "nothing was cut" in note and "at most 64 channels no z-score can exceed 7.88" in note


def test_host_arrays_are_repaired_and_stay_as_they_were():
    _, variables, _, graph = of("cnn")
    host = jax.tree.map(np.array, variables)
    for leaf in jax.tree.leaves(host):
        leaf.flags.writeable = False
    repaired, _ = run(graph, host, u=1.0)
    expected, _ = run(graph, variables, u=1.0)
    jax.tree.map(np.testing.assert_array_equal, repaired, expected)
    jax.tree.map(np.testing.assert_array_equal, host, variables)


def test_half_precision_is_scored_in_float32_and_stays_half(usual_promotion):
    apply_fn, variables, images, graph = of("cnn")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)
    repaired, report = run(channel_graph(apply_fn, half, images), half, u=1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype(jnp.bfloat16)}
    expected = channel_bounds(graph, jax.tree.map(lambda x: x.astype(jnp.float32), half))
    for layer, scores in zip(report.layers, expected.scores, strict=True):
        assert layer.scores.dtype == np.float32
        np.testing.assert_allclose(layer.scores, scores, rtol=1e-6)
