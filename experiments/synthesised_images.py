"""Procedural images, images made from BatchNorm statistics, or clean ones: what does a search find on each?

    python experiments/synthesised_images.py --search --out reference --data packs

Searches networks with BatchNorm of even numbers of the reference population, which choices may rest on (see
universal_reference.py, which trains them), for the default kinds of triggers, on synthesised images and on 100 clean
test images; the rows on procedural ones are those of universal_reference.jsonl. What has a row is not searched again.

Hardware: any; about 20 s of a CPU core per network of 16 to 32 px, most of them to compile.
Result: results/synthesised_images.jsonl, a row per network and images, and synthesised_images.json.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import machine
import numpy as np
import reference_plan
import reference_training
import universal_reference
from trigger_kinds import auc, leading
from universal_reference import RESULTS, append, read

from jaxguard import inversion, suspects
from jaxguard.inversion.kinds import DEFAULT, KINDS

OWN = RESULTS / "synthesised_images.jsonl"
IMAGES = ("procedural", "synthesised", "clean")
Row = dict[str, Any]


def search(row: Row, images: str, folder: pathlib.Path, packs: str) -> Row:
    """One network on images of one source."""
    network = suspects.load(folder / f"{row['index']:03d}.safetensors").require_network()
    given: Row = {"synthesised": images == "synthesised"}
    if images == "clean":
        _, test, _ = reference_training.images_of(row["data"], packs)
        chosen = inversion.in_turn(np.asarray(test.labels))[:100]
        given |= {"images": np.asarray(test.images)[chosen], "labels": np.asarray(test.labels)[chosen]}
    start = time.process_time()
    found = universal_reference.by_kind(inversion.search(network, kinds=DEFAULT, **given), DEFAULT)
    spent = round(time.process_time() - start, 1)
    return {"index": row["index"], "images": images, "cpu_seconds": spent, "searched": found}


def joined(row: Row) -> tuple[float, int | None]:
    """The larger gap of the kinds, and the class that leads by it; -inf where nothing is said."""
    return max((leading(kind, row["searched"][kind]) for kind in DEFAULT), key=lambda pair: pair[0])


def summary(rows: list[Row], known: dict[int, Row]) -> Row:
    """For each source of images: networks of which something is said, those above all clean ones, and AUC."""
    found: Row = {}
    for images in IMAGES:
        leads = {row["index"]: joined(row) for row in rows if row["images"] == images}
        said = {k: gap for k, (gap, _) in leads.items() if np.isfinite(gap)}
        clean = [gap for k, gap in said.items() if known[k]["attack"] is None]
        bad = [k for k in leads if known[k]["attack"] is not None]
        found[images] = {
            "networks": len(leads),
            "nothing_said": sorted(set(leads) - set(said)),
            "clean": len(clean),
            "largest_clean_gap": max(clean, default=None),
            "backdoored": len(bad),
            "above_all_clean": sum(said.get(k, -np.inf) > max(clean, default=np.inf) for k in bad),
            "at_target": sum(leads[k][1] == known[k]["target"] is not None for k in bad),
            "auc": auc(clean, [said[k] for k in bad if k in said]),
            "median_cpu_seconds": float(np.median([r["cpu_seconds"] for r in rows if r["images"] == images]))
            if leads
            else None,
            "gaps": {str(k): round(gap, 3) for k, gap in sorted(said.items())},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("reference"), help="folder of the checkpoints")
    parser.add_argument("--data", default="packs", help="folder of the packs")
    parser.add_argument("--rows", type=pathlib.Path, default=RESULTS / "universal_reference.jsonl")
    parser.add_argument("--numbers", nargs="*", type=int, help="even numbers of networks; all by default")
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(arguments.out.absolute() / "compiled"))
    known = {k: row for k, row in read(arguments.rows).items() if k % 2 == 0 and "sha256" in row}
    # All-to-one attacks that worked, and clean networks of the same architectures.
    known = {
        k: row
        for k, row in known.items()
        if row["architecture"].startswith(("cnn", "resnet", "vgg", "wideresnet"))
        and "norm=none" not in row["architecture"]
        and (row["attack"] is None or (not row["failed"] and row["attack"] not in {"all-to-all", "source-specific"}))
    }
    rows = [json.loads(line) for line in OWN.read_text().splitlines()] if OWN.exists() else []
    versions = {kind: KINDS[kind].version for kind in DEFAULT}

    def is_current(row: Row) -> bool:
        return {kind: one["version"] for kind, one in row["searched"].items() if kind in versions} == versions

    done = {(row["index"], row["images"]) for row in rows if is_current(row)}
    for k in sorted(arguments.numbers or known) if arguments.search else ():
        for images in IMAGES[1:]:
            if (k, images) not in done:
                row = search(known[k], images, arguments.out, arguments.data)
                append(OWN, row)
                rows.append(row)
                print(k, known[k]["attack"], images, joined(row), row["cpu_seconds"], flush=True)
    for k, row in known.items():
        if is_current(row):
            seconds = sum(row["searched"][kind].get("cpu_seconds", 0) for kind in DEFAULT)
            rows.append({"index": k, "images": "procedural", "cpu_seconds": seconds, "searched": row["searched"]})
    everywhere = set.intersection(*({row["index"] for row in rows if row["images"] == one} for one in IMAGES))
    found = summary([row for row in rows if is_current(row) and row["index"] in everywhere], known)
    result = {"environment": machine.environment(seed=reference_plan.SEED), "images": found}
    OWN.with_suffix(".json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
