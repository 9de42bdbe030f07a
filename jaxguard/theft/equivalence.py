"""The same function from other weights: channels in another order, or of other sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Lt

from jaxguard import programs, surgery, training
from jaxguard.errors import TheftError
from jaxguard.graph import ChannelGraph, Group, Member
from jaxguard.methods import checked
from jaxguard.theft.protocol import TheftReport
from jaxguard.types import ApplyFn, Batch, Network, Variables

PROBES = (1e-3, 1.0, 1e3)
"""Sizes at which channels are tested for homogeneity: ReLU6 saturates at the last, a threshold shows at the first."""

TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit, of networks that count as the same function."""


@checked
def permutation(owner: Network, data: Batch | None, key: jax.Array) -> tuple[Network, TheftReport]:
    """Permutes every permutable group of channels at random, wherever its channels lie.

    Args:
        owner: the stolen model.
        data: ignored.
        key: draws the permutations.

    Returns:
        The copy, whose logits are the owner's up to rounding.

    Raises:
        TheftError: no group may be permuted.

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> owner = Network(v, mlp, (4,))
        >>> permutation(owner, None, jax.random.key(1))[1].notes
        ('1 of 1 groups of hidden channels were permuted, 8 channels in all.',)
    """
    del data
    permutable, hidden = _groups(owner.graph)
    if not permutable:
        raise TheftError(
            f"expected permutable channels, got none among {len(hidden)} groups; a model with nothing but an output "
            "layer has none"
        )
    rng = _generator(key)
    variables: Any = owner.variables
    for group in permutable:
        variables = surgery.permute(variables, group, rng.permutation(group.size))
    note = (
        f"{len(permutable)} of {len(hidden)} groups of hidden channels were permuted, "
        f"{sum(group.size for group in permutable)} channels in all."
    )
    return owner.with_variables(variables), TheftReport(notes=(note,))


@checked
def rescaling(
    owner: Network, data: Batch | None, key: jax.Array, *, factor: Annotated[float, Ge(1), Lt(math.inf)] = 4.0
) -> tuple[Network, TheftReport]:
    """Multiplies hidden channels by positive factors where they are made, and divides by them where they are read.

    That cancels wherever everything in between is positively homogeneous, `f(c x) = c f(x)`: ReLU, poolings, residual
    sums; not GELU, SiLU or sigmoids. Which places make and read a group's channels is taken from the channel graph, and
    that a group's factors cancel is tested on the model itself, with its channels a thousand times smaller and larger
    too. Running statistics are left alone, so that the copy is the owner's in training mode as well.

    Args:
        owner: the stolen model.
        data: ignored.
        key: draws the factors.
        factor: the largest; factors are log-uniform between this and its inverse. 1 changes nothing.

    Returns:
        The copy, whose logits are the owner's up to rounding; notes name the groups that cannot be rescaled.

    Raises:
        TheftError: nothing in the model can be rescaled.

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> v = {"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}
        >>> owner = Network(v, mlp, (4,))
        >>> rescaling(owner, None, jax.random.key(1))[1].notes
        ('8 hidden channels in 1 of 1 groups were rescaled.',)
    """
    del data
    graph = owner.graph
    permutable, hidden = _groups(graph)
    key_factors, key_images = jax.random.split(key)
    images = jax.random.uniform(key_images, (4, *owner.input_spec.shape), owner.input_spec.dtype)
    rng = _generator(key_factors)
    variables, rescaled = owner.variables, []
    for group in permutable:
        factors = factor ** rng.uniform(-1, 1, group.size)
        for places in _candidates(graph, owner.variables, group):
            if cancels(owner, places, images, rng):
                variables = scaled(variables, places, factors)
                rescaled.append(group)
                break
    if not rescaled:
        raise TheftError(
            f"expected hidden channels whose scale cancels out, got none among {len(hidden)} groups; nothing between "
            "layers is positively homogeneous, as ReLU is: take THEFTS['permutation'] instead"
        )
    count = sum(group.size for group in rescaled)
    notes = [f"{count} hidden channels in {len(rescaled)} of {len(hidden)} groups were rescaled."]
    left = sorted({group.name for group in hidden} - {group.name for group in rescaled})
    if left:
        notes.append(f"No factor cancels out in {', '.join(left)}.")
    return owner.with_variables(variables), TheftReport(notes=tuple(notes))


class Places(NamedTuple):
    """Where a group's channels are made, and where they are read."""

    made: tuple[Member, ...]
    read: tuple[Member, ...]


def _candidates(graph: ChannelGraph, variables: Variables, group: Group) -> list[Places]:
    """Ways in which factors may cancel: put in by the layers that make the channels, or by the norms behind them."""
    own = [graph.affines[producer.affine] for producer in graph.producers if producer.affine is not None]
    # Where a layer has a norm of its own, whose running mean stays as it is, the norm takes the factor.
    bare = [producer for producer in graph.producers if producer.affine is None]
    biases = {producer.bias.path for producer in graph.producers if producer.bias}
    ways: list[set[str]] = [
        {view.path for one in bare for view in (one.kernel, one.bias) if view}
        | {view.path for affine in own for view in (affine.scale, affine.bias) if view},
        {path for path, shape in _shapes(graph).items() if len(shape) == 1 and path not in biases},
    ]
    fixed = _running(graph, variables)
    out_axes = {(one.kernel.path, axis) for one in graph.producers for axis in one.kernel.axes}
    in_axes = {(one.kernel.path, axis) for one in graph.producers for axis in one.in_axes}
    depthwise = {one.kernel.path for one in graph.producers if one.groups > 1 and one.groups == one.channels}
    found = []
    for way in ways:
        made, read = [], []
        for member in group.members:
            at = member.path, member.axis
            # A depthwise kernel reads the very channels that it makes: the two cancel unless a norm remakes them.
            through = member.path in depthwise and at in out_axes
            if member.path in way - fixed and not through and (at in out_axes or at not in in_axes):
                made.append(member)
            if at in in_axes - out_axes or (through and member.path not in way):
                read.append(member)
        if made and read:
            found.append(Places(tuple(made), tuple(read)))
    return found


def cancels(owner: Network, places: Places, images: jax.Array, rng: np.random.Generator) -> bool:
    """Whether the factors of a group cancel out: tested on images `[B, ...]`, at every size of `PROBES`."""
    size = places.made[0].positions.shape[1]
    factors = 4.0 ** rng.uniform(-1, 1, size)
    for probe in PROBES:
        # Both networks have the channels at the probe's size; one has them multiplied and divided by factors besides.
        base = scaled(owner.variables, places._replace(read=()), np.full(size, probe))
        before, after = (
            np.asarray(_logits(owner.apply_fn, variables, images), np.float64)
            for variables in (base, scaled(base, places, factors))
        )
        if not np.abs(after - before).max() <= TOLERANCE * np.abs(before).max():  # also False for NaN
            return False
    return True


@partial(programs.jit, static_argnums=0)
def _logits(apply_fn: ApplyFn, variables: Variables, images: jax.Array) -> jax.Array:
    return apply_fn(variables, images)


def scaled(variables: Variables, places: Places, factors: np.ndarray) -> Any:
    """Variables with channels multiplied by factors `[C]` where they are made, and divided where they are read."""
    for members, values in ((places.made, factors), (places.read, 1 / factors)):
        for member in members:
            variables = surgery.edit(variables, {member.path: partial(_multiplied, member=member, factors=values)})
    return variables


def _multiplied(leaf: jax.Array, *, member: Member, factors: np.ndarray) -> jax.Array:
    """A leaf with its channels multiplied along one axis; on the host, where no shape has to be compiled."""
    whole = np.asarray(leaf)
    along = np.ones(whole.shape[member.axis])
    along[member.positions] = factors
    shape = [-1 if axis == member.axis else 1 for axis in range(whole.ndim)]
    return jnp.asarray((whole.astype(np.float64) * along.reshape(shape)).astype(whole.dtype))


def _groups(graph: ChannelGraph) -> tuple[list[Group], list[Group]]:
    """Groups that are permutable, and all that are hidden."""
    hidden = [group for group in graph.groups if group.frozen not in ("input", "output")]
    return [group for group in hidden if group.permutable], hidden


def _running(graph: ChannelGraph, variables: Variables) -> frozenset[str]:
    """Paths of running statistics."""
    found = {view.path for affine in graph.affines for view in (affine.mean, affine.var) if view}
    if training.partition(variables)[1] is not None:
        found.update(path for path in graph.program.paths if not path.startswith("params/"))
    return frozenset(found)


def _shapes(graph: ChannelGraph) -> Mapping[str, tuple[int, ...]]:
    program = graph.program
    return {path: program.shapes[leaf] for leaf, path in zip(program.leaves, program.paths, strict=True)}


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
