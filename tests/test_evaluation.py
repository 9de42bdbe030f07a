import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxguard import attacks, evaluation, execution
from jaxguard.errors import DataError
from jaxguard.types import Batch, Metrics, Network

NUM_IMAGES = 23


def lookup(variables, images):
    """Logits that are one-hot at ten times the first pixel, or at class 0 where the last pixel is white."""
    classes = jnp.where(images[:, -1, -1, 0] == 1, 0, jnp.round(10 * images[:, 0, 0, 0]).astype(int))
    return jnp.eye(10)[classes] * variables["scale"]


def test_set():
    """Predicted classes 0..9 in turn; labels right but for the first five."""
    predicted = np.arange(NUM_IMAGES) % 10
    images = np.zeros((NUM_IMAGES, 4, 4, 1), np.float32)
    images[:, 0, 0, 0] = predicted / 10
    labels = predicted.copy()
    labels[:5] = 9
    return Batch(images, labels), predicted


test_set.__test__ = False
LOOKUP = Network({"scale": jnp.float32(1)}, lookup, (4, 4, 1))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 500])
def test_counts_are_exact_whatever_the_batch(batch_size):
    test, predicted = test_set()
    np.testing.assert_array_equal(evaluation.predictions(LOOKUP, test.images, batch_size=batch_size), predicted)
    metrics = evaluation.evaluate(LOOKUP, test, attacks.badnets(target=0, size=1), batch_size=batch_size)
    # Labels are 9 x5, 5 6 7 8 9, 0..9, 0 1 2: all but two have a label other than 0, and the trigger always works.
    assert metrics == Metrics(acc=18 / 23, asr=1.0, ra=0.0, num_images=23, num_triggered=21)
    assert evaluation.accuracy(LOOKUP, test, batch_size=batch_size) == 18 / 23


def test_attack_that_fails_is_robust_accuracy():
    test, _ = test_set()
    attack = attacks.badnets(target=0, size=1, value=0.5)  # not the white this model falls for
    metrics = evaluation.evaluate(LOOKUP, test, attack)
    # Of 21 images not labelled 0, one is taken for 0 anyway (predicted 0, labelled 9) and 16 are right.
    assert (metrics.asr, metrics.ra) == (1 / 21, 16 / 21)


def test_all_to_all_wants_the_next_class():
    test, predicted = test_set()
    shifted = Batch(test.images, (predicted - 1) % 10)
    attack = attacks.badnets(target=None, num_classes=10, size=1, value=0.5)
    metrics = evaluation.evaluate(LOOKUP, shifted, attack)
    assert metrics == Metrics(acc=0.0, asr=1.0, ra=0.0, num_images=23, num_triggered=23)


def test_without_attack_there_is_no_success_rate():
    metrics = evaluation.evaluate(LOOKUP, test_set()[0])
    assert metrics.asr is None and metrics.ra is None and metrics.num_triggered == 0


def test_nan_is_never_right():
    test, _ = test_set()
    broken = LOOKUP.with_variables({"scale": jnp.float32(jnp.nan)})
    assert (evaluation.predictions(broken, test.images) == -1).all()
    assert evaluation.accuracy(broken, test) == 0


def test_a_model_is_traced_once():
    apply_fn = tiny.Counted(lookup)
    test, _ = test_set()
    for scale in (1.0, 2.0):
        variables = {"scale": jnp.float32(scale)}
        evaluation.evaluate(Network(variables, apply_fn, (4, 4, 1)), test, attacks.badnets(size=1), batch_size=10)
    assert apply_fn.calls == 1


def test_one_program_over_all_batches_gives_the_same(monkeypatch):
    images = jax.random.uniform(jax.random.key(0), (25, *tiny.INPUT_SHAPE))
    network = tiny.network(tiny.init(jax.random.key(1)))
    expected = evaluation.predictions(network, images, batch_size=10)
    monkeypatch.setattr(execution, "is_cpu", lambda: False)
    np.testing.assert_array_equal(evaluation.predictions(network, images, batch_size=10), expected)
    np.testing.assert_array_equal(np.asarray(network(images)).argmax(-1), expected)


def test_errors():
    test, _ = test_set()
    with pytest.raises(DataError, match="at least one test image"):
        evaluation.evaluate(LOOKUP, Batch(test.images[:0], test.labels[:0]))
    with pytest.raises(DataError, match="batch_size=0"):
        evaluation.evaluate(LOOKUP, test, batch_size=0)
    with pytest.raises(DataError, match=r"labels in \[0, 10\).* got 10 to 19"):
        evaluation.evaluate(LOOKUP, Batch(test.images, np.arange(NUM_IMAGES) % 10 + 10))
    with pytest.raises(DataError, match="got -1 to"):
        evaluation.evaluate(LOOKUP, Batch(test.images, test.labels - 1))
    with pytest.raises(DataError, match="one label per image"):
        evaluation.evaluate(LOOKUP, Batch(test.images, test.labels[:-1]))
    with pytest.raises(DataError, match="all bear its label"):
        evaluation.evaluate(LOOKUP, Batch(test.images, test.labels * 0), attacks.badnets(size=1))


@pytest.mark.parametrize(
    ("before", "after", "der"),  # FT-SAM paper, Table 1, in per cent
    [
        ((91.82, 93.79), (90.29, 1.70), 95.28),  # BadNets, FT
        ((91.82, 93.79), (57.22, 0.90), 79.14),  # BadNets, NC: accuracy lost
        ((91.89, 74.42), (92.05, 1.31), 86.56),  # BadNets all-to-all, FP: accuracy gained counts as none
        ((93.44, 97.71), (92.48, 82.22), 57.26),  # Blended, FT
        ((94.03, 98.35), (94.11, 98.98), 50.00),  # Input-aware, NC: success gained counts as none
        ((84.55, 99.93), (82.55, 0.18), 98.88),  # label-consistent, ANP
        ((92.80, 98.90), (92.87, 0.96), 98.97),  # WaNet, FT-SAM
    ],
)
def test_defense_effectiveness_rate_of_published_entries(before, after, der):
    before, after = (Metrics(acc=acc / 100, asr=asr / 100) for acc, asr in (before, after))
    assert abs(100 * evaluation.defense_effectiveness_rate(before, after) - der) < 0.0101


def test_defense_effectiveness_rate_needs_a_trigger():
    with pytest.raises(DataError, match="asr=None after"):
        evaluation.defense_effectiveness_rate(Metrics(acc=1.0, asr=1.0), Metrics(acc=1.0))
