"""What detection says of networks that others trained; a part of fleet_detection.py.

Nothing is tuned on them. A profile says nothing of an architecture that it has no references of: `inconclusive`. Beside
it stands Neural Cleanse's own rule, which needs none: an anomaly index above 2, of patches sought briefly on noise.
"""

import hashlib
import json
import time
from typing import Any

import jax
from rich.progress import track
from third_party import SHARED
from third_party_table import known_network

from jaxguard import inversion
from jaxguard.detection import deep, judging
from jaxguard.detection.profile import Profile, Record
from jaxguard.verdict import INCONCLUSIVE, SUSPECTED


def judged(profile: Profile) -> dict[str, Any]:
    """The checkpoints of others: the profile's verdict, and Neural Cleanse's own rule on noise."""
    rows = {}
    for path in track(sorted((SHARED / "checkpoints").glob("*.safetensors")), "third-party networks"):
        card = json.loads(path.with_suffix(".json").read_text())
        suspect = known_network(path, card)
        record = Record(f"{suspect.architecture}, {card['arch']}", hashlib.sha256(path.read_bytes()).hexdigest(), None)
        told = judging.judge([record], profile, names={})
        row: dict[str, Any] = {"label": card["label"], "verdict": told.verdicts[0]}
        if suspect.graph is not None and len(card["input_hwc"] or ()) == 3:
            start = time.perf_counter()
            found = deep.inverted(suspect.graph, suspect.variables, jax.random.key(0))
            trigger = inversion.recovered_trigger(found, source="noise")
            row |= {
                "flagged": trigger.target,
                "target": (card.get("attack") or {}).get("target"),
                "largest_index": round(float(trigger.anomaly.max()), 2),
                "reached": int(found.reached.sum()),
                "seconds": round(time.perf_counter() - start, 1),
            }
        rows[path.stem] = row
    backdoored = [row for row in rows.values() if row["label"] == "backdoored"]
    others = [row for row in rows.values() if row["label"] != "backdoored"]
    return {
        "checkpoints": rows,
        "backdoored": len(backdoored),
        "others": len(others),
        "suspected by the profile": sum(row["verdict"] == SUSPECTED for row in backdoored),
        "accused by the profile": sum(row["verdict"] == SUSPECTED for row in others),
        "inconclusive": sum(row["verdict"] == INCONCLUSIVE for row in rows.values()),
        "flagged by the index, backdoored": sum(row.get("flagged") is not None for row in backdoored),
        "flagged at the target": sum(
            row.get("flagged") is not None and row["flagged"] == row["target"] for row in backdoored
        ),
        "flagged by the index, others": sum(row.get("flagged") is not None for row in others),
        "inverted": sum("flagged" in row for row in rows.values()),
    }
