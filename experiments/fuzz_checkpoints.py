"""Does any of many mutated checkpoints do more than open or raise a CheckpointError?

    PYTHONPATH=tests/checkpoints python experiments/fuzz_checkpoints.py
    PYTHONPATH=tests/checkpoints python experiments/fuzz_checkpoints.py --kinds orbax --count 5000
    PYTHONPATH=tests/checkpoints python experiments/fuzz_checkpoints.py --replay pickle:4711    # one input again

Inputs are small sound files of every format, mutated blindly and below their checksums (tests/checkpoints/fuzzing.py).
Each is opened, read, hashed, identified and searched for layers, in a worker with bounded memory. A finding is any
other exception, the end of a worker, more than 2 s of processor time, 256 MiB more memory, a file written, a program
started, a module imported. The inputs of findings are kept beside the result. Orbax, the slowest, gets half as many
inputs as the others. A worker's address space is limited to what it has after its start and 2 GiB.

Hardware: any. Time: 10 minutes per core.
Expected: no finding. Result: experiments/results/fuzz_checkpoints.json.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import fuzz_seeds
import fuzzing
import machine

RESULT = pathlib.Path(__file__).parent / "results" / "fuzz_checkpoints.json"
FINDINGS = RESULT.parent / "fuzz_findings"
HALF_AS_OFTEN = "orbax"
BATCH = 15_000
SECONDS_WITHOUT_PROGRESS = 120
MEMORY = 2**31


class Batch(NamedTuple):
    """Inputs that one worker goes through."""

    kind: str
    first: int
    end: int


def batches(count: int, kinds: list[str]) -> list[Batch]:
    if kinds == [HALF_AS_OFTEN]:
        return [Batch(HALF_AS_OFTEN, n, min(n + BATCH, count)) for n in range(0, count, BATCH)]
    each = -(-2 * count // (2 * len(kinds) - 1))
    shares = {kind: -(-each // 2) if kind == HALF_AS_OFTEN else each for kind in kinds}
    return [Batch(kind, n, min(n + BATCH, share)) for kind, share in shares.items() for n in range(0, share, BATCH)]


def work(seed: int, batch: Batch) -> None:
    """One worker: a line before each input, its outcome behind it."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # the canary would appear here
        folder = pathlib.Path(name)
        for sound in fuzz_seeds.seeds()[batch.kind]:
            fuzzing.write(sound.files, folder / "sound")
            fuzzing.examine(folder / "sound" / sound.target)
            shutil.rmtree(folder / "sound")
        used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for iteration in range(batch.first, batch.end):
            print(iteration, flush=True)
            outcome = fuzzing.attempt(seed, batch.kind, iteration, folder)
            print(json.dumps(outcome), flush=True)


def run(seed: int, batch: Batch, log: pathlib.Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        arguments = [sys.executable, __file__, "--seed", str(seed), "--worker", *map(str, batch)]
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.DEVNULL)


class Tally:
    """What is known so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.findings: list[dict[str, Any]] = []

    def count(self, kind: str, iteration: int, outcome: fuzzing.Outcome) -> None:
        """Adds one outcome, and keeps the input where it is a finding."""
        empty = {"inputs": 0, fuzzing.OPENED: 0, fuzzing.REFUSED: 0, "findings": 0, "seconds": 0.0, "most_seconds": 0.0}
        row = self.rows.setdefault(kind, empty)
        row["inputs"] += 1
        row[outcome.verdict] = row.get(outcome.verdict, 0) + 1
        row["seconds"] += outcome.seconds
        row["most_seconds"] = max(row["most_seconds"], outcome.seconds)
        if outcome.verdict == fuzzing.REFUSED:
            self.messages[kind][outcome.message] += 1
        if outcome.finding:
            row["findings"] += 1
            self.findings.append({"kind": kind, "iteration": iteration, "finding": outcome.finding[-1500:]})
            print(f"FINDING --seed {self.seed} --replay {kind}:{iteration}\n{outcome.finding[-1500:]}", flush=True)
            kept = FINDINGS / f"{self.seed}-{kind}-{iteration}"
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                fuzzing.write(fuzzing.mutant(self.seed, kind, iteration)[1], kept)

    def take(self, batch: Batch, log: pathlib.Path, ended: int) -> int:
        """Counts what a worker wrote; the first input that it has not dealt with."""
        following = batch.first
        lines = log.read_text().splitlines()
        for line in lines:
            if line.startswith("["):
                self.count(batch.kind, following, fuzzing.Outcome(*json.loads(line)))
                following += 1
        if following < batch.end:
            if not lines:
                raise SystemExit(
                    f"a worker for {batch} did not start; run it by hand: --worker {' '.join(map(str, batch))}"
                )
            how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
            self.count(batch.kind, following, fuzzing.Outcome("ended", "", f"the worker ended: {how}", 0.0))
            following += 1
        return following

    def results(self) -> dict[str, Any]:
        """Everything, for JSON."""
        rows = {
            kind: {
                **{name: value for name, value in row.items() if not name.endswith("seconds")},
                "distinct_messages": len(self.messages[kind]),
                "mean_ms": round(1e3 * row["seconds"] / row["inputs"], 2),
                "most_ms": round(1e3 * row["most_seconds"], 1),
            }
            for kind, row in self.rows.items()
        }
        total = {name: sum(row[name] for row in rows.values()) for name in ("inputs", "opened", "refused", "findings")}
        return {"total": total, "kinds": rows, "findings": self.findings}


def fuzz(count: int, seed: int, workers: int, kinds: list[str]) -> dict[str, Any]:
    tally, pending, running = Tally(seed), batches(count, kinds)[::-1], []
    with tempfile.TemporaryDirectory() as folder:
        while pending or running:
            while pending and len(running) < workers:
                batch = pending.pop()
                log = pathlib.Path(folder) / f"{batch.kind}-{batch.first}"
                running.append((batch, log, run(seed, batch, log)))
            time.sleep(0.2)
            for entry in list(running):
                batch, log, process = entry
                if process.poll() is None:
                    if time.time() - log.stat().st_mtime > SECONDS_WITHOUT_PROGRESS:
                        process.kill()
                    continue
                running.remove(entry)
                following = tally.take(batch, log, process.returncode)
                log.unlink()
                if following < batch.end:
                    pending.append(batch._replace(first=following))
                print(f"{batch.kind} {following}: {len(tally.findings)} findings so far", flush=True)
    return tally.results()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=120_000, help="inputs over all formats")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", help="formats; with it no result is written")
    parser.add_argument("--replay", help="KIND:ITERATION")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        kind, first, end = given.worker
        return work(given.seed, Batch(kind, int(first), int(end)))
    if given.replay:
        kind, _, iteration = given.replay.rpartition(":")
        with tempfile.TemporaryDirectory() as name:
            os.chdir(name)
            print(fuzzing.attempt(given.seed, kind, int(iteration), pathlib.Path(name)))
        return None
    begun = time.perf_counter()
    results = fuzz(given.count, given.seed, given.workers, given.kinds or list(fuzz_seeds.seeds()))
    environment = machine.environment(
        "tensorstore",
        "pyfive",
        seed=given.seed,
        workers=given.workers,
        minutes=round((time.perf_counter() - begun) / 60, 1),
    )
    if not given.kinds:
        RESULT.write_text(json.dumps({"environment": environment, **results}, indent=1, allow_nan=False) + "\n")
    print(json.dumps(results["total"]))
    return None


if __name__ == "__main__":
    main()
