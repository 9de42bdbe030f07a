"""What runs in a process of a cluster: reads checkpoints where it is, keeps compiled programs, returns results."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jaxguard
from jaxguard.errors import FleetError, JaxguardError

if TYPE_CHECKING:
    from jaxguard.checkpoints.hashing import Algorithm
    from jaxguard.fleet.local import Settings
    from jaxguard.fleet.programs import Scorer
    from jaxguard.fleet.reading import Failure, Known, Stamp
    from jaxguard.fleet.stream import Scored
    from jaxguard.fleet.structure import Structure


def version() -> str:
    """What must be the same in all processes of a scan."""
    from jaxguard.scores import weights

    return f"jaxguard {jaxguard.__version__}, features {weights.VERSION}"


class Worker:
    """A process that scores chunks, one after the other.

    Args:
        environment: variables that JAX reads when it is imported, which has not happened yet.
    """

    def __init__(self, environment: Mapping[str, str]):
        os.environ.update(environment)
        self.scorers: dict[Structure, Scorer | JaxguardError] = {}

    def prepare(  # noqa: PLR0917  # arguments of a remote call
        self,
        expected: str,
        folder: str,
        settings: Settings,
        memory: int,
        readers: int | None,
        algorithm: Algorithm = "sha256",
    ) -> None:
        """Get ready for chunks.

        Args:
            expected: `version()` where the scan was started.
            folder: what relative paths are relative to.
            settings: how checkpoints are scored.
            memory: bytes that stacks may take together.
            readers: threads that read.
            algorithm: what contents are named by.

        Raises:
            FleetError: this is another version.
        """
        if expected != version():
            raise FleetError(
                f"{socket.gethostname()}: expected {expected}, as where the scan was started, got {version()}; "
                "install the same on every node"
            )
        # Where the folder is missing, every relative path becomes a failure that says so.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self.settings, self.memory, self.readers = settings, memory, readers
        self.algorithm: Algorithm = algorithm

    def score(self, uris: Sequence[str], known: Mapping[str, Stamp]) -> tuple[list[Scored | Known | Failure], float]:
        """Score a chunk.

        Args:
            uris: paths and URLs.
            known: state of those of which there are results.

        Returns:
            Results for all checkpoints, and the seconds that they took.
        """
        from jaxguard.fleet.stream import stream

        start = time.perf_counter()
        with jaxguard.precision(self.settings.numerics.precision):  # pyright: ignore[reportArgumentType]  # it checks
            results = stream(
                uris,
                self.settings,
                memory=self.memory,
                readers=self.readers,
                is_known=lambda uri, stamp: known.get(uri) == stamp,
                scorers=self.scorers,
                algorithm=self.algorithm,
            )
            return [_explained(result) for result in results], time.perf_counter() - start


def _explained(result: Scored | Known | Failure) -> Scored | Known | Failure:
    """The failure of a file that was seen where the scan was started, and does not exist here."""
    from jaxguard import checkpoints
    from jaxguard.fleet.reading import Failure

    if not isinstance(result, Failure) or checkpoints.is_url(result.uri):
        return result
    if any(os.path.lexists(path) for path in (result.uri, result.uri.rpartition("@")[0])):
        return result
    return result._replace(
        error=f"{result.uri}: expected a file that every node can read, got none on {socket.gethostname()}; "
        "put the checkpoints on storage that all nodes share, or name them by URL"
    )
