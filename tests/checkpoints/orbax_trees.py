"""Trees that Orbax writes in each of its layouts."""

import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from orbax import checkpoint as ocp

from jaxguard import checkpoints

TREE = {
    "params": {
        "conv": {
            "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
            "b.ias": np.array([1.5, -2], ml_dtypes.bfloat16),
        },
        "blocks": [np.ones(2, np.float16), jnp.zeros(3)],
    },
    "scale": np.array(3, np.int32),
    "a/b": np.ones(1, np.float32),
}
LEAVES = checkpoints.flatten(TREE)


LAYOUTS = {
    "ocdbt": {"use_ocdbt": True},
    "plain": {"use_ocdbt": False},
    "zarr3": {"use_zarr3": True},
    "plain zarr3": {"use_zarr3": True, "use_ocdbt": False},
    "plain content": {"use_compression": False},
}


def write(path: pathlib.Path, tree=TREE, **options) -> pathlib.Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
    return path


def assert_holds(checkpoint: checkpoints.Checkpoint, leaves=LEAVES) -> None:
    found = checkpoint.read_all()
    assert checkpoint.format == "orbax"
    assert not checkpoint.left_out
    assert set(found) == set(checkpoint.leaves) == set(leaves)
    for name, leaf in leaves.items():
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == checkpoint.leaves[name].dtype == leaf.dtype
        assert found[name].shape == checkpoint.leaves[name].shape == leaf.shape
        np.testing.assert_array_equal(found[name], leaf)
        np.testing.assert_array_equal(checkpoint.read(name), leaf)
