"""The model among what a training script saved: which of the nested dictionaries holds its weights, and their names.

At each level, from the outside in, training state (`optimizer`, `lr_scheduler`, ...) does not count, and then: the
first of `MODEL_KEYS`, in that order, that holds arrays is entered; else the only group, where that is a module or has
dotted names; else this level is the model's, with everything in it. `params`, `weights` and `module`, which are names
of a model's parts as well, are entered only where no other group is beside them and they look like PyTorch's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxguard.checkpoints import limits
from jaxguard.checkpoints.numpy_pickle import Array
from jaxguard.checkpoints.pickle_objects import Record, Unreadable
from jaxguard.checkpoints.torch_pickle import Tensor
from jaxguard.errors import CheckpointError

MODEL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model_weights", "model", "net_state_dict", "net", "network"),
    *("module", "weights", "params", "ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema"),
)
"""Names under which training scripts keep the model, the one to take first; weights before their moving average."""

_AMBIGUOUS = frozenset(("module", "weights", "params"))
_TRAINING_WORDS = frozenset(
    {
        *("optimizer", "optimizers", "optim", "optimiser", "opt", "scheduler", "schedulers", "sched", "scaler", "amp"),
        *("rng", "history", "callbacks", "loops", "grads", "gradients", "momentum", "args", "config", "metrics"),
    }
)
_LEAVES = (Array, Tensor, Unreadable)
_MAX_PLACES = 2**20
_MAX_ENCLOSING = 8
_MAX_TRANSIENT = 100

Leaf = Array | Tensor | Unreadable


@dataclass(frozen=True)
class Selection:
    """The model that was chosen.

    Attributes:
        leaves: `{name: leaf}` in file order.
        path: keys from the outermost dictionary down to the model's; none where the file holds nothing else.
        others: keys beside it that hold arrays too: other models, training state.
        levels: the dictionaries on the way, the model's last unless it is a module.
    """

    leaves: dict[str, Leaf]
    path: tuple[str, ...]
    others: tuple[str, ...]
    levels: tuple[Mapping[str, Any], ...]


def select(root: Any, given: str, separator: str) -> Selection | None:
    """Finds the model's arrays in what a pickle describes.

    Args:
        root: of containers, records and leaves; shared and cyclic as it may be.
        given: the path as the user wrote it.
        separator: joins the keys of nested dictionaries to names.

    Returns:
        The selection; None where there is no array at all.

    Raises:
        CheckpointError: there is nothing but training state, or the model nests too deeply, in circles, or has two
            leaves of one name.
    """
    holding = _holding(root)
    if id(root) not in holding:
        return None
    here, path, others, levels = root, [], [], []
    for _ in range(_MAX_ENCLOSING):
        if isinstance(here, _LEAVES) or _is_module(here):
            break
        children = entries(here)
        levels.append(children)
        groups = {key: child for key, child in children.items() if id(child) in holding}
        training = {key for key, child in groups.items() if _is_training_state(key, child)}
        chosen = _entered({key: child for key, child in groups.items() if key not in training})
        beside = training if chosen is None else groups.keys() - {chosen}
        others += [".".join((*path, key)) for key in groups if key in beside]
        if chosen is None:
            here = here if not training else {key: child for key, child in children.items() if key not in training}
            break
        path.append(chosen)
        here = children[chosen]
    leaves: dict[str, Leaf] = {}
    for count, (name, leaf) in enumerate(_named_leaves(here, holding, separator, given)):
        if count >= limits.MAX_LEAVES or len(name) > limits.MAX_NAME_LENGTH:
            raise _refusal(given, f"at most {limits.MAX_LEAVES} leaves with names of {limits.MAX_NAME_LENGTH}", "more")
        if name in leaves:
            raise _refusal(given, f"one leaf of the name {_text(name)!r}", "two whose keys join to it")
        leaves[name] = leaf
    if not leaves:
        places = ", ".join(map(_text, others[:5])) or "keys without a name"
        raise _refusal(given, "the weights of a model", f"arrays under {places} alone")
    return Selection(leaves, tuple(path), tuple(others), tuple(levels))


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


def _is_training_state(key: str, child: Any) -> bool:
    if isinstance(child, _LEAVES) or _is_module(child):
        return False
    words = key.lower().replace("-", "_").replace(".", "_").split("_")
    return not _TRAINING_WORDS.isdisjoint(words) or _has(child, "state", "param_groups")


def _entered(groups: Mapping[str, Any]) -> str | None:
    """The key to go down into; None where this level is the model's."""
    containers = {key: child for key, child in groups.items() if not isinstance(child, _LEAVES)}
    strangers = containers.keys() - set(MODEL_KEYS)
    for key in MODEL_KEYS:
        if key in containers and (key not in _AMBIGUOUS or (not strangers and _is_of_torch(containers[key]))):
            return key
    if len(groups) == len(containers) == 1 and _is_of_torch(next(iter(containers.values()))):
        return next(iter(containers))
    return None


def _is_of_torch(found: Any) -> bool:
    """Whether it is a module, or a dictionary of arrays under dotted names."""
    return _is_module(found) or any("." in key for key, child in entries(found).items() if isinstance(child, _LEAVES))


def _named_leaves(found: Any, holding: set[int], separator: str, given: str) -> Iterator[tuple[str, Leaf]]:
    """Names and leaves below an object, in file order, without recursion."""
    places = 0
    pending: list[tuple[tuple[str, ...], Any]] = [((), found)]
    while pending:
        path, here = pending.pop()
        below = {} if isinstance(here, _LEAVES) else _module_entries(here) if _is_module(here) else entries(here)
        places += 1 + len(below)
        if places > _MAX_PLACES or len(path) > limits.MAX_DEPTH:
            raise _refusal(given, f"at most {limits.MAX_DEPTH} levels and {_MAX_PLACES} places", "more, or a circle")
        if isinstance(here, _LEAVES):
            yield separator.join(path) or "0", here
            continue
        held = [((*path, key), child) for key, child in below.items() if id(child) in holding]
        pending += reversed(held)


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


def _text(name: str) -> str:
    return name[:80].encode("utf-8", "backslashreplace").decode()


def _refusal(given: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"{given}: expected {expected}, found {found}; save the model's state_dict alone, or get the file again"
    )
