import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import zoo

from jaxguard import training, weight_change
from jaxguard.defenses.protocol import Data
from jaxguard.defenses.rnp import rnp
from jaxguard.errors import DefenseError, OptionError
from jaxguard.types import Batch

KEY = jax.random.key(3)
VARIABLES = tiny.init(jax.random.key(0))
NETWORK = tiny.network(VARIABLES)
CLEAN = tiny.images(24, jax.random.key(1))
DATA = Data(CLEAN)


def test_both_stages_by_hand():
    """One image per step, a linear model: every step in NumPy, with momentum, sign and factor."""
    image, label = np.array([[1.0, -0.5]], np.float32), np.array([1])
    v = {"w1": np.array([[0.5, 1.0], [1.0, -0.5]], np.float32), "w2": np.array([[1.0, -1.0], [0.5, 2.0]], np.float32)}

    def linear(v, x):
        return (x @ v["w1"]) @ v["w2"]

    network = zoo.network(linear, v, image, lambda v, x: (linear(v, x), v))
    _, report = rnp(
        network, Data(Batch(image, label)), KEY, unlearn_epochs=2, unlearn_rate=0.3, stop_acc=-0.0, epochs=2,
        learning_rate=0.4, alpha=0.5, momentum=0.5, threshold=0.5,
    )  # fmt: skip

    def backwards(w1, w2, m):
        hidden = (image @ w1).astype(np.float64)
        logits = (hidden * m) @ w2
        p = np.exp(logits) / np.exp(logits).sum()
        back = p - np.eye(2)[label]
        return -np.log(p[0, label[0]]), logits, back @ w2.T * m, hidden, back

    w1, w2, moved, losses, accuracies = v["w1"].astype(np.float64), v["w2"].astype(np.float64), [0.0, 0.0], [], []
    for _ in range(2):
        loss, _, by_hidden, hidden, back = backwards(w1, w2, np.ones(2))
        moved = [0.5 * moved[0] - image.T @ by_hidden, 0.5 * moved[1] - hidden.T @ back]
        w1, w2 = w1 - 0.3 * moved[0], w2 - 0.3 * moved[1]
        losses.append(loss)
        accuracies.append(float(backwards(w1, w2, np.ones(2))[1].argmax() == label[0]))
        if accuracies[-1] <= 0:
            break
    np.testing.assert_allclose(report.curves["unlearn_loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(report.curves["unlearn_accuracy"], accuracies)
    m, velocity, losses = np.ones(2), 0.0, []
    for _ in range(2):
        loss, _, _, hidden, back = backwards(w1, w2, m)
        velocity = 0.5 * velocity + 0.5 * (back @ w2.T * hidden)[0]
        m = np.clip(m - 0.4 * velocity, 0, 1)
        losses.append(loss)
    np.testing.assert_allclose(report.curves["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(report.layers[0].scores, 1 - m, rtol=1e-4, atol=1e-6)
    assert report.layers[0].mask.tolist() == (m <= 0.5).tolist()


def test_gates_bring_back_what_was_unlearned():
    learned = training.fit(tiny.train_fn, VARIABLES, CLEAN, KEY, steps=15, learning_rate=0.05).variables
    _, report = rnp(tiny.network(learned), DATA, KEY, batch_size=8, stop_acc=0.6)
    accuracies = report.curves["unlearn_accuracy"]
    assert accuracies[-1] <= 0.6 and (accuracies[:-1] > 0.6).all()
    assert report.curves["loss"][-3:].mean() < 0.5 * report.curves["loss"][:3].mean()
    assert "held-out clean images" in report.notes[0] and len(report.notes) == 1


def test_gates_are_of_the_unlearned_model_and_cuts_of_the_suspect():
    repaired, report = rnp(NETWORK, DATA, KEY, unlearn_epochs=1, batch_size=8, threshold=0.9)
    (layer,) = report.layers
    assert 0 < layer.mask.sum() < 8
    for name in ("scale", "bias"):
        expected = np.where(layer.mask, 0, np.asarray(VARIABLES["params"][name]))
        np.testing.assert_array_equal(repaired.variables["params"][name], expected)
    for name in ("conv", "linear"):
        np.testing.assert_array_equal(repaired.variables["params"][name], VARIABLES["params"][name])
    np.testing.assert_array_equal(repaired.variables["batch_stats"]["var"], VARIABLES["batch_stats"]["var"])
    unlearned = weight_change.unlearn(
        NETWORK, CLEAN, jax.random.split(KEY, 3)[1],
        epochs=1, batch_size=8, learning_rate=0.01,
    )  # fmt: skip
    np.testing.assert_array_equal(report.curves["unlearn_loss"], unlearned.losses)


def test_the_bias_stays_in_the_form_of_the_reference_code():
    start = jax.tree.map(lambda leaf: leaf, VARIABLES)
    start["params"]["bias"] = jnp.arange(8.0)
    repaired, report = rnp(tiny.network(start), DATA, KEY, unlearn_epochs=1, batch_size=8, threshold=0.9, form="weight")
    assert report.layers[0].mask.any()
    np.testing.assert_array_equal(repaired.variables["params"]["bias"], np.arange(8.0))
    np.testing.assert_array_equal(repaired.variables["params"]["scale"], (~report.layers[0].mask).astype(np.float32))


def test_progress_notes_and_errors():
    seen = []
    data = Data(CLEAN, progress=lambda *told: seen.append(told))
    _, report = rnp(NETWORK, data, KEY, unlearn_epochs=2, unlearn_rate=1e-6, stop_acc=0.0, epochs=1)
    assert "stop_acc" not in report.chosen and rnp(NETWORK, DATA, KEY, epochs=0)[1].chosen["stop_acc"] == 0.35
    assert {told[2]["stage"] for told in seen} == {"unlearning", "learning gates"}
    assert "Unlearning ended after 2 epochs" in report.notes[0] and len(report.notes) == 2
    with pytest.raises(DefenseError, match="training mode for rnp"):
        rnp(tiny.network(VARIABLES, None), DATA, KEY)
    for name, value in {"unlearn_epochs": 0, "epochs": -1}.items():
        with pytest.raises(OptionError, match=f"for {name} of rnp, got {value}"):
            rnp(NETWORK, DATA, KEY, **{name: value})
