"""Take a backdoor out of a suspect, and prove it where there is test data.

repaired, report = repair(suspect, "clp", jax.random.key(0))
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxguard import evaluation, execution, methods
from jaxguard.attacks import Attack
from jaxguard.defenses import DEFENSES, Data
from jaxguard.errors import DefenseError, JaxguardError
from jaxguard.graph.program import is_key
from jaxguard.suspects import Suspect, load
from jaxguard.training import Progress
from jaxguard.types import Batch, Network, Repair, Variables


def repair(
    suspect: Suspect | Network,
    method: str,
    key: jax.Array,
    *,
    clean: Batch | None = None,
    mixed: np.ndarray | None = None,
    test: Batch | None = None,
    attack: Attack | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[Suspect, Repair]:
    """Apply a defense, and measure before and after where there is test data.

    The defense gets the clean and the mixed images alone; test images and trigger are for the proof.

    Args:
        suspect: of `jaxguard.load`, or a live network; not modified.
        method: row of `jaxguard.defenses.DEFENSES`.
        key: for methods that draw; the same key gives the same result.
        clean: the few images the defender owns, for methods that need them.
        mixed: training images of the suspect, some perhaps poisoned, `[N, H, W, C]`, for EP.
        test: images to measure on.
        attack: the trigger, if one is known.
        progress: called as the work proceeds.
        options: hyper-parameters other than the method's defaults, as values or as text.

    Returns:
        The repaired suspect and the report.

    Raises:
        OptionError: an unknown method or option, or a value out of range.
        DefenseError: the method lacks what it needs.
        ArchitectureError: the suspect's architecture is unknown.
        UnscorableError: the method finds nothing to score.
        DataError: images do not fit the model.
    """
    defense = methods.find(DEFENSES, method, "defense")
    chosen = defense.options(options)
    suspect = load(suspect) if isinstance(suspect, Network) else suspect
    network = suspect.require_network()
    before = None if test is None else evaluation.evaluate(network, test, attack)
    start = time.perf_counter()
    repaired, report = defense(network, Data(clean, mixed, progress), key, **chosen)
    jax.block_until_ready(repaired.variables)
    seconds = time.perf_counter() - start
    after = None if test is None else evaluation.evaluate(network.with_variables(repaired.variables), test, attack)
    return suspect.with_variables(repaired.variables), Repair(
        checkpoint=suspect.name,
        method=method,
        options={**defense.record(options), **report.chosen},
        layers=report.layers,
        change=relative_change(network.variables, repaired.variables),
        before=before,
        after=after,
        der=evaluation.defense_effectiveness_rate(before, after) if before and after and attack else None,
        notes=report.notes,
        seconds=seconds,
        trigger=report.trigger,
        path=report.path,
    )


def repair_all(
    suspects: Sequence[Suspect | Network],
    method: str,
    key: jax.Array,
    *,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[tuple[Suspect, Repair] | JaxguardError]:
    """Apply a defense to several suspects, one on each device at a time.

    Args:
        suspects: as `repair` takes them, of any architectures.
        method: as there.
        key: as there; the same for all, so that each is repaired as by `repair`.
        progress: `(suspects done, suspects in all)`.
        **settings: other arguments of `repair`, for all.

    Returns:
        What `repair` returns, or the error that it raises, of each.

    Raises:
        OptionError: an unknown method or option, or a value out of range.

    Example:
        >>> mlp = lambda v, x: jax.nn.relu(x @ v["w1"]) @ v["w2"]
        >>> rng = np.random.default_rng(0)
        >>> v = {"w1": rng.normal(size=(4, 8)).astype("f4"), "w2": rng.normal(size=(8, 3)).astype("f4")}
        >>> ((repaired, report),) = repair_all([Network(v, mlp, (4,))], "clp", jax.random.key(0))
        >>> report.method
        'clp'
    """
    methods.find(DEFENSES, method, "defense").options(settings.get("options"))
    places = execution.devices()
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for place in places:
        free.put(place)

    def one(suspect: Suspect | Network) -> tuple[Suspect, Repair] | JaxguardError:
        place = free.get()
        try:
            with execution.confined_to(place) if len(places) > 1 else contextlib.nullcontext():
                return repair(suspect, method, key, **settings)
        except JaxguardError as error:
            return error
        finally:
            free.put(place)

    results = []
    for result in execution.in_threads(one, suspects, threads=len(places)):
        results.append(result)
        if progress is not None:
            progress(len(results), len(suspects))
    return results


def relative_change(before: Variables, after: Variables) -> dict[str, float]:
    """How far each leaf moved, `||after - before|| / ||before||`, computed in float64.

    Args:
        before: the suspect.
        after: the repaired model, of the same tree and shapes.

    Returns:
        `{leaf path: ratio}` of the leaves that changed; infinite where the leaf was all zero before.

    Raises:
        DefenseError: the trees or shapes differ.

    Example:
        >>> relative_change({"a": np.array([3.0, 4.0]), "b": np.ones(2)}, {"a": np.array([3.0, 3.0]), "b": np.ones(2)})
        {'a': 0.2}
    """
    leaves, structure = jax.tree.flatten_with_path(before)
    others, other_structure = jax.tree.flatten(after)
    changes = {}
    if structure != other_structure:
        raise DefenseError(
            f"expected two models of one structure, got {structure} and {other_structure} in relative_change(); "
            "compare a model with its own repair"
        )
    for (path, old), new in zip(leaves, others, strict=True):
        if is_key(old):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if np.shape(old) != np.shape(new):
            raise DefenseError(
                f"expected shape {np.shape(old)}, got {np.shape(new)} for leaf '{name}' in relative_change(); "
                "compare a model with its own repair"
            )
        origin = np.asarray(old).astype(np.float64)
        moved, size = np.linalg.norm(np.asarray(new).astype(np.float64) - origin), np.linalg.norm(origin)
        if moved > 0:
            changes[name] = float(moved / size) if size > 0 else float("inf")
    return changes
