"""Has any tool become slower on a CPU? Small work of every tool, beside another checkout of jaxguard.

    python experiments/bench_tools.py --against OTHER_CHECKOUT

Two processes, one for each checkout, take turns: each piece of work is compiled and run once, then `ROUNDS` times, and
ratios are of neighbours. CPU seconds are what all threads took; they vary less than the wall clock where other work
runs. Only what both checkouts have is compared.

Hardware: whatever it runs on, named in the result. Time: 4 minutes on 2 idle CPU cores.
Expected: no ratio above 1.1.
Result: experiments/results/tools.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parents[1]
RESULT = pathlib.Path(__file__).parent / "results" / "tools.json"
ROUNDS = 7


def work() -> dict[str, Callable[[], Any]]:
    """Name -> a piece of work; by what jaxguard calls things in both checkouts."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.tree_util import Partial

    from jaxguard import evaluation, inversion, models, repairs, training
    from jaxguard.fingerprints import queries
    from jaxguard.fingerprints.sac import distances
    from jaxguard.pruning.shapley_estimation import permutation_sampling
    from jaxguard.scores import responses
    from jaxguard.suspects import Suspect
    from jaxguard.types import Batch

    rng, key = np.random.default_rng(0), jax.random.key(0)
    images = rng.random((250, 32, 32, 3), np.float32)
    model = models.build("resnet20", num_classes=10, input_shape=(32, 32, 3))
    networks = [model.network(model.init(jax.random.key(seed))) for seed in range(2)]
    network, few = networks[0], images[:100]
    suspects = [Suspect(f"{k}", network=one) for k, one in enumerate(networks)]
    owner, others = rng.random((800, 10), np.float32), rng.random((640, 800, 10), np.float32)
    worth = jnp.asarray(rng.normal(size=(256, 64)), jnp.float32)
    game = Partial(lambda worth, gates: jnp.tanh(gates @ worth).sum(-1), worth)
    small = models.build("cnn:width=0.5", num_classes=10, input_shape=(8, 8, 1))
    digits = Batch(rng.random((512, 8, 8, 1), np.float32), rng.integers(0, 10, 512).astype(np.int32))
    return {
        "evaluate": lambda: evaluation.predictions(network, images),
        "class responses": lambda: responses.class_responses(network.graph, network.variables),
        "answers of two suspects": lambda: queries.outputs_of(suspects, images),
        "sample correlation of 640": lambda: distances(owner, others, halved=True),
        "train": lambda: training.fit(small.train_fn, small.init(key), digits, key, steps=100, batch_size=64),
        "neural cleanse": lambda: inversion.invert(
            model.apply_fn, network.variables, few, None, key, classes=[0, 1], steps=8, batch_size=32
        ),
        "patch search": lambda: inversion.search(small.network(small.init(key)), kinds=["patch"]),
        "shapley values": lambda: permutation_sampling(game, 256, key, samples=40),
        "clp": lambda: repairs.repair(suspects[0], "clp", key),
    }


def serve() -> None:
    """Runs what it is asked for, by lines on standard input, and answers with seconds."""
    pieces = work()
    print(json.dumps(list(pieces)), flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        pieces[json.loads(line)]()
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


class Server:
    """A process with a checkout's jaxguard."""

    def __init__(self, checkout: pathlib.Path):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pieces = self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("expected a checkout that runs, got a process that ended; see its message above")
        return json.loads(line)

    def seconds(self, piece: str) -> tuple[float, float]:
        """CPU and wall."""
        self.process.stdin.write(json.dumps(piece) + "\n")
        self.process.stdin.flush()
        return tuple(self._answer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=pathlib.Path, help="another checkout of jaxguard")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    import machine

    checkouts = {"jaxguard": HERE} | ({"before": arguments.against.resolve()} if arguments.against else {})
    servers = {name: Server(path) for name, path in checkouts.items()}
    rows: dict[str, Any] = {}
    for piece in servers["jaxguard"].pieces:
        for server in servers.values():
            server.seconds(piece)  # compiles
        taken = {name: [] for name in servers}
        for _ in range(ROUNDS):
            for name, server in servers.items():
                taken[name].append(server.seconds(piece))
        rows[piece] = {}
        for name, times in taken.items():
            cpu, wall = (round(statistics.median(column), 4) for column in zip(*times, strict=True))
            rows[piece][name] = {"cpu_s": cpu, "wall_s": wall}
        if "before" in taken:
            for k, clock in enumerate(("cpu", "wall")):
                ratios = [mine[k] / other[k] for mine, other in zip(taken["jaxguard"], taken["before"], strict=True)]
                rows[piece][f"{clock}_ratio"] = round(statistics.median(ratios), 3)
        print(piece, json.dumps(rows[piece]), flush=True)
    RESULT.write_text(json.dumps({"environment": machine.environment(rounds=ROUNDS), "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
