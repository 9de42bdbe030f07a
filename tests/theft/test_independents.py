"""Independent networks: many at once are those made one by one."""

import jax
import numpy as np

from jaxguard import models
from jaxguard.theft import halves, independent, independents, owners_share
from jaxguard.types import Batch

RNG = np.random.default_rng(0)
DATA = Batch(RNG.random((40, 4, 4, 1), np.float32), np.arange(40) % 4)
MODEL = models.build("mlp:hidden=8", num_classes=4, input_shape=(4, 4, 1))
RECIPE = {"epochs": 3, "batch_size": 8, "weight_decay": 1e-2}


def test_several_are_each_as_alone_on_its_own_half():
    keys = list(jax.random.split(jax.random.key(0), 2))
    rows = [np.flatnonzero(owners_share(DATA, key)) for key in keys]
    for key, (network, report) in zip(keys, independents(MODEL, DATA, keys, rows=rows, **RECIPE), strict=True):
        alone, expected = independent(MODEL, halves(DATA, key)[0], key, **RECIPE)
        np.testing.assert_allclose(report.curves["loss"], expected.curves["loss"], rtol=1e-6)
        for a, b in zip(jax.tree.leaves(network.variables), jax.tree.leaves(alone.variables), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
