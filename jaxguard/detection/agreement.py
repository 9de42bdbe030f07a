"""May features that were computed here be compared with a profile's? Where machine or precision differ, that is shown.

A profile holds, for each cohort, the features of a *witness*: a network of the cohort's structure whose numbers are the
same on every machine. Where a profile was made by other numerics (backend and precision) than those of a scan, the scan
looks at the same witness. What its features have moved by, `d`, would move scores: by `score(centre + d) -
score(centre)` exactly where a regression weighs the features, at most by that where the score is a distance, which
obeys the triangle inequality. If that is within `jaxguard.conformal.TOLERANCE` standard deviations of the clean
references' own scores, for every fold, the profile is used; if not, or if it cannot be shown, nothing is judged by it.

The reference networks that trigger searches are compared with were searched by the numerics `USUAL`. Where a suspect is
searched by others, its own logits are computed by both. Of images with the same trigger, an error `e` of the logits, in
their standard deviation, moves a margin by at most `2 e` and the gap of two by at most `4 e`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxguard import programs
from jaxguard.conformal import TOLERANCE
from jaxguard.detection.combination import Combination
from jaxguard.detection.profile import CohortProfile, Profile, Stage
from jaxguard.detection.records import TRIGGERS, plain
from jaxguard.detection.trigger_reference import TriggerReference
from jaxguard.graph.program import is_key
from jaxguard.programs import USUAL, Numerics
from jaxguard.suspects import Suspect
from jaxguard.types import TriggerSearch
from jaxguard.types.searches import TRANSFERABILITY

WitnessFn = Callable[[str], Mapping[str, np.ndarray] | None]
"""`cohort -> features by look` of its witness as computed here; None where that cannot be done."""

_POSITIVE = re.compile(r"(.*[_./])?(var|variance|scale|gamma|weight)", re.IGNORECASE)
"""Leaves with one axis that are no shift."""


def witness(suspect: Suspect) -> Suspect:
    """A network of a suspect's structure whose numbers depend on the names and shapes of its leaves alone.

    Args:
        suspect: any of the cohort.

    Returns:
        The suspect with other numbers.
    """
    if suspect.network is None:
        return replace(suspect, leaves={name: _fixed(name, leaf) for name, leaf in suspect.leaves.items()})
    flat, structure = jax.tree_util.tree_flatten_with_path(suspect.network.variables)
    leaves = [_fixed(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]
    return suspect.with_variables(jax.tree.unflatten(structure, leaves))


def _fixed(name: str, leaf: Any) -> Any:
    if is_key(leaf):
        return leaf
    shape, dtype = np.shape(leaf), leaf.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        return np.zeros(shape, dtype)
    # NumPy keeps the numbers of this generator the same for good.
    random = np.random.RandomState(zlib.crc32(f"{plain(name)} {shape}".encode("utf-8", "surrogateescape")))
    if len(shape) > 1:
        # As He et al. initialise; the number of outputs is the first size, or the last.
        deviation = np.sqrt(2 * max(shape[0], shape[-1]) / max(np.prod(shape), 1))
        return (deviation * random.standard_normal(shape)).astype(dtype)
    if not shape or _POSITIVE.fullmatch(plain(name)):
        return np.asarray(random.uniform(0.5, 1.5, shape), dtype)
    return (0.1 * random.standard_normal(shape)).astype(dtype)


def checked(
    profile: Profile, cohorts: Collection[str], witness_fn: WitnessFn, *, searched: bool = False
) -> tuple[Profile, list[str]]:
    """The profile as far as it may be used here.

    Args:
        profile: of `calibrate`.
        cohorts: that occur.
        witness_fn: see `WitnessFn`; called where numerics differ.
        searched: whether triggers will be searched, so that their features must agree too.

    Returns:
        The profile, cohorts that must not be used marked as refused; and notes for the reader.
    """
    here, then, notes = programs.numerics(), profile.numerics or USUAL, []
    if profile.numerics is None:
        notes.append(f"The profile does not say how its features were computed; {then} is assumed.")
    if here == then:
        return profile, notes
    known = dict(profile.cohorts)
    for name in sorted(known.keys() & set(cohorts)):
        used = known[name] if searched else replace(known[name], triggers=None)
        moved = shift(used, witness_fn(name))
        if moved <= TOLERANCE:
            notes.append(
                f"{name}: the profile was made by {then}, this scan by {here}; they agree, scores of the references "
                f"would move by at most {moved:.2g} of their standard deviation."
            )
        else:
            known[name] = replace(known[name], refused=_refusal(here, then, moved))
    return replace(profile, cohorts=known), notes


def _refusal(here: Numerics, then: Numerics, moved: float) -> str:
    shown = (
        "that their features agree could not be shown"
        if not np.isfinite(moved)
        else f"their features disagree: scores would move by {moved:.2g} of the references' standard deviation, "
        f"{TOLERANCE:g} is accepted"
    )
    remedy = "" if here.precision == then.precision else f"scan by {then.precision} (--precision), or "
    return f"the profile was made by {then}, this scan by {here}, and {shown}; {remedy}calibrate again here"


def shift(known: CohortProfile, here: Mapping[str, np.ndarray] | None) -> float:
    """How far scores move with what was computed here.

    Args:
        known: of the profile.
        here: features of the witness, by look; None where they could not be computed.

    Returns:
        Standard deviations of the clean references' scores, the most of any fold and stage; infinity where it cannot
        be told.

    Example:
        >>> from jaxguard.detection.calibration import calibrate
        >>> from jaxguard.detection.records import Features, Record
        >>> from jaxguard.types import Provenance
        >>> draw = np.random.default_rng(0).normal
        >>> def record(name: str) -> Record:
        ...     return Record(Provenance(name, name), "small", {"weights": Features(("a", "b"), draw(size=2))})
        >>> profile = calibrate([record(f"{k:04x}") for k in range(40)])
        >>> known = replace(profile.cohorts["small"], witness={"weights": np.array([1.0, 2.0])})
        >>> shift(known, {"weights": np.array([1.0, 2.0])}), round(shift(known, {"weights": np.array([1.1, 2.0])}), 1)
        (0.0, 0.2)
    """
    looks = [*known.looks, *([TRIGGERS] if known.triggers is not None else [])]
    if here is None or any(look not in here or look not in known.witness for look in looks):
        return np.inf
    if any(here[look].shape != known.witness[look].shape for look in looks):
        return np.inf
    moved = {look: here[look].astype(np.float64) - known.witness[look] for look in looks}
    for look in looks:  # undefined in both is no difference
        moved[look][np.isnan(here[look]) & np.isnan(known.witness[look])] = 0
    first = _moves(known.first, [np.concatenate([moved[look] for look in known.looks])] * len(known.first.combinations))
    worst = _in_deviations(known.first, first)
    if known.triggers is not None:
        rows = [np.concatenate([[one], moved[TRIGGERS]]) for one in first]
        worst = max(worst, _in_deviations(known.triggers, _moves(known.triggers, rows)))
    return worst


def _moves(stage: Stage, moved: list[np.ndarray]) -> np.ndarray:
    """What scores of each fold move by, `[K]`; `moved` has what features do, for each fold."""
    return np.array([_move(one, row) for one, row in zip(stage.combinations, moved, strict=True)])


def _move(combination: Combination, moved: np.ndarray) -> float:
    middle = np.zeros((1, len(moved)))
    middle[:, combination.usable] = combination.centre
    after = combination.score(np.where(combination.usable, middle + moved, 0))
    return float(abs(after - combination.score(middle))[0])


def _in_deviations(stage: Stage, moves: np.ndarray) -> float:
    if not len(moves) or not moves.any():
        return 0.0
    deviation = float(np.nanstd(stage.clean.scores))
    worst = float(moves.max()) / deviation if deviation > 0 else np.inf
    return worst if np.isfinite(worst) else np.inf


def doubted(found: TriggerSearch, reference: TriggerReference | None, error: float) -> TriggerSearch:
    """A search with what its numerics mean for the comparison with reference networks.

    Args:
        found: in a suspect.
        reference: that it will be compared with; None where there is none.
        error: the largest difference of the suspect's logits between the numerics here and `USUAL`, in their standard
            deviation; 0 where these are the same.

    Returns:
        With a remark where gaps agree, with a problem, so that there is no statement, where they may not.

    Example:
        >>> from jaxguard.detection.trigger_reference import ReferenceNetwork
        >>> from jaxguard.types import KindResult
        >>> networks = tuple(ReferenceNetwork(f"{k}", "mlp", {"patch": (1, k / 10)}) for k in range(9))
        >>> found = TriggerSearch(results=(KindResult("patch", 1, 0.75),))
        >>> doubted(found, TriggerReference(networks), 0.0).problem
        ''
        >>> doubted(found, TriggerReference(networks), 0.01).problem.partition("disagree: ")[2].partition(",")[0]
        "they could move by 0.15 of the references' standard deviation"
    """
    if not error or reference is None or found.problem or TRANSFERABILITY in found.gaps:
        return found
    gaps = ([known.gap_of(one) for known in reference.networks] for one in found.results)
    spreads = [float(np.nanstd(row)) for row in gaps if not np.isnan(row).all()]
    if not spreads:
        return found
    moved = 4 * error / min(spreads) if min(spreads) > 0 else np.inf
    here = programs.numerics()
    told = f"the reference networks were searched by {USUAL}, this one by {here}"
    if moved <= TOLERANCE:
        note = f"{told[0].upper()}{told[1:]}; they agree, gaps could move by {moved:.2g} of the references' deviation."
        return replace(found, left_out=(*found.left_out, note))
    remedy = "search on a cpu" if here.precision == USUAL.precision else f"search by {USUAL.precision} (--precision)"
    why = f"they could move by {moved:.2g} of the references' standard deviation, {TOLERANCE:g} is accepted"
    return replace(found, problem=f"{told}, and their gaps may disagree: {why}; {remedy}")
