"""Every defense on networks that others backdoored: what is left of accuracy and backdoor?

    python ../shared/data/unpack.py cifar10 c10.npz
    python experiments/defenses_third_party.py --data npz:c10.npz --methods otbr tsbd

NAD's and ABL's WideResNet-16-1 (BadNets, 3x3 grid), 2,500 clean CIFAR-10 training images (5 %) for the methods that
take any, defaults of the papers or of BackdoorBench and its augmentation, whole test set, true trigger. Nothing is
chosen on these networks. --epochs shortens the methods that fine-tune for BackdoorBench's 100 epochs, and --set
changes any other option, such as unlearn_rate=1e-3, with which TSBD need not unlearn for hours; what ran is in each
row. CLP, FT-SAM and ShapPruning are in `third_party.py` and `shapley_third_party.py`, and EP needs the attacker's
training images. Rows are stored as they are done.

Hardware: any. Time: from seconds (CLP's kin) to half an hour (TSBD, FT) a row on two CPU cores.
Expected: see the README, "Models trained by others".
Result: experiments/results/defenses_third_party.json.
"""

import argparse
import json
import time
from typing import Any

import jax
import machine
from third_party import CLEAN, RESULTS, SEED, Case, open_case, stored

from jaxguard import data, evaluation
from jaxguard.defenses import DEFENSES, Data
from jaxguard.training import CropFlip
from jaxguard.types import Dataset

CHECKPOINTS = ("c10_bd_wrn16_nad_student", "c10_bd_wrn16_abl_grid")
ELSEWHERE = ("clp", "ft-sam", "shapley", "ep")
OUT = RESULTS / "defenses_third_party.json"


def row(case: Case, dataset: Dataset, method: str, epochs: int, changed: dict[str, float]) -> dict[str, Any]:
    """One repair, measured before and after."""
    suspect, defense = case.suspect, DEFENSES[method]
    network = suspect.require_network()
    defaults = {name: option.default for name, option in defense.parameters.items()}
    options: dict[str, Any] = {"augment": CropFlip()} if "augment" in defaults else {}
    if defaults.get("epochs", 0) > epochs:
        options["epochs"] = epochs
    options |= {name: value for name, value in changed.items() if name in defaults}
    start = time.perf_counter()
    repaired, report = defense(network, Data(dataset.clean), jax.random.key(SEED), **options)
    jax.block_until_ready(repaired.variables)
    seconds = time.perf_counter() - start
    before, after = (
        evaluation.evaluate(network.with_variables(variables), dataset.test, case.attack)
        for variables in (network.variables, repaired.variables)
    )
    return {
        "acc": [before.acc, after.acc],
        "asr": [before.asr, after.asr],
        "ra": [before.ra, after.ra],
        "options": {name: value if isinstance(value, int | float) else str(value) for name, value in options.items()},
        "notes": list(report.notes),
        "cut": sum(int(layer.mask.sum()) for layer in report.layers),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="npz:PATH of the CIFAR-10 pack")
    parser.add_argument("--checkpoints", nargs="*", default=CHECKPOINTS)
    parser.add_argument("--methods", nargs="*", default=[name for name in DEFENSES if name not in ELSEWHERE])
    parser.add_argument("--epochs", type=int, default=100, help="at most, of fine-tuning")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=NUMBER, for the methods that have the option")
    arguments = parser.parse_args()
    changed = {name: float(value) for name, value in (one.split("=") for one in arguments.set)}
    results = stored(OUT)
    dataset = data.load(arguments.data, seed=SEED, clean=CLEAN)
    for method in arguments.methods:
        for name in arguments.checkpoints:
            found = row(open_case(name), dataset, method, arguments.epochs, changed)
            results.setdefault(name, {})[method] = found | {"environment": machine.environment(seed=SEED)}
            OUT.write_text(json.dumps(results, indent=2) + "\n")
            print(name, method, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
