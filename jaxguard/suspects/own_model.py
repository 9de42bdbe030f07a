"""A checkpoint bound to the user's own function."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import CheckpointError
from jaxguard.graph.program import is_key, leaf_paths
from jaxguard.suspects.suspect import Suspect
from jaxguard.types import ApplyFn, Network
from jaxguard.types.network import Outputs

DEFAULT_SHAPE = (32, 32, 3)
"""Of one image, where none is given."""


def bind_function(
    checkpoint: checkpoints.Checkpoint,
    apply_fn: ApplyFn,
    init_fn: Callable[[], Any] | None,
    input_shape: tuple[int, ...] | None,
    name: str,
    *,
    outputs: Outputs | None = None,
) -> Suspect:
    """The suspect that a function makes of a checkpoint's leaves; for the arguments see `load`.

    Raises:
        CheckpointError: a leaf cannot be read, is not finite, or has no place in what `init_fn` gives.
    """
    leaves = checkpoint.read_all()
    checkpoints.check_finite(leaves, checkpoint.path)
    variables, names = _placed(leaves | _others(leaves, checkpoint.aliases), init_fn, checkpoint.path)
    called = apply_fn
    if checkpoint.aliases:
        called = tied(apply_fn, init_fn, checkpoint.aliases)
        variables, names = leaves, {leaf: leaf for leaf in leaves}
    return Suspect(
        name=name,
        network=network_of(jax.device_put(variables), called, input_shape, outputs),
        architecture=getattr(apply_fn, "__name__", "apply_fn"),
        sha256=checkpoint.sha256,
        checkpoint=checkpoint,
        names=names,
        notes=checkpoint.notes,
    )


@dataclass(frozen=True)
class _Tied:
    apply_fn: ApplyFn
    init_fn: Callable[[], Any] | None
    aliases: tuple[tuple[str, tuple[str, ...]], ...]

    def __call__(self, leaves: Mapping[str, Any], inputs: Any) -> Any:
        whole = {**leaves, **_others(leaves, dict(self.aliases))}
        return self.apply_fn(variables_of(whole, self.init_fn), inputs)


def tied(
    apply_fn: ApplyFn, init_fn: Callable[[], Any] | None, aliases: Mapping[str, tuple[str, ...]]
) -> Callable[[Mapping[str, Any], Any], Any]:
    """The same function of leaves by name, each memory once: tensors that are tied are scored and edited as one.

    Args:
        apply_fn: the user's own model.
        init_fn: see `load`.
        aliases: of a checkpoint.

    Returns:
        `({leaf: array}, inputs) -> outputs`; equal for equal arguments.
    """
    return _Tied(apply_fn, init_fn, tuple(sorted(aliases.items())))


def _others(leaves: Mapping[str, Any], aliases: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Leaves under their other names."""
    return {other: leaves[leaf] for leaf, others in aliases.items() for other in others}


def network_of(
    variables: Any, apply_fn: ApplyFn, input_shape: tuple[int, ...] | None, outputs: Outputs | None = None
) -> Network:
    """The network of a function; the shape of one image is `DEFAULT_SHAPE` where none is given."""
    return Network(variables, apply_fn, jax.ShapeDtypeStruct(input_shape or DEFAULT_SHAPE, np.float32), outputs=outputs)


def variables_of(leaves: Mapping[str, Any], init_fn: Callable[[], Any] | None) -> Any:
    """What the user's own function takes as variables; traceable.

    Args:
        leaves: of a checkpoint, by name; arrays or tracers.
        init_fn: see `load`.

    Raises:
        CheckpointError: a leaf has no place in what `init_fn` gives.
    """
    return _placed(leaves, init_fn, "checkpoint")[0]


def paths_of(leaves: Mapping[str, Any], init_fn: Callable[[], Any] | None) -> dict[str, str]:
    """The path in the variables of every leaf, see `variables_of`."""
    if init_fn is None:
        return {name: name for name in leaves}
    wanted = set(leaf_paths(jax.eval_shape(init_fn)))
    return {name: path for name in leaves if (path := _path_of(name, wanted)) in wanted}


def _placed(leaves: Mapping[str, Any], init_fn: Callable[[], Any] | None, source: str) -> tuple[Any, dict[str, str]]:
    if init_fn is None:
        return checkpoints.unflatten(leaves), {name: name for name in leaves}
    return _in_tree(leaves, init_fn, source)


def _path_of(name: str, wanted: Container[str]) -> str:
    return name if name in wanted else name.replace(".", "/")


def _in_tree(leaves: Mapping[str, Any], init_fn: Callable[[], Any], source: str) -> tuple[Any, dict[str, str]]:
    """The tree filled with the leaves of its paths, torch's dots being as good as slashes.

    Random streams, which are left out of checkpoints, are those that `init_fn` gives.
    """
    tree = jax.eval_shape(init_fn)
    wanted = dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))
    names = {name: path for name in leaves if (path := _path_of(name, wanted)) in wanted}
    by_path = {path: leaves[name] for name, path in names.items()}
    drawn = {path for path, leaf in wanted.items() if path not in by_path and _is_random(path, leaf)}
    if drawn:
        made = dict(zip(wanted, jax.tree.leaves(init_fn()), strict=True))
        by_path |= {path: made[path] for path in drawn}
    misfits = [f"leaf {path!r} {leaf.shape} is missing" for path, leaf in wanted.items() if path not in by_path]
    misfits += [
        f"leaf {path!r} is {by_path[path].shape}, init gives {leaf.shape}"
        for path, leaf in wanted.items()
        if path in by_path and by_path[path].shape != leaf.shape
    ]
    misfits += [f"leaf {name!r} is not part of what init gives" for name in leaves if name not in names]
    if misfits:
        raise CheckpointError(
            f"{source}: expected the {len(wanted)} leaves that init gives, got {len(leaves)}: "
            f"{models.listed(misfits)}; "
            "let init give the tree that was saved, or leave it out to get the leaves as they are"
        )
    filled = [by_path[path] if path in drawn else by_path[path].astype(leaf.dtype) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), filled), names


def _is_random(path: str, leaf: Any) -> bool:
    return is_key(leaf) or checkpoints.is_random(tuple(path.split("/")), checkpoints.LeafSpec(leaf.shape, leaf.dtype))
