"""What detection says of networks that others trained; nothing is tuned on them.

    jaxguard calibrate fleets/digits/… --out profile.json        # or no profile at all
    python experiments/third_party_detection.py --profile profile.json

A profile says nothing of an architecture that it has no references of: `inconclusive`. Beside the verdicts stands
Neural Cleanse's own rule, which needs none: an anomaly index above 2, of patches sought briefly on noise
(`jaxguard.detection.triggers`).

Needs the third-party checkpoints in JAXGUARD_SHARED_DATA, else ../shared/data.
Hardware: any. Time: 45 minutes on two CPU cores that others use too, most of it compiling and ResNets' inversion.
Result: experiments/results/third_party_detection.json.
"""

import argparse
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
import machine
from rich.progress import track
from third_party import RESULTS, SHARED
from third_party_table import known_network

from jaxguard import inversion
from jaxguard.detection import judging, triggers
from jaxguard.detection.profile import Profile, from_json
from jaxguard.detection.records import Record
from jaxguard.types import Provenance, Verdict


def judged(path: pathlib.Path, profile: Profile | None) -> dict[str, Any]:
    """A checkpoint's verdict by the profile, and by the index."""
    card = json.loads(path.with_suffix(".json").read_text())
    suspect = known_network(path, card)
    provenance = Provenance(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    (finding,) = judging.judge([Record(provenance, f"{suspect.architecture}, {card['arch']}")], profile)
    row: dict[str, Any] = {"label": card["label"], "verdict": finding.verdict}
    if suspect.network is not None and len(card["input_hwc"] or ()) == 3:
        start = time.perf_counter()
        found = triggers.inverted(suspect.network.graph, suspect.network.variables, jax.random.key(0))
        trigger = inversion.recovered_trigger(found, source="noise")
        row |= {
            "flagged": trigger.target,
            "target": (card.get("attack") or {}).get("target"),
            "largest_index": round(float(trigger.anomaly.max()), 2),
            "reached": int(found.reached.sum()),
            "seconds": round(time.perf_counter() - start, 1),
        }
    return row


def counted(rows: dict[str, dict[str, Any]]) -> dict[str, int]:
    """How many of the backdoored were found, and how many others accused."""
    backdoored = [row for row in rows.values() if row["label"].startswith("backdoored")]
    others = [row for row in rows.values() if not row["label"].startswith("backdoored")]
    return {
        "backdoored": len(backdoored),
        "others": len(others),
        "suspected by the profile": sum(row["verdict"] == Verdict.SUSPECTED for row in backdoored),
        "accused by the profile": sum(row["verdict"] == Verdict.SUSPECTED for row in others),
        "inconclusive": sum(row["verdict"] == Verdict.INCONCLUSIVE for row in rows.values()),
        "flagged by the index, backdoored": sum(row.get("flagged") is not None for row in backdoored),
        "flagged at the target": sum(
            row.get("flagged") is not None and row["flagged"] == row["target"] for row in backdoored
        ),
        "flagged by the index, others": sum(row.get("flagged") is not None for row in others),
        "inverted": sum("flagged" in row for row in rows.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=pathlib.Path, help="of `jaxguard calibrate`")
    arguments = parser.parse_args()
    profile = None if arguments.profile is None else from_json(arguments.profile.read_bytes(), str(arguments.profile))
    paths = sorted((SHARED / "checkpoints").glob("*.safetensors"))
    rows = {path.stem: judged(path, profile) for path in track(paths, "third-party networks")}
    result = {"environment": machine.environment(), **counted(rows), "checkpoints": rows}
    (RESULTS / "third_party_detection.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(counted(rows), indent=1))


if __name__ == "__main__":
    main()
