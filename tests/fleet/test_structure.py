"""What checkpoints must share to be stacked, and where their leaves lie in a row."""

import jax
import numpy as np
import pytest
import stores
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError
from jaxguard.fleet import reading
from jaxguard.fleet.structure import WORD, Structure, structure_of

DTYPES = ("float32", "float16", "bfloat16", "int64", "bool", "uint8")


def of_bytes(path, content: list[tuple[str, np.ndarray]]) -> tuple[Structure, np.ndarray]:
    """The structure of a safetensors file with these leaves, and its row."""
    path.write_bytes(stores.safetensors_bytes(content))
    opened = reading.open_one(str(path))
    assert isinstance(opened, reading.Opened), opened
    row = np.full(opened.structure.length, np.nan, np.float32)
    assert isinstance(reading.fill(opened, row), str)
    return opened.structure, row


def test_raw_rows_are_the_file_from_its_first_leaf_on(tmp_path):
    content = [("b", np.arange(3, dtype=np.float32)), ("n", np.array([7, 8])), ("a", np.ones((2, 2), np.float32))]
    structure, row = of_bytes(tmp_path / "a.safetensors", content)
    assert structure.is_raw
    assert structure.leaves == (("b", (3,), "float32"), ("n", (2,), "int64"), ("a", (2, 2), "float32"))
    assert structure.offsets == (0, -1, 7)
    assert structure.length == 16
    assert structure.nbytes == 64
    assert row.tobytes() == b"".join(leaf.tobytes() for _, leaf in content) + bytes(64 - 44)


def test_other_files_are_packed(tmp_path):
    content = [("m", np.array([True])), ("b", np.arange(3, dtype=np.float32)), ("a", np.ones((2, 2), np.float16))]
    structure, row = of_bytes(tmp_path / "a.safetensors", content)
    assert not structure.is_raw
    assert structure.offsets == (-1, 0, 3)
    np.testing.assert_array_equal(row[:7], [0, 1, 2, 1, 1, 1, 1])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=8))
def test_unpacking_gives_back_every_floating_point_leaf(tmp_path_factory, drawn):
    """Whatever lies between them, at whatever address."""
    rng = np.random.default_rng(0)
    content = [
        (f"{k}", stores.rounded({"": rng.integers(0, 2, shape).astype(np.float32)}, dtype)[""])
        for k, (dtype, shape) in enumerate(drawn)
    ]
    path = tmp_path_factory.mktemp("structure") / "a.safetensors"
    floating = {name: leaf.astype(np.float32) for name, leaf in content if leaf.dtype.name in DTYPES[:3]}
    if not floating:
        path.write_bytes(stores.safetensors_bytes(content))
        with pytest.raises(CheckpointError, match="dequantise"):
            structure_of(checkpoints.load(path))
        return
    structure, row = of_bytes(path, content)
    with jax.disable_jit():
        found = structure.unpack(np.stack([np.zeros_like(row), row]), 1)
    assert found.keys() == floating.keys()
    for name, leaf in floating.items():
        np.testing.assert_array_equal(found[name], leaf[None])
    assert structure.length % 16 == 0
    assert structure.nbytes == structure.length * WORD


def test_checkpoints_of_one_structure_are_equal_and_others_are_not(tmp_path):
    def structure(name, content, **how):
        return structure_of(checkpoints.load(stores.write(tmp_path / name, content, **how)))

    one, same = (structure(f"{seed}.safetensors", stores.leaves(seed)) for seed in (0, 1))
    assert one == same
    assert hash(one) == hash(same)
    other_order = tmp_path / "order.safetensors"
    other_order.write_bytes(stores.safetensors_bytes(list(reversed(stores.leaves().items()))))
    differing = {
        "another format": structure("a.npz", stores.leaves()),
        "another element type": structure("half.safetensors", stores.rounded(stores.leaves(), "float16")),
        "another shape": structure("c.safetensors", stores.stranger()),
        "another order": structure_of(checkpoints.load(other_order)),
        "another description": structure("d.safetensors", stores.leaves(), described=stores.MLP),
    }
    assert len({one, *differing.values()}) == 6
    assert differing["another order"].key == differing["another format"].key == one.key
    assert len({one.key, *(found.key for found in differing.values())}) == 4


def test_a_description_that_is_no_json_is_an_error(tmp_path):
    checkpoints.save(tmp_path / "a.safetensors", stores.leaves(), metadata={"jaxguard": "{"})
    with pytest.raises(CheckpointError, match="expected JSON"):
        structure_of(checkpoints.load(tmp_path / "a.safetensors"))
