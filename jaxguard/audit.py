"""From a file to a verdict: scan a suspect.

suspect = suspects.load("model.safetensors", arch="resnet20")  # bytes -> Network and where it came from
finding = audit.scan(suspect)                                  # channel bounds -> verdict
"""

from __future__ import annotations

import os
import pathlib
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import evaluation
from jaxguard.attacks import Attack
from jaxguard.errors import ArchitectureError, DataError, UnscorableError
from jaxguard.graph.pairing import Pairing
from jaxguard.kernels import lipschitz
from jaxguard.scores import structural
from jaxguard.scores.channel_bounds import ChannelBounds, channel_bounds, layer_scores
from jaxguard.suspects import Suspect
from jaxguard.types import (
    Batch,
    Finding,
    LayerScores,
    LayerSummary,
    Metrics,
    Provenance,
    TriggerExample,
    Verdict,
)


def scan(
    suspect: Suspect,
    *,
    u: float = 3.0,
    pairing: Pairing = "dataflow",
    test: Batch | None = None,
    attack: Attack | None = None,
) -> Finding:
    """Score every channel of a suspect; no data is needed.

    Args:
        suspect: the model.
        u: standard deviations above its layer's mean from which a channel is called suspicious.
        pairing: see `jaxguard.graph.pairing.layers`.
        test: images to measure accuracy on, if at hand.
        attack: a trigger to measure on them, if one is known.

    Returns:
        The finding; its verdict is `inconclusive`, since a score means little without a reference profile.

    Raises:
        UnscorableError: no channel has a score.
        DefenseError: a parameter is not finite.
        ArchitectureError: test images or another pairing for a suspect of unknown architecture.
        DataError: the test images do not fit the model.
    """
    network = suspect.network
    if network is None:
        if pairing != "dataflow":
            raise ArchitectureError(
                f"expected pairing 'dataflow' for {suspect.name} of unknown architecture, got {pairing!r}: the order "
                "of its modules is not known; pass --arch, or your own model with --apply"
            )
        bounds = ChannelBounds(*structural.channel_bounds(suspect.leaves))
    else:
        bounds = channel_bounds(network.graph, network.variables, pairing=pairing)
    layers = tuple(map(_summary, layer_scores(bounds, u)))
    z = [layer.z for layer in layers if np.isfinite(layer.z)]
    if not z:
        raise UnscorableError(
            f"expected channels that differ in their Lipschitz bounds, got {len(layers)} layers of {suspect.name} in "
            "which every score is undefined or the same; is this a trained model?"
        )
    checkpoint = suspect.checkpoint
    return Finding(
        Provenance(
            suspect.name,
            suspect.sha256,
            0 if checkpoint is None else _size(checkpoint.location, checkpoint.shards),
            "" if checkpoint is None else checkpoint.format,
            suspect.architecture,
        ),
        Verdict.INCONCLUSIVE,
        "no reference profile: `jaxguard calibrate` makes one",
        group=suspect.architecture,
        z=max(z),
        looks=("weights",),
        layers=layers,
        metrics=None if test is None else measure(suspect, test, attack),
        notes=suspect.notes,
    )


def _size(location: pathlib.Path, shards: Sequence[pathlib.Path]) -> int:
    """Bytes of a checkpoint on disk: a file, an index with its shards, or a folder."""
    files = location.rglob("*") if location.is_dir() else (location, *shards)
    return sum(path.stat().st_size for path in files if path.is_file())


def _summary(layer: LayerScores) -> LayerSummary:
    """One layer in a few numbers, its scores beside them."""
    known = layer.scores[np.isfinite(layer.scores)]
    z = np.asarray(lipschitz.z_scores(layer.scores))
    channel = int(np.nanargmax(layer.scores)) if known.size else -1
    return LayerSummary(
        name=layer.name,
        channels=len(layer.scores),
        undefined=int(layer.undefined.sum()),
        mean=float(known.mean()) if known.size else np.nan,
        std=float(known.std(ddof=1)) if known.size > 1 else np.nan,
        largest=float(known.max()) if known.size else np.nan,
        channel=channel,
        z=float(z[channel]) if known.size else np.nan,
        above=int(layer.mask.sum()),
        threshold=layer.threshold,
        scores=layer.scores,
    )


def measure(suspect: Suspect, test: Batch, attack: Attack | None = None) -> Metrics:
    """Accuracy of a suspect, and with a trigger its success rate.

    Args:
        suspect: the model.
        test: images to measure on.
        attack: a trigger to measure on them, if one is known.

    Returns:
        The metrics.

    Raises:
        ArchitectureError: the suspect's architecture is unknown, so that it cannot be run.
        DataError: the images do not fit the model.
    """
    network = suspect.require_network()
    return evaluation.evaluate(network, test, attack)


def trigger_example(attack: Attack, test: Batch, *, count: int = 8) -> TriggerExample:
    """Pictures of a trigger on the first test images it could change.

    Args:
        attack: the trigger.
        test: images.
        count: how many at most.

    Returns:
        Images as they are and stamped.

    Raises:
        DataError: no test image has a label that the attack changes.
    """
    labels = np.asarray(test.labels)
    chosen = np.flatnonzero(np.asarray(attack.relabel(labels)) != labels)[:count]
    if not chosen.size:
        raise DataError(
            f"expected test images with other labels than {attack.name}'s target, got none; give more images"
        )
    images = np.asarray(test.images)[chosen]
    return TriggerExample(images, np.asarray(attack.stamp(jnp.asarray(images))), attack.name, attack.target)


def environment(**more: Any) -> dict[str, str]:
    """What a report must name for its figures to be repeated: versions, backend, machine, date.

    Args:
        **more: further entries, such as seeds.

    Returns:
        Name -> value.
    """
    packages = ("jaxguard", "jax", "flax", "numpy")
    device = jax.devices()[0]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: str(value) for name, value in more.items()},
    }
