"""Does the demo's repair hold over seeds and attacks, or was seed 0 lucky?

    python experiments/demo_seeds.py

Runs `jaxguard.demo` on seeds 20-24 with BadNets and with Blended: ten backdoored networks, each repaired by every
defense that the demo tries. The demo's settings were chosen on seeds 10-14.

Hardware: any; about a minute per network on 2 CPU cores.
Expected: FT-SAM leaves ASR under 10 % at under 3 points of ACC every time; CLP cuts next to nothing.
Result: experiments/results/demo_seeds.json.
"""

import json
import pathlib
import tempfile

import machine
from rich.console import Console
from rich.table import Table

from jaxguard import demo
from jaxguard.attacks import ATTACKS

SEEDS = range(20, 25)
RESULT = pathlib.Path(__file__).parent / "results" / "demo_seeds.json"


def main() -> None:
    rows = []
    table = Table("attack", "seed", "method", "ACC", "ASR", "channels cut")
    for name, factory in ATTACKS.items():
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                report = demo.run(pathlib.Path(folder), seed=seed, attack=factory(target=0))
            for repair in report.repairs:
                assert repair.before and repair.after
                before, after, cut = repair.before, repair.after, sum(int(layer.mask.sum()) for layer in repair.layers)
                rows.append(
                    {
                        "attack": name,
                        "seed": seed,
                        "method": repair.method,
                        "acc": [before.acc, after.acc],
                        "asr": [before.asr, after.asr],
                        "cut": cut,
                        "seconds": round(repair.seconds, 2),
                    }
                )
                rates = (f"{100 * a:.1f} → {100 * b:.1f}" for a, b in (rows[-1]["acc"], rows[-1]["asr"]))
                table.add_row(name, str(seed), repair.method, *rates, str(cut))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"environment": machine.environment(seeds=list(SEEDS)), "rows": rows}, indent=1) + "\n"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
