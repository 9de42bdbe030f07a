"""Pickles of a file, one behind the other, followed for what Python would call where it loaded them."""

import mmap
import re
from typing import Any

from jaxguard.checkpoints import pickle_program
from jaxguard.checkpoints.calls import NAMED, Trace
from jaxguard.checkpoints.pickle_objects import Record
from jaxguard.checkpoints.pickle_tracer import Interleaved, Tracer
from jaxguard.errors import CheckpointError

_MAX_PICKLES = 1000
_DOTTED = re.compile(r"[^\W\d][\w.]*(\(.*)?", re.DOTALL)


def follow(
    content: bytes | mmap.mmap, given: str, member: str, trace: Trace, *, start: int = 0, is_certain: bool = True
) -> None:
    """Follows one pickle after the other; raw data may stand behind them.

    Args:
        content: bytes in memory or a memory map.
        given: the path as the user wrote it.
        member: of the archive, for the calls.
        trace: calls are added to it, those before a break too.
        start: position of the first pickle.
        is_certain: whether the first one has to be a pickle; else it is one if it calls anything.
    """
    position = start
    for number in range(_MAX_PICKLES):
        if position >= len(content):
            return
        found, problem = Trace(), ""
        try:
            position = _run(Tracer(content, given, member, found), position)
        except CheckpointError as error:
            problem = str(error)
        except RecursionError:
            problem = f"{given}: expected a pickle, got one that is nested too deeply; do not load it elsewhere"
        if problem and not (is_certain and number == 0):
            # Mere names may be an accident of bytes that are no pickle.
            for name, call in list(found.calls.items()):
                if call.arguments == NAMED or not _DOTTED.fullmatch(name):
                    del found.calls[name]
            if not found.calls:
                return
        trace.take(found)
        if problem:
            trace.fail(problem)
            return
    trace.fail(f"{given}: expected up to {_MAX_PICKLES} pickles in a row, got more; do not load it elsewhere")


def _run(machine: Tracer, position: int) -> int:
    while True:
        try:
            return pickle_program.run(machine, position)
        except Interleaved as stop:
            position = _behind_array(machine, stop.wrapper)


def _behind_array(machine: Tracer, wrapper: dict[Any, Any]) -> int:
    """Where a joblib file goes on behind the elements of an array."""
    position, content = machine.at + 1, machine.content
    shape, dtype = wrapper.get("shape"), wrapper.get("dtype")
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else ""
    match = re.fullmatch(r"[|<>=]?([a-zA-Z])(\d{1,6})", code) if isinstance(code, str) else None
    if match is None or not isinstance(shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise CheckpointError(f"{machine.given}: expected an array of joblib, got one of unknown size; save it again")
    if match[1] == "O":
        return _run(Tracer(content, machine.given, machine.member, machine.trace), position)
    if wrapper.get("numpy_array_alignment_bytes") and position < len(content):
        position += 1 + content[position]
    nbytes = int(match[2]) * (4 if match[1] == "U" else 1)
    for size in shape:
        nbytes *= size
    return position + nbytes
