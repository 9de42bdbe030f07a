import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.pruning.gate_threshold import THRESHOLDS, choose, prune
from jaxguard.pruning.learned_gates import gating
from jaxguard.types import Batch, Network


@pytest.mark.parametrize(
    ("accuracies", "max_drop", "number"),
    [
        ([0.9, 0.9, 0.9, 0.9], 0.0, 2),
        ([0.9, 0.89, 0.9], 0.0, -1),
        ([0.9, 0.9, 0.81, 0.8], 0.1, 1),
        ([0.9, 0.9, 0.5, 0.9], 0.1, 0),
        ([0.5, 1.0, 0.1], 1.0, 1),
    ],
)
def test_the_rule_stops_before_the_first_harm(accuracies, max_drop, number):
    assert choose(accuracies, max_drop) == number


def test_the_threshold_is_the_last_that_keeps_the_accuracy():
    """Class k is read off channel k; gates name classes that few, then all, held-out images have."""
    v = {"w1": jnp.eye(3), "w2": jnp.eye(3)}
    network = Network(v, lambda v, x: (x @ v["w1"]) @ v["w2"], (3,))
    where = gating(network.graph, "all", "channel")
    labels = np.array([2] * 8 + [1] + [0])
    # Without its channel, an image of class 2 or 1 is taken for class 0, the first of equal logits.
    held, gates = Batch(np.eye(3, dtype=np.float32)[labels], labels), [np.array([0.32, 0.5, 0.71], np.float32)]
    found = prune(where, network, gates, None, held=held, max_drop=0.15)
    assert found.threshold == 0.7 and found.layers[0].mask.tolist() == [True, True, False]
    expected = [1.0 if t < 0.5 else 0.9 if t < 0.71 else 0.1 for t in THRESHOLDS]
    np.testing.assert_allclose(found.curves["accuracy_by_threshold"], expected)
    np.testing.assert_allclose(found.layers[0].scores, [0.68, 0.5, 0.29], rtol=1e-6)
    assert found.layers[0].threshold == pytest.approx(0.29)
    assert "Threshold 0.7 was chosen on 10 held-out" in found.notes[0] and "100.0 % to 90.0 %" in found.notes[0]
    np.testing.assert_array_equal(found.variables["w1"], np.diag([0, 0, 1.0]))
    nothing = prune(where, network, [np.array([1, 1, 0.0])], None, held=held, max_drop=0.15)
    assert nothing.threshold == -1 and not nothing.layers[0].mask.any() and "nothing was cut" in nothing.notes[0]
    given = prune(where, network, gates, 0.5, held=held, max_drop=0.0)
    assert given.layers[0].mask.tolist() == [True, True, False] and given.notes == () and given.curves == {}
