"""Reading, transfer and compute at once: while one stack is scored, the next ones are being read."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxguard import checkpoints, execution, meshes
from jaxguard.checkpoints.hashing import Algorithm
from jaxguard.errors import FleetError, JaxguardError, NonFiniteError
from jaxguard.fleet import piecewise, reading
from jaxguard.fleet.compiling import Compiler, unscorable
from jaxguard.fleet.local import Settings
from jaxguard.fleet.programs import Scorer
from jaxguard.fleet.reading import Failure, File, Known, Opened, Stamp
from jaxguard.fleet.scoring import Scope, Scores
from jaxguard.fleet.staging import Stack, Staging
from jaxguard.fleet.structure import Structure

_WINDOW, _WINDOW_OF_URLS = 4096, 64  # checkpoints whose headers are read before they are sorted by structure
# A bound on the rows of one stack, which is scored only once all of its files are read.
_MOST_ROWS = 256
_RUNNING = 2  # stacks being scored at once: one computes while the other is handed over


class Scored(NamedTuple):
    """Checkpoints of one structure that were scored together; plain data, which can be sent to another process.

    Attributes:
        scope: what was scored in them.
        files: `M` checkpoints.
        content: `M` names of contents, see `jaxguard.checkpoints.hashing`.
        scores: on the host.
    """

    scope: Scope
    files: tuple[File, ...]
    content: tuple[str, ...]
    scores: Scores


@dataclass(frozen=True, eq=False)
class _Batch:
    files: Sequence[Opened]
    stack: Stack
    hashes: Sequence[Future[str | Failure]]

    @property
    def structure(self) -> Structure:
        return self.files[0].structure


class _Large(NamedTuple):
    """A checkpoint that is scored in parts."""

    file: Opened


class _Running(NamedTuple):
    batch: _Batch
    hashes: Sequence[str | Failure]
    scorer: Scorer
    launched: Any


def stream(
    uris: Iterable[str],
    settings: Settings | None = None,
    *,
    memory: int | None = None,
    readers: int | None = None,
    is_known: Callable[[str, Stamp], bool] = lambda *_: False,
    scorers: dict[Structure, Scorer | JaxguardError] | None = None,
    algorithm: Algorithm = "sha256",
) -> Generator[Scored | Known | Failure, None, None]:
    """Score checkpoints as fast as they can be read.

    Args:
        uris: paths and URLs.
        settings: how they are scored.
        memory: bytes that stacks may take together; by default `jaxguard.execution.staging_bytes()`.
        readers: threads that read; by default four per core, sixteen at most.
        is_known: whether there are results of a checkpoint in that state; it is then not read.
        scorers: programs of these settings by structure, kept here for the next call.
        algorithm: what contents are named by.

    Yields:
        Every checkpoint once, scored, known or failed, in an order of the stream's own.
    """
    memory = execution.staging_bytes() if memory is None else memory
    staging, compiler = Staging(memory), Compiler(settings or Settings(), {} if scorers is None else scorers)
    threads = readers or min(16, 4 * (os.cpu_count() or 1))
    filling, running = list[_Batch](), deque[_Running]()
    pool = ThreadPoolExecutor(threads, "read")
    try:
        open_fn = functools.partial(reading.open_one, is_known=is_known, weights=compiler.settings.options.weights)
        plans = _plans(uris, open_fn, pool, memory)
        plan = next(plans, None)
        while plan is not None or filling or running:
            # Twice as many batches as threads: enough that no thread waits, few enough that the memory is not spent on
            # stacks that fill side by side.
            while plan is not None and len(filling) < 2 * threads:
                if isinstance(plan, (Failure, Known)):
                    yield plan
                elif isinstance(plan, _Large):
                    found = compiler.get(plan.file.structure)
                    # No memory for it now: the plan is kept, and tried again once a stack has been given back.
                    if (results := _in_parts(plan.file, found, staging, pool, algorithm)) is None:
                        break
                    yield from results
                elif (batch := _filling(plan, staging, pool, algorithm)) is not None:
                    compiler.begin(batch.structure, len(batch.stack.rows))
                    filling.append(batch)
                else:
                    break
                plan = next(plans, None)
            # Not the oldest but the first whose program is compiled: one slow compilation must not hold up the others.
            ready = next((batch for batch in filling if compiler.is_ready(batch.structure)), None)
            if ready is not None and len(running) < _RUNNING:
                filling.remove(ready)
                yield from _launch(ready, compiler.get(ready.structure), running, staging)
            # Nothing can be started: wait for the oldest stack, whose memory is needed next.
            elif running:
                done = running.popleft()
                results = _results(done)
                staging.give(done.batch.stack)
                yield from results
            elif filling:
                # All that is left waits for programs.
                compiler.wait()
    finally:
        compiler.close()
        pool.shutdown(cancel_futures=True)


def _in_parts(
    file: Opened, found: Scorer | JaxguardError, staging: Staging, pool: ThreadPoolExecutor, algorithm: Algorithm
) -> list[Scored | Failure] | None:
    """Score a checkpoint larger than the memory for stacks; None where there is no memory for its parts yet."""
    if not isinstance(found, Scorer):
        return [reading.failed(file, found)]
    try:
        stack = staging.take(piecewise.BUFFERS, piecewise.row_length(found, staging.budget))
    except FleetError as error:
        return [reading.failed(file, FleetError(f"{file.uri}: {error}"))]
    if stack is None:
        return None
    try:
        checkpoint = reading.reopened(file)
        hashing = pool.submit(checkpoint.content, algorithm)
        # The hash needs another pass over the file, and is read on another thread while the parts are scored.
        scores, content = piecewise.score(found, checkpoint, stack.rows), hashing.result()
        # Scores and hash were read at different times: a file that changed in between has neither.
        reading.require_unchanged(file)
        return _sorted_out([file], [content], scores, found.scope)
    except JaxguardError as error:
        return [reading.failed(file, error)]
    except Exception as error:
        return [reading.failed(file, unscorable(error))]
    finally:
        staging.give(stack)


def _launch(batch: _Batch, found: Scorer | JaxguardError, running: deque[_Running], staging: Staging) -> list[Failure]:
    """Start scoring what was read; the failures, where there is nothing to score."""
    hashes = [future.result() for future in batch.hashes]
    # Rows that could not be read hold what was in the stack before; their scores are computed and thrown away.
    if isinstance(found, Scorer) and any(isinstance(content, str) for content in hashes):
        try:
            running.append(_Running(batch, hashes, found, found.launch(batch.stack.rows, len(batch.files))))
            return []
        except Exception as error:  # of a device without memory
            found = unscorable(error)
    staging.give(batch.stack)
    if isinstance(found, Scorer):
        return [one for one in hashes if isinstance(one, Failure)]
    return _all_failed(batch, hashes, found)


def _all_failed(batch: _Batch, hashes: Sequence[str | Failure], error: JaxguardError) -> list[Failure]:
    return [
        reading.failed(file, error, content) if isinstance(content, str) else content
        for file, content in zip(batch.files, hashes, strict=True)
    ]


def _results(done: _Running) -> list[Scored | Failure]:
    """Wait for the scores of a stack."""
    try:
        scores = done.scorer.collect(done.launched)
    except Exception as error:
        return [*_all_failed(done.batch, done.hashes, unscorable(error))]
    return _sorted_out(done.batch.files, done.hashes, scores, done.scorer.scope)


def _sorted_out(
    files: Sequence[Opened], hashes: Sequence[str | Failure], scores: Scores, scope: Scope
) -> list[Scored | Failure]:
    """Failures, and all others together."""
    good, results = [], list[Scored | Failure]()
    # Rows beyond the files are padding, and are never looked at.
    for number, (file, content) in enumerate(zip(files, hashes, strict=True)):
        if isinstance(content, Failure):
            results.append(content)
        elif not scores.finite[number]:
            error = NonFiniteError(
                f"{file.uri}: expected finite weights, got NaN or infinity; the file is damaged or training "
                "diverged, export it again from a good step"
            )
            results.append(reading.failed(file, error, content))
        else:
            good.append((number, file.file, content))
    if good:
        numbers, kept, known = zip(*good, strict=True)
        results.append(Scored(scope, kept, known, Scores(*(array[list(numbers)] for array in scores))))
    return results


def _filling(
    files: Sequence[Opened], staging: Staging, pool: ThreadPoolExecutor, algorithm: Algorithm
) -> _Batch | None:
    """Start reading a batch; None where there is no memory for it yet."""
    structure = files[0].structure
    stack = staging.take(_rows(len(files), _most_rows(structure, staging.budget)), structure.length)
    if stack is None:
        return None
    hashes = [pool.submit(reading.fill, file, row, algorithm) for file, row in zip(files, stack.rows, strict=False)]
    return _Batch(files, stack, hashes)


def _rows(count: int, most: int) -> int:
    """Rows of a stack for `count` checkpoints, a share per device; few sizes, since each is compiled.

    On CPU there is one: memory that is never touched costs nothing, and nothing is transferred.
    """
    if not execution.transfers():
        return most
    devices = meshes.device_mesh().size
    return min(devices * 2 ** (max(-(-count // devices), 1) - 1).bit_length(), most)


def _plans(
    uris: Iterable[str], open_fn: Callable[[str], Opened | Known | Failure], pool: ThreadPoolExecutor, memory: int
) -> Iterator[Known | Failure | _Large | Sequence[Opened]]:
    """Batches of one structure each; headers are read ahead by one window."""
    windows = _windows(uris)
    opening = [pool.submit(open_fn, uri) for uri in next(windows, ())]
    while opening:
        opened = [future.result() for future in opening]
        opening = [pool.submit(open_fn, uri) for uri in next(windows, ())]
        groups: dict[Structure, list[Opened]] = {}
        for one in opened:
            if isinstance(one, (Failure, Known)):
                yield one
            else:
                groups.setdefault(one.structure, []).append(one)
        for structure, files in groups.items():
            most = _most_rows(structure, memory)
            if most:
                yield from (files[start : start + most] for start in range(0, len(files), most))
            else:
                yield from map(_Large, files)


def _windows(uris: Iterable[str]) -> Iterator[list[str]]:
    left = iter(uris)
    while first := list(itertools.islice(left, 1)):
        size = _WINDOW_OF_URLS if checkpoints.is_url(first[0]) else _WINDOW
        yield first + list(itertools.islice(left, size - 1))


def _most_rows(structure: Structure, memory: int) -> int:
    """Rows of the largest stack; 0 where not even one for each device fits, or a row has no 32-bit addresses."""
    if structure.length >= 2**31:
        return 0
    wanted = min(execution.stack_bytes(), memory)
    devices = meshes.device_mesh().size
    rows = min(wanted // structure.nbytes, _MOST_ROWS)
    if rows >= devices:
        # A power of two per device: few sizes to compile, and every device gets as many rows.
        return devices * 2 ** ((rows // devices).bit_length() - 1)
    return devices if devices * structure.nbytes <= memory else 0
