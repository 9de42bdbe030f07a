"""All arrays in what a pickle describes, by the keys that lead to them.

Dictionaries, lists and unknown objects are levels; a pickled module is one level, with the dotted names that
`module.state_dict()` would give. What an optimizer of optax or PyTorch is made of lies under `opt_state`.
"""

from collections.abc import Iterator
from typing import Any

from jaxguard.checkpoints import limits, refusals
from jaxguard.checkpoints.numpy_pickle import Array
from jaxguard.checkpoints.pickle_objects import Record, Unreadable
from jaxguard.checkpoints.torch_pickle import Tensor
from jaxguard.errors import HostileError

_LEAVES = (Array, Tensor, Unreadable)
_MAX_PLACES = 2**20
_MAX_TRANSIENT = 100
_OPTIMIZERS = ("optax.", "torch.optim.")

Leaf = Array | Tensor | Unreadable
Path = tuple[str, ...]


def flattened(root: Any, given: str) -> dict[Path, Leaf]:
    """Every array below an object, in file order.

    Args:
        root: of containers, records and leaves; shared and cyclic as it may be.
        given: the path as the user wrote it.

    Raises:
        HostileError: it nests too deeply, or in so many places that only a trick explains it.
    """
    holding = _holding(root)
    found: dict[Path, Leaf] = {}
    if id(root) not in holding:
        return found
    places = 0
    # A dotted path is the name below a module so far; ancestors end circles, in which no array is new.
    pending: list[tuple[Path, str | None, Any, frozenset[int]]] = [((), None, root, frozenset())]
    while pending:
        path, dotted, here, ancestors = pending.pop()
        if isinstance(here, _LEAVES):
            full = path if dotted is None else (*path, dotted)
            if full in found and found[full] is not here:
                full = (*path, f"{dotted or ''}#{len(found)}")
            found[full] = here
            if len(found) > limits.MAX_LEAVES or sum(map(len, full)) > limits.MAX_NAME_LENGTH:
                raise _refusal(given, f"at most {limits.MAX_LEAVES} leaves with names of {limits.MAX_NAME_LENGTH}")
            continue
        if id(here) in ancestors:
            continue
        is_module = _is_module(here)
        below = _module_entries(here) if is_module else entries(here)
        places += 1 + len(below)
        depth = len(path) + (dotted or "").count(".")
        if places > _MAX_PLACES or depth > limits.MAX_DEPTH:
            raise _refusal(given, f"at most {limits.MAX_DEPTH} levels and {_MAX_PLACES} places")
        is_optimizer = isinstance(here, Record) and here.name.startswith(_OPTIMIZERS)
        if (is_optimizer and not is_module) or _has(here, "state", "param_groups"):
            path = (*path, "opt_state")
        inside = ancestors | {id(here)}
        held = []
        for key, child in below.items():
            if id(child) not in holding:
                continue
            if is_module or dotted is not None:
                held.append((path, key if dotted is None else f"{dotted}.{key}", child, inside))
            else:
                held.append(((*path, key), None, child, inside))
        pending += reversed(held)
    return found


def entries(found: Any) -> dict[str, Any]:
    """What an object holds by name: items of a dictionary, positions of a list, attributes of a record."""
    if isinstance(found, dict):
        return {str(key): value for key, value in found.items() if isinstance(key, str | int)}
    if isinstance(found, list | tuple):
        return {str(position): value for position, value in enumerate(found)}
    if not isinstance(found, Record):
        return {}
    merged = entries(found.args) | entries(found.elements)
    for state in (*_states(found), found.entries):
        merged |= entries(state) if isinstance(state, dict) else {}
    return merged


def _holding(root: Any) -> set[int]:
    """Identities of all objects from which an array can be reached; each object is visited once."""
    parents: dict[int, list[int]] = {id(root): []}
    pending, reached = [root], []
    while pending:
        here = pending.pop()
        if isinstance(here, _LEAVES):
            reached.append(id(here))
        for child in _children(here):
            if isinstance(child, dict | list | tuple | Record | Array | Tensor | Unreadable):
                if id(child) not in parents:
                    parents[id(child)] = []
                    pending.append(child)
                parents[id(child)].append(id(here))
    holding = set(reached)
    while reached:
        for parent in parents[reached.pop()]:
            if parent not in holding:
                holding.add(parent)
                reached.append(parent)
    return holding


def _children(found: Any) -> Iterator[Any]:
    if isinstance(found, dict):
        yield from found.values()
    elif isinstance(found, list | tuple):
        yield from found
    elif isinstance(found, Record):
        yield from (found.args, found.state, found.entries, found.elements)


def _is_module(found: Any) -> bool:
    if not isinstance(found, Record):
        return False
    attributes = _states(found)[0]
    return found.name.startswith("__torch__.") or _has(attributes, "_parameters", "_modules")


def _states(record: Record) -> tuple[Any, ...]:
    """What a record was given as attributes: its `__dict__`, or that and its slots."""
    return record.state if isinstance(record.state, tuple) and len(record.state) == 2 else (record.state,)


def _has(found: Any, *keys: str) -> bool:
    return isinstance(found, dict) and all(key in found for key in keys)


def _module_entries(module: Record) -> dict[str, Any]:
    """What `module.state_dict()` would name, one level of it: parameters, persistent buffers, submodules."""
    attributes = entries(module)
    if "_parameters" not in attributes:  # TorchScript keeps all three side by side
        return attributes
    transient = attributes.get("_non_persistent_buffers_set")
    listed = transient[:_MAX_TRANSIENT] if isinstance(transient, list) else []
    hidden = {name for name in listed if isinstance(name, str)}
    buffers = {key: child for key, child in entries(attributes.get("_buffers")).items() if key not in hidden}
    return entries(attributes["_parameters"]) | buffers | entries(attributes["_modules"])


def _refusal(given: str, expected: str) -> HostileError:
    return refusals.hostile(given, expected, "more, by objects nested in each other")
