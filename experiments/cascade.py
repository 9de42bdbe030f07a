"""Who is searched for triggers where not all can be, and how do two looks make one verdict with an error rate?

    python experiments/cascade.py fleets/digits --name digits

On the networks of even numbers of a fleet that detection_zoo.py made and fleet_detection.py measured; the odd ones are
not looked at. Three quarters calibrate, one quarter is judged, four times round, ten times shuffled: by weights, and
some by answers and inversion too. All figures are means; `accused` counts clean networks at alpha 0.05, `found`
backdoored ones, of which there are two for a clean one in the fleet, and one for nine after some are left out.

Who comes first:

    undecided   those not suspected by the rule without a search, the highest scores first (what jaxguard does)
    suspicious  the highest scores
    even odds   the log-odds nearest to 0; in a one-class profile there are none

What the p-value is, w of the weights and d of the search:

    higher      jaxguard.detection.cascade: the higher score of both, for references and suspects, in standard
                deviations of the references, of which a search counts 0, 0.5, 1 (what jaxguard does) or 2 less
    bonferroni  min(w / v, d / (1 - v)) of those who are searched, w / v of the others, v = 1/2 or 1/5
    alike       that of the score of the search where there is one, of weights else; references count as searched where
                their weights lie among those of the fleet that were. Holds for one budget, not for the best of several
    either      d or w: no error rate holds

Hardware: any. Time: two minutes.
Result: experiments/results/cascade_NAME.json.
"""

import argparse
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import fleet_detection
import machine
import numpy as np
from fleet_detection import ALPHA, COHORT, TIERS, Setting, roc_auc
from third_party import RESULTS

from jaxguard.conformal import adjusted_p_values, as_high
from jaxguard.detection import calibration
from jaxguard.detection.combination import cross_scores

SHUFFLES, PARTS = 10, 4
BUDGETS = (0.0, 0.1, 0.25, 0.5, 1.0)
ORDERS = ("undecided", "suspicious", "even odds")
RULES = ("higher 0", "higher 0.5", "higher 1", "higher 2", "bonferroni 1/2", "bonferroni 1/5", "alike", "either")
PREVALENCE = {"two in three": None, "one in ten": 0.1}
ROUNDING = 1e-9


class Fleet(NamedTuple):
    """Scores of `M` judged networks by `K` folds, and of `R` references.

    Attributes:
        weights: `[M, K]`.
        deep: `[M, K]` by the search.
        references: `[2, R]` by both looks.
        folds: `[R]`.
        guilty: `[M]`.
    """

    weights: np.ndarray
    deep: np.ndarray
    references: np.ndarray
    folds: np.ndarray
    guilty: np.ndarray


def fleets(setting: Setting, kind: str) -> list[Fleet]:
    """All parts of all shuffles of the even networks."""
    names = {tier: tuple(setting.found["names"][tier]) for tier in TIERS}
    deep_names = names["response"] + names["inversion"]
    rows = setting.members(names["weights"], deep_names, np.ones(len(setting.groups), bool))
    sides = [np.flatnonzero(setting.even & side) for side in (setting.groups == "clean", setting.groups != "clean")]
    found = []
    for shuffle, part in itertools.product(range(SHUFFLES), range(PARTS)):
        rng = np.random.default_rng(shuffle)
        shuffled = [rng.permutation(side) for side in sides]
        judged = np.concatenate([side[part::PARTS] for side in shuffled])
        known = [[rows[k] for k in side if k not in judged] for side in shuffled]
        guilty = known[1] if kind == "log-odds" else []
        one = calibration.calibrate(known[0], guilty).cohorts[COHORT]
        assert one.triggers is not None and one.triggers.clean.sha256 == one.first.clean.sha256
        features = (np.stack([rows[k].features[look].values for k in judged]) for look in ("weights", "triggers"))
        weights = cross_scores(one.first.combinations, next(features))
        deep = cross_scores(one.triggers.combinations, next(features), weights)
        references = np.stack([one.first.clean.scores, one.triggers.clean.scores])
        truth = setting.groups[judged] != "clean"
        found.append(Fleet(weights, deep, references, one.triggers.clean.folds, truth))
    return found


def p_values(scores: np.ndarray, references: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Cross-conformal ones `[M]` of scores `[M, K]`."""
    above = [as_high(scores[:, k], np.sort(references[folds == k])) for k in range(scores.shape[1])]
    return (1 + np.sum(above, axis=0)) / (len(references) + 1)


def judged(fleet: Fleet, searched: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """P-values and scores `[M]`."""
    first, second = (
        p_values(scores, references, fleet.folds)
        for scores, references in zip((fleet.weights, fleet.deep), fleet.references, strict=True)
    )
    mixed = np.where(searched[:, None], fleet.deep, fleet.weights)
    if rule.startswith("higher"):
        looks = zip((fleet.weights, fleet.deep), fleet.references, strict=True)
        (own, known), (own_deep, known_deep) = (
            [(one - references.mean()) / references.std() for one in (scores, references)]
            for scores, references in looks
        )
        less = float(rule.rpartition(" ")[2])
        scores = np.where(searched[:, None], np.maximum(own, own_deep - less), own)
        return p_values(scores, np.maximum(known, known_deep - less), fleet.folds), scores.mean(1)
    if rule == "alike":
        seen = fleet.weights.mean(1)[searched]
        low, high = (seen.min(), seen.max()) if len(seen) else (np.inf, -np.inf)
        among = (fleet.references[0] >= low) & (fleet.references[0] <= high)
        return p_values(mixed, np.where(among, *fleet.references[::-1]), fleet.folds), mixed.mean(1)
    if rule == "either":
        return np.where(searched, second, first), mixed.mean(1)
    share = 1 / float(rule.rpartition("/")[2])
    return np.minimum(first / share, np.where(searched, second / (1 - share), 1)), mixed.mean(1)


def looked(fleet: Fleet, order: str, rule: str, budget: float, *, together: bool) -> tuple[np.ndarray, ...]:
    """Of `M` networks, who was searched, who is suspected, the p-values and the scores."""

    def suspected(p: np.ndarray) -> np.ndarray:
        return (adjusted_p_values(p) if together else p) <= ALPHA + ROUNDING

    searched, weights = np.zeros(len(fleet.guilty), bool), fleet.weights.mean(1)
    rank = np.abs(weights) if order == "even odds" else -weights
    if order == "undecided":
        rank[suspected(np.minimum(judged(fleet, searched, rule)[0], 1))] = np.inf
    first = np.argsort(rank, kind="stable")[: round(budget * len(rank))]
    searched[first[np.isfinite(rank[first])]] = True
    p, scores = judged(fleet, searched, rule)
    return searched, suspected(np.minimum(p, 1)), p, scores


def figures(fleet: Fleet, order: str, rule: str, budget: float) -> list[float]:
    """The figures of a row, see above.

    The ROC goes by the p-value, and where that is the same by the score.
    """
    searched, suspected, p, scores = looked(fleet, order, rule, budget, together=False)
    placed, guilty = np.empty(len(p)), fleet.guilty
    placed[np.lexsort((scores, -p))] = np.arange(len(p))
    among = looked(fleet, order, rule, budget, together=True)[1]
    return [
        suspected[~guilty].mean(), suspected[guilty].mean(), among[guilty].mean(),
        roc_auc(placed[~guilty], placed[guilty]), searched.mean(),
    ]  # fmt: skip


def thinned(fleet: Fleet, prevalence: float | None, rng: np.random.Generator) -> Fleet:
    """With so few backdoored ones."""
    if prevalence is None:
        return fleet
    clean, guilty = np.flatnonzero(~fleet.guilty), np.flatnonzero(fleet.guilty)
    kept = rng.choice(guilty, max(1, round(len(clean) * prevalence / (1 - prevalence))), replace=False)
    rows = np.concatenate([clean, kept])
    return fleet._replace(weights=fleet.weights[rows], deep=fleet.deep[rows], guilty=fleet.guilty[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    setting = Setting(*fleet_detection.measure(arguments.folder, TIERS), TIERS)
    rows: list[dict[str, Any]] = []
    for kind in ("log-odds", "one-class"):
        parts = fleets(setting, kind)
        for guilty, prevalence in PREVALENCE.items():
            rng = np.random.default_rng(0)
            thin = [thinned(one, prevalence, rng) for one in parts]
            for order, rule, budget in itertools.product(ORDERS, RULES, BUDGETS):
                if kind == "one-class" and order == "even odds":
                    continue
                means = np.mean([figures(one, order, rule, budget) for one in thin], 0).round(3).tolist()
                told = dict(zip(("accused", "found", "together", "auc", "searched"), means, strict=True))
                rows.append(
                    {"score": kind, "backdoored": guilty, "first": order, "rule": rule, "budget": budget} | told
                )
                print(*rows[-1].values(), sep="\t")
    result = {
        "environment": machine.environment("scipy", "scikit-learn"),
        "references": len(parts[0].folds),
        "judged": len(parts[0].guilty),
        "fleets": len(parts),
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"cascade_{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
