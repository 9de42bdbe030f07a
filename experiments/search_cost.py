"""What does a search for patches cost: seconds, forward passes, memory; from toy sizes to a thousand classes at 224 px?

    python experiments/search_cost.py                          # all cases, each in a process of its own
    python experiments/search_cost.py --cases resnet20 vit-b   # some; the others' rows stay

Whole searches: NAD's WideResNet-16-1 and akamaster's ResNet-20 (third-party checkpoints in JAXGUARD_SHARED_DATA, else
in ../shared/data), and networks of random weights whose logits were standardised on drawings, so that each class has
its images. No data is given to any. Where a whole search takes hours on CPU, a *probe*: some images, one program of
screening and one step of a climb are run, once to compile and once for the clock; the whole is projected from the
forward passes that the search announces.

CPU seconds are of all threads, compilation included except in probes; seconds depend on what else runs, as the load
average beside each row says. Two idle cores would take about half the CPU seconds. Peak memory is the process's, with
Python, JAX and the compiler (0.4 GB).

Hardware: any. Time: 40 minutes on two shared cores. Result: results/search_cost.json.
"""

import argparse
import datetime
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import machine
import numpy as np
import third_party

from jaxguard import inversion, meshes, models
from jaxguard.inversion import drawings, kinds, patch_search, procedural
from jaxguard.inversion.ascent import GRADIENT, Candidates, Clock, Task, climb
from jaxguard.inversion.patches import Patches, edges_of
from jaxguard.inversion.trigger_models import Patch
from jaxguard.types import Network

RESULT = pathlib.Path(__file__).parent / "results" / "search_cost.json"


def random_network(spec: str, size: int, num_classes: int, channels: int = 3) -> Network:
    """Random weights; of logits with equal spread for all classes, drawn images can be made to look like each."""
    shape = (size, size, channels)
    model = models.build(spec, num_classes=num_classes, input_shape=shape)
    variables = model.init(jax.random.key(0))
    plain = np.asarray(jax.jit(model.apply_fn)(variables, drawings.draw(1, 32, shape)))

    def apply_fn(variables: Any, images: jax.Array) -> jax.Array:
        logits = model.apply_fn(variables["network"], images)
        return (logits - variables["mean"][None]) * variables["scale"][None]

    # Of many classes each needs a larger lead for a probability of 0.8.
    spread = 4 if num_classes <= 10 else 12
    return Network({"network": variables, "mean": plain.mean(0), "scale": spread / plain.std(0)}, apply_fn, shape)


def third_party_network(name: str) -> Network:
    return third_party.open_case(name).suspect.require_network()


def whole(network: Network) -> dict[str, Any]:
    found = inversion.search(network)
    return {"forwards": found.forwards, "source": found.source, "problem": found.problem, "notes": found.left_out}


def probe(network: Network) -> dict[str, Any]:
    """One program of screening and one step of a climb, after they were compiled, and what the whole would cost."""
    shape, num_classes = network.input_spec.shape, network.num_classes
    variables = meshes.everywhere(network.variables)
    made = procedural.pictures(network.apply_fn, variables, shape, 8, per_class=2, number=16)  # no more than memory
    task = Task(network.apply_fn, variables, made.images, made.labels, Clock(0))
    edge = edges_of(*shape[:2])[1]
    few = Patches(np.zeros((2, 2), int), np.ones((2, edge, edge, shape[2]), np.float32))
    spent = {}
    for name, run in {
        "screen": lambda: patch_search.answers(task, few, made.images),
        "climb": lambda: climb(task, Patch(), Candidates(*few.placed(shape)), np.array([0, 1]), 1),
    }.items():
        run()
        clock, cpu, done = time.perf_counter(), time.process_time(), task.clock.done
        run()
        forwards = task.clock.done - done
        spent[name] = {
            "seconds_per_forward": round((time.perf_counter() - clock) / forwards, 5),
            "cpu_seconds_per_forward": round((time.process_time() - cpu) / forwards, 5),
        }
    total = kinds.KINDS["patch"].cost_fn(shape, num_classes, 16, 128)
    each = max(part["cpu_seconds_per_forward"] for part in spent.values())
    return {
        **spent,
        "forwards_of_a_whole_search": round(total),
        "cpu_hours_of_a_whole_search": round(total * each / 3600, 2),
        "a_backward_pass_counts_as": GRADIENT,
    }


CASES: dict[str, tuple[Callable[[], Network], Callable[[Network], dict[str, Any]]]] = {
    "wrn-16-1, NAD": (lambda: third_party_network("c10_bd_wrn16_nad_student"), whole),
    "resnet20, akamaster": (lambda: third_party_network("c10_clean_resnet20_aka"), whole),
    "digits cnn, 16 px": (lambda: random_network("cnn", 16, 10, channels=1), whole),
    "cnn, 43 classes": (lambda: random_network("cnn:width=0.25", 32, 43), whole),
    "cnn, 100 classes": (lambda: random_network("cnn:width=0.25", 32, 100), whole),
    "cnn, 1000 classes": (lambda: random_network("cnn:width=0.25", 32, 1000), whole),
    "cnn, 2 classes": (lambda: random_network("cnn:width=0.25", 32, 2), whole),
    "vit, narrow, 64 px": (lambda: random_network("vit-tiny-16:width=0.25,depth=2", 64, 10), whole),
    "convnext, narrow, 64 px": (lambda: random_network("convnext-tiny:width=0.125,depths=1x1x1x1", 64, 10), whole),
    "preactresnet18, 32 px": (lambda: random_network("preactresnet18", 32, 10), probe),
    "resnet50, 224 px, 1000 classes": (lambda: random_network("resnet50", 224, 1000), probe),
    "vit-base-16, 224 px, 1000 classes": (lambda: random_network("vit-base-16", 224, 1000), probe),
    "convnext-tiny, 224 px, 1000 classes": (lambda: random_network("convnext-tiny", 224, 1000), probe),
}


def measured(name: str) -> dict[str, Any]:
    make, measure = CASES[name]
    network = make()
    start, cpu = time.perf_counter(), time.process_time()
    row = measure(network)
    return {
        "kind": measure.__name__,
        "shape": list(network.input_spec.shape),
        "classes": network.num_classes,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **row,
        "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "load_average": round(os.getloadavg()[0], 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="beginnings of their names")
    parser.add_argument("--one", help="measure this case and print its row; used for the processes")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return
    for name in (name for name in CASES if any(map(name.startswith, arguments.cases))):
        run = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
        if run.returncode:
            raise SystemExit(f"{name} failed:\n{run.stderr[-3000:]}")
        known = json.loads(RESULT.read_text()) if RESULT.exists() else {"cases": {}}
        known["cases"][name] = json.loads(run.stdout.splitlines()[-1])
        known["environment"] = machine.environment()
        RESULT.write_text(json.dumps(known, indent=2) + "\n")
        print(name, known["cases"][name], flush=True)


if __name__ == "__main__":
    main()
