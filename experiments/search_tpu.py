"""Does the trigger search fit a TPU v5e, and what would it cost there? Compiled ahead of time, without a TPU.

    pip install --target tpu --no-deps libtpu==0.0.42.1       # the compiler, 400 MB; beside the environment
    PYTHONPATH=.:tpu python experiments/search_tpu.py

The hot programs of the search as an accelerator runs them, for ResNet-20 and PreActResNet-18 at 32x32x3 with ten
classes, float32 variables, matrix units at their default precision:

    climb     one step of 64 candidates on 16 images each, forward and gradient; the loop over steps around it is
              compiled too, for its memory
    screen    logits of 1,024 stamped images, forward only

For each: flops and bytes as XLA counts them, memory, and the roofline time, the larger of flops / 197 TFLOP/s and
bytes / 819 GB/s (v5e, bfloat16 inputs); with the number of forward passes of a search of patches, the time of all of
it, if the host never keeps the device waiting. Nothing is run: these are estimates, and lower bounds.

Hardware: none but a CPU to compile on. Time: some minutes. Result: results/search_tpu.json.
"""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}

import json
import pathlib
import time
from typing import Any

import jax
import machine
import numpy as np
from jax.experimental import topologies
from jax.tree_util import Partial

from jaxguard import models
from jaxguard.inversion import ascent, kinds
from jaxguard.inversion.trigger_models import Patch
from jaxguard.training import descent

NETWORKS = ("resnet20", "preactresnet18")
SHAPE, CLASSES = (32, 32, 3), 10
IMAGES, AT_ONCE, JUDGED = 16, 1024, 84
"""Images to search on, stamped images in a program, judging images of a search without data."""

FLOPS, BANDWIDTH, MEMORY = 197e12, 819e9, 16 * 2**30
"""Of one v5e chip: bfloat16 operations and bytes per second, bytes of memory (cloud.google.com/tpu/docs/v5e)."""

RESULT = pathlib.Path(__file__).parent / "results" / "search_tpu.json"


def programs(model: models.Model, place: Any) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name -> jitted function and its arguments, as shapes on the chip."""

    def spec(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    variables = jax.tree.map(lambda leaf: spec(*leaf.shape), model.init(jax.random.key(0)))
    number = AT_ONCE // IMAGES
    masks, patterns = spec(number, *SHAPE[:2], 1), spec(number, *SHAPE)
    setting = ascent._Setting(
        masks, spec(number, IMAGES, *SHAPE), spec(number, IMAGES), spec(number, IMAGES, dtype=np.int32), spec()
    )
    state = ascent._State(patterns, patterns, patterns, spec(number))
    step = Partial(ascent._Climb(model.apply_fn, Patch()), variables, setting)
    index = spec(dtype=np.int32)
    most = AT_ONCE // 4 + 3
    few = ascent.Candidates(spec(most, *SHAPE[:2], 1), spec(most, *SHAPE))
    rows = spec(AT_ONCE, dtype=np.int32)
    stamped = ascent._Stamped(few, spec(IMAGES, *SHAPE), rows, rows)
    return {
        "climb": (descent._jitted_step, (step, state, index)),
        "climb, loop": (descent._jitted_chunk, (step, state, index, index)),
        "screen": (ascent._answers, (model.apply_fn, Patch(), variables, stamped)),
    }


def compiled(jitted: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    start = time.perf_counter()
    program = jitted.lower(*arguments).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    needed -= memory.alias_size_in_bytes
    flops, moved = cost["flops"], cost["bytes accessed"]
    return {
        "gflop": round(flops / 1e9, 1),
        "gigabytes_moved": round(moved / 1e9, 2),
        "memory_megabytes": round(needed / 1e6, 1),
        "fits": needed < MEMORY,
        "roofline_ms": round(1e3 * max(flops / FLOPS, moved / BANDWIDTH), 3),
        "bound_by": "flops" if flops / FLOPS > moved / BANDWIDTH else "memory",
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    devices = topologies.get_topology_desc(topology_name="v5e:2x4", platform="tpu").devices
    place = jax.sharding.SingleDeviceSharding(devices[0])
    forwards = kinds.KINDS["patch"].cost_fn(SHAPE, CLASSES, IMAGES, JUDGED)
    rows: dict[str, Any] = {}
    for name in NETWORKS:
        model = models.build(name, num_classes=CLASSES, input_shape=SHAPE)
        rows[name] = {what: compiled(*program) for what, program in programs(model, place).items()}
        # Of all forward passes, a backward pass counted as `GRADIENT`, the climbs' share is what screens leave.
        per_forward = max(
            rows[name]["climb"]["roofline_ms"] / (1 + ascent.GRADIENT), rows[name]["screen"]["roofline_ms"]
        )
        rows[name]["search_seconds_at_least"] = round(forwards * per_forward / AT_ONCE / 1e3, 2)
        written = {
            "environment": machine.environment("libtpu"),
            "chip": f"TPU v5e, {devices[0].device_kind}, compiled ahead of time, not run",
            "forward_equivalents": round(forwards),
            "networks": rows,
        }
        RESULT.write_text(json.dumps(written, indent=2) + "\n")
        print(name, json.dumps(rows[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
