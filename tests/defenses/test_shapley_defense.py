"""ShapPruning on a network whose one backdoored channel is known, and its parts by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.defenses import Data, shapley
from jaxguard.defenses.shapley import AttackValue
from jaxguard.errors import DefenseError, GraphError, OptionError
from jaxguard.graph import Coalitions
from jaxguard.inversion.recovery import Recovered, recover
from jaxguard.pruning.path import cut, walk
from jaxguard.report import evidence
from jaxguard.types import Batch

KEY = jax.random.key(0)
TARGET, CARRIER = 2, 5
QUICK: dict[str, Any] = {"inversion_steps": 300, "samples": 8, "restore_steps": 0}


def model(variables, images):
    flat = images.reshape(images.shape[0], -1)
    hidden = jax.nn.relu(flat @ variables["w1"] + variables["b1"][None])
    hidden = jax.nn.relu(hidden @ variables["w2"])
    return hidden @ variables["w3"]


def planted():
    """Four classes, each a bright row of 4x4 images, two units per row; unit 5 fires for a bright corner (0, 0)."""
    first, bias = np.zeros((16, 12), np.float32), np.zeros(12, np.float32)
    first[12:, 0:2] = first[8:12, 2:4] = first[4:8, 6:8] = first[1:4, 8:10] = 1.0
    first[0, CARRIER] = 4.0
    bias[CARRIER] = -0.5
    second = np.eye(12, dtype=np.float32)
    third = np.zeros((12, 4), np.float32)
    third[0:2, 3] = third[2:4, 2] = third[6:8, 1] = third[8:10, 0] = 1.0
    third[CARRIER, TARGET] = 4.0
    variables = {"w1": first, "b1": bias, "w2": second, "w3": third}
    images = np.zeros((4, 4, 4, 1), np.float32)
    images[np.arange(4), np.arange(4)] = 0.9
    images[0, 0, 0] = 0.1
    clean = Batch(images, np.arange(4))
    variables = jax.tree.map(jnp.asarray, variables)
    return zoo.network(model, variables, images), variables, clean


def attacked(variables, clean):
    stamped = np.array(clean.images)
    stamped[:, 0, 0] = 1.0
    others = np.asarray(clean.labels) != TARGET
    return float(np.mean(np.asarray(model(variables, stamped)).argmax(-1)[others] == TARGET))


def accuracy(variables, clean):
    return float(np.mean(np.asarray(model(variables, clean.images)).argmax(-1) == clean.labels))


def test_the_planted_network_is_what_it_says():
    _, variables, clean = planted()
    assert accuracy(variables, clean) == 1
    assert attacked(variables, clean) == 1


@pytest.mark.parametrize(
    ("worth", "estimator"),
    [("probability", "permutations"), ("rate", "permutations"), ("margin", "epsilon-greedy")],
)
def test_finds_and_cuts_the_planted_channel_with_one_image_per_class(worth, estimator):
    network, _, clean = planted()
    repaired, report = shapley(
        network, Data(clean), KEY, target=TARGET, worth=worth, estimator=estimator, max_share=0.04, **QUICK
    )
    assert report.path is not None
    assert report.path.channels[0] in (f"w1[{CARRIER}]", f"w2[{CARRIER}]")
    assert report.path.chosen == 1
    assert attacked(repaired.variables, clean) == 0
    assert accuracy(repaired.variables, clean) == 1
    first, second = report.layers
    assert first.mask.sum() + second.mask.sum() == 1
    assert (first.mask | second.mask)[CARRIER]
    assert first.errors is not None
    assert max(first.scores[CARRIER], second.scores[CARRIER]) > 3 * np.delete(first.scores, CARRIER).max()


def test_the_backdoored_class_is_suspected():
    network, _, clean = planted()
    _, report = shapley(network, Data(clean), KEY, **QUICK)
    assert report.trigger is not None
    assert report.trigger.shown[0] == TARGET
    assert report.trigger.norms.argmin() == TARGET
    assert report.trigger.source == "4 clean images"


def test_without_any_image():
    network, _, clean = planted()
    repaired, report = shapley(network, Data(), KEY, synthesised=2, **QUICK)
    assert report.trigger is not None
    assert "8 synthesised images" in report.trigger.source
    forced, same = shapley(network, Data(clean), KEY, data_free=True, synthesised=2, **QUICK)
    assert same.trigger is not None
    np.testing.assert_array_equal(report.trigger.norms, same.trigger.norms)
    jax.tree.map(np.testing.assert_array_equal, repaired, forced)


def test_values_by_hand():
    network, variables, clean = planted()
    game = Coalitions(network.graph)
    images = jnp.asarray(clean.images)
    start = game.start(variables, images.at[:, 0, 0].set(1.0))
    gates = jnp.ones((2, game.players)).at[1, CARRIER].set(0)
    rate = AttackValue(game, TARGET, "rate")(variables, start, gates)
    logits = np.asarray(model(variables, images.at[:, 0, 0].set(1.0)))
    assert rate.tolist() == [np.mean(logits.argmax(-1) == TARGET), 0.25]
    probability = AttackValue(game, TARGET, "probability")(variables, start, gates)
    assert float(probability[0]) == pytest.approx(np.mean(np.asarray(jax.nn.softmax(logits))[:, TARGET]), abs=1e-6)
    others = np.delete(logits, TARGET, axis=1).max(1)
    margin = AttackValue(game, TARGET, "margin")(variables, start, gates)
    expected = np.mean(np.clip(logits[:, TARGET] - others, -5, 5) / 10 + 0.5)
    assert float(margin[0]) == pytest.approx(expected, abs=1e-6)


def test_the_path_stops_where_the_trigger_fails_or_the_model_suffers():
    network, variables, clean = planted()
    game = Coalitions(network.graph)
    recovered = recover(network, clean, KEY, target=TARGET, most=9, steps=400)
    values = np.zeros(game.players), np.zeros(game.players)

    def path(order, **options):
        order = np.array(order)
        worth = np.linspace(0.9, 0.0, len(order) + 1)
        limits: dict[str, Any] = {"stop_attack": -1.0, "max_drop": 0.1, **options}
        return walk(variables, game, order, recovered, values=values, worth=worth, **limits)

    harmless = path([4, 10, 11])
    assert (harmless.chosen, harmless.accuracy.tolist()) == (3, [1.0] * 4)
    assert path([4, 10, 11], stop_attack=0.4).chosen == 2
    harmful = path([4, 0, 1, 11])  # both units of class 3 go
    assert harmful.chosen == 2
    assert harmful.accuracy.tolist() == [1.0, 1.0, 1.0, 0.75, 0.75]
    assert "accuracy" in harmful.stop
    assert path([0, 1], max_drop=0.25).chosen == 2
    assert harmless.attack.tolist()[0] == 1


def test_cutting_in_the_weights_is_gating():
    network, variables, clean = planted()
    game = Coalitions(network.graph)
    players = np.array([CARRIER, 8, 15])
    gates = jnp.ones((1, game.players)).at[0, players].set(0)
    images = jnp.asarray(clean.images)
    expected = game.logits(variables, game.start(variables, images), gates)[0]
    np.testing.assert_allclose(model(cut(variables, game, players), images), expected, atol=1e-6)


def test_restoration_moves_everything_but_the_cut_channels():
    network, _, clean = planted()
    options = {**QUICK, "restore_steps": 5, "max_share": 0.04}
    repaired, report = shapley(network, Data(clean), KEY, target=TARGET, **options)
    bare, _ = shapley(network, Data(clean), KEY, target=TARGET, **{**options, "restore_steps": 0})
    game = Coalitions(network.graph)
    chosen = np.flatnonzero(np.concatenate([layer.mask for layer in report.layers]))
    jax.tree.map(np.testing.assert_array_equal, repaired.variables, cut(repaired.variables, game, chosen))
    assert not np.allclose(repaired.variables["w3"], bare.variables["w3"])


def test_a_named_target_is_inverted_alone():
    network, _, clean = planted()
    recovered = recover(network, clean, KEY, target=1, most=9, steps=20)
    assert isinstance(recovered, Recovered)
    assert recovered.trigger.shown.tolist() == [1]
    np.testing.assert_array_equal(np.isfinite(recovered.trigger.norms), np.arange(4) == 1)
    assert np.isnan(recovered.trigger.anomaly).all()
    assert evidence.suspicion(recovered.trigger).startswith("class 1 was named beforehand (L1 norm ")
    assert "named beforehand" in recovered.notes[0]


def test_uses_no_more_images_than_asked_for():
    network, _, clean = planted()
    many = Batch(np.repeat(clean.images, 5, axis=0), np.repeat(clean.labels, 5))
    _, report = shapley(network, Data(many), KEY, target=TARGET, images=12, **QUICK)
    assert report.trigger is not None
    assert report.trigger.source == "12 clean images"


@pytest.mark.parametrize(
    ("name", "value"),
    [("worth", "loss"), ("estimator", "magic"), ("samples", 0), ("discard", 2.0), ("max_share", -0.1)],
)
def test_options_out_of_range(name, value):
    network, _, clean = planted()
    with pytest.raises(OptionError, match=f"expected .* for {name} of shapley, got {value!r}"):
        shapley(network, Data(clean), KEY, **{name: value})


def test_a_target_that_is_no_class_or_the_only_one_is_refused():
    network, _, clean = planted()
    with pytest.raises(DefenseError, match=r"a class in \[0, 4\), got 9"):
        shapley(network, Data(clean), KEY, target=9)
    one = Batch(clean.images[TARGET : TARGET + 1], np.array([TARGET]))
    with pytest.raises(DefenseError, match="other classes"):
        shapley(network, Data(one), KEY, target=TARGET, **QUICK)


def test_no_player_no_game():
    linear = lambda v, x: x.reshape(x.shape[0], -1) @ v["w"]  # noqa: E731
    clean = Batch(np.eye(4, dtype=np.float32).reshape(4, 2, 2, 1), np.arange(4))
    with pytest.raises(GraphError, match="expected producers"):
        shapley(zoo.network(linear, {"w": jnp.eye(4)}, clean.images), Data(clean), KEY, **QUICK)
