"""What does judging 64 suspects cost beyond asking them?

    python experiments/bench_verify.py

One owner and 64 ResNet-20s of random weights, SAC on 200 probes of 32x32x3. `bare` calls the jitted network on batches
of the same size, one suspect after the other, and waits for each; `threads` does so from as many host threads as
jaxguard uses. `verify` is `ownership.verify`: questions, signatures, distances, p-values. Interleaved rounds, medians.

Hardware: any. Time: two minutes on two CPU cores.
Expected: verify within 1.2 times the bare time.
Result: experiments/results/verify.json.
"""

import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import machine
import numpy as np

from jaxguard import execution, models, ownership
from jaxguard.fingerprints.queries import BATCH_SIZE
from jaxguard.suspects import Suspect
from jaxguard.types import Batch

OUT = pathlib.Path(__file__).parent / "results" / "verify.json"
SUSPECTS, PROBES, ROUNDS = 64, 200, 3


def main() -> None:
    model = models.build("resnet20", num_classes=10, input_shape=(32, 32, 3))
    rng = np.random.default_rng(0)
    images = rng.random((PROBES, 32, 32, 3), np.float32)
    several = [
        Suspect(f"{k}", model.spec, model.init(jax.random.key(k)), model.apply_fn, model.train_fn, None, model=model)
        for k in range(SUSPECTS + 1)
    ]
    owner, suspects = several[0], several[1:]
    options = {"variant": "normal", "num_probes": PROBES}
    data = Batch(images, np.zeros(PROBES, np.int32))
    held = ownership.certify(owner, "sac", jax.random.key(0), data=data, options=options)
    forward = jax.jit(model.apply_fn)
    batches = [held.probes.images[k : k + BATCH_SIZE] for k in range(0, PROBES, BATCH_SIZE)]

    def ask(one: Suspect) -> None:
        for batch in batches:
            forward(one.variables, batch).block_until_ready()

    def threads() -> None:
        list(execution.in_threads(ask, suspects))

    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: [ask(one) for one in suspects],
        "threads": threads,
        "verify": lambda: ownership.verify(held, suspects),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for run in (lambda: ask(suspects[0]), lambda: ownership.verify(held, suspects[:2])):  # compile
        run()
    ownership.verify(held, suspects)
    for _ in range(ROUNDS):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[way].append(time.perf_counter() - start)
    medians = {way: round(statistics.median(times), 3) for way, times in seconds.items()}
    result = {
        "environment": machine.environment(seed=0),
        "suspects": SUSPECTS,
        "probes": PROBES,
        "median_seconds": medians,
        "least_seconds": {way: round(min(times), 3) for way, times in seconds.items()},
        "verify_over_bare": round(medians["verify"] / medians["bare"], 3),
        "verify_over_threads": round(medians["verify"] / medians["threads"], 3),
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
