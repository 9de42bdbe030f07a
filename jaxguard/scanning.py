"""The scan: from checkpoints and live networks to verdicts. Read from top to bottom.

    models   = discover(suspects)            what was named: files, folders, patterns, manifests, URLs, networks
    seen     = examined(models, executor)    bytes -> Network -> the weights
    seen.take(look)                          further looks: responses to noise, a trigger search
    findings = judge(seen.records, profile)  verdict, p-value, reason; never `clean`
    report   = Report(findings)

One checkpoint is a fleet of one, and a hundred thousand are the same pipeline with another executor.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxguard import checkpoints, codescan
from jaxguard.detection import comparison, judging, trigger_reference
from jaxguard.detection import looks as looks_table
from jaxguard.detection import profile as profiles
from jaxguard.detection.looks import Look
from jaxguard.detection.profile import Profile
from jaxguard.detection.records import TRIGGERS
from jaxguard.environment import environment
from jaxguard.errors import CheckpointError, DataError, JaxguardError
from jaxguard.fleet import contents, witnesses
from jaxguard.fleet.discovery import Model, Target, discover
from jaxguard.fleet.examination import FEW, Examination, Listener, compared, examined
from jaxguard.fleet.executors import Executor, Ray, Stream
from jaxguard.fleet.local import Local
from jaxguard.graph.pairing import Pairing
from jaxguard.suspects import ModelOptions, Suspect
from jaxguard.types import Batch, Finding, Network, Report, Verdict
from jaxguard.types.findings import NOT_ASKED

if TYPE_CHECKING:
    from jaxguard.attacks import Attack
    from jaxguard.detection.trigger_reference import TriggerReference

__all__ = ["Listener", "Local", "ModelOptions", "Ray", "Stream", "calibrate", "scan"]

SEARCHES = True
"""Whether a scan of few networks searches universal triggers by default."""

SHOWN = 50
"""Findings whose layers a report holds beside the suspected ones, the highest scores first."""

Suspects = Target | Mapping[str, Network | Suspect] | Iterable[Target]


def scan(
    suspects: Suspects,
    *,
    profile: Profile | str | os.PathLike[str] | None = None,
    looks: Sequence[str | Look] | None = None,
    alpha: float = judging.ALPHA,
    control: str = judging.FDR,
    executor: Executor | None = None,
    options: ModelOptions | None = None,
    pairing: Pairing = "dataflow",
    deep: int | Literal["all"] | None = None,
    content_hash: Literal["sha256", "blake3"] | None = None,
    kinds: Sequence[str] | None = None,
    budget: float | None = None,
    clean: Batch | None = None,
    synthesised: bool = False,
    test: Batch | None = None,
    attack: Attack | None = None,
    reference: TriggerReference | str | os.PathLike[str] | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> Report:
    """Judge checkpoints and live networks.

    Where there are at most four networks that can be run, universal triggers are searched in each: see
    `jaxguard.inversion.search`. The verdict is that of the search, or with a profile that of both: see
    `jaxguard.detection.search_verdicts` and `jaxguard.detection.joining`. Ctrl-C ends the searches alone.

    Args:
        suspects: one or many: files, folders, patterns, manifests, URLs, `Network`s, `Suspect`s, or networks by name.
        profile: of `calibrate`, or the path of one; without it the trigger search decides.
        looks: what they are examined by, names or values of `jaxguard.detection.looks`, beside those that the
            profile's references were examined by. Triggers, which take seconds to minutes for each network, are
            searched only where this names them, and in those that the cheaper looks leave undecided.
        alpha: accepted error rate.
        control: what the rate is of: `fdr`, of all that are suspected; `each`, of every one as if it were alone.
        executor: `Local()`, `Stream(out=...)` or `Ray(address=...)`; by default what suits the number and size.
        options: how checkpoints are opened: architecture, normalisation, or your own function.
        pairing: which kernel belongs to which BatchNorm, see `jaxguard.graph.pairing.layers`.
        deep: networks in which universal triggers are searched, the most suspicious first; 0 for none, `all`, or None
            for all where there are at most four, else none. With `Stream(out=...)` a stopped scan goes on.
        content_hash: what contents are named by; None for BLAKE3 in fleets where nothing is compared by SHA-256.
        kinds: of triggers, of `jaxguard.inversion.kinds.KINDS`; None for those of `DEFAULT` there.
        budget: seconds for all searches together; sizes that are not searched to the end by then are left out.
        clean: a few labelled clean images to search triggers on; by default they are made.
        synthesised: whether those match each network's BatchNorm statistics, see `jaxguard.inversion.synthesise`;
            procedural ones otherwise.
        test: labelled images to measure the accuracy on.
        attack: a trigger to measure on them, if one is known; one that works on nearly all confirms a backdoor.
        reference: clean networks that searches are compared with, of `jaxguard.extending`; None for those that ship.
        seed: of the images that triggers are searched on.
        listener: receives progress, remarks, and the findings before triggers are searched.

    Returns:
        The report, one finding per suspect in the order they were named or found. What cannot be read or scored is a
        finding too, an `ERROR` with its reason.

    Raises:
        CheckpointError: a target cannot be listed.
        DataError: a bad `alpha`, `control`, look, profile or `deep`.
        FleetError: results cannot be read or written, or a cluster cannot be reached.

    Example:
        >>> import jax.numpy as jnp
        >>> mlp = lambda v, x: jnp.maximum(x @ v["w1"], 0) @ v["w2"]
        >>> draw = np.random.default_rng(0).normal
        >>> v = {"w1": np.float32(draw(size=(4, 8))), "w2": np.float32(draw(size=(8, 2)))}
        >>> (finding,) = scan(Network(v, mlp, (4,))).findings
        >>> finding.verdict.name, finding.reason
        ('INCONCLUSIVE', 'no statement on triggers: its inputs float32[4] are no images [H, W, C]')
    """
    start, notes, is_interrupted = time.perf_counter(), list[str](), False
    listener, most = listener or Listener(), _most(deep)
    judging.require_rates(alpha, control)
    known, source = _opened(profile)
    # Without a search nothing is compared with it; a file that was named is opened all the same, to be checked.
    references = None if most == 0 and reference is None else trigger_reference.opened(reference)
    cheap, patches = _chosen(looks, known)
    found = discover(suspects, options=options, **_place(executor))
    cohorts = {} if known is None else known.cohorts
    compares = compared(content_hash, known, few=len(found.models) <= FEW or most not in (None, 0))
    names, rates = patches.names if patches else (), {"alpha": alpha, "control": control}
    with examined(found.models, executor, pairing=pairing, listener=listener, known=cohorts, compares=compares) as seen:
        if known is not None:
            known, notes = witnesses.comparable(known, seen, [*cheap, *([patches] if patches else [])], pairing)
        for look in cheap:
            alike = {name for name, one in cohorts.items() if look.name in one.looks}
            seen.take(look, [k for k in seen.runnable() if seen.records[k].cohort in alike])
        findings = judging.judge(seen.records, known, trigger_names=names, **rates)
        if patches is not None and known is not None:
            undecided = _undecided(findings, seen, known, alpha)
            seen.take(patches, undecided[: patches.most])
            findings = judging.judge(seen.records, known, trigger_names=names, **rates)
            notes.append(_of_search(findings, seen, known, len(undecided), rates))
        if most == 0:
            findings = [one if one.verdict is Verdict.ERROR else replace(one, unsearched=NOT_ASKED) for one in findings]
        else:
            from jaxguard.fleet.trigger_searches import searched

            listener.look(findings)
            images = {"clean": clean, "synthesised": synthesised, "seed": seed}
            made = searched(seen, findings, most=most, kinds=kinds, budget=budget, **images)
            findings, is_interrupted = made.judged(findings, references, **rates), made.is_interrupted
            notes += made.notes(found.names)
        findings = _with_code(_with_layers(findings, seen), found.models)
    if test is not None:
        findings = [_measured(*pair, test, attack) for pair in zip(findings, found.models, strict=True)]
    beside, skipped = codescan.in_skipped(found.skipped)
    findings = [*findings, *beside]
    profiled = () if known is None else judging.references(known, alpha, searched=patches is not None)
    occurring = {one.cohort for one in findings}
    return Report(
        title=_title(found.models),
        findings=tuple(findings),
        skipped=tuple(skipped),
        trigger=_example(attack, test),
        alpha=alpha,
        control=control,
        profile="" if known is None else f"{source}{known.digest[:16]}",
        references=tuple(one for one in profiled if one.cohort in occurring),
        seconds=time.perf_counter() - start,
        bytes_read=sum(one.bytes_read for one in seen.results),
        reused=sum(one.reused for one in seen.results),
        notes=(*notes, *judging.unlike_references(findings, alpha)),
        interrupted=is_interrupted,
        environment=environment(),
    )


def calibrate(
    clean: Suspects,
    backdoored: Suspects = (),
    *,
    looks: Sequence[str | Look] = ("weights",),
    executor: Executor | None = None,
    options: ModelOptions | None = None,
    pairing: Pairing = "dataflow",
    listener: Listener | None = None,
) -> Profile:
    """Make the reference profile that verdicts rest on.

    A verdict that errs once in twenty times needs nineteen clean networks of the same architecture, made like those
    that will be judged. With backdoored ones as well, the score learns what to weigh, and its power is known.

    Args:
        clean: known to be clean; everything that `scan` takes.
        backdoored: known to be backdoored; may be none.
        looks: what they are examined by, and later those that are judged.
        executor: see `scan`.
        options: see `scan`.
        pairing: see `scan`.
        listener: see `scan`.

    Returns:
        The profile; its notes name what was left out. `jaxguard.detection.profile.to_json` writes it.

    Raises:
        DataError: no clean network could be scored, or one is on both sides.
    """
    from jaxguard.detection import calibration

    listener, sides, examples = listener or Listener(), [], {}
    for truth, suspects in (("clean", clean), ("backdoored", backdoored)):
        models, title = discover(suspects, options=options, **_place(executor)).models, f"scanning {truth} references"
        with examined(models, executor, pairing=pairing, listener=listener, title=title) as seen:
            for one in seen.records:
                if one.error:
                    listener.say(f"left out: {one.error}")
            for look in looks_table.ordered(looks):
                seen.take(look, seen.runnable())
            sides.append([one for one in seen.records if not one.error])
            examples |= {one.cohort: model for one, model in zip(seen.records, models, strict=True) if not one.error}
    made = contents.with_blake3(calibration.calibrate(*sides), [*sides[0], *sides[1]])
    return witnesses.witnessed(made, examples, looks_table.ordered(looks), pairing)


def _opened(profile: Profile | str | os.PathLike[str] | None) -> tuple[Profile | None, str]:
    """The profile, and where it was read."""
    if profile is None or isinstance(profile, Profile):
        return profile, ""
    try:
        text = checkpoints.text_of(profile)
    except JaxguardError as error:
        raise DataError(
            f"{profile}: expected a profile made by `jaxguard calibrate`, got {error.__cause__}; check the path"
        ) from error
    return profiles.from_json(text, str(profile)), f"{profile}, "


def _place(executor: Executor | None) -> dict[str, Any]:
    """Which part of the targets an executor scores, and where it writes."""
    return {"shard": executor.shard, "results": executor.out} if isinstance(executor, Stream) else {}


def _chosen(looks: Sequence[str | Look] | None, known: Profile | None) -> tuple[list[Look], Look | None]:
    """The looks at all that a profile has references for, and the trigger search, if there is one."""
    profiled = sorted({look for cohort in known.cohorts.values() for look in cohort.looks}) if known is not None else []
    taken = looks_table.ordered(profiled if looks is None else [*profiled, *looks])
    search = next((look for look in taken if look.name == TRIGGERS), None)
    if search is not None and (known is None or not any(one.triggers for one in known.cohorts.values())):
        raise DataError(
            "expected a profile whose references were searched for triggers, got one without, or none; make it with "
            "looks=('weights', 'triggers') in calibrate(), or `jaxguard calibrate --deep`"
        )
    return [look for look in taken if look.name != TRIGGERS], search


def _undecided(findings: Sequence[Finding], seen: Examination, known: Profile, alpha: float) -> list[int]:
    """Findings that a trigger search could change, those nearest to being suspected first; copies count once."""
    searched = {name for name, one in known.cohorts.items() if comparison.SEARCH in comparison.nulls(one, alpha)}
    left = [
        k
        for k in seen.runnable()
        if seen.records[k].cohort in searched
        and findings[k].verdict is not Verdict.SUSPECTED
        and not np.isnan(findings[k].p_value)
    ]
    distinct: dict[str, int] = {}
    for k in sorted(left, key=lambda k: (findings[k].p_value, -findings[k].score)):
        distinct.setdefault(seen.records[k].content, k)
    return list(distinct.values())


def _of_search(
    findings: Sequence[Finding], seen: Examination, known: Profile, undecided: int, rates: Mapping[str, Any]
) -> str:
    """What the trigger search changed."""
    without = judging.judge(seen.records, known, **rates)
    counts = [sum(one.verdict is Verdict.SUSPECTED for one in some) for some in (findings, without)]
    searched = sum(TRIGGERS in one.features for one in seen.records)
    return (
        f"Triggers were searched in {searched} of {undecided} undecided checkpoints: {counts[0]} suspected, "
        f"{counts[1]} if the search did not count."
    )


def _most(deep: int | Literal["all"] | None) -> float | None:
    """Networks that triggers are searched in at most; None for all of few, and none of many."""
    if deep is None:
        return None if SEARCHES else 0
    if deep == "all":
        return np.inf
    if isinstance(deep, str) or deep < 0:
        raise DataError(f"expected deep to be a number of networks or 'all', got {deep!r} in scan(); 0 searches none")
    return deep


def _with_layers(findings: Sequence[Finding], seen: Examination) -> list[Finding]:
    """Layers for those a reader will look into: the suspected, and the highest scores."""

    def height(k: int) -> tuple[float, float]:
        score, z = (-np.inf if np.isnan(value) else value for value in (findings[k].score, findings[k].z))
        return score, z

    scored = [k for k, one in enumerate(findings) if one.verdict is not Verdict.ERROR]
    highest = sorted(scored, key=height, reverse=True)[:SHOWN]
    shown = {*highest, *(k for k in scored if findings[k].verdict is Verdict.SUSPECTED)}
    kept = seen.layers({findings[k].provenance.content for k in shown if not findings[k].layers})
    layers = [one.layers or kept.get(one.provenance.content, ()) for one in findings]
    return [replace(one, layers=layers[k] if k in shown else ()) for k, one in enumerate(findings)]


def _with_code(findings: Sequence[Finding], models: Sequence[Model]) -> list[Finding]:
    """What loaders of the files would run, which is the verdict wherever there is anything."""
    # A URL whose content was refused lies in the cache; one that could not be reached is not asked again.
    lost = [
        one.verdict is Verdict.ERROR and one.kind in ("", CheckpointError.kind) and checkpoints.is_url(model.name)
        for one, model in zip(findings, models, strict=True)
    ]
    paths = ["" if model.suspect is not None or gone else model.name for model, gone in zip(models, lost, strict=True)]
    found = codescan.with_code(findings, paths)
    return [codescan.unexamined(one) if gone else one for one, gone in zip(found, lost, strict=True)]


def _measured(finding: Finding, model: Model, test: Batch, attack: Attack | None) -> Finding:
    """Accuracy on labelled images, and notes where they contradict the normalisation or could not be measured."""
    from jaxguard import evaluation
    from jaxguard.detection import search_verdicts
    from jaxguard.suspects import normalization

    if finding.verdict is Verdict.ERROR:
        return finding
    try:
        suspect, batch = model.load(), model.options.relabelled(test)
        network = suspect.require_network()
        metrics = evaluation.evaluate(network, batch, attack)
        notes = normalization.doubts(suspect, batch)
        finding = search_verdicts.confirmed(finding, metrics)
    except JaxguardError as error:
        return replace(finding, notes=(*finding.notes, f"Not measured: {error}."))
    return replace(finding, metrics=metrics, notes=(*finding.notes, *notes))


def _example(attack: Attack | None, test: Batch | None):
    if attack is None or test is None:
        return None
    from jaxguard import evaluation

    return evaluation.trigger_example(attack, test)


def _title(models: Sequence[Model]) -> str:
    names: Iterator[str] = (os.path.basename(one.name.rstrip("/")) or one.name for one in models)
    return f"Scan of {', '.join(itertools.islice(names, 3))}{', …' if len(models) > 3 else ''}"
