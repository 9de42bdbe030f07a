"""Names under which training scripts keep the model, and which of them to go down into."""

from collections.abc import Mapping

from jaxguard.checkpoints.training_state import Stored

MODEL_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model_weights", "model", "net_state_dict", "net", "network"),
    *("module", "weights", "params", "ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "params_ema"),
)
"""Names under which training scripts keep the model, the one to take first; weights before their moving average."""

_AMBIGUOUS = frozenset(("module", "weights", "params"))


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
