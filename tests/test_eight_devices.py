"""What is divided among devices gives on eight of them the numbers of one."""

import contextlib
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxguard import evaluation, execution, inversion, meshes, repairs, training
from jaxguard.errors import JaxguardError
from jaxguard.fingerprints import queries
from jaxguard.fingerprints.sac import distances
from jaxguard.inversion.ascent import Candidates, Clock, Task, climb, stamped_logits
from jaxguard.inversion.trigger_models import Patch
from jaxguard.pruning.shapley_estimation import permutation_sampling
from jaxguard.scores import responses
from jaxguard.suspects import Suspect
from jaxguard.types import Batch, Network

HERE = pathlib.Path(__file__)
SHAPE, CLASSES = (6, 6, 1), 5
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(12, *SHAPE)).astype(np.float32)
LABELS = np.arange(12) % CLASSES


def nonlinear(variables, images):
    return jnp.tanh(images.reshape(len(images), -1) @ variables["first"]) @ variables["second"]


def trained(variables, images):
    return nonlinear(variables, images), variables


def drawn(seed):
    rng = np.random.default_rng(seed)
    shapes = {"first": (36, 8), "second": (8, CLASSES)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def network(seed):
    return Network(drawn(seed), nonlinear, SHAPE)


@contextlib.contextmanager
def as_on_accelerators():
    """One program runs through everything, as it would there."""
    decides, execution.is_cpu = execution.is_cpu, lambda: False
    try:
        yield
    finally:
        execution.is_cpu = decides


def search():
    """Descents of eleven candidates, two or three to a device, and what the results do to some of the images."""
    rng = np.random.default_rng(0)
    task = Task(nonlinear, meshes.everywhere(drawn(0)), IMAGES, LABELS, Clock(0))
    masks = (rng.uniform(size=(11, 6, 6, 1)) < 0.3).astype(np.float32)
    start = Candidates(masks, np.full((11, *SHAPE), 0.5, np.float32))
    climbed = climb(task, Patch(), start, np.arange(11) % CLASSES, 4)
    stamped = stamped_logits(task, Patch(), Candidates(masks, climbed.free).take, 11, IMAGES)
    return climbed.free, climbed.score, stamped


def neural_cleanse():
    found = inversion.invert(nonlinear, drawn(0), IMAGES, LABELS, jax.random.key(0), steps=6, batch_size=4)
    return found.masks, found.patterns, found.success


def evaluations():
    return evaluation.predictions(network(0), np.resize(IMAGES, (50, *SHAPE)), batch_size=4)


def class_responses():
    return responses.class_responses(network(0).graph, drawn(0))


def answers():
    suspects = [Suspect(f"{seed}", network=network(seed)) for seed in range(11)]
    return queries.outputs_of(suspects, IMAGES)


def correlations():
    rng = np.random.default_rng(1)
    owner, suspects = rng.normal(size=(20, CLASSES)), rng.normal(size=(11, 20, CLASSES))
    return distances(owner.astype(np.float32), suspects.astype(np.float32))


def population():
    """Eleven networks of their own seeds, images and rates, in one program."""
    found = training.fit_many(
        trained,
        [drawn(seed) for seed in range(11)],
        Batch(IMAGES, LABELS),
        list(jax.random.split(jax.random.key(0), 11)),
        rows=[np.roll(np.arange(12), k)[:8] for k in range(11)],
        learning_rate=np.linspace(0.01, 0.1, 11),
        epochs=3,
        batch_size=4,
        side_by_side=True,
    )
    return [leaf for variables, losses in found for leaf in (losses, *jax.tree.leaves(variables))]


def shapley_values():
    worth = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    game = Partial(lambda worth, gates: jnp.tanh(gates @ worth).sum(-1), worth)
    return [jnp.asarray(leaf) for leaf in permutation_sampling(game, 6, jax.random.key(0), samples=24)]


def repaired(method, **settings):
    """Three suspects, each repaired on a device of its own; a fourth that cannot be."""
    networks = [Network(drawn(seed), nonlinear, SHAPE, train_fn=trained) for seed in range(3)]
    broken = Network({**drawn(3), "first": np.full((36, 8), np.nan, np.float32)}, nonlinear, SHAPE, train_fn=trained)
    options = {"batch_size": 4, **settings}
    clean = Batch(IMAGES, LABELS)
    found = repairs.repair_all([*networks, broken], method, jax.random.key(0), clean=clean, options=options)
    assert isinstance(found.pop(), JaxguardError)
    return [leaf for suspect, _ in found for leaf in jax.tree.leaves(suspect.network.variables)]


def otbr():
    return repaired("otbr", steps=3)


def tsbd():
    return repaired("tsbd", unlearn_epochs=2, epochs=2)


WORK = {
    "trigger search": search,
    "neural cleanse": neural_cleanse,
    "evaluation": evaluations,
    "responses": class_responses,
    "fingerprint": answers,
    "correlation": correlations,
    "training": population,
    "shapley": shapley_values,
    "otbr": otbr,
    "tsbd": tsbd,
}
ONE_PROGRAM = {"evaluation", "responses", "fingerprint", "neural cleanse"}
"""Work that takes another way on accelerators, which is taken here too."""


def found():
    rows = {name: work() for name, work in WORK.items()}
    with as_on_accelerators():
        rows |= {f"{name}, one program": WORK[name]() for name in sorted(ONE_PROGRAM)}
    parts = {name: row if isinstance(row, (list, tuple)) else [row] for name, row in rows.items()}
    return {f"{name}, {k}": np.asarray(part) for name, row in parts.items() for k, part in enumerate(row)}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Results of this process, and of one with eight devices."""
    path = tmp_path_factory.mktemp("devices") / "eight.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, HERE, path], env=environment, check=True, timeout=600)
    eight = np.load(path)
    assert eight["devices"] == 8
    return found(), {name: eight[name] for name in eight.files if name != "devices"}


@pytest.mark.parametrize("name", [*WORK, *(f"{name}, one program" for name in sorted(ONE_PROGRAM))])
def test_eight_devices_give_the_numbers_of_one(both, name):
    one, eight = ({part: row[part] for part in row if part.rsplit(", ", 1)[0] == name} for row in both)
    assert one and one.keys() == eight.keys()
    for part, expected in one.items():
        np.testing.assert_allclose(eight[part], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ONE_PROGRAM))
def test_one_program_gives_the_numbers_of_many(both, name):
    one, _ = both
    rows = [
        [row for part, row in one.items() if part.rsplit(", ", 1)[0] == way] for way in (name, f"{name}, one program")
    ]
    for separate, together in zip(*rows, strict=True):
        np.testing.assert_allclose(together, separate, rtol=1e-4, atol=1e-5)


def check_that_threads_stay_on_their_device():
    for device in jax.devices():
        with execution.confined_to(device):
            assert execution.devices() == (device,)
            (found,) = execution.in_threads(lambda _: jnp.ones(1).devices(), [None], threads=1)
        assert found == {device}


if __name__ == "__main__":
    check_that_threads_stay_on_their_device()
    np.savez(sys.argv[1], devices=len(jax.devices()), **found())
