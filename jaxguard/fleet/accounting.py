"""What became of every leaf of a checkpoint: scored, not a layer, or not understood, with the reason.

Nothing is left unsaid: there is one account per leaf, so that numbers and bytes add up to the file's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxguard import checkpoints, models
from jaxguard.checkpoints import LeafSpec
from jaxguard.errors import InternalError
from jaxguard.graph import ChannelGraph, pairing
from jaxguard.scores import structural
from jaxguard.scores.structural import NOT_A_LAYER, NOT_UNDERSTOOD, SCORED, roles
from jaxguard.suspects import Suspect
from jaxguard.types.findings import UNCLEAR, LeafAccount

MOST = 0.1
"""Share of the weights that may be not understood before a report's headline says so."""


def of_suspect(suspect: Suspect) -> tuple[LeafAccount, ...]:
    """The leaves of one suspect: by its channel graph, or by their names where there is none.

    Args:
        suspect: opened, or from memory.

    Returns:
        One account per leaf, in the order of the file.
    """
    checkpoint, network = suspect.checkpoint, suspect.network
    if checkpoint is None:
        flat = {} if network is None else checkpoints.flatten(network.variables)
        specs = {name: LeafSpec(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
    else:
        specs = dict(checkpoint.leaves)
    if network is None:
        return by_names(specs)
    paths: Mapping[str, str] = suspect.names
    if suspect.model is not None and checkpoint is not None:
        paths = models.binding_of(suspect.model, specs).paths
    return by_graph(network.graph, specs, paths)


def by_names(specs: Mapping[str, Any]) -> tuple[LeafAccount, ...]:
    """By names, shapes and element types."""
    found = tuple(_account(name, state, why, specs[name]) for name, state, why in structural.read(specs).accounts)
    return require_whole(specs, found)


def by_graph(graph: ChannelGraph, specs: Mapping[str, Any], paths: Mapping[str, str]) -> tuple[LeafAccount, ...]:
    """By the channel graph, which says what is scored; what the other leaves are, their names say.

    Args:
        graph: of the network.
        specs: shape and element type by name.
        paths: `{leaf: its path in the variables}`; a leaf that is missing has its name for a path.

    Returns:
        One account per leaf.
    """
    told = _of_graph(graph)
    named = roles.roles_of(specs)
    unknown = NOT_UNDERSTOOD, "no channels of it were found in the network's function"
    found = []
    for name, spec in specs.items():
        role = named[name]
        state, why = told.get(paths.get(name, name), unknown if role is None else (NOT_A_LAYER, role))
        found.append(_account(name, state, why, spec))
    return require_whole(specs, tuple(found))


def unscored(specs: Mapping[str, Any]) -> tuple[LeafAccount, ...]:
    """Of a checkpoint in which nothing was scored."""
    unknown = NOT_UNDERSTOOD, "the checkpoint could not be scored"
    told = ((name, unknown if role is None else (NOT_A_LAYER, role)) for name, role in roles.roles_of(specs).items())
    return require_whole(specs, tuple(_account(name, *state, specs[name]) for name, state in told))


def require_whole(specs: Mapping[str, Any], accounts: tuple[LeafAccount, ...]) -> tuple[LeafAccount, ...]:
    """The accounts, if they are those of all leaves, each once, and of all their bytes.

    Raises:
        InternalError: they are not; it names the leaf.
    """
    left = dict(specs)
    for one in accounts:
        spec = left.pop(one.name, None)
        if spec is None or one.state not in (SCORED, NOT_A_LAYER, NOT_UNDERSTOOD):
            raise _inexact(one.name, "one account of every leaf", "another")
        if one.nbytes != math.prod(spec.shape) * spec.dtype.itemsize:
            raise _inexact(one.name, f"the bytes of its shape {tuple(spec.shape)}", f"{one.nbytes:,}")
    if left:
        raise _inexact(next(iter(left)), "an account of every leaf", "none")
    return accounts


def _inexact(name: str, expected: str, found: str) -> InternalError:
    return InternalError(
        f"expected {expected}, got {found} for leaf {name!r}; this is a bug of jaxguard, please report it with the "
        "names and shapes of the checkpoint's leaves"
    )


def _of_graph(graph: ChannelGraph) -> dict[str, tuple[str, str]]:
    scored: dict[str, tuple[str, str]] = {}
    for k in graph.outputs:
        scored[graph.producers[k].kernel.path] = (NOT_A_LAYER, "gives the logits: only hidden layers are scored")
    for layer in pairing.layers(graph):
        for producer, _ in layer.sources:
            scored[graph.producers[producer].kernel.path] = (SCORED, f"kernel of {layer.name}")
        affine = None if layer.affine is None else graph.affines[layer.affine]
        for view in () if affine is None else (affine.scale, affine.var):
            if view is not None:
                scored[view.path] = (SCORED, f"norm of {layer.name}")
    return scored


def _account(name: str, state: str, why: str, spec: Any) -> LeafAccount:
    numbers = 1
    for size in spec.shape:
        numbers *= size
    return LeafAccount(name, state, why, numbers, numbers * spec.dtype.itemsize)


def remark(accounts: Iterable[LeafAccount]) -> tuple[str, ...]:
    """What a headline must say where more than a tenth of the weights is not understood."""
    listed = list(accounts)
    total = sum(one.numbers for one in listed)
    unclear = [one for one in listed if one.state == NOT_UNDERSTOOD]
    count = sum(one.numbers for one in unclear)
    size, whole = (sum(one.nbytes for one in some) for some in (unclear, listed))
    share = max(count / max(total, 1), size / max(whole, 1))  # packed integers are few numbers, but not few weights
    if share <= MOST:
        return ()
    first = max(unclear, key=lambda one: one.numbers)
    leaves = "1 leaf, which was" if len(unclear) == 1 else f"{len(unclear):,} leaves, which were"
    return (
        f"{UNCLEAR}{count:,} of {total:,} numbers, {size:,} of {whole:,} bytes ({100 * share:.0f} %) in {leaves} not "
        f"scored; the largest is {first.name}: {first.reason}.",
    )
