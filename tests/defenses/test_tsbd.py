import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxguard import evaluation, training
from jaxguard.attacks import badnets, poison
from jaxguard.defenses.protocol import Data
from jaxguard.defenses.tsbd import SWEEP, choose, reinitialized, tsbd
from jaxguard.errors import DefenseError, OptionError, UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.weight_change import rank

KEY = jax.random.key(3)
VARIABLES = tiny.init(jax.random.key(0))
NETWORK = tiny.network(VARIABLES)
GRAPH = NETWORK.graph
CLEAN = tiny.images(24, jax.random.key(1))
DATA = Data(CLEAN)
QUICK = {"unlearn_epochs": 2, "unlearn_rate": 0.01, "epochs": 1}


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


# ---------------------------------------------------------------- the method


def mlp(v, x):
    return jax.nn.relu(jax.nn.relu(x @ v["first"]) @ v["shortcut"]) @ v["logits"]


BEFORE = {"first": jnp.ones((2, 3)), "shortcut": jnp.ones((3, 2)), "logits": jnp.ones((2, 2))}
AFTER = {
    "first": jnp.array([[1.5, 1.1, 1.0], [1.25, 0.9, 1.00004]]),
    "shortcut": jnp.array([[1.5, 1.0], [1.0, 0.97], [1.0, 1.0]]),
    "logits": jnp.full((2, 2), 9.0),
}
MLP = channel_graph(mlp, BEFORE, jnp.ones((1, 2)))


def test_ranking_and_report_by_hand():
    ranking = rank(MLP, BEFORE, AFTER)
    assert ranking.numbers == (0, 1)  # never the logits, however far they moved
    np.testing.assert_allclose(ranking.scores[0], [0.75, 0.2, 0.00004], rtol=1e-2)
    np.testing.assert_allclose(ranking.scores[1], [0.5, 0.03], rtol=1e-5)
    first, second = ranking.layers(MLP, 0.4)
    assert (first.name, second.name) == ("first", "shortcut")
    assert first.mask.tolist() == [True, False, False] and second.mask.tolist() == [True, False]
    assert first.threshold == second.threshold == pytest.approx(0.2)
    assert all(not (layer.mask & ~(layer.scores > layer.threshold)).any() for layer in (first, second))
    assert ranking.layers(MLP, 1.0)[0].mask.all()


def test_which_layers_are_ranked():
    assert rank(MLP, BEFORE, AFTER, exclude="shortcut").numbers == (0,)
    np.testing.assert_array_equal(rank(MLP, BEFORE, AFTER, decimals=4).scores[0], np.float32([0.75, 0.2, 0.0]))
    with pytest.raises(UnscorableError, match="layers='convolutions'"):
        rank(MLP, BEFORE, AFTER, layers="convolutions")
    (conv,) = rank(GRAPH, VARIABLES, VARIABLES, layers="convolutions").numbers
    assert GRAPH.producers[conv].name == "conv"


def test_layers_whose_weights_cannot_be_zeroed_are_left_out_by_name():
    v = {**BEFORE, "A": jnp.ones((2, 1)), "B": jnp.ones((1, 3))}
    graph = channel_graph(lambda v, x: mlp({**v, "first": v["first"] + v["A"] @ v["B"]}, x), v, jnp.ones((1, 2)))
    after = {**v, "B": jnp.array([[1.0, 2.0, 1.0]])}
    assert rank(graph, v, after, scope="weights").numbers == (1,)
    (note,) = rank(graph, v, after, scope="weights").notes
    assert note.startswith("The weights of first cannot be set to zero and were not ranked: expected a kernel whose")
    ranking = rank(graph, v, after)  # whole channels can, in both parts; what moved is the kernel as it is applied
    assert ranking.numbers == (0, 1) and ranking.notes == ()
    np.testing.assert_array_equal(ranking.scores[0], [0, 2, 0])


def test_reinitialised_model_by_hand():
    edited = reinitialized(MLP, BEFORE, rank(MLP, BEFORE, AFTER), 0.4, 0.7)  # pool .5 .25 .5 0 0, q = 3
    np.testing.assert_array_equal(edited["first"], [[0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(edited["shortcut"], [[0, 1], [1, 1], [1, 1]])
    np.testing.assert_array_equal(edited["logits"], BEFORE["logits"])


@pytest.mark.parametrize(("n", "m"), [(0.0, 0.7), (0.19, 0.7), (0.4, 0.0), (0.4, 0.19)])
def test_too_small_a_share_reinitialises_nothing(n, m):
    assert bytes_of(reinitialized(MLP, BEFORE, rank(MLP, BEFORE, AFTER), n, m)) == bytes_of(BEFORE)


def test_the_rule_takes_the_smallest_share_that_forgets_enough():
    n, tried = choose(lambda n: 1 - 2 * n, 0.41)
    assert n == 0.3 and tried.tolist() == [1 - 2 * n for n in SWEEP[:7]]
    n, tried = choose(lambda n: 1.0, 0.1)
    assert n == SWEEP[-1] and len(tried) == len(SWEEP)


def test_a_backdoored_network_is_repaired():
    """The tiny network learns its four quadrants and a bright corner, which means class 0."""
    attack = badnets(target=0, size=2)
    data, test = tiny.images(400, jax.random.key(7)), tiny.images(200, jax.random.key(8))
    data, test = (batch._replace(images=0.6 * batch.images) for batch in (data, test))  # so that white stands out
    poisoned, _ = poison(attack, data, 0.2, jax.random.key(9))
    suspect = training.fit(tiny.train_fn, VARIABLES, poisoned, KEY, steps=200, learning_rate=0.05).variables
    before = evaluation.evaluate(tiny.network(suspect), test, attack)
    assert before.acc > 0.95 and before.asr > 0.95
    clean = tiny.images(100, jax.random.key(1))
    repaired, report = tsbd(
        tiny.network(suspect),
        Data(clean._replace(images=0.6 * clean.images)),
        KEY,
        unlearn_rate=0.01,
        epochs=20,
        batch_size=32,
        learning_rate=0.1,
        augment=training.CropFlip(1, False),
    )
    after = evaluation.evaluate(tiny.network(repaired.variables), test, attack)
    assert after.asr < 0.1 and after.acc > 0.95
    assert report.curves["unlearn_accuracy"][-1] <= 0.25 < report.curves["unlearn_accuracy"][:-1].min()
    assert report.chosen["n"] == SWEEP[len(report.curves["accuracy_by_n"]) - 1]
    assert f"n = {report.chosen['n']:g} was chosen" in report.notes[0]


# ---------------------------------------------------------------- the contract, beyond what all defenses share


def test_no_channel_and_no_epoch_is_the_identity():
    repaired, report = tsbd(NETWORK, DATA, KEY, n=0.0, epochs=0, unlearn_epochs=1)
    assert bytes_of(repaired) == bytes_of(VARIABLES)
    assert not any(layer.mask.any() for layer in report.layers) and report.layers[0].scores.max() > 0
    assert report.chosen["stop_acc"] == 1 / tiny.NUM_CLASSES
    assert report.curves["loss"].shape == (0,)


def test_without_fine_tuning_only_the_reported_channels_are_touched():
    repaired, report = tsbd(NETWORK, DATA, KEY, n=0.5, m=1.0, **{**QUICK, "epochs": 0})
    (layer,) = report.layers
    assert layer.mask.sum() == 4
    np.testing.assert_array_equal(
        repaired.variables["params"]["conv"], np.where(layer.mask, 0, np.asarray(VARIABLES["params"]["conv"]))
    )
    for name in ("scale", "bias", "linear"):
        np.testing.assert_array_equal(repaired.variables["params"][name], VARIABLES["params"][name])
    assert bytes_of(repaired.variables["batch_stats"]) == bytes_of(VARIABLES["batch_stats"])


def test_the_extra_epoch_of_the_reference_code():
    lengths = [
        len(tsbd(NETWORK, DATA, KEY, n=0.2, extra_epoch=extra, batch_size=8, **QUICK)[1].curves["loss"])
        for extra in (False, True)
    ]
    assert lengths == [3, 6]


def test_unlearning_that_did_not_get_there_is_noted():
    _, report = tsbd(NETWORK, DATA, KEY, n=0.2, stop_acc=-1.0, **QUICK)
    assert "Unlearning ended after 2 epochs" in report.notes[0] and report.curves["unlearn_accuracy"].shape == (2,)
    assert "All 24 clean images went into one batch" in report.notes[1]
    assert tsbd(NETWORK, DATA, KEY, n=0.2, stop_acc=1.0, batch_size=8, **QUICK)[1].notes == ()


def test_progress_is_told_of_both_stages():
    seen = []
    data = Data(CLEAN, progress=lambda *told: seen.append(told[:2]))
    tsbd(NETWORK, data, KEY, n=0.2, stop_acc=-1.0, unlearn_epochs=2, epochs=3)
    assert (2, 2) in seen and seen[-1] == (3, 3)


def test_bfloat16_weights_stay_bfloat16():
    variables = jax.tree.map(lambda x: x.astype(jnp.bfloat16), VARIABLES)
    repaired, report = tsbd(tiny.network(variables), DATA, KEY, n=0.2, **QUICK)
    assert {leaf.dtype for leaf in jax.tree.leaves(repaired)} == {jnp.dtype(jnp.bfloat16)}
    assert report.curves["loss"].dtype == report.layers[0].scores.dtype == np.float32


def test_what_is_missing_or_broken_is_said():
    with pytest.raises(DefenseError, match="training mode for tsbd"):
        tsbd(tiny.network(VARIABLES, None), DATA, KEY)
    wrong = {"n": 1.5, "m": -0.1, "alpha": np.nan, "epochs": -1, "unlearn_epochs": 0, "batch_size": 0, "r": -1.0}
    for name, value in {**wrong, "norm": "l2", "layers": "all"}.items():
        with pytest.raises(OptionError, match=f"expected .* for {name} of tsbd, got {value!r}"):
            tsbd(NETWORK, DATA, KEY, **{name: value})
    with pytest.raises(DefenseError, match=r"expected a finite loss, got .* at step .* in fine-tuning of tsbd"):
        tsbd(NETWORK, DATA, KEY, n=0.2, **{**QUICK, "epochs": 5}, learning_rate=1e30)
