"""What training scripts store under which names: the model, averages of its weights, and the state of the training.

One table for all formats.
"""

import collections
import functools
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from jaxguard.checkpoints import header
from jaxguard.checkpoints.checkpoint import LeafSpec
from jaxguard.errors import CheckpointError

Path = tuple[str, ...]
Stored = Mapping[Path, LeafSpec | str]
"""What a file holds by the keys that lead there: the spec of an array, or why it cannot be a leaf."""

MODEL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model_weights", "model", "net_state_dict", "net", "network"),
    *("module", "weights", "params", "ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema"),
)
"""Names under which training scripts keep the model, the one to take first; weights before their moving average."""

_AMBIGUOUS = frozenset(("module", "weights", "params"))

RAW, EMA = "raw", "ema"
"""What may be asked for beside names."""

COUNTER = "a counter of the training"

_WORDS = {
    "optimizer state": (
        *("optimizer", "optimizers", "optim", "optimiser", "optimisers", "opt", "adam", "adamw", "momentum"),
        *("opts", "moments"),
    ),
    "scheduler state": ("scheduler", "schedulers", "sched", "schedule"),
    "state of a loss scaler": ("scaler", "amp", "loss_scale"),
    "random number state": ("rng", "rngs", "prng", "rng_state", "seed"),
    "trainer state": ("callbacks", "loops", "trainer", "history", "args", "config", "hparams"),
    "data loader state": ("dataloader", "dataloaders", "datamodule", "sampler", "loader"),
    "gradients": ("grads", "gradients", "grad"),
    "a loss or metric": ("metric", "metrics", "criterion", "criteria", "loss", "losses"),
}
_REASON_OF = {word: reason for reason, words in _WORDS.items() for word in words}
_COUNTERS = frozenset(
    {
        *("step", "steps", "epoch", "epochs", "iteration", "iterations", "count", "n_averaged", "num_updates"),
        *("global_step", "updates", "best", "decay"),
    }
)
_LOSS_OR_METRIC = re.compile(
    r"(?:\w+_)?(?:criterion|criteria|loss|losses|loss_fn|loss_func|metrics?|acc|acc\d|accuracy|auroc|auc|f1|f1_?score|"
    r"confmat|confusion_matrix|m?iou|dice_score|precision|recall)"
)
_AVERAGES = frozenset({"ema", "swa", "shadow", "averaged", "polyak"})
_MOMENTS = (("mu", "nu"), ("exp_avg", "exp_avg_sq"), ("m", "v"), ("momentum", "velocity"), ("v_row", "v_col"))
_KEYS = frozenset({"key", "keys", "rng", "rngs", "prng_key", "rng_key", "dropout_key", "key_data"})
_MAX_PLACES = 64
_BOXES = frozenset({"value", "raw_value", "_raw_value"})  # under which NNX keeps the array of a variable


@functools.lru_cache(maxsize=2**16)
def words_of(key: str) -> tuple[str, ...]:
    """The words of a name such as `state_dict_ema` or `lr-scheduler`; the files of a store have the same names."""
    return tuple(re.split(r"[_\-. ]", re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower()))


def reason(key: str, below: Stored) -> str:
    """Why an entry beside or above a model is not the model's; empty where it may be.

    Args:
        key: its name.
        below: what it holds, by the paths below it; `()` alone where it is an array.
    """
    words = words_of(key)
    if () in below:
        if {"rng", "prng"} & set(words):
            return "random number state"
        return counter(key, below[()])
    heads = {path[0] for path in below}
    if "param_groups" in heads or {"exp_avg", "exp_avg_sq"} <= heads:
        return "optimizer state"
    if words == ("state",) or key.lower() in ("train_state", "training_state"):
        return ""
    return next((_REASON_OF[word] for word in words if word in _REASON_OF), "")


def counter(name: str, spec: LeafSpec | str, *, is_outermost: bool = True) -> str:
    """Why a leaf is a counter of the training rather than a weight; empty where it is none."""
    if name.rpartition(".")[2] in ("_extra_state", "n_averaged", "num_updates"):
        return COUNTER
    is_scalar = isinstance(spec, LeafSpec) and spec.shape in ((), (1,))
    return COUNTER if is_outermost and is_scalar and _COUNTERS & {name, *words_of(name)} else ""


def loss_or_metric(segment: str) -> bool:
    """Whether the first part of a dotted name is that of a loss or metric, as Lightning keeps beside the network."""
    return _LOSS_OR_METRIC.fullmatch(segment.lower()) is not None


def is_average(key: str) -> bool:
    """Whether a name says that it holds averaged weights."""
    return not _AVERAGES.isdisjoint(words_of(key))


def is_random(path: Path, spec: LeafSpec | str) -> bool:
    """Whether a leaf is a random number generator's, such as those of NNX's Dropout."""
    parts = [part.lower() for part in path if part not in _BOXES]
    if {"rngs", "rng"} & set(parts):
        return True
    if not parts or not isinstance(spec, LeafSpec):
        return False
    return spec.dtype == np.uint32 and spec.shape[-1:] in ((2,), (4,)) and bool(_KEYS & {parts[-1]})


def moments(stored: Stored) -> Iterator[Path]:
    """Prefixes of the moments that an optimizer keeps of other leaves: two groups with the same leaves as those."""
    heads: dict[Path, dict[str, dict[Path, LeafSpec | str]]] = {}
    known = {name for pair in _MOMENTS for name in pair}
    for path, spec in stored.items():
        for depth, part in enumerate(path[:-1]):
            if part in known:
                heads.setdefault(path[:depth], {}).setdefault(part, {})[path[depth + 1 :]] = spec
    for prefix, groups in list(heads.items())[:_MAX_PLACES]:
        for first, second in _MOMENTS:
            if first not in groups or second not in groups:
                continue
            inside = {(*prefix, name, *rest) for name in (first, second) for rest in groups[name]}
            ends = {(path[-1], spec) for path, spec in stored.items() if path not in inside}
            mirrored = [(rest[-1], spec) in ends for rest, spec in groups[first].items()]
            if groups[first].keys() == groups[second].keys() and all(mirrored):
                yield from ((*prefix, first), (*prefix, second))
                if isinstance(stored.get((*prefix, "count")), LeafSpec):
                    yield (*prefix, "count")


def entered(groups: Mapping[str, Stored]) -> str | None:
    """The key to go down into; None where this level is the model's."""
    containers = {key: below for key, below in groups.items() if () not in below}
    strangers = containers.keys() - set(MODEL_KEYS)
    for key in MODEL_KEYS:
        if key not in containers:
            continue
        is_of_torch = _is_of_torch(containers[key])
        if is_of_torch if not strangers or key not in _AMBIGUOUS else False:
            return key
        if key not in _AMBIGUOUS and not strangers:
            return key
    if len(groups) == len(containers) == 1 and _is_of_torch(next(iter(containers.values()))):
        return next(iter(containers))
    if len(containers) == 1 and next(iter(containers)) in ("state", "train_state", "default"):
        return next(iter(containers))
    return None


def _is_of_torch(below: Stored) -> bool:
    """Whether some array in it has a dotted name."""
    return any(len(path) == 1 and "." in path[0] for path in below)


def mirrored(paths: Sequence[Path], prefix: Path, names: Mapping[Path, str]) -> dict[Path, str]:
    """Which of a group's arrays are averages of which leaf, by the names behind any number of wrappers."""
    wanted: dict[str, str] = {}
    for name in names.values():
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        wanted.setdefault(plain, name)
        head, _, rest = re.sub(r"[/.]", ".", name).partition(".")
        if head in ("params", "model", "module", "net", "network", "student", "online"):
            wanted.setdefault(re.sub(r"[^a-z0-9]", "", rest.lower()), name)
    best: dict[Path, str] = {}
    parts = {path: ".".join(path)[len(".".join(prefix)) + 1 :].split(".") for path in paths}
    for skipped in range(3):
        found = {}
        for path, rest in parts.items():
            plain = re.sub(r"[^a-z0-9]", "", "".join(rest[skipped:]).lower())
            if len(rest) > skipped and plain in wanted:
                found[path] = wanted[plain]
        if len(found) > len(best):
            best = found
    return best


def chosen(weights: str | None, averages: Mapping[str, object], root: Path, given: str) -> str:
    """The average that was asked for, or raw."""
    if weights in (None, RAW):
        return RAW
    if weights in averages:
        return str(weights)
    if weights == EMA and len(averages) == 1:
        return next(iter(averages))
    if weights == ".".join(root) or weights in root or (weights == EMA and any(map(is_average, root))):
        return RAW
    known = ", ".join([RAW, *map(header.shown, averages)])
    raise CheckpointError(
        f"{given}: expected weights that the file holds ({known}), got no {header.shown(weights)}; pass one of these "
        "as weights, or the name of a group of arrays"
    )


def aliases(places: Mapping[str, tuple[Hashable, ...]]) -> dict[str, tuple[str, ...]]:
    """Leaf and other names of it; a leaf goes by its name under the prefix that has the most leaves."""
    groups: dict[tuple[Hashable, ...], list[str]] = {}
    for name, place in places.items():
        groups.setdefault(place, []).append(name)
    if len(groups) == len(places):
        return {}
    covered = collections.Counter(
        prefix for group in groups.values() for prefix in {re.split(r"[./]", name, maxsplit=1)[0] for name in group}
    )

    order = {name: number for number, name in enumerate(places)}

    def rank(name: str) -> tuple[int, int]:
        return -covered[re.split(r"[./]", name, maxsplit=1)[0]], order[name]

    found = {}
    for group in groups.values():
        if len(group) > 1:
            first = min(group, key=rank)
            found[first] = tuple(name for name in group if name != first)
    return found
