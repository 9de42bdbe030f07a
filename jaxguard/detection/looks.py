"""The looks: each is one kind of evidence about a network, cheapest first.

Every network is examined by its weights, which an executor of `jaxguard.fleet` does for many at once. The other looks
run a network whose architecture is known, one at a time; references and suspects must be examined alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxguard.detection.records import RESPONSES, TRIGGERS, WEIGHTS
from jaxguard.errors import DataError
from jaxguard.types import Network


@dataclass(frozen=True, eq=False)
class Look:
    """One kind of evidence.

    Attributes:
        name: `weights`, `responses` or `triggers`.
        title: what it depends on too, in a few words. Another title means other results: the two are never mixed.
        names: of its features.
        features_fn: `network -> [G]`; None for the weights, which executors score.
        most: networks that are examined by it at most in one scan; None for all.
    """

    name: str
    title: str
    names: tuple[str, ...] = ()
    features_fn: Callable[[Network], np.ndarray] | None = None
    most: int | None = None


def weights() -> Look:
    """Features of the weights, see `jaxguard.scores.weights`."""
    return Look(WEIGHTS, "weights")


def responses() -> Look:
    """Responses to noise, see `jaxguard.scores.responses`; a fraction of a second for each network."""
    from jaxguard.scores import responses as scores

    def features(network: Network) -> np.ndarray:
        _ = network.num_classes  # refuses what is declared as something else
        return scores.response_features(network.graph, network.variables)

    return Look(RESPONSES, "responses to noise", scores.NAMES, features)


def triggers(images: np.ndarray | None = None, *, seed: int = 0, most: int | None = None) -> Look:
    """Trigger inversion over all classes, see `jaxguard.detection.triggers`; seconds to minutes for each network.

    Args:
        images: a few clean ones, `[N, H, W, C]` in [0, 1]; noise where None.
        seed: of the first patches.
        most: networks that triggers are searched in, those nearest to being suspected first.

    Returns:
        The look; its features' names say what the patches were searched on.
    """
    import jax

    from jaxguard.detection import triggers as search

    source = "noise"
    if images is not None:
        images = np.ascontiguousarray(images[: search.IMAGES], np.float32)
        source = f"images {hashlib.sha256(images.tobytes()).hexdigest()[:8]}"

    def features_fn(network: Network) -> np.ndarray:
        return search.trigger_features(network.graph, network.variables, jax.random.key(seed), images=images)

    names = tuple(f"{name}, on {source}" for name in search.NAMES)
    return Look(TRIGGERS, f"triggers on {source}, seed {seed}", names, features_fn, most)


LOOKS: dict[str, Callable[[], Look]] = {WEIGHTS: weights, RESPONSES: responses, TRIGGERS: triggers}
"""In the order in which they are taken."""


def ordered(chosen: Sequence[str | Look]) -> list[Look]:
    """Looks by name or value, cheapest first; the weights are always among them.

    Raises:
        DataError: there is no look of a name.
    """
    by_name: dict[str, Look] = {WEIGHTS: weights()}
    for one in chosen:
        if isinstance(one, str) and one not in LOOKS:
            raise DataError(f"expected looks among {', '.join(LOOKS)}, got {one!r}; name one of them")
        look = LOOKS[one]() if isinstance(one, str) else one
        by_name[look.name] = look
    return [by_name[name] for name in LOOKS if name in by_name]
