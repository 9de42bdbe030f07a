"""The search for universal triggers in the networks of a scan, the most suspicious first, one after the other.

What a search found is kept where results of the scan are (`--out`), under the content of the checkpoint and all else
that it depends on, so that a scan that was interrupted goes on where it was. What was not searched is named with its
reason.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxguard import inversion, programs
from jaxguard.detection import agreement, judging, search_verdicts
from jaxguard.detection.trigger_reference import TriggerReference
from jaxguard.errors import JaxguardError
from jaxguard.fleet import witnesses
from jaxguard.fleet.examination import Examination
from jaxguard.inversion.kinds import DEFAULT, KINDS
from jaxguard.types import Batch, Finding, TriggerSearch, Verdict

FEW = 4
"""Networks up to which a scan searches all of them by default; of more none."""

CLEAN = 100
"""Clean images that are used, at most."""

NAMED = 3
"""Checkpoints that a note names for each reason; the other formats of a report name all."""

PACKAGE = __name__.partition(".")[0]

UNKNOWN_FUNCTION = "its function is not known; pass --arch, or your own model with --apply"


@dataclass(eq=False)
class Searches:
    """What was found, and what was left out.

    Attributes:
        found: number of the model -> its search.
        left_out: number of the model -> why there was none.
        errors: number of the model -> how far its logits differ from those that the references would have, see
            `jaxguard.detection.agreement`; where they may.
        reused: results of an earlier scan among those found.
        is_interrupted: whether the user stopped them.
    """

    found: dict[int, TriggerSearch] = field(default_factory=dict)
    left_out: dict[int, str] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)
    reused: int = 0
    is_interrupted: bool = False

    def judged(
        self, findings: Sequence[Finding], reference: TriggerReference | None, *, alpha: float, control: str
    ) -> list[Finding]:
        """Verdicts of the searches, and remarks where there was none.

        Args:
            findings: of all models.
            reference: clean networks to compare with.
            alpha: accepted error rate.
            control: what it is of, see `jaxguard.detection.judging`.
        """
        is_each = control == judging.EACH
        found = {k: agreement.doubted(one, reference, self.errors.get(k, 0.0)) for k, one in self.found.items()}
        judged = search_verdicts.judge(findings, found, reference, alpha=alpha, is_each=is_each)
        for k, why in self.left_out.items():
            is_open = judged[k].verdict is Verdict.INCONCLUSIVE and math.isnan(judged[k].p_value)
            reason = {"reason": f"no trigger was searched: {why}"} if is_open else {}
            judged[k] = replace(judged[k], unsearched=why, **reason)
        return judged

    def notes(self, names: Sequence[str]) -> Iterator[str]:
        """What was not searched, counted by reason; the first of each named.

        Args:
            names: of all models.
        """
        missing = self.left_out
        if not missing or len(names) < 2:
            return
        parts = []
        for why, count in Counter(missing.values()).most_common():
            first = [names[k] for k in sorted(missing) if missing[k] == why][:NAMED]
            more = f" and {count - len(first):,} more" if count > len(first) else ""
            parts.append(f"{count:,}: {why} ({', '.join(first)}{more})")
        kept = f" ({self.reused:,} by an earlier scan)" if self.reused else ""
        total = len(missing) + len(self.found)
        yield (
            f"Triggers were searched in {len(self.found):,} of {total:,} checkpoints{kept}. Not searched were "
            f"{'; '.join(parts)}."
        )


def searched(
    seen: Examination,
    findings: Sequence[Finding],
    *,
    most: float | None = None,
    kinds: Sequence[str] | None = None,
    clean: Batch | None = None,
    synthesised: bool = False,
    budget: float | None = None,
    seed: int = 0,
) -> Searches:
    """Search triggers in the most suspicious networks of a scan.

    Args:
        seen: the networks.
        findings: what is known of them, in the same order; it decides who comes first.
        most: networks that are searched; infinity for all, None for all of at most `FEW` and none of more.
        kinds: of triggers, of `jaxguard.inversion.kinds.KINDS`; None for those of `DEFAULT` there.
        clean: labelled clean images; made ones where None.
        synthesised: whether those match each network's BatchNorm statistics; procedural ones otherwise.
        budget: seconds for all of them together; None for no limit.
        seed: of the images and starts.

    Returns:
        The searches; equal contents are searched once. Ctrl-C ends them, and what was found until then is returned.
    """
    made, runnable = Searches(), seen.runnable()
    scored = [k for k, one in enumerate(seen.records) if not one.error]
    made.left_out |= dict.fromkeys((k for k in scored if k not in set(runnable)), UNKNOWN_FUNCTION)
    contents: dict[Hashable, list[int]] = {}
    for k in _by_suspicion(seen, findings, runnable):
        contents.setdefault(_content(seen, k), []).append(k)
    chosen, rest = _chosen(list(contents.values()), most)
    why = f"there are more than {FEW}; --deep N or all searches them"
    if most is not None:
        why = f"not among the {most:,.0f} most suspicious; a larger --deep searches more"
    made.left_out |= dict.fromkeys((k for same in rest for k in same), why)
    budgeted = _Budget(budget)
    for done, same in enumerate(chosen):
        k, title = same[0], f"searching triggers in {done + 1} of {len(chosen)}"
        how = _How(seen, k, kinds or DEFAULT, clean, synthesised=synthesised, seed=seed)
        try:
            found = how.searched(title, budgeted.share(len(chosen) - done))
            if programs.numerics() != programs.USUAL:
                made.errors |= dict.fromkeys(same, witnesses.logit_error(seen.models[k].load().require_network()))
        except KeyboardInterrupt:  # before its first kind, or while it was opened
            made.left_out |= dict.fromkeys(same, "the search was interrupted before it began")
            found = None
        except JaxguardError as error:
            made.left_out |= dict.fromkeys(same, f"{error}")
            continue
        except Exception as error:  # whatever a function of the user's raises, or a device without memory
            if _is_own(error):
                raise
            told = " ".join(str(error).split())[:200]
            made.left_out |= dict.fromkeys(same, f"its function raised {type(error).__name__}: {told}")
            continue
        if found is not None:
            made.found |= dict.fromkeys(same, found)
            made.reused += len(same) * how.is_kept
            budgeted.spend(0.0 if how.is_kept else found.seconds)
        if found is None or found.interrupted:
            made.is_interrupted = True
            rest = [k for group in chosen[done + 1 :] for k in group]
            made.left_out |= dict.fromkeys(rest, "the search was interrupted before its turn")
            break
    return made


def _is_own(error: Exception) -> bool:
    """Whether it was raised by a line of this package rather than by a function of the user's, or what that calls."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith(f"{PACKAGE}.")


def _content(seen: Examination, k: int) -> Hashable:
    """What networks of equal results share: the content, and the function or how it is opened."""
    model, content = seen.models[k], seen.records[k].content
    network = None if model.suspect is None else model.suspect.network
    return (content, model.options, network and network.apply_fn) if content else k


def _by_suspicion(seen: Examination, findings: Sequence[Finding], numbers: Sequence[int]) -> list[int]:
    """By the profile's p-value and score; where there is none, by how far one class stands out in the last layer.

    That is a hint for the order and no evidence: sound networks have such classes too.
    """

    def key(k: int) -> tuple[float, ...]:
        parts = (findings[k].p_value, -findings[k].score, -_outlier(seen, k))
        return tuple(math.inf if math.isnan(part) else part for part in parts)

    return sorted(numbers, key=key)


def _outlier(seen: Examination, k: int) -> float:
    """Log of the norm of the positive weights of the class that has most, less the mean of all classes."""
    for found in seen.records[k].features.values():
        if LAST_LAYER[0] in found.names:
            high, spread = (float(found.values[found.names.index(name)]) for name in LAST_LAYER)
            return high * spread
    return math.nan


LAST_LAYER = ("head: positive part high", "head: positive part std")
"""Features of `jaxguard.scores.head`: how far the class with the most positive weights lies above the mean, in standard
deviations; and the standard deviation, of the log norm."""


def _chosen(contents: list[list[int]], most: float | None) -> tuple[list[list[int]], list[list[int]]]:
    """Contents that are searched, and the others."""
    if most is None:
        return (contents, []) if sum(map(len, contents)) <= FEW else ([], contents)
    number = int(min(most, len(contents)))
    return contents[:number], contents[number:]


class _Budget:
    """Seconds for several networks: what one leaves over is for the next ones."""

    def __init__(self, seconds: float | None):
        self._left = seconds

    def share(self, networks: int) -> float | None:
        return None if self._left is None else max(self._left, 0.0) / networks

    def spend(self, seconds: float) -> None:
        self._left = None if self._left is None else self._left - seconds


class _How:
    """One network: how it is opened, on what its triggers are searched, and what an earlier scan found of it."""

    def __init__(
        self, seen: Examination, k: int, kinds: Sequence[str], clean: Batch | None, *, synthesised: bool, seed: int
    ):
        self._model, self._content, self._owner = seen.models[k], seen.records[k].content, seen.owners[k]
        self._steps, self._seed, self.is_kept = seen.listener.steps, seed, False
        self._clean, self._kinds, self._synthesised = clean, kinds, synthesised
        self._made = "synthesised" if synthesised else "procedural"
        self._batch: Batch | None = None
        self._remarks: tuple[str, ...] = ()

    def _take_images(self) -> None:
        """Some of the clean ones; others are made where there are few."""
        if self._clean is not None and len(self._clean.images) >= inversion.FEWEST:
            self._batch = _some(self._model.options.relabelled(self._clean))
        elif self._clean is not None:
            number = f"{len(self._clean.images)} clean ones: at least {inversion.FEWEST} are needed"
            self._remarks = (f"{self._made.capitalize()} images took the place of {number}.",)

    def searched(self, title: str, budget: float | None) -> TriggerSearch:
        """All kinds, those that an earlier scan has searched to the end from its results."""
        self._take_images()
        known = {kind: found for kind in self._kinds if (found := self._kept(kind)) is not None}
        missing = [kind for kind in self._kinds if kind not in known]
        self.is_kept = not missing
        if missing:
            found = self._search(title, missing, budget)
            ended = [kind for kind in missing if _is_complete(found, kind)]
            for kind in ended if self._content else ():
                self._owner.add_search(self._named(kind), self._content, _part(found, kind))
            known |= {kind: _part(found, kind) for kind in missing}
        whole = _joined([known[kind] for kind in self._kinds])
        return replace(whole, left_out=(*self._remarks, *whole.left_out))

    def _named(self, kind: str) -> str:
        """All that a search depends on beside the content and how it is opened."""
        digest = hashlib.sha256()
        for array in self._batch or ():
            digest.update(np.ascontiguousarray(array).tobytes())
        images = self._made if self._batch is None else digest.hexdigest()[:16]
        return f"{kind} {KINDS[kind].version}, images {images}, seed {self._seed}"

    def _kept(self, kind: str) -> TriggerSearch | None:
        return self._owner.searches(self._named(kind), [self._content]).get(self._content) if self._content else None

    def _search(self, title: str, kinds: Sequence[str], budget: float | None) -> TriggerSearch:
        network = self._model.load().require_network()
        with self._steps(title) as progress:
            return inversion.search(
                network,
                images=None if self._batch is None else np.asarray(self._batch.images),
                labels=None if self._batch is None else np.asarray(self._batch.labels),
                kinds=kinds,
                synthesised=self._synthesised,
                budget=budget,
                seed=self._seed,
                progress=progress,
            )


def _is_complete(found: TriggerSearch, kind: str) -> bool:
    """Whether all sizes were searched to the end; what ran out of time is searched again when there is more."""
    if not found.results:
        return not found.interrupted  # the network allows no search
    height, width, channels = found.shape
    wanted = KINDS[kind].sizes_fn((height, width, channels))
    return set(wanted) <= {row.size for row in found.rows if row.kind == kind}


def _part(found: TriggerSearch, kind: str) -> TriggerSearch:
    """What a search found of one kind."""
    (result,) = [one for one in found.results if one.kind == kind] or [None]
    if result is None:
        return found
    rows = tuple(row for row in found.rows if row.kind == kind)
    cost = {"forwards": result.forwards, "seconds": result.seconds}
    return replace(found, rows=rows, results=(result,), problem=result.problem, **cost)


def _joined(parts: Sequence[TriggerSearch]) -> TriggerSearch:
    """Searches of one network by several kinds as one."""
    first = parts[0]
    if any(not one.results for one in parts):  # the network allows no search of any kind
        return next(one for one in parts if not one.results)
    return replace(
        first,
        rows=tuple(row for one in parts for row in one.rows),
        results=tuple(result for one in parts for result in one.results),
        problem=first.problem if all(one.problem for one in parts) else "",
        left_out=tuple(dict.fromkeys(note for one in parts for note in one.left_out)),
        unsearched=tuple(kind for kind in KINDS if all(kind != one.results[0].kind for one in parts)),
        interrupted=next((one.interrupted for one in parts if one.interrupted), ""),
        forwards=sum(one.forwards for one in parts),
        seconds=sum(one.seconds for one in parts),
    )


def _some(clean: Batch) -> Batch:
    """At most so many images, of all classes in turn."""
    chosen = np.sort(inversion.in_turn(np.asarray(clean.labels))[:CLEAN])
    return Batch(np.asarray(clean.images)[chosen], np.asarray(clean.labels)[chosen])
