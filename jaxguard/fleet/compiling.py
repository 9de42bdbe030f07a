"""Programs by structure, made ahead on threads of their own: compiling takes seconds, and holds up nobody else."""

from __future__ import annotations

import os
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from jaxguard import execution
from jaxguard.errors import FleetError, JaxguardError
from jaxguard.fleet.local import Settings
from jaxguard.fleet.programs import Scorer, scorer
from jaxguard.fleet.structure import Structure

_THREADS = min(4, os.cpu_count() or 1)
_SHOWN = 300  # characters of a foreign error


class Compiler:
    """Makes scorers; where a structure cannot be scored, its error takes their place.

    Args:
        settings: how checkpoints are scored.
        scorers: those that were made already; new ones are added.
    """

    def __init__(self, settings: Settings, scorers: dict[Structure, Scorer | JaxguardError]):
        self.settings, self.scorers = settings, scorers
        self._pending: dict[Structure, Future[Scorer | JaxguardError]] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "compile")

    def begin(self, structure: Structure, rows: int) -> None:
        """Start compiling for stacks of this many rows, unless that was done before."""
        if structure not in self._pending and structure not in self.scorers:
            self._pending[structure] = self._pool.submit(execution.carried(self._made), structure, rows)

    def is_ready(self, structure: Structure) -> bool:
        """Whether `get` will not wait."""
        return structure not in self._pending or self._pending[structure].done()

    def wait(self) -> None:
        """Wait until one more is ready."""
        wait(self._pending.values(), return_when=FIRST_COMPLETED)

    def get(self, structure: Structure) -> Scorer | JaxguardError:
        """The scorer of a structure, or why it has none."""
        if structure in self._pending:
            self.scorers[structure] = self._pending.pop(structure).result()
        elif structure not in self.scorers:
            self.scorers[structure] = self._made(structure, 0)
        return self.scorers[structure]

    def close(self) -> None:
        """Begin nothing more; what is being compiled is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _made(self, structure: Structure, rows: int) -> Scorer | JaxguardError:
        try:
            made = scorer(structure, self.settings)
            if rows:
                made.compile(rows)
        except JaxguardError as error:
            return error
        except Exception as error:  # what a checkpoint says of itself can provoke any
            return unscorable(error)
        return made


def unscorable(error: Exception) -> FleetError:
    """In our words, an error of the compiler, of a device without memory, or of a model that makes no sense."""
    return FleetError(
        f"expected weights that can be scored, got {type(error).__name__}: {str(error)[:_SHOWN]}; "
        "name the architecture with --arch, or lower --memory where that is what lacks"
    )
