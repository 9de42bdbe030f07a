"""TSBD and OTBR against torch's numbers, one step of each; see tests/golden/README.md.

What torch ranked is equal here, ties included. What it computed agrees to 1e-5 of each entry, or of the root mean
square of its array, and so do the norms of whole arrays.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest
import zoo
from golden import repair_torch as reference

from jaxguard import fusion, models, training, weight_change
from jaxguard.defenses.otbr import repairs
from jaxguard.defenses.tsbd import reinitialized
from jaxguard.fusion import channels as fusion_channels
from jaxguard.kernels import transport
from jaxguard.training.activeness import ActivenessAwareGradient, StatisticsAfterwards
from jaxguard.types import Batch
from jaxguard.weight_change import rank

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "repair_torch.npz")
KEY = jax.random.key(0)
MODEL = reference.model()
VARIABLES = zoo.randomise(MODEL.shapes())
NETWORK = zoo.network(MODEL.apply_fn, VARIABLES, np.zeros((1, *MODEL.input_shape), np.float32))
LAYERS, FUSED = GOLDEN["layers"].tolist(), GOLDEN["fused_layers"].tolist()


def torch_leaves(variables):
    return models.unbind(MODEL, variables, "torch")


def kernels(variables, layers=LAYERS):
    leaves = torch_leaves(variables)
    return [leaves[f"{layer}.weight"] for layer in layers]


@functools.cache
def ranked():
    graph = NETWORK.graph
    unlearned = reference.unlearned(VARIABLES)
    return graph, rank(graph, VARIABLES, unlearned, layers="convolutions", exclude="shortcut", decimals=4)


def split(flat, sizes):
    return np.split(flat, np.cumsum(sizes)[:-1])


def assert_sampled(arrays, expected):
    """Samples of the arrays, each with its norm at the end, against those of torch's."""
    rows = [reference.sample(array) for array in arrays]
    for row, array, wanted in zip(rows, arrays, split(expected, list(map(len, rows))), strict=True):
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=1e-5 * wanted[-1] / array.size**0.5)


def test_the_draws_are_those_that_torch_saw():
    for tree, name in ((VARIABLES, "weights"), (reference.unlearned(VARIABLES), "unlearned")):
        total = sum(np.abs(leaf).sum(dtype=np.float64) for leaf in torch_leaves(tree).values())
        np.testing.assert_allclose(total, GOLDEN[name], rtol=1e-12, err_msg="numpy draws others")


# ---------------------------------------------------------------- steps


LONGEST = max(leaf.size for leaf in jax.tree.leaves(VARIABLES["params"]))


def padded(params):
    """Each leaf as a vector of one length, zeros at its end: what is done to leaves one by one then compiles once."""
    return jax.tree.map(lambda leaf: np.pad(np.ravel(leaf), (0, LONGEST - leaf.size)), params)


def unpadded(params):
    return jax.tree.map(lambda row, leaf: row[: leaf.size].reshape(leaf.shape), params, VARIABLES["params"])


@jax.jit
def train_fn(variables, images):
    logits, after = MODEL.train_fn({**variables, "params": unpadded(variables["params"])}, images)
    return logits, {**after, "params": variables["params"]}


gradient_fn = jax.jit(training.CrossEntropyGradient(train_fn))


def given():
    """Variables and data in float64; in float32, activations near zero have their sign by chance."""
    variables = jax.tree.map(np.float64, VARIABLES)
    return {**variables, "params": padded(variables["params"])}, Batch(*reference.batch())


def parameters(params):
    """Parameters, or what was added to them, as torch orders and lays them out."""
    leaves = torch_leaves({**VARIABLES, "params": unpadded(params)})
    return [leaves[name] for name in GOLDEN["parameters"].tolist()]


def test_the_first_gradient_of_unlearning(usual_promotion):  # float64 in a float32 model
    with jax.enable_x64(True):
        variables, data = given()
        metrics, _, gradient = weight_change.Ascent(gradient_fn)(*training.partition(variables), data)
    np.testing.assert_allclose(metrics["loss"], GOLDEN["loss"], rtol=1e-6)
    assert_sampled(parameters(gradient), GOLDEN["ascent"])


@pytest.mark.parametrize("norm", ["per_tensor", "global"])
def test_one_activeness_aware_step(norm, usual_promotion):  # float64 in a float32 model
    sgd = training.sgd(reference.RATE, momentum=0.9, weight_decay=0.0)
    mixture = ActivenessAwareGradient(gradient_fn, reference.RADIUS, reference.ALPHA, norm)
    step = StatisticsAfterwards(training.Step(mixture, sgd, reference.IMAGES), train_fn)
    with jax.enable_x64(True):
        variables, data = given()
        state, _ = step(data, KEY, step.step.init(variables, data), np.int32(0))
    update = jax.tree.map(np.subtract, state.params, variables["params"])
    assert_sampled(parameters(update), GOLDEN[f"{norm}/update"])

    before, after = (torch_leaves({**VARIABLES, **tree}) for tree in (VARIABLES, state.state))
    norms = GOLDEN["norms"].tolist()
    sizes = [len(after[f"{name}.running_var"]) for name in norms]
    means, variances = (split(GOLDEN[f"{norm}/running_{which}"], sizes) for which in ("mean", "var"))
    for name, mean, variance in zip(norms, means, variances, strict=True):
        np.testing.assert_allclose(after[f"{name}.running_mean"], mean, rtol=1e-6, atol=1e-6, err_msg=name)
        # torch keeps n / (n - 1) times the batch's variance, Flax the variance itself.
        positions, old = reference.IMAGES * side(name) ** 2, 0.9 * before[f"{name}.running_var"]
        unbiased = old + (after[f"{name}.running_var"] - old) * positions / (positions - 1)
        np.testing.assert_allclose(unbiased, variance, rtol=1e-6, err_msg=name)


def side(norm):
    """Height and width of what a norm sees; a stage's first norm is before its stride."""
    stage, block, which = norm.split(".")
    halvings = int(stage.removeprefix("layer")) - 1
    return reference.SIZE >> halvings << (halvings > 0 and (block, which) == ("0", "bn1"))


# ---------------------------------------------------------------- ranking


def test_rounded_weight_changes_are_equal():
    graph, ranking = ranked()
    names = [graph.producers[number].name.replace("_", ".").replace("/", ".") for number in ranking.numbers]
    assert names == LAYERS
    np.testing.assert_array_equal(np.concatenate(ranking.scores), GOLDEN["nwc"].astype(np.float32))


@pytest.mark.parametrize(("n", "m"), reference.ZEROED)
def test_zeroed_weights_are_equal(n, m):
    graph, ranking = ranked()
    edited = reinitialized(graph, VARIABLES, ranking, n, m)
    before, after = torch_leaves(VARIABLES), torch_leaves(edited)
    sizes = [kernel.size for kernel in kernels(VARIABLES)]
    masks = split(np.unpackbits(GOLDEN[f"zeroed/{n}/{m}"], count=sum(sizes)).astype(bool), sizes)
    for name, mask in zip(LAYERS, masks, strict=True):
        leaf = before.pop(f"{name}.weight")
        np.testing.assert_array_equal(after[f"{name}.weight"], np.where(mask.reshape(leaf.shape), 0, leaf), name)
    assert sum(mask.sum() for mask in masks) > 100
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name], leaf, err_msg=name)


# ---------------------------------------------------------------- fusion


def pruned():
    """Pruned channels by layer, as torch's."""
    return dict(zip(LAYERS, split(GOLDEN["pruned"], [len(kernel) for kernel in kernels(VARIABLES)]), strict=True))


def test_pruned_channels_are_equal():
    _, ranking = ranked()
    top = ranking.top(reference.GAMMA)
    np.testing.assert_array_equal(np.concatenate([top[number] for number in ranking.numbers]), GOLDEN["pruned"])
    last, spared = np.sort(GOLDEN["nwc"])[::-1][72:74]  # 73 of 488
    assert GOLDEN["pruned"].sum() == 73 and last == spared
    assert next(name for name, mask in pruned().items() if mask.any()) == FUSED[0]


def test_costs_and_plans():
    """Plans of one optimum differ where channels are equal, so it is what they cost that is compared."""
    graph, ranking = ranked()
    chain = fusion.find_channels(graph, "parameter_order", [graph.producers[number].name for number in ranking.numbers])
    leaves = fusion.leaves_by_path(graph, VARIABLES)
    scores = dict(zip(LAYERS, ranking.scores, strict=True))
    costs = []
    for one, (name, mask) in zip(chain, pruned().items(), strict=True):
        if name not in FUSED:
            continue
        (row,) = one.rows
        theirs = fusion_channels.read(leaves[row.kernel.path], row.kernel)
        ours = np.where(mask[:, None], 0, theirs)
        cost = np.asarray(transport.distances(ours, theirs))
        assert (np.diag(cost)[~mask] == 0).all() and (np.diag(cost)[mask] > 0).all()
        costs.append(cost)
        masses = np.round(scores[name].astype(np.float64), 4)
        plan = transport.solve(cost, target=masses)
        np.testing.assert_allclose(plan.matrix.sum(1), 1 / len(mask), rtol=0, atol=1e-9)
        np.testing.assert_allclose(plan.matrix.sum(0), masses / masses.sum(), rtol=0, atol=1e-9)
        np.testing.assert_allclose(transport.objective(plan, cost), GOLDEN["objectives"][FUSED.index(name)], rtol=1e-6)
    assert_sampled(costs, GOLDEN["costs"])


@pytest.mark.parametrize("canonical", [False, True])
def test_fused_kernels(canonical):
    _, ranking = ranked()
    (repair,) = repairs(
        NETWORK, ranking, [reference.GAMMA],
        weight=reference.WEIGHT, chain="parameter_order", canonical=canonical, solver="exact",
    )  # fmt: skip
    np.testing.assert_allclose([a.distance for a in repair.alignments], GOLDEN["objectives"], rtol=1e-6)
    if canonical:
        assert_sampled(kernels(repair.variables, FUSED), GOLDEN["canonical"])
    else:  # From the second layer on, which of the equal channels gave what is the solver's choice.
        assert_sampled(kernels(repair.variables, FUSED[:1]), GOLDEN["first"])
    before, after = torch_leaves(VARIABLES), torch_leaves(repair.variables)
    for name in before.keys() - {f"{layer}.weight" for layer in FUSED}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
