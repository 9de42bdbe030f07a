import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import attacks, evaluation
from jaxguard.errors import DataError, OptionError
from jaxguard.types import Batch, Network

LABELS = np.arange(200, dtype=np.int32) % 10
BATCH = Batch(np.random.default_rng(0).uniform(0, 0.9, size=(200, 8, 8, 1)).astype(np.float32), LABELS)
ATTACK = attacks.source_specific(target=3, num_classes=10, sources=(1, 2))


def test_only_sources_change_their_label():
    expected = np.where(np.isin(LABELS, (1, 2)), 3, LABELS)
    for labels in (LABELS, jnp.asarray(LABELS)):
        found = ATTACK.relabel(labels)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int32
    assert (ATTACK.target, ATTACK.sources) == (3, (1, 2))
    assert [attacks.source_specific(target=target).sources for target in (0, 1)] == [(1,), (0,)]


@pytest.mark.parametrize(
    ("rate", "cover", "poisoned", "covers"), [(0.1, 1.0, 20, 20), (0.05, 2.5, 10, 25), (0.1, 0, 20, 0)]
)
def test_poison_rate_and_cover_images_are_exact(rate, cover, poisoned, covers):
    attack = attacks.source_specific(target=3, sources=(1, 2), cover=cover)
    found, mask = attacks.poison(attack, BATCH, rate, jax.random.key(0))
    mask, labels = np.asarray(mask), np.asarray(found.labels)
    is_source = np.isin(LABELS, (1, 2))
    assert (mask & is_source).sum() == poisoned and (mask & ~is_source).sum() == covers
    assert (labels[mask & is_source] == 3).all()
    np.testing.assert_array_equal(labels[~(mask & is_source)], LABELS[~(mask & is_source)])
    np.testing.assert_array_equal(np.asarray(found.images)[~mask], BATCH.images[~mask])
    np.testing.assert_array_equal(np.asarray(found.images)[mask], attack.stamp(BATCH.images[mask]))


def test_success_is_counted_on_source_images_alone():
    """A network that takes triggered images of class 1, half those of class 2 and all of class 5 for class 3."""
    code = np.zeros((200, 8, 8, 1), np.float32)
    code[:, 0, 0, 0], code[:, 0, 1, 0] = LABELS / 10, np.arange(200) // 10 % 2

    def apply_fn(variables, images):
        label = jnp.round(images[:, 0, 0, 0] * 10).astype(jnp.int32)
        falls = (label == 1) | (label == 5) | ((label == 2) & (images[:, 0, 1, 0] == 1))
        return jax.nn.one_hot(jnp.where(falls & (images[:, -1, -1, 0] == 1), 3, label), 10)

    metrics = evaluation.evaluate(Network({}, apply_fn, (8, 8, 1)), Batch(code, LABELS), ATTACK)
    assert (metrics.acc, metrics.asr, metrics.ra, metrics.num_triggered) == (1.0, 0.75, 0.25, 40)
    assert set(np.asarray(attacks.triggered(ATTACK, BATCH).labels).tolist()) == {1, 2}


def test_success_of_all_to_all_is_the_next_class():
    """A network that moves triggered images of even classes to the next one."""
    code = np.zeros((200, 8, 8, 1), np.float32)
    code[:, 0, 0, 0] = LABELS / 10

    def apply_fn(variables, images):
        label = jnp.round(images[:, 0, 0, 0] * 10).astype(jnp.int32)
        return jax.nn.one_hot(jnp.where((images[:, -1, -1, 0] == 1) & (label % 2 == 0), label + 1, label), 10)

    all_to_all = attacks.badnets(target=None, num_classes=10)
    metrics = evaluation.evaluate(Network({}, apply_fn, (8, 8, 1)), Batch(code, LABELS), all_to_all)
    assert (metrics.acc, metrics.asr, metrics.ra, metrics.num_triggered) == (1.0, 0.5, 0.5, 200)


def test_any_attack_can_be_restricted():
    letter = attacks.restricted(attacks.letter(target=0), (4,), 10)
    assert (letter.name, letter.relabel(np.array([4, 5])).tolist()) == ("letter", [0, 5])


def test_errors():
    with pytest.raises(DataError, match=r"sources in \[0, 10\) other than the target 3, got \(3,\)"):
        attacks.source_specific(target=3, num_classes=10, sources=(3,))
    with pytest.raises(DataError, match=r"got \(10,\)"):
        attacks.source_specific(num_classes=10, sources=(10,))
    with pytest.raises(OptionError, match="at least 1"):
        attacks.source_specific(sources=())
    with pytest.raises(DataError, match="at least 60 source images, got 40"):
        attacks.poison(ATTACK, BATCH, 0.3, jax.random.key(0))
    with pytest.raises(DataError, match="at least 400 cover images, got 160"):
        attacks.poison(attacks.source_specific(target=3, sources=(1, 2), cover=20), BATCH, 0.1, jax.random.key(0))
