"""A backdoor that others planted is found again: NAD's WideResNet-16-1, target 5, on real images of CIFAR-10.

`experiments/inversion_third_party.py` inverts all classes; this is two of them.
"""

import pathlib

import jax
import numpy as np
import pytest
from test_third_party import cifar, open_published

from jaxguard import evaluation, inversion
from jaxguard.attacks import patch
from jaxguard.types import Batch

__all__ = ["cifar"]  # a fixture

NAME, TARGET, OTHER = "c10_bd_wrn16_nad_student", 5, 1


@pytest.mark.slow
def test_the_target_needs_a_smaller_patch_than_another_class_and_it_works_on_new_images(
    shared_data: pathlib.Path, cifar: Batch
):
    suspect, attack, _ = open_published(shared_data, NAME)
    assert attack is not None and attack.target == TARGET
    network = suspect.require_network()
    labels = np.asarray(cifar.labels)
    few = np.concatenate([np.flatnonzero(labels == y)[:2] for y in range(10)])
    found = inversion.invert(
        network.apply_fn,
        network.variables,
        cifar.images[few],
        labels[few],
        jax.random.key(0),
        classes=[TARGET, OTHER],
        steps=200,
    )
    assert found.reached.all() and found.success.min() >= 0.98
    assert found.norms[0] < 0.8 * found.norms[1]
    flips = []
    for row, target in enumerate((TARGET, OTHER)):
        new = np.setdiff1d(np.flatnonzero(labels != target), few)
        stamped = patch(found.masks[row], found.patterns[row], target=target).stamp(cifar.images[new])
        classes = evaluation.predictions(network, stamped, batch_size=100)
        flips.append((classes == target).mean())
    assert flips[0] > 0.5 and flips[0] > 2 * flips[1]
