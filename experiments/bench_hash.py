"""What does a content hash cost beside reading the file?

    python experiments/bench_hash.py

A file of 45 MB (the size of a PreActResNet-18) and one of 1.1 MB (ResNet-20) of random bytes, in the page cache, are
read into memory that is used again by `jaxguard.checkpoints.read_into`, as a fleet scan does: without a hash, with
SHA-256 and with BLAKE3. CPU milliseconds of the thread, so that other work counts little; ways take turns,
medians.

Hardware: any. Time: ten seconds.
Expected: beside reading, BLAKE3 a third of SHA-256, also where the processor has instructions for the latter.
Result: experiments/results/hash.json.
"""

import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time
import types
from unittest import mock

import machine
import numpy as np

from jaxguard import checkpoints
from jaxguard.checkpoints import hashing

OUT = pathlib.Path(__file__).parent / "results" / "hash.json"
SIZES, ROUNDS = {"45 MB": 44_786_000, "1.1 MB": 1_093_000}, 15


NO_HASH = types.SimpleNamespace(update=lambda _: None, hexdigest=lambda: "")


def milliseconds(path: pathlib.Path, memory: np.ndarray, way: str) -> float:
    state, algorithm = os.stat(path), hashing.algorithm_of(f"{way}:")
    is_bare = way == "no hash"
    with mock.patch.object(hashing, "started", lambda _: NO_HASH) if is_bare else contextlib.nullcontext():
        start = time.thread_time()
        checkpoints.read_into(
            path,
            0,
            memory,
            size=state.st_size,
            modified=state.st_mtime_ns,
            given=str(path),
            algorithm=algorithm,
        )
        return 1e3 * (time.thread_time() - start)


def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            path, memory = pathlib.Path(folder) / name, np.zeros(size, np.uint8)
            path.write_bytes(np.random.default_rng(0).bytes(size))
            taken: dict[str, list[float]] = {way: [] for way in ("no hash", "sha256", "blake3")}
            for _ in range(ROUNDS):
                for way, row in taken.items():
                    row.append(milliseconds(path, memory, way))
            results[name] = {way: round(statistics.median(row), 3) for way, row in taken.items()}
    environment = machine.environment("blake3", rounds=ROUNDS)
    OUT.write_text(json.dumps({"environment": environment, "cpu_milliseconds": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
