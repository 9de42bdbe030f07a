"""A checkpoint that is scored in parts has the scores it has as a whole."""

import numpy as np
import pytest
import stores
from stores import CNN, MLP

from jaxguard.fleet import piecewise, reading, scoring, staging
from jaxguard.fleet.stream import Failure, Scored, stream

WHOLE = 2**26


def one(path, memory: int) -> Scored | Failure:
    (result,) = stream([str(path)], memory=memory)
    return result


def least(path) -> int:
    """Bytes with which it can be scored, as the error says."""
    told = one(path, 64)
    assert isinstance(told, Failure), told
    return int(told.error.rpartition("raise --memory to ")[2])


FILES = {
    "flax": ("a.safetensors", lambda: stores.leaves(1, CNN)),
    "torch": ("a.safetensors", lambda: stores.leaves(1, CNN, "torch")),
    "dense layers of torch": ("a.safetensors", lambda: stores.leaves(1, MLP, "torch")),
    "pytorch zip": ("a.pt", lambda: stores.leaves(1, CNN, "torch")),
    "npz": ("a.npz", lambda: stores.leaves(1, CNN)),
    "half precision": ("a.safetensors", lambda: stores.rounded(stores.leaves(1, CNN, "torch"), "float16")),
    "no known architecture": ("a.safetensors", stores.stranger),
}


@pytest.mark.parametrize(("name", "leaves_fn"), FILES.values(), ids=FILES)
def test_parts_score_like_the_whole(tmp_path, monkeypatch, name, leaves_fn):
    path = stores.write(tmp_path / name, leaves_fn())
    whole, pieces, taken = one(path, WHOLE), [], []
    assert isinstance(whole, Scored)
    read, take = piecewise._read, staging.Staging.take

    def reading_fn(checkpoint, piece, row):
        pieces.append(piece)
        return read(checkpoint, piece, row)

    def take_fn(self, rows, length):
        taken.append(4 * rows * length)
        return take(self, rows, length)

    monkeypatch.setattr(piecewise, "_read", reading_fn)
    monkeypatch.setattr(staging.Staging, "take", take_fn)
    memory = least(path)
    parts = one(path, memory)
    assert isinstance(parts, Scored), parts
    assert max(taken) <= memory / 2
    kernels = {piece.name for piece in pieces}
    assert len(pieces) > len(kernels) >= 1
    assert parts.scope == whole.scope
    assert parts.files == whole.files
    assert parts.content == whole.content
    for found, expected in zip(parts.scores, whole.scores, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["kernel", "bias"])
def test_what_is_not_finite_is_found_in_any_part(tmp_path, kind):
    leaves = {name: leaf.copy() for name, leaf in stores.leaves(1, CNN).items()}
    name = next(name for name in leaves if name.endswith(kind))
    leaves[name].reshape(-1)[-1] = np.nan
    path = stores.write(tmp_path / "a.safetensors", leaves)
    memory = least(stores.write(tmp_path / "good.safetensors", stores.leaves(1, CNN)))
    found = one(path, memory)
    assert isinstance(found, Failure)
    assert "expected finite weights" in found.error


def test_a_file_that_changes_meanwhile_is_a_failure(tmp_path, monkeypatch):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(1, CNN))
    memory, score = least(path), piecewise.score

    def score_fn(*arguments):
        stores.write(path, stores.leaves(2, MLP))
        return score(*arguments)

    monkeypatch.setattr(piecewise, "score", score_fn)
    found = one(path, memory)
    assert isinstance(found, Failure)
    assert "changed since" in found.error


def test_the_output_layer_and_whatever_is_not_a_leaf_as_it_is_stays_whole(tmp_path):
    opened = reading.open_one(str(stores.write(tmp_path / "a.safetensors", stores.leaves(1, CNN, "torch"))))
    assert isinstance(opened, reading.Opened)
    recipe = scoring.recipe_of(opened.structure, scoring.Settings())
    shapes = {name: shape for name, shape, _ in opened.structure.leaves}
    assert set(recipe.kernels) == {name for name, shape in shapes.items() if len(shape) == 4}
    assert all(np.prod(kernel.shape) == np.prod(shapes[name]) for name, kernel in recipe.kernels.items())
