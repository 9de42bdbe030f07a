"""How close do the rules for OTBR's gamma and TSBD's n come to the best values, which only poisoned data would tell?

    python experiments/sweep_rules.py

The reference codes try a sweep of values and log the test ASR of each; a defender cannot. Here the demo's networks,
backdoored with BadNets and with Blended, are repaired with every value of the sweep and with the value that jaxguard's
rule takes, which sees noise (gamma) or clean images (n) alone. The oracle is the value of the highest DER on the test
set. Other options are the demo's. The rules and options were fixed on seeds 10-14.

Hardware: any. Time: 20 minutes on two CPU cores.
Expected: see the README, "TSBD and OTBR".
Result: experiments/results/sweep_rules.json.
"""

import argparse
import json
import statistics
from typing import Any

import demo_networks
import machine
from demo_networks import Network
from rich.console import Console
from rich.table import Table
from third_party import RESULTS

from jaxguard import demo, evaluation
from jaxguard.attacks import ATTACKS
from jaxguard.defenses import DEFENSES, Data
from jaxguard.types import Variables

OUT = RESULTS / "sweep_rules.json"

METHODS: dict[str, tuple[str, tuple[float, ...]]] = {
    "otbr": ("gamma", (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
    "tsbd": ("n", (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)),
}


def row(network: Network, method: str) -> dict[str, Any]:
    """All values of one sweep, and the rule's, on one network."""
    option, sweep = METHODS[method]
    given = Data(network.digits.clean)

    def measure(variables: Variables) -> Any:
        return evaluation.evaluate(network.model.network(variables), network.digits.test, network.attack)

    before = measure(network.variables)

    def outcome(value: float | None) -> dict[str, float]:
        options = {option: value, **demo.OPTIONS[method]}
        repaired, report = DEFENSES[method](network.suspect, given, network.key, **options)
        after = measure(repaired.variables)
        rate = evaluation.defense_effectiveness_rate(before, after)
        return {
            "value": float(report.chosen[option] if value is None else value),
            "acc": after.acc,
            "asr": after.asr,
            "der": round(rate, 4),
        }

    tried = [outcome(value) for value in sweep]
    return {
        "before": {"acc": before.acc, "asr": before.asr},
        "rule": outcome(None),
        "oracle": max(tried, key=lambda one: one["der"]),
        "sweep": tried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    arguments = parser.parse_args()
    rows = []
    table = Table("method", "attack", "seed", "rule", "ACC", "ASR", "DER", "oracle", "ACC", "ASR", "DER")
    for seed in arguments.seeds:
        for attack_name in ATTACKS:
            network = demo_networks.train(seed, attack_name)
            for method in arguments.methods:
                found = row(network, method)
                rows.append({"method": method, "attack": attack_name, "seed": seed, **found})
                cells = [
                    f"{found[who][key]:.3g}" for who in ("rule", "oracle") for key in ("value", "acc", "asr", "der")
                ]
                table.add_row(method, attack_name, str(seed), *cells)
    regret = {
        method: round(statistics.mean(r["oracle"]["der"] - r["rule"]["der"] for r in rows if r["method"] == method), 4)
        for method in arguments.methods
    }
    results = {"environment": machine.environment(seeds=arguments.seeds), "mean_regret_in_der": regret, "rows": rows}
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    Console().print(table, f"mean DER below the oracle's: {regret}")


if __name__ == "__main__":
    main()
