"""The fuzzer: one mutated checkpoint after the other is opened, read, hashed and identified, under watch.

An input is a name, `(seed, kind, iteration)`, and one revision of jaxguard brings it back whenever it is asked for;
tests/checkpoints/test_fuzz.py runs a few of each kind, experiments/fuzz_checkpoints.py as many as wanted.
"""

import contextlib
import os
import pathlib
import re
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, NamedTuple

import fuzz_mutations
import fuzz_seeds
import numpy as np

from jaxguard import checkpoints, models
from jaxguard.errors import CheckpointError, JaxguardError
from jaxguard.scores import structural

MAX_SECONDS = 2.0
MAX_GROWTH_BYTES = 2**28
MAX_READ_BYTES = 2**24
MAX_MESSAGE = 8_000
OPENED, REFUSED = "opened", "refused"

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.",
    "socket.",
    "pickle.",
    "pty.",
)
_WRITES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "shutil.",
)
_HARMLESS = ("unicodedata",)  # Python's parser of numpy's headers asks it about names
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


KINDS = ("unsupported", "damaged", "hostile", "not finite")
"""Of the refusals of files; a folder may also hold no checkpoint, or several."""


class Outcome(NamedTuple):
    """What became of one input.

    Attributes:
        verdict: `opened` or `refused`.
        message: the refusal, without what differs from input to input.
        finding: what must not happen, with its traceback; None where nothing did.
        seconds: processor time.
    """

    verdict: str
    message: str
    finding: str | None
    seconds: float


class _Watch:
    """Python's own audit events, while armed: programs started, files written, code run that no module brought."""

    def __init__(self) -> None:
        self.armed, self.seen = False, []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event.startswith(_FORBIDDEN) or event.startswith(_WRITES):
            self.seen.append(f"{event} {arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _FLAGS:
            self.seen.append(f"open for writing {arguments!r:.200}")
        elif event == "import" and arguments[0].split(".")[0] not in {*sys.modules, *_HARMLESS}:
            self.seen.append(f"import {arguments[0]}")

    @contextlib.contextmanager
    def over(self) -> Iterator[list[str]]:
        self.seen, self.armed = [], True
        try:
            yield self.seen
        finally:
            self.armed = False


_WATCH: list[_Watch] = []  # an audit hook cannot be taken off again


def mutant(seed: int, kind: str, iteration: int) -> tuple[fuzz_seeds.Seed, dict[str, bytes]]:
    """The seed that was chosen, and its mutated files."""
    rng = Random(f"{seed}:{kind}:{iteration}")
    seeds = fuzz_seeds.seeds()
    chosen = rng.choice(seeds[kind])
    others = [content for any_kind in seeds.values() for content in rng.choice(any_kind).files.values()]
    others += list(rng.choice(seeds[kind]).files.values())
    return chosen, fuzz_mutations.mutated(dict(chosen.files), others, rng)


def attempt(seed: int, kind: str, iteration: int, folder: pathlib.Path) -> Outcome:
    """Writes one mutant below `folder` and opens it."""
    chosen, files = mutant(seed, kind, iteration)
    here = folder / "input"
    write(files, here)
    try:
        outcome = examine(here / chosen.target if chosen.target in files else here)
        left = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
        if outcome.finding is None and left != {*files}:
            outcome = outcome._replace(finding="files appeared or went away beside the checkpoint")
    finally:
        shutil.rmtree(here)
    return outcome


def write(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def examine(path: pathlib.Path) -> Outcome:
    """Opens a checkpoint and uses all of it; nothing but success and a CheckpointError may come out."""
    if not _WATCH:
        _WATCH.append(_Watch())
        _warm()
    begun, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finding = None
    with _WATCH[0].over() as seen:
        try:
            _use(path)
            verdict, message = OPENED, ""
        except CheckpointError as error:
            verdict, message = REFUSED, str(error)
            if len(message) > MAX_MESSAGE or any("\ud800" <= letter <= "\udfff" for letter in message):
                finding = f"a message that cannot be shown: {message!r:.300}"
            elif path.is_file() and error.kind not in KINDS:
                finding = f"a refusal of no kind: {message!r:.300}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            verdict, message, finding = REFUSED, "", "".join(traceback.format_exception(error)[-6:])
    seconds = time.process_time() - begun
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if seen:
        finding = f"{seen[:5]}"
    elif pathlib.Path(fuzz_seeds.CANARY).exists():
        finding = "the canary appeared"
    elif finding is None and seconds > MAX_SECONDS:
        finding = f"{seconds:.1f} s of processor time"
    elif finding is None and growth > MAX_GROWTH_BYTES:
        finding = f"{growth / 2**20:.0f} MiB of memory"
    return Outcome(verdict, _stripped(message, path), finding, seconds)


def _use(path: pathlib.Path) -> None:
    checkpoint = checkpoints.load(path)
    told = (*checkpoint.left_out, *checkpoint.left_out.values(), *checkpoint.notes, *checkpoint.aliases)
    for text in (*checkpoint.metadata, *checkpoint.metadata.values(), *checkpoint.leaves, *told):
        text.encode()
    assert not checkpoint.left_out.keys() & checkpoint.leaves.keys()
    if any("averages of the weights" in note for note in checkpoint.notes):
        checkpoints.load(path, weights="ema")
    repr(checkpoint)
    names = list(checkpoint.leaves)
    checkpoint.sha256  # noqa: B018
    _identify(checkpoint)
    if sum(spec.nbytes for spec in checkpoint.leaves.values()) > MAX_READ_BYTES:
        return
    found = checkpoint.read_all()
    assert list(found) == names
    for name, array in found.items():
        spec = checkpoint.leaves[name]
        assert (array.shape, array.dtype) == (spec.shape, spec.dtype)
        array.tobytes()  # brings in every page
    first = checkpoint.read(names[-1])
    assert first.tobytes() == found[names[-1]].tobytes()
    with np.errstate(all="ignore"):
        checkpoints.check_finite(found, path)


_IDENTIFIED: set[int] = set()


def _identify(checkpoint: checkpoints.Checkpoint) -> None:
    """Names and shapes of strangers; a table that was seen before would take the same course."""
    table = hash(tuple((name, spec.shape, spec.dtype) for name, spec in checkpoint.leaves.items()))
    if table in _IDENTIFIED:
        return
    _IDENTIFIED.add(table)
    for identify in (lambda: models.identify(checkpoint.leaves), lambda: structural.read(checkpoint.leaves)):
        with contextlib.suppress(JaxguardError):
            identify()


def _warm() -> None:
    """Imports and caches everything that opening checkpoints needs, before anything is measured."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for kind, seeds in fuzz_seeds.seeds().items():
            for number, seed in enumerate(seeds):
                folder = pathlib.Path(name) / f"{kind}{number}"
                write(seed.files, folder)
                with contextlib.suppress(JaxguardError):
                    _use(folder / seed.target)
                    if seed.name == "resnet20":  # a stranger to it, for which every architecture is traced once
                        models.identify(dict(list(checkpoints.load(folder / seed.target).leaves.items())[1:]))


def _stripped(message: str, path: pathlib.Path) -> str:
    """What kind of refusal it is: without the path, numbers, and what the file said."""
    message = message.replace(str(path), "").replace(str(path.parent), "")
    message = re.sub(r"'[^']*'|\"[^\"]*\"|b'[^']*'|0x[0-9a-f]+|\[[^\]]*\]|\([^)]*\)", "…", message)
    return re.sub(r"-?\d+(\.\d+)?|…[^ ,;:]*", "…", message)[:160]
