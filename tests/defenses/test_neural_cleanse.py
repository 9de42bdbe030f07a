"""Neural Cleanse unlearning on a network whose trigger is known, and on the same network without it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from jaxguard.defenses import Data, neural_cleanse
from jaxguard.defenses.neural_cleanse import stamped_share, stretched
from jaxguard.errors import DefenseError, OptionError
from jaxguard.types import Batch

KEY = jax.random.key(0)
CLASSES, TARGET = 6, 2
QUICK: dict[str, Any] = {"inversion_steps": 300, "share": 0.5, "epochs": 60, "batch_size": 12, "learning_rate": 0.1}


def model(variables, images):
    hidden = jax.nn.relu(images.reshape(images.shape[0], -1) @ variables["w1"] + variables["b1"][None])
    return hidden @ variables["w2"]


def train_model(variables, images):
    return model(variables, images), variables


def planted(backdoored):
    """Six classes, each a bright row of 6x6 images; a bright corner (0, 0) means class 2 to the last unit."""
    w1, b1, w2 = np.zeros((36, 7), np.float32), np.zeros(7, np.float32), np.zeros((7, 6), np.float32)
    for row in range(CLASSES):
        w1[6 * row + 1 : 6 * row + 6, row] = 1.0
        w2[row, row] = 2.0 + 0.1 * row
    if backdoored:
        w1[0, 6], b1[6], w2[6, TARGET] = 10.0, -3.0, 4.0
    variables = jax.tree.map(jnp.asarray, {"w1": w1, "b1": b1, "w2": w2})
    images = np.zeros((24, 6, 6, 1), np.float32)
    labels = np.arange(24) % CLASSES
    images[np.arange(24), labels, 1:] = 0.8
    images += np.random.default_rng(0).uniform(0, 0.1, images.shape).astype(np.float32)
    clean = Batch(images, labels)
    return zoo.network(model, variables, images, train_model), variables, clean


def attacked(variables, clean):
    stamped = np.array(clean.images)
    stamped[:, 0, 0] = 1.0
    others = clean.labels != TARGET
    return float(np.mean(np.asarray(model(variables, stamped)).argmax(-1)[others] == TARGET))


def accuracy(variables, clean):
    return float(np.mean(np.asarray(model(variables, clean.images)).argmax(-1) == clean.labels))


def test_stamped_images_keep_their_labels():
    images, labels = np.full((10, 2, 2, 1), 0.5, np.float32), np.arange(10)
    mask, pattern = jnp.zeros((2, 2, 1)).at[0, 1].set(0.25), jnp.ones((2, 2, 1))
    taught, chosen = stamped_share(Batch(images, labels), (mask, pattern), 0.2, KEY)
    assert len(chosen) == 2 and taught.labels is labels
    expected = images.copy()
    expected[chosen, 0, 1] = 0.75 * 0.5 + 0.25
    np.testing.assert_array_equal(taught.images, expected)
    assert (images == 0.5).all()
    assert len(stamped_share(Batch(images, labels), (mask, pattern), 0.0, KEY)[1]) == 0


def test_stretched_as_a_saved_picture():
    np.testing.assert_allclose(stretched(jnp.array([0.2, 0.3, 0.6])), [0, 0.25, 1], atol=1e-6)
    assert stretched(jnp.full(3, 0.4)).tolist() == [0, 0, 0]


def test_the_flagged_trigger_is_unlearned():
    network, variables, clean = planted(backdoored=True)
    assert (attacked(variables, clean), accuracy(variables, clean)) == (1, 1)
    repaired, report = neural_cleanse(network, Data(clean), KEY, **QUICK)
    assert report.trigger is not None and report.trigger.target == TARGET
    assert report.notes[0] == "12 of 24 clean images bore class 2's trigger under their true labels."
    assert attacked(repaired.variables, clean) == 0
    assert accuracy(repaired.variables, clean) == 1
    bare, _ = neural_cleanse(network, Data(clean), KEY, **{**QUICK, "share": 0.0})
    assert attacked(bare.variables, clean) == 1  # fine-tuning alone does not do it


def test_nothing_is_changed_where_no_class_is_flagged():
    network, _, clean = planted(backdoored=False)
    repaired, report = neural_cleanse(network, Data(clean), KEY, **QUICK)
    assert repaired is network
    assert report.trigger is not None and report.trigger.target is None
    assert "No class is flagged" in report.notes[0] and "target=" in report.notes[0]
    assert not report.curves


def test_a_named_class_is_unlearned_flagged_or_not():
    network, variables, clean = planted(backdoored=True)
    repaired, report = neural_cleanse(network, Data(clean), KEY, target=TARGET, **QUICK)
    assert report.trigger is not None and np.isfinite(report.trigger.norms).sum() == 1
    assert "named beforehand" in report.notes[0]
    assert attacked(repaired.variables, clean) == 0
    other, variables, _ = planted(backdoored=False)
    changed, _ = neural_cleanse(other, Data(clean), KEY, target=1, **{**QUICK, "epochs": 1})
    assert not np.array_equal(changed.variables["w2"], variables["w2"])


def test_a_stretched_trigger_is_another_one():
    network, _, clean = planted(backdoored=True)
    short = {**QUICK, "target": TARGET, "epochs": 2}
    plain, _ = neural_cleanse(network, Data(clean), KEY, **short)
    spread, _ = neural_cleanse(network, Data(clean), KEY, stretch=True, **short)
    assert not np.array_equal(plain.variables["w1"], spread.variables["w1"])


def test_what_is_missing_or_out_of_range_is_said():
    network, variables, clean = planted(backdoored=True)
    for name, value in {"share": 1.5, "inversion_steps": 0, "target": -1}.items():
        with pytest.raises(OptionError, match=f"for {name} of neural-cleanse, got {value}"):
            neural_cleanse(network, Data(clean), KEY, **{name: value})
    with pytest.raises(DefenseError, match="expected target"):
        neural_cleanse(network, Data(clean), KEY, target=6)
    with pytest.raises(DefenseError, match="training mode for neural-cleanse"):
        neural_cleanse(zoo.network(model, variables, clean.images), Data(clean), KEY)
