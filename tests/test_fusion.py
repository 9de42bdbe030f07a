"""Fusion puts permuted channels back, whatever the architecture, and beats plain averaging where channels differ."""

import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import zoo

from jaxguard import data, evaluation, fusion, models, surgery, suspects, training
from jaxguard.errors import GraphError
from jaxguard.types import Batch, Network

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"
FAMILIES = ["mlp", "wideresnet", "densenet", "vit", "unet", "scanned_layers"]


def of(name):
    apply_fn, variables, images = zoo.case(name)
    network = Network(variables, apply_fn, images.shape[1:])
    return network, variables, images, network.graph


def shuffled(graph, variables, seed=0):
    rng = np.random.default_rng(seed)
    for group in (group for group in graph.groups if group.permutable):
        variables = surgery.permute(variables, group, rng.permutation(group.size))
    return variables


def averaged(a, b):
    return jax.tree.map(lambda x, y: (x + y) / 2, a, b)


# ---------------------------------------------------------------- along the dataflow


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_in_another_order_are_put_back(name):
    """Residual sums, concatenations, heads, flattened maps: `b` is `a` with every group permuted at random."""
    network, variables, _, graph = of(name)
    other = shuffled(graph, variables)
    fused = fusion.fuse(network, network.with_variables(other))
    jax.tree.map(np.testing.assert_array_equal, fused.network.variables, other)
    assert len(fused.alignments) == sum(group.permutable for group in graph.groups)
    for alignment in fused.alignments:
        assert set(np.unique(alignment.columns)) == {0, 1}
        assert alignment.distance < 5e-3 and alignment.converged, alignment.name


def test_a_model_fused_with_itself_stays():
    network, variables, *_ = of("cnn")
    fused = fusion.fuse(network, network, weight=0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fused.network.variables, variables)


def test_weight_goes_from_the_one_model_to_the_other():
    network, variables, images, graph = of("cnn")
    other = network.with_variables(jax.tree.map(lambda x: x * 1.5, shuffled(graph, variables)))
    whole = fusion.fuse(network, other, weight=1.0).network
    np.testing.assert_allclose(whole(images), network(images), atol=1e-4)
    nothing = fusion.fuse(network, other, weight=0.0).network
    jax.tree.map(np.testing.assert_array_equal, nothing.variables, other.variables)


def test_masses_make_mixtures():
    """By hand: channel 0 of `b` wants three quarters, channel 1 is nearest to 1 and wants a quarter."""
    mlp = lambda v, x: jax.nn.relu(x @ v["w1"] + v["b1"][None]) @ v["w2"]  # noqa: E731
    a = {"w1": jnp.array([[4.0, 8.0]]), "b1": jnp.array([1.0, 3.0]), "w2": jnp.array([[10.0], [20.0]])}
    b = {"w1": jnp.array([[4.0, 8.0]]), "b1": jnp.array([1.0, 3.0]), "w2": jnp.array([[0.0], [0.0]])}
    first, second = (Network(variables, mlp, (1,)) for variables in (a, b))
    network, (alignment,) = fusion.fuse(first, second, weight=1.0, target={"w1": np.array([3.0, 1.0])})
    fused = network.variables
    np.testing.assert_allclose(alignment.columns, [[2 / 3, 0], [1 / 3, 1]], rtol=1e-6)
    # a quarter of all mass goes from (8, 3) to (4, 1)
    assert alignment.distance == pytest.approx(0.25 * 20**0.5)
    np.testing.assert_allclose(fused["w1"], [[16 / 3, 8]], rtol=1e-6)
    np.testing.assert_allclose(fused["b1"], [5 / 3, 3], rtol=1e-6)
    np.testing.assert_allclose(fused["w2"], [[40 / 3], [20]], rtol=1e-6)


def test_layers_tied_by_a_sum_share_one_map():
    *_, graph = of("preactresnet18:width=0.125")
    sets = fusion.find_channels(graph)
    streams = [one for one in sets if len(one.rows) > 1]
    assert [len(one.rows) for one in streams] == [3, 3, 3, 3]  # stem and 2 blocks, then shortcut and 2 blocks
    masses = {row.producer: np.arange(1.0, streams[0].size + 1) for row in streams[0].rows}
    named = {graph.producers[number].name: mass for number, mass in masses.items()}
    np.testing.assert_array_equal(fusion.masses_of(graph, streams[0], named), 3 * np.arange(1.0, streams[0].size + 1))
    assert fusion.masses_of(graph, streams[0], {}) is None
    with pytest.raises(GraphError, match=r"expected 8 masses for conv1, got shape \(3,\)"):
        fusion.masses_of(graph, streams[0], {"conv1": np.ones(3)})


# ---------------------------------------------------------------- in parameter order


def reference(kernels_a, kernels_b, masses, weight):
    """OTBR's stage 2 as it is written down, in NumPy, with POT's plans; kernels `[o, i, taps]`."""
    columns, fused = np.eye(kernels_a[0].shape[1]), []
    for ours, theirs, mass in zip(kernels_a, kernels_b, masses, strict=True):
        moved = np.einsum("oit,ij->ojt", ours, columns)
        gaps = ours.reshape(len(ours), 1, -1) - theirs.reshape(1, len(theirs), -1)
        wanted = mass / mass.sum()
        plan = ot.emd(np.full(len(ours), 1 / len(ours)), wanted, np.linalg.norm(gaps, axis=-1))
        columns = plan / wanted
        fused.append(weight * np.einsum("ij,i...->j...", columns, moved) + (1 - weight) * theirs)
    return fused


def oit(leaf):
    return np.asarray(leaf, np.float64).reshape(9, *leaf.shape[2:]).transpose(2, 1, 0)


def test_parameter_order_is_the_published_loop():
    network, variables, _, graph = of("preactresnet18:width=0.125")
    other = zoo.randomise(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables), seed=7)
    layers = [p.name for p in graph.producers if p.is_convolution and "shortcut" not in p.name]
    assert len(layers) == 17
    kernels = [
        [oit(graph_leaf(tree, graph.producer(name).kernel.path)) for name in layers] for tree in (variables, other)
    ]
    rng = np.random.default_rng(3)
    masses = {name: rng.uniform(0.1, 2, graph.producer(name).channels) for name in layers}
    fused, _ = fusion.fuse(
        network,
        network.with_variables(other),
        weight=0.4,
        target=masses,
        chain="parameter_order",
        cost_on_transported=False,
    )
    for name, expected in zip(layers, reference(*kernels, list(masses.values()), 0.4), strict=True):
        found = oit(graph_leaf(fused.variables, graph.producer(name).kernel.path))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=name)
    fused_paths = {graph.producer(name).kernel.path for name in layers}
    for path, leaf in zip(graph.program.paths, jax.tree.leaves(fused.variables), strict=True):
        if path not in fused_paths:
            np.testing.assert_array_equal(leaf, graph_leaf(other, path))


def graph_leaf(variables, path):
    for part in path.split("/"):
        variables = variables[part]
    return variables


def test_a_list_whose_layers_do_not_fit_is_refused():
    network, *_ = of("preactresnet18:width=0.125")
    with pytest.raises(GraphError, match=r"expected linear to read the 16 channels of layer2_0/conv1, .* 64 inputs at"):
        fusion.fuse(network, network, chain="parameter_order", layers=["layer2_0/conv1", "linear"])
    network, *_ = of("mobile")
    with pytest.raises(GraphError, match="expected an ordinary convolution or dense layer, got Conv_2"):
        fusion.fuse(network, network, chain="parameter_order")


# ---------------------------------------------------------------- what is refused


def test_models_of_other_shapes_are_refused():
    network, variables, *_ = of("mlp")
    cut = network.with_variables(jax.tree.map(lambda x: x[..., :2], variables))
    with pytest.raises(GraphError, match="expected two models of one architecture, got shapes"):
        fusion.fuse(cut, network)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": 1.5}, ValueError, r"expected a weight in \[0, 1\], got 1.5"),
        ({"chain": "alphabet"}, GraphError, "expected chain 'dataflow', or 'parameter_order'"),
        ({"layers": ["linear"]}, GraphError, "leave out layers to follow the graph"),
        ({"chain": "parameter_order", "layers": ["nowhere"]}, GraphError, "got 'nowhere'"),
        ({"solver": "magic"}, ValueError, "expected a solver"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    network, *_ = of("mlp")
    with pytest.raises(error, match=message):
        fusion.fuse(network, network, **options)


# ---------------------------------------------------------------- two networks trained apart


def test_fusion_of_two_networks_beats_their_average_on_digits():
    digits = data.load("digits", seed=0, clean=0.1)
    model = models.build("mlp:hidden=64x32", num_classes=10, input_shape=tuple(digits.test.images.shape[1:]))
    trained = []
    for seed in (0, 1):
        key_init, key_fit = jax.random.split(jax.random.key(seed))
        result = training.fit(
            model.train_fn, model.init(key_init), digits.train, key_fit, steps=300, batch_size=64, learning_rate=0.1
        )
        trained.append(model.network(result.variables))

    def accuracy(network):
        return evaluation.accuracy(network, digits.test)

    plain = accuracy(averaged(*trained))
    assert min(map(accuracy, trained)) > 0.93
    exact, entropic = (accuracy(fusion.fuse(*trained, solver=solver).network) for solver in ("exact", "sinkhorn"))
    assert exact > plain + 0.05, (exact, plain)
    assert entropic > plain + 0.05, (entropic, plain)


@pytest.fixture(scope="module")
def mnist(shared_data):
    """Every fifth test image."""
    path = shared_data / "mnist" / "mnist.npz"
    if not path.is_file():
        pytest.skip(f"needs MNIST's test images: no file {path}")
    with np.load(path, allow_pickle=False) as pack:
        images, labels = pack["test_x"][::5], pack["test_y"][::5]
    return Batch(images.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels.astype(np.int32))


@pytest.mark.slow
def test_the_original_work_s_two_mnist_networks_fuse(shared_data, mnist, monkeypatch):
    """Over all 10,000 images: 97.72 and 97.75 % alone, 73.84 % averaged, 95.58 % fused."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    networks = importlib.import_module("third_party_networks")
    cards = [json.loads(path.read_text()) for path in sorted((shared_data / "checkpoints").glob("*otfusion_?.json"))]
    apply_fn = zoo.usual(networks.preprocessed(networks.NETWORKS[cards[0]["arch"]], **cards[0]["preprocess"]))
    a, b = (
        suspects.load(shared_data / "checkpoints" / card["file"], apply_fn=apply_fn, input_shape=(28, 28, 1))
        for card in cards
    )

    def accuracy(network):
        return evaluation.accuracy(network, mnist)

    for suspect, card in zip((a, b), cards, strict=True):
        assert accuracy(suspect.network) == pytest.approx(card["measured"]["acc"], abs=0.01)
    first, second = a.network, b.network
    assert accuracy(averaged(first, second)) < 0.8
    assert accuracy(fusion.fuse(first, second).network) > 0.94
    assert accuracy(fusion.fuse(second, first).network) > 0.94
    assert accuracy(fusion.fuse(first, second, solver="sinkhorn").network) > 0.92
