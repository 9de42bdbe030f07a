"""Scoring in this process, one network at a time: live networks, and checkpoints where there are few of them.

    with Local().run(models, Settings()) as results:
        results.records

Unlike a stream this keeps the score of every channel for the report.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxguard import checkpoints, models, programs
from jaxguard.checkpoints import LeafSpec
from jaxguard.detection.records import WEIGHTS, Features, Record, cohort_of_leaves, cohort_of_model
from jaxguard.errors import ArchitectureError, JaxguardError, UnscorableError
from jaxguard.fleet import accounting
from jaxguard.fleet.progress import Progress, Watch
from jaxguard.fleet.structure import holds_weights
from jaxguard.graph import pairing
from jaxguard.graph.pairing import Layer, Pairing
from jaxguard.scores import structural, weights
from jaxguard.scores.channel_bounds import require_finite
from jaxguard.scores.weights import WeightFeatures
from jaxguard.suspects import ModelOptions, Suspect
from jaxguard.types import LayerSummary, Provenance, TriggerSearch

if TYPE_CHECKING:
    from jaxguard.fleet.store import Store


@dataclass(frozen=True)
class Settings:
    """How checkpoints are scored; results of other settings are not used again.

    Attributes:
        options: how they are opened; by default each one's leaves name its architecture.
        pairing: see `jaxguard.graph.pairing.layers`.
        numerics: by which they are scored.
    """

    options: ModelOptions = field(default_factory=ModelOptions)
    pairing: Pairing = "dataflow"
    numerics: programs.Numerics = field(default_factory=programs.numerics)

    @property
    def key(self) -> str:
        """Short name: rows of equal ones can be compared."""
        # By the usual numerics the name is what it was before there were others.
        others = [] if self.numerics == programs.USUAL else [list(self.numerics)]
        named = json.dumps([weights.VERSION, self.options.key, self.pairing, *others])
        return hashlib.sha256(named.encode()).hexdigest()[:16]


@dataclass(eq=False)
class Results:
    """What an executor found.

    Attributes:
        records: one per model, in their order.
        bytes_read: of the checkpoints that were read.
        reused: checkpoints whose results an earlier scan had left.
        store: where records and layers are kept; None where the records hold all there is.
        by_workers: whether processes of a cluster computed them, perhaps by another backend than this one's.
    """

    records: list[Record]
    bytes_read: int = 0
    reused: int = 0
    store: Store | None = None
    by_workers: bool = False
    _looks: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def searches(self, title: str, hashes: Sequence[str]) -> dict[str, TriggerSearch]:
        """Trigger searches that an earlier scan left on disk, by content hash."""
        return {} if self.store is None else self.store.searches(title, hashes)

    def add_search(self, title: str, content: str, found: TriggerSearch) -> None:
        """Keep a trigger search for later scans, where they are kept."""
        if self.store is not None:
            self.store.add_search(title, content, found)

    def layers(self, hashes: Collection[str]) -> dict[str, tuple[LayerSummary, ...]]:
        """Layers of some checkpoints by content hash, where their records do not hold them."""
        return {} if self.store is None or not hashes else self.store.layers(list(hashes))

    def look(self, title: str) -> dict[str, np.ndarray]:
        """What a look gave earlier, by content hash."""
        return dict(self._looks.get(title, {})) if self.store is None else self.store.look(title)

    def add_look(self, title: str, features: Mapping[str, np.ndarray]) -> None:
        """Keep what a look gave."""
        if self.store is None:
            self._looks.setdefault(title, {}).update(features)
        else:
            self.store.add_look(title, features)


@dataclass(frozen=True)
class Local:
    """This process, one model after the other; keeps the scores of all channels. Takes live networks too."""

    @contextlib.contextmanager
    def run(
        self,
        models: Sequence[str | Suspect],
        settings: Settings,
        *,
        watch: Watch | None = None,
        known: Collection[str] = (),
        compares: bool = True,
    ) -> Iterator[Results]:
        """Score models.

        Args:
            models: paths, URLs, or suspects that are in memory already.
            settings: how they are scored.
            watch: called with the progress.
            known: cohorts of the profile that will judge them, see `jaxguard.fleet.local.examine`.
            compares: makes no difference: contents are named by SHA-256.

        Yields:
            The results; a model that cannot be read or scored is a record with its error.
        """
        del compares
        start, records, size, failed = time.perf_counter(), list[Record](), 0, 0
        if watch is not None:
            watch(Progress(0, len(models), 0, 0, 0, 0.0))  # how many there are, before the first is read
        for done, model in enumerate(models, 1):
            records.append(_examined(model, settings, known))
            size += records[-1].provenance.size
            failed += bool(records[-1].error)
            if watch is not None:
                watch(Progress(done, len(models), failed, 0, size, time.perf_counter() - start))
        yield Results(records, bytes_read=size)


def examine(suspect: Suspect, how: Pairing = "dataflow", known: Collection[str] = ()) -> Record:
    """The weights of one network.

    Args:
        suspect: opened, or from memory.
        how: see `jaxguard.graph.pairing.layers`.
        known: cohorts of a profile. Without its own function among them a live network is compared with the bundled
            architecture of the same leaves, or by their names and shapes, as checkpoints are.

    Returns:
        Its record, with the score of every channel.

    Raises:
        UnscorableError: there is nothing to score, or a parameter is not finite.
        ArchitectureError: another pairing where the architecture is not known.
        GraphError: the channel graph cannot be derived.
    """
    cohort, layers, found, remarks = scored(suspect, how, known)
    summaries = np.stack([np.asarray(field) for field in found.layers], axis=1)
    z = float(weights.largest_z(summaries[None])[0])
    if not found.finite:
        require_finite(suspect.leaves if suspect.network is None else suspect.network.variables)
    if np.isnan(z):
        raise UnscorableError(f"{suspect.name}: {weights.UNDEFINED}")
    leaves = accounting.of_suspect(suspect)
    return Record(
        provenance_of(suspect),
        cohort,
        {WEIGHTS: Features(weights.feature_names(layers), np.asarray(found.features))},
        z=z,
        layers=tuple(map(_summary, layers, summaries, found.bounds)),
        notes=(*suspect.notes, *remarks, *accounting.remark(leaves)),
        leaves=leaves,
        left_out={} if suspect.checkpoint is None else suspect.checkpoint.left_out,
        aliases={} if suspect.checkpoint is None else suspect.checkpoint.aliases,
    )


def provenance_of(suspect: Suspect) -> Provenance:
    """Where a network came from; the hash of one from memory is that of its arrays."""
    checkpoint = suspect.checkpoint
    if checkpoint is None:
        variables = None if suspect.network is None else suspect.network.variables
        return Provenance(suspect.name, _digest(variables), architecture=suspect.architecture)
    return Provenance(suspect.name, suspect.sha256, size_of(checkpoint), checkpoint.format, suspect.architecture)


def size_of(checkpoint: checkpoints.Checkpoint) -> int:
    """Bytes on disk: of a file, of an index and its shards, or of all files below a folder."""
    return sum(os.path.getsize(file) for file in checkpoints.parts(checkpoint.location))


def scored(
    suspect: Suspect, how: Pairing, known: Collection[str]
) -> tuple[str, tuple[Layer, ...], WeightFeatures, tuple[str, ...]]:
    """Cohort, layers, features, and remarks about the channel graph; arguments and errors as of `examine`."""
    if suspect.network is None:
        return *_by_names(suspect.leaves, suspect.name, how), ()
    network, cohort = suspect.network, ""
    if suspect.model is not None:
        cohort = cohort_of_model(suspect.model)
    else:
        flat = checkpoints.flatten(network.variables)
        specs = {name: LeafSpec(leaf.shape, leaf.dtype) for name, leaf in flat.items()}
        cohort, by_names = (cohort_of_leaves(specs, is_traced=is_traced) for is_traced in (True, False))
        if suspect.checkpoint is None and cohort not in known:
            model = _identified(specs, network.input_spec.shape)
            if model is not None:
                cohort, network = cohort_of_model(model), model.network(models.bind(model, flat)[0])
            elif by_names in known:
                return *_by_names(flat, suspect.name, how), ()
    layers = pairing.layers(network.graph, how)
    return cohort, layers, _of_graph(network.graph, layers, network.variables), network.graph.remarks


def _identified(specs: dict[str, LeafSpec], input_shape: tuple[int, ...]) -> models.Model | None:
    """The bundled architecture that has these leaves, if there is one."""
    try:
        return models.identify(specs, input_shape=input_shape if len(input_shape) == 3 else None).model
    except ArchitectureError:
        return None


def _by_names(leaves: Any, name: str, how: Pairing) -> tuple[str, tuple[Layer, ...], WeightFeatures]:
    if how != "dataflow":
        raise ArchitectureError(
            f"expected pairing 'dataflow' for {name} of unknown architecture, got {how!r}: the order of its modules is "
            "not known; pass --arch, or your own model with --apply"
        )
    specs = {leaf: LeafSpec(np.shape(array), array.dtype) for leaf, array in leaves.items()}
    producers = structural.require_producers(structural.read(specs))
    found = _of_producers(producers, {leaf: array for leaf, array in leaves.items() if holds_weights(specs[leaf])})
    return cohort_of_leaves(specs, is_traced=False), structural.layers_of(producers), found


_of_graph = programs.jit(weights.weight_features, static_argnums=(0, 1))
_of_producers = programs.jit(weights.structural_features, static_argnums=0)


def _summary(layer: Layer, row: np.ndarray, bounds: jax.Array) -> LayerSummary:
    numbers = dict(zip(weights.SUMMARY, row.tolist(), strict=True))
    return weights.summary_of(layer.name, layer.channels, numbers, np.asarray(bounds))


def _digest(variables: Any) -> str:
    """Content hash of arrays: names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, leaf in checkpoints.flatten(variables).items():
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _examined(model: str | Suspect, settings: Settings, known: Collection[str]) -> Record:
    """One model, or a record of why it cannot be scored."""
    name = model.name if isinstance(model, Suspect) else model
    try:
        suspect = model if isinstance(model, Suspect) else settings.options.load(model)
        return examine(suspect, settings.pairing, known)
    except JaxguardError as error:
        return _seen(name)._replace(error=str(error), kind=error.kind)


def _seen(name: str) -> Record:
    """What is known of a checkpoint that could not be scored."""
    with contextlib.suppress(JaxguardError, OSError):
        if not checkpoints.is_url(name):
            checkpoint = checkpoints.load(name)
            provenance = Provenance(name, checkpoint.sha256, size_of(checkpoint), checkpoint.format)
            leaves = accounting.unscored(checkpoint.leaves)
            return Record(provenance, leaves=leaves, left_out=checkpoint.left_out, aliases=checkpoint.aliases)
    return Record(Provenance(name))
