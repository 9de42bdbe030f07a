"""Many networks trained at once are those trained one by one."""

import jax
import numpy as np
import pytest
import tiny

from jaxguard import execution, training
from jaxguard.errors import DataError, JaxguardError
from jaxguard.types import Batch

RNG = np.random.default_rng(0)
DATA = Batch(RNG.uniform(size=(40, 8, 8, 1)).astype(np.float32), RNG.integers(0, 4, 40))
KEYS = list(jax.random.split(jax.random.key(1), 3))
ROWS = [np.arange(24), np.arange(16, 40), RNG.permutation(40)[:24]]
RATES, DECAYS = [0.05, 0.02, 0.1], [0.0, 5e-4, 1e-2]
OPTIONS = {"epochs": 3, "batch_size": 8, "augment": training.CropFlip(1)}


def models():
    return [tiny.init(jax.random.key(seed)) for seed in range(3)]


def many(side_by_side, **options):
    options = OPTIONS | {"rows": ROWS, "learning_rate": RATES, "weight_decay": DECAYS} | options
    return training.fit_many(tiny.train_fn, models(), DATA, KEYS, side_by_side=side_by_side, **options)


def close(ours, theirs):
    for (one, losses), (other, expected) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_each_is_trained_as_alone(side_by_side):
    alone = []
    for k, start in enumerate(models()):
        own = Batch(DATA.images[ROWS[k]], DATA.labels[ROWS[k]])
        rate = {"learning_rate": RATES[k], "weight_decay": DECAYS[k]}
        found = training.fit(tiny.train_fn, start, own, KEYS[k], **OPTIONS, **rate)
        alone.append((found.variables, found.losses))
    close(many(side_by_side), alone)


def test_no_more_at_once_than_memory_holds(monkeypatch):
    # 2 at once, then the last one beside a copy of itself
    monkeypatch.setattr(execution, "networks_at_once", lambda bytes_each: 2)
    told = []
    close(many(True, progress=lambda *row: told.append(row)), many(False))
    assert told[-1][:2] == (27, 27) and np.ndim(told[-1][2]["loss"]) == 0


def test_memory_is_that_of_a_step():
    few, more = (training.abreast.bytes_of_step(tiny.train_fn, models()[0], DATA, batch_size) for batch_size in (1, 11))
    weights = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(models()[0]))
    assert (more - weights) == 11 * (few - weights) > 0


def test_what_diverged_is_named():
    with pytest.raises(JaxguardError, match=r"got nan at step \d+ of 9 in fit_many\(\), network 1 of 3"):
        many(False, learning_rate=[0.01, 1e30, 0.01])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": ROWS[:2]}, DataError, "expected rows for each network, equally many, got 2"),
        ({"rows": [*ROWS[:2], np.arange(5)]}, DataError, r"of lengths \[5, 24\] for 3 networks"),
        ({"rows": [*ROWS[:2], np.arange(17, 41)]}, DataError, r"expected rows in \[0, 40\), got 0 to 40"),
        ({"steps": 3}, ValueError, "expected a key for each network, and one of steps >= 0 and epochs >= 0"),
        ({"learning_rate": [0.1, 0.2]}, ValueError, "broadcast"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        many(False, **options)


def test_no_network_is_an_error():
    with pytest.raises(DataError, match="expected networks, images and a label for each image, got 0 networks"):
        training.fit_many(tiny.train_fn, [], DATA, [], epochs=1)


def test_a_step_of_many_is_one_program_for_every_platform(monkeypatch):
    monkeypatch.setattr(execution, "is_cpu", lambda: False)
    chunk, programs = training.descent.CHUNK_OF_STEPS[True], []

    def lowered(*arguments):
        programs.append(jax.export.export(chunk._plain, platforms=("cpu", "cuda", "tpu"))(*arguments))
        return chunk(*arguments)

    monkeypatch.setitem(training.descent.CHUNK_OF_STEPS, True, lowered)
    assert len(many(None)) == 3
    (program,) = programs
    assert "while" in program.mlir_module()
