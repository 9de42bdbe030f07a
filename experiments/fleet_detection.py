"""How well are backdoored networks told from clean ones without data, given references of the same architecture?

    python experiments/detection_zoo.py digits fleets/digits --arch cnn:width=0.5
    python experiments/fleet_detection.py fleets/digits --name digits

Networks of even numbers calibrate, those of odd numbers are judged, once; failed ones (ASR below 80 %) are left out.
Nothing is chosen on the odd ones: which single features are shown is decided by their ROC-AUC on the even ones.

Three looks, each dearer than the one before: the weights, the answers to noise, triggers inverted on noise. They are
combined by `jaxguard.detection`, as `jaxguard calibrate` does: in one regression where every network gets every look,
or as a cascade, as `jaxguard scan --deep N` does: only N get the deep look (answers, or answers and inversion), those
that are not suspected by their weights, the nearest to it first. Why so: cascade.py. Intervals are 95 %: bootstrap over
networks for ROC figures, Clopper-Pearson for shares. With 64 clean networks a false-positive rate of 1 % means none of
them.

Hardware: any. Time: 3 to 10 s per network on two CPU cores, nearly all of it inversion; features are kept beside the
fleet (features.npz), so that a second run takes a minute.
Result: experiments/results/fleet_detection_NAME.json and .svg.
"""

import argparse
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import machine
import matplotlib.figure
import numpy as np
from rich.progress import track
from scipy import stats
from third_party import RESULTS

from jaxguard import suspects
from jaxguard.detection import calibration, judging, triggers
from jaxguard.detection.profile import Profile
from jaxguard.detection.records import TRIGGERS, WEIGHTS, Features, Record
from jaxguard.graph import pairing
from jaxguard.scores import responses, weights
from jaxguard.types import Finding, Provenance, Verdict

ALPHA = 0.05
RATES = (0.01, 0.05)
"""False-positive rates at which the true-positive rate is shown."""

SHARES = (0.1, 0.25, 0.5, 1.0)
"""Of the judged networks that may get the deep look."""

DRAWS = 2000
SHOWN = 12
"""Single features in the result."""

KEY = 0
COHORT = "fleet"
TIERS = ("weights", "response", "inversion")
GROUPS = ("badnets", "blended")

FAMILIES: Mapping[str, Callable[[str], bool]] = {
    "largest z-scores": lambda name: name.endswith(": z"),
    "channel bounds": lambda name: ": log bound" in name or name.endswith(": z"),
    "BatchNorm": lambda name: name.split(": ")[-1].split()[0] in weights.NORM and "->" in name,
    "size of weights": lambda name: ": weights" in name,
    "output layer": lambda name: name.startswith("head"),
    "noise, as it is": lambda name: name.startswith("response: none"),
    "noise, a step for all": lambda name: name.startswith(("response: step", "response: pull")),
    "noise, pixels set": lambda name: name.startswith("response") and "% set" in name,
    "inversion on noise": lambda name: name.startswith("inversion"),
}
"""Feature families; the first ones need nothing but the weights."""


def measure(folder: pathlib.Path, tiers: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Records of the networks that count, and per tier their features `[M, F]` and seconds `[M]`."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    records = [record for record in records if not record.get("failed")]
    if not records:
        raise SystemExit(f"expected checkpoints with records (.json) in {folder}; detection_zoo.py makes them")
    store = folder / "features.npz"
    known = dict(np.load(store)) if store.exists() else {}
    opened = suspects.load(folder / records[0]["file"])
    network = opened.require_network()
    graph, layers = network.graph, pairing.layers(network.graph)
    names = {
        "weights": weights.feature_names(layers),
        "response": responses.NAMES,
        "inversion": triggers.INVERSION_NAMES,
    }
    program = jax.jit(lambda variables: weights.weight_features(graph, layers, variables).features)
    key = jax.random.key(KEY)
    looks = {
        "weights": program,
        "response": lambda variables: responses.response_features(graph, variables),
        "inversion": lambda variables: triggers.inversion_features(triggers.inverted(graph, variables, key)),
    }
    for tier in tiers:
        looks[tier](network.variables)  # compiles
    version = hashlib.sha256("".join(sum((names[tier] for tier in TIERS), ())).encode()).hexdigest()[:8]
    for number, record in enumerate(track(records, "measuring")):
        path = folder / record["file"]
        record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        wanted = {tier: f"{tier}-{version}-{record['sha256'][:16]}" for tier in tiers}
        missing = [tier for tier in tiers if wanted[tier] not in known]
        if missing:
            variables = jax.device_put(suspects.load(path).require_network().variables)
            for tier in missing:
                start = time.perf_counter()
                row = np.asarray(looks[tier](variables))
                known[wanted[tier]] = np.append(row, time.perf_counter() - start)
        record["rows"] = wanted
        if missing and number % 16 == 15:
            np.savez(store, **known)
    np.savez(store, **known)
    found: dict[str, Any] = {"names": {tier: names[tier] for tier in tiers}}
    for tier in tiers:
        rows = np.stack([known[record["rows"][tier]] for record in records])
        found[tier], found[f"{tier} seconds"] = rows[:, :-1], rows[:, -1]
    return records, found


def roc_auc(clean: np.ndarray, backdoored: np.ndarray) -> float:
    """Chance that a backdoored network scores above a clean one, ties by half."""
    ranks = stats.rankdata(np.concatenate([clean, backdoored]))[len(clean) :]
    return float((ranks.sum() / len(backdoored) - (len(backdoored) + 1) / 2) / len(clean))


def true_positive_rate(clean: np.ndarray, backdoored: np.ndarray, rate: float) -> float:
    """Share of backdoored networks above all but `rate` of the clean ones."""
    allowed = int(rate * len(clean))
    return float((backdoored > np.sort(clean)[::-1][allowed]).mean())


def curve(scores: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """ROC figures of each attack and of both, with bootstrap intervals."""
    draw, clean = np.random.default_rng(0), scores[groups == "clean"]
    found = {}
    for name in ("all", *GROUPS):
        guilty = scores[groups != "clean"] if name == "all" else scores[groups == name]
        if not len(guilty):
            continue
        resampled = [(draw.choice(clean, len(clean)), draw.choice(guilty, len(guilty))) for _ in range(DRAWS)]
        figures = {"auc": roc_auc} | {
            f"tpr at {rate:g}": lambda a, b, rate=rate: true_positive_rate(a, b, rate) for rate in RATES
        }
        found[name] = {"clean": len(clean), "backdoored": len(guilty)} | {
            key: [
                round(figure(clean, guilty), 4),
                *np.quantile([figure(*pair) for pair in resampled], [0.025, 0.975]).round(4).tolist(),
            ]
            for key, figure in figures.items()
        }
    return found


def share(hits: np.ndarray) -> list[float]:
    """Share and its exact interval."""
    interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="exact")
    return [round(float(value), 4) for value in (hits.mean(), interval.low, interval.high)]


class Setting:
    """One fleet: what is known of its networks, and which of them calibrate."""

    def __init__(self, records: list[dict[str, Any]], found: dict[str, Any], tiers: Sequence[str]):
        self.found = found
        self.names = {name: (tier, k) for tier in tiers for k, name in enumerate(found["names"][tier])}
        self.groups = np.array([record["group"] for record in records])
        self.sha256 = [record["sha256"] for record in records]
        self.even = np.array([record["number"] % 2 == 0 for record in records])
        self.records = records

    def columns(self, names: Sequence[str]) -> np.ndarray:
        """`[M, F]` of the named features."""
        return np.stack([self.found[tier][:, k] for tier, k in map(self.names.__getitem__, names)], axis=1)

    def calibrate(self, names: Sequence[str], deep_names: Sequence[str] = ()) -> Profile:
        """The profile of the even ones."""
        rows = self.members(names, deep_names, np.ones(len(self.groups), bool))
        chosen = [
            [rows[k] for k in np.flatnonzero(self.even & side)]
            for side in (self.groups == "clean", self.groups != "clean")
        ]
        return calibration.calibrate(*chosen)

    def members(self, names: Sequence[str], deep_names: Sequence[str], searched: np.ndarray) -> list[Record]:
        """Records for `jaxguard.detection`; only the searched ones have features of a search."""
        names, deep_names = tuple(names), tuple(deep_names)
        features, deeper = self.columns(names), self.columns(deep_names) if deep_names else None
        found = []
        for k, sha256 in enumerate(self.sha256):
            looks = {WEIGHTS: Features(names, features[k])}
            if deeper is not None and searched[k]:
                looks[TRIGGERS] = Features(deep_names, deeper[k])
            found.append(Record(Provenance(sha256, sha256), COHORT, looks))
        return found

    def judge(
        self, names: Sequence[str], deep_names: Sequence[str] = (), part: float = 1.0
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Scores of the odd ones, and the table row: ROC figures and what the verdicts are.

        Args:
            names: features of every network.
            deep_names: features of those that get the deep look.
            part: of the odd ones that may.
        """
        profile, odd = self.calibrate(names, deep_names), np.flatnonzero(~self.even)
        options: dict[str, Any] = {"trigger_names": tuple(deep_names), "alpha": ALPHA}

        def looked(control: str) -> tuple[np.ndarray, list[Finding]]:
            searched = np.zeros(len(self.groups), bool)
            if deep_names:
                members = self.members(names, deep_names, searched)
                searched[odd[undecided([members[k] for k in odd], profile, options, control, part)]] = True
            members = self.members(names, deep_names, searched)
            return searched, judging.judge([members[k] for k in odd], profile, **options, control=control)

        searched, told = looked(judging.EACH)
        together = looked(judging.FDR)[1]
        groups, scores = self.groups[odd], np.array([one.score for one in told])
        rates = np.array([self.records[k].get("rate", np.nan) for k in odd])
        deeper = {self.names[name][0] for name in deep_names}
        accused = np.array([one.verdict == Verdict.SUSPECTED for one in told])
        among = groups[np.array([one.verdict == Verdict.SUSPECTED for one in together])]
        row = {
            "features": len(names) + len(deep_names),
            "searched": int(searched.sum()),
            "seconds of the search": round(sum(self.found[f"{tier} seconds"][searched].sum() for tier in deeper), 1),
            "roc": curve(scores, groups),
            f"accused at alpha {ALPHA:g}": {name: share(accused[groups == name]) for name in ("clean", *GROUPS)}
            | {"backdoored": share(accused[groups != "clean"])},
            "accused by poison rate": {
                f"{rate:g}": share(accused[rates == rate]) for rate in np.unique(rates[~np.isnan(rates)])
            },
            "suspected together": {name: int((among == name).sum()) for name in ("clean", *GROUPS)},
            "missed": [
                {key: self.records[k].get(key) for key in ("file", "rate", "asr")}
                for k, is_accused in zip(odd, accused, strict=True)
                if not is_accused and self.groups[k] != "clean"
            ],
        }
        return scores, row


def undecided(
    members: list[Record], profile: Profile, options: Mapping[str, Any], control: str, part: float
) -> np.ndarray:
    """Places of the networks that get the deep look: not suspected without it, the smallest p-values first."""
    told = judging.judge(members, profile, **options, control=control)
    left = [k for k, one in enumerate(told) if one.verdict != Verdict.SUSPECTED]
    ranked = sorted(left, key=lambda k: (told[k].p_value, -told[k].score))
    return np.array(ranked[: round(part * len(members))], int)


def single_features(setting: Setting) -> dict[str, Any]:
    """Those of highest ROC-AUC on the even ones, either way round, with their figures on the odd ones."""
    names = list(setting.names)
    values, groups = setting.columns(names), setting.groups
    clean, guilty = setting.even & (groups == "clean"), setting.even & (groups != "clean")
    areas = np.array([roc_auc(values[clean, k], values[guilty, k]) for k in range(len(names))])
    found = {}
    for k in np.argsort(-np.abs(areas - 0.5), kind="stable")[:SHOWN]:
        sign = 1 if areas[k] >= 0.5 else -1
        found[names[k]] = {
            "backdoored are": "higher" if sign > 0 else "lower",
            "calibration auc": round(float(max(areas[k], 1 - areas[k])), 4),
            "roc": curve(sign * values[~setting.even, k], groups[~setting.even]),
        }
    return found


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """ROC-AUC of every family and combination on the odd networks."""
    matplotlib.rcParams |= {"svg.hashsalt": path.name, "svg.fonttype": "none"}
    rows = {**result["families"], **result["combinations"]}
    figure = matplotlib.figure.Figure(figsize=(7.5, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for offset, (group, colour, marker) in enumerate(zip(GROUPS, ("#0b5cad", "#c2410c"), "os", strict=True)):
        areas = np.array([row["roc"][group]["auc"] if group in row["roc"] else [np.nan] * 3 for row in rows.values()])
        places = np.arange(len(rows)) + 0.24 * offset - 0.12
        spread = np.abs(areas[:, 1:] - areas[:, :1]).T
        axes.errorbar(areas[:, 0], places, xerr=spread, fmt=marker, color=colour, markersize=5, label=group)
    axes.axhline(len(result["families"]) - 0.5, color="0.7", linewidth=0.8)
    axes.axvline(0.5, color="0.7", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set_xlabel("ROC-AUC on the judged half")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS, help="weights first, and no gap")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    tiers = TIERS[: len(arguments.tiers)]
    records, found = measure(arguments.folder, tiers)
    setting = Setting(records, found, tiers)
    names = {tier: tuple(found["names"][tier]) for tier in tiers}
    counts = {
        side: {name: int((setting.groups[mask] == name).sum()) for name in ("clean", *GROUPS)}
        for side, mask in (("calibration", setting.even), ("judged", ~setting.even))
    }
    families = {}
    for family, is_member in FAMILIES.items():
        members = [name for name in setting.names if is_member(name)]
        if members:
            families[family] = setting.judge(members)[1]
    combinations = {"weights": setting.judge(names["weights"])[1]}
    looks = {"response": "answers", "inversion": "answers and inversion"}
    for count, tier in enumerate(tiers[1:], 2):
        deeper = sum((names[tier] for tier in tiers[1:count]), ())
        combinations[f"weights, {looks[tier]}, one fit"] = setting.judge(names["weights"] + deeper)[1]
        for part in SHARES:
            label = f"cascade, {looks[tier]} of {f'{100 * part:.0f} %' if part < 1 else 'all undecided'}"
            combinations[label] = setting.judge(names["weights"], deeper, part)[1]
            if tier == "inversion":
                cheap = names["weights"] + names["response"]
                combinations[f"answers for all, {label}"] = setting.judge(cheap, deeper, part)[1]
    result: dict[str, Any] = {
        "environment": machine.environment("scipy", "scikit-learn"),
        "architecture": records[0]["architecture"],
        "data": records[0]["data"],
        "networks": counts,
        "seconds per network": {
            tier: {
                "median": round(float(np.median(found[f"{tier} seconds"])), 5),
                "least": round(float(found[f"{tier} seconds"].min()), 5),
            }
            for tier in tiers
        },
        "combinations": combinations,
        "families": families,
        "features": single_features(setting),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"fleet_detection_{arguments.name}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    draw(result, path.with_suffix(".svg"))
    print(json.dumps({key: result[key] for key in ("networks", "seconds per network")}, indent=1))
    for kind in ("families", "combinations"):
        for name, row in result[kind].items():
            areas = {group: figures["auc"] for group, figures in row["roc"].items()}
            print(f"{name:45s} {areas} {row[f'accused at alpha {ALPHA:g}']['clean']}")


if __name__ == "__main__":
    main()
