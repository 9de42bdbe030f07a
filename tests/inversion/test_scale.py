"""Memory and numbers of classes: the search is bounded by them and its results are not changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard import execution, memory, meshes
from jaxguard.inversion.ascent import Candidates, Clock, Task, climb, stamped_logits
from jaxguard.inversion.trigger_models import Patch
from jaxguard.training import descent

SHAPE, CLASSES = (6, 6, 1), 5


def nonlinear(variables, images):
    return jnp.tanh(images.reshape(len(images), -1) @ variables["first"]) @ variables["second"]


def found():
    """Descents of eleven candidates, two or three to a device, and what the results do to some of the images."""
    rng = np.random.default_rng(0)
    shapes = {"first": (36, 8), "second": (8, CLASSES)}
    variables = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    images = rng.uniform(size=(12, *SHAPE)).astype(np.float32)
    task = Task(nonlinear, meshes.everywhere(variables), images, np.arange(12) % CLASSES, Clock(0))
    masks = (rng.uniform(size=(11, 6, 6, 1)) < 0.3).astype(np.float32)
    start = Candidates(masks, np.full((11, *SHAPE), 0.5, np.float32))
    climbed = climb(task, Patch(), start, np.arange(11) % CLASSES, 4)
    stamped = stamped_logits(task, Patch(), Candidates(masks, climbed.free).take, 11, images)
    return {"free": climbed.free, "score": climbed.score, "stamped": stamped}


def test_a_descent_of_all_candidates_is_one_program_for_every_platform(monkeypatch):
    chunk, programs = descent.CHUNK_OF_STEPS[False], []

    def lowered(*arguments):
        programs.append(jax.export.export(jax.jit(chunk), platforms=("cpu", "cuda", "tpu"))(*arguments))
        return chunk(*arguments)

    by_steps = found()
    monkeypatch.setattr(execution, "is_cpu", lambda: False)
    monkeypatch.setitem(descent.CHUNK_OF_STEPS, False, lowered)
    in_one = found()
    (program,) = programs
    assert program.platforms == ("cpu", "cuda", "tpu") and "while" in program.mlir_module()
    for name, one in by_steps.items():
        np.testing.assert_allclose(in_one[name], one, rtol=1e-5, atol=1e-5)


def test_memory_is_what_grows_with_the_images():
    variables = {"first": jnp.ones((36, 8)), "second": jnp.ones((8, CLASSES))}
    # reshape 36, products 8 and 5, tanh 8, each a float of 4 bytes; nothing for the variables
    assert memory.of_gradient(nonlinear, variables, SHAPE) == 4 * (36 + 8 + 8 + CLASSES) // 2

    def looped(variables, images):
        return jax.lax.scan(lambda carry, _: (carry * 2, None), images, length=7)[0]

    assert memory.of_gradient(looped, {}, (2, 2, 1)) == 7 * 4 * 4 // 2


@pytest.mark.parametrize(("bytes_each", "images"), [(0, 32), (2**26, 32), (2**28, 8), (2**40, 1)])
def test_programs_are_as_large_as_memory_allows(monkeypatch, bytes_each, images):
    monkeypatch.setattr(execution, "workers", lambda: 2)
    assert execution.stamped_images_at_once(bytes_each) == images
    assert execution.searches_at_once(images * bytes_each) == (2 if bytes_each < 2**40 else 1)
