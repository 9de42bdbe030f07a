"""An Equinox file and what is in it, made by Equinox: `python tests/golden/equinox_files.py tests/golden`.

Made with equinox 0.13.8, jax 0.10.2 and numpy 2.4.6 on a CPU. equinox is imported where it is needed, so that the tests
can be collected without it.
"""

import json
import pathlib
import sys

import numpy as np


def main(folder: pathlib.Path) -> None:
    """Writes `equinox.eqx`, a line of JSON and the leaves, and `equinox.npz`, the leaves by position in JAX's order."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    model = eqx.nn.MLP(4, 3, 8, 1, key=jax.random.key(0))
    tree = (
        model,
        jnp.asarray([1.5, -2.0, 3.0], jnp.bfloat16),
        True,
        {"step": 7, "rate": 0.5},
        np.ones((2, 3), order="F"),
    )
    with (folder / "equinox.eqx").open("wb") as file:
        file.write((json.dumps({"mlp": {"width": 8, "depth": 1}, "activation": "relu"}) + "\n").encode())
        eqx.tree_serialise_leaves(file, tree)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if eqx.is_array_like(leaf)]
    expected = {f"{i}": leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf for i, leaf in enumerate(leaves)}
    np.savez(folder / "equinox.npz", **expected)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
