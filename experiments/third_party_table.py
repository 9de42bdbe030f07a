"""Thirty-five networks that others trained, and six files as they were published: do they open, and as what?

    python ../shared/data/unpack.py cifar10 packs/cifar10.npz        # likewise mnist, fashion_mnist
    python experiments/third_party_table.py --packs packs

For each checkpoint: format, the architecture told from its leaves, ACC and ASR on the whole test set beside those that
came with it, and the largest z-score of two scans: of the network as it is known (bundled, or the authors' own one in
experiments/third_party_networks.py) and, without it, structural. The loan data did not come with that model, so
nothing can be measured on it. Preprocessing is the authors'.

Hardware: any. Time: 5 minutes on 2 CPU cores.
Expected: all open; the four WideResNets and three of akamaster's ResNets are identified, the rest scanned structurally;
ACC and ASR within 0.1 point of what was measured elsewhere. Result: experiments/results/third_party_table.json, .md.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import machine
import numpy as np
import third_party
import third_party_networks as networks
from rich.console import Console
from rich.table import Table

from jaxguard import checkpoints, data, evaluation, models, scanning, suspects
from jaxguard.attacks import Attack, known
from jaxguard.errors import ArchitectureError
from jaxguard.suspects import Suspect
from jaxguard.types import Batch

FOLDER = third_party.SHARED / "checkpoints"
RESULT = third_party.RESULTS / "third_party_table.json"
PACKS = ("cifar10", "mnist", "fashion_mnist")
HEADINGS = ("checkpoint", "format", "identified as", "ACC", "measured", "ASR", "measured", "largest z", "structural z")


def known_network(path: pathlib.Path, card: dict[str, Any]) -> Suspect:
    """The model as it is known: bundled, or its authors' own function."""
    preprocess = {key: np.float32(value) for key, value in card["preprocess"].items()}
    if card["arch"] in third_party.ARCHITECTURES:
        return suspects.load(path, mean=card["preprocess"].get("mean"), std=card["preprocess"].get("std"))
    apply_fn = networks.NETWORKS.get(card["arch"]) or functools.partial(networks.keras_graph, card["graph"])
    shape = tuple(card["input_hwc"] or checkpoints.load(path).leaves[first_kernel(card)].shape[1:])
    return suspects.load(path, apply_fn=networks.preprocessed(apply_fn, **preprocess), input_shape=shape)


def first_kernel(card: dict[str, Any]) -> str:
    return {"loan_mlp": "hidden.0.weight", "mlp_pdf6_tanh": "fc1.weight"}[card["arch"]]


def test_images(card: dict[str, Any], packs: pathlib.Path) -> tuple[Batch | None, Attack | None]:
    """Test split and known trigger; none for tables."""
    if card["dataset"] not in PACKS:
        return None, None
    attack, trigger = None, (card["attack"] or {}).get("trigger_file")
    if trigger:
        attack = known(data.load_trigger(FOLDER / trigger), target=card["attack"]["target"])
    return loaded(packs / f"{card['dataset']}.npz").test, attack


@functools.lru_cache
def loaded(path: pathlib.Path) -> Any:
    return data.load(f"npz:{path}", seed=0)


def tabular_rates(suspect: Suspect) -> dict[str, float]:
    """ACC and ASR of the PDF classifier on the vectors that came with it."""
    with np.load(third_party.SHARED / "tabular" / "trojai_pdf_examples.npz", allow_pickle=False) as pack:
        clean, poisoned = ((pack[key] - pack["scale_mean"]) / pack["scale_std"] for key in ("clean_x", "poisoned_x"))
        labels = pack["clean_y"]
    predict = jax.jit(lambda x: suspect.require_network()(x).argmax(-1))
    hits = (predict(np.float32(clean)) == labels).mean(), (predict(np.float32(poisoned)) == 0).mean()
    return {"acc": float(hits[0]), "asr": float(hits[1])}


def identified(path: pathlib.Path) -> str | None:
    try:
        return models.identify(checkpoints.load(path).leaves).model.spec
    except ArchitectureError:
        return None


def largest_z(suspect: Suspect) -> float:
    return round(scanning.scan(suspect).findings[0].z, 3)


def row(path: pathlib.Path, card: dict[str, Any], packs: pathlib.Path) -> dict[str, Any]:
    checkpoint = checkpoints.load(path)
    suspect = known_network(path, card)
    test, attack = test_images(card, packs)
    if test is not None:
        metrics = evaluation.evaluate(suspect.require_network(), test, attack)
        rates = {"acc": metrics.acc, "asr": metrics.asr}
    else:
        rates = tabular_rates(suspect) if card["arch"] == "mlp_pdf6_tanh" else {"acc": None, "asr": None}
    measured = {key: card["measured"].get(key) for key in ("acc", "asr")}
    pairs = [(rates[key], measured[key]) for key in measured if None not in (rates[key], measured[key])]
    return {
        "format": checkpoint.format,
        "leaves": len(checkpoint.leaves),
        "identified": identified(path),
        "label": card["label"],
        **{key: None if rate is None else round(rate, 6) for key, rate in rates.items()},
        "measured": measured,
        "largest_difference": round(max(abs(ours - theirs) for ours, theirs in pairs), 6) if pairs else None,
        "largest_z": largest_z(suspect),
        "largest_z_structural": largest_z(suspects.structural(checkpoint, "on purpose, to compare")),
    }


def original(path: pathlib.Path) -> dict[str, Any]:
    checkpoint = checkpoints.load(path)
    return {
        "format": checkpoint.format,
        "leaves": len(checkpoint.leaves),
        "identified": identified(path),
        "largest_z": largest_z(suspects.load(path)),
    }


def percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.2f}"


def table(result: dict[str, Any]) -> Iterator[list[str]]:
    """Cells of one line per checkpoint, then per file as published, whose scan had no flags."""
    for name, found in result["checkpoints"].items():
        rates = [percent(rate) for key in ("acc", "asr") for rate in (found[key], found["measured"][key])]
        scores = [f"{found[key]:.2f}" for key in ("largest_z", "largest_z_structural")]
        yield [name, found["format"], found["identified"] or "", *rates, *scores]
    for name, found in result["originals"].items():
        score = f"{found['largest_z']:.2f}"
        known = [score, ""] if found["identified"] else ["", score]
        yield [name, found["format"], found["identified"] or "", *[""] * 4, *known]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=pathlib.Path, required=True, help="folder of cifar10.npz, mnist.npz, ...")
    parser.add_argument("--only", default="", help="part of a name, to try a few")
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    for path in sorted(path for path in FOLDER.glob("*.json") if arguments.only in path.name):
        card = json.loads(path.read_text())
        rows[card["name"]] = row(FOLDER / card["file"], card, arguments.packs)
        print(card["name"], rows[card["name"]], flush=True)
    if arguments.only:
        return
    originals = {path.name: original(path) for path in sorted((FOLDER / "originals").iterdir())}
    result = {"environment": machine.environment(), "checkpoints": rows, "originals": originals}
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    lines = [HEADINGS, *map(tuple, table(result))]
    markdown = ["| " + " | ".join(cells) + " |" for cells in (lines[0], ("---",) * len(HEADINGS), *lines[1:])]
    RESULT.with_suffix(".md").write_text("\n".join(markdown) + "\n")
    shown = Table(*HEADINGS)
    for cells in lines[1:]:
        shown.add_row(*cells)
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
