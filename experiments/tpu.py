"""Do the hot programs fit a TPU, and what would they cost there? Compiled ahead of time, on a machine without one.

    make tpu                                          # all of them, in an environment with libtpu
    python experiments/tpu.py --only fleet sinkhorn   # some, by the beginnings of their names; the others' rows stay
    python experiments/tpu.py --report                # the tables of docs/accelerators.md from the result

libtpu holds the TPU's compiler; it compiles for a named topology and runs nothing. Every entry of
`tpu_programs.PROGRAMS` is a function of the product with the sizes that it would choose on the chip, compiled for a v5e
and a v5p. Recorded: flops as XLA counts them, bytes accessed in any memory as XLA counts them and in HBM
(`tpu_traffic`), memory, the roofline, which is the larger of flops / peak and HBM bytes / bandwidth: a lower bound of
the time, no measurement; and the compiler's own estimate, where it is positive. XLA counts one turn of every loop; HBM
bytes count all turns of loops whose length is known when they are compiled. `counted` says what the figures are of.
Exits with an error where a program does not compile or fit.

Hardware: a CPU to compile on, named in the result. Time: an hour or two on two cores, see compile_seconds; `--quick`
compiles the quick ones for a v5e, records nothing and takes a minute. Result: results/tpu.json.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import sys
import time
from importlib import metadata
from typing import Any, NamedTuple

import jax
import machine
import tpu_table
import tpu_traffic
from jax.experimental import topologies
from tpu_programs import PROGRAMS, Case, Program, rounded

from jaxguard import execution

COMPILING = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Environment in which libtpu looks for no TPU, and may be loaded by several processes, since it drives none."""

RESULT = pathlib.Path(__file__).parent / "results" / "tpu.json"


class Chip(NamedTuple):
    """Of Google's documentation: a topology, bfloat16 operations and bytes per second, bytes of memory."""

    topology: str
    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip("v5e:2x4", 197e12, 819e9, 16e9),
    "v5p": Chip("v5p:2x2x2", 459e12, 2765e9, 95e9),
}


def wheel() -> str:
    """Requirement of the libtpu that belongs to the installed JAX."""
    listed = [line.split(";")[0].strip() for line in metadata.requires("jax") or ()]
    return next(line for line in listed if line.startswith("libtpu"))


def devices_of(chip: str) -> Any:
    os.environ.update(COMPILING)
    return topologies.get_topology_desc(topology_name=CHIPS[chip].topology, platform="tpu").devices


def compiled(case: Case, chip: Chip) -> dict[str, Any]:
    """A row of the table."""
    start = time.perf_counter()
    program = case.jitted.lower(*case.arguments, **case.options).compile()
    seconds = time.perf_counter() - start
    sizes, cost = program.memory_analysis(), program.cost_analysis()
    needed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    needed += sizes.generated_code_size_in_bytes - sizes.alias_size_in_bytes
    flops, moved, estimate = cost["flops"], cost["bytes accessed"], cost.get("optimal_seconds", -1.0)
    text = program.as_text()
    traffic = tpu_traffic.hbm_bytes(text)
    row = {
        "gflop": rounded(flops / 1e9),
        "gigabytes_accessed": rounded(moved / 1e9),
        "gigabytes_from_hbm": rounded(traffic / 1e9),
        "memory_gigabytes": rounded(needed / 1e9),
        "fits": needed < chip.memory,
        "roofline_ms": rounded(1e3 * max(flops / chip.flops, traffic / chip.bandwidth)),
        # Of most loops and convolutions the compiler's own estimate is negative, and says nothing.
        "estimated_ms": rounded(1e3 * estimate) if estimate > 0 else None,
        "bound_by": "flops" if flops / chip.flops > traffic / chip.bandwidth else "memory",
        "loops_of_unknown_length": tpu_traffic.unknown_loops(text),
        "compile_seconds": round(seconds, 1),
    }
    if case.weights:
        row["weight_reads"] = round(traffic / case.weights, 2)
    return row


def row_of(program: Program, chip: str) -> dict[str, Any]:
    """What is recorded of a program on a chip; an error is told, not raised."""
    with execution.aimed_at(devices_of(chip)[: program.chips], memory=int(CHIPS[chip].memory)):
        row: dict[str, Any] = {"chips": program.chips}
        try:
            case = program.make()
            row |= {"work": case.work, "counted": case.turns or "all of it", **case.more}
            row |= compiled(case, CHIPS[chip])
        except Exception as error:  # the compiler's, which says how much memory lacks
            row |= {"fits": False, "error": f"{type(error).__name__}: {str(error)[:400]}"}
    row["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    row["load_average"] = round(os.getloadavg()[0], 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the programs' names")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--quick", action="store_true", help="check the quick programs for a v5e, record nothing")
    parser.add_argument("--report", action="store_true", help="write the tables of the documentation, compile nothing")
    parser.add_argument("--wheel", action="store_true", help="print the requirement of libtpu, compile nothing")
    arguments = parser.parse_args()
    if arguments.wheel:
        print(wheel())
        return
    if arguments.report:
        tpu_table.write(json.loads(RESULT.read_text()), PROGRAMS)
        return
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(f"expected {wheel()}, the TPU's compiler, got none in this environment; `make tpu` installs it")
    jax.config.update("jax_platforms", "cpu")  # libtpu alone would make JAX look for a TPU
    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is to be seen
    chosen = {name: program for name, program in PROGRAMS.items() if any(map(name.startswith, arguments.only))}
    failed, environment = [], machine.environment("libtpu", "jaxlib", "optax", "ott-jax")
    for name, program in chosen.items():
        if arguments.quick and not program.is_quick:
            continue
        for chip in ["v5e"] if arguments.quick else arguments.chips:
            row = row_of(program, chip)
            print(name, chip, json.dumps(row), flush=True)
            failed += [f"{name} on {chip}"] * (not row["fits"])
            if arguments.quick:
                continue
            known = json.loads(RESULT.read_text()) if RESULT.exists() else {"programs": {}}
            known["programs"].setdefault(name, {})[chip] = row
            known["programs"] = {one: known["programs"][one] for one in PROGRAMS if one in known["programs"]}
            known["environment"] = environment
            known["chips"] = {one: chip._asdict() for one, chip in CHIPS.items()}
            RESULT.write_text(json.dumps(known, indent=2) + "\n")
    if failed:
        sys.exit(f"expected programs that fit, got {len(failed)} that do not: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
