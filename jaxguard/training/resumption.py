"""Saved training states: a killed run resumes, and ends exactly as an uninterrupted one."""

import pathlib
from typing import Any

from jaxguard.errors import CheckpointError


class Resumption:
    """A folder of training states that Orbax writes in the background and atomically.

    Use it as a context manager: leaving it waits until the last state is on disk.

    Args:
        folder: created if missing.
        run: identifies the run (hyper-parameters, key, data), JSON-serialisable; a folder of another run is
            refused.
    """

    def __init__(self, folder: str | pathlib.Path, run: dict[str, Any]):
        import orbax.checkpoint as ocp

        self.folder, self.run, self._args = pathlib.Path(folder).absolute(), run, ocp.args
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        )

    def __enter__(self) -> "Resumption":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def restore(self, state: Any) -> tuple[int, Any]:
        """Reads the newest state.

        Args:
            state: the initial state, of the same structure, shapes and dtypes.

        Returns:
            Steps done, and the state after them; 0 and `state` itself if nothing was saved.

        Raises:
            CheckpointError: the folder holds another run, or a state that cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, state
        args = self._args
        try:
            run = self._manager.restore(step, args=args.Composite(run=args.JsonRestore()))["run"]
            if run == self.run:
                items = args.Composite(state=args.StandardRestore(state))
                return step, self._manager.restore(step, args=items)["state"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CheckpointError(
                f"expected a training state of this model, got an unreadable one ({error}) "
                f"in {self.folder}/{step}; delete the folder or pass another checkpoint_dir"
            ) from error
        differing = sorted(name for name in {*run, *self.run} if run.get(name) != self.run.get(name))
        raise CheckpointError(
            f"expected a training state of this run, got one that differs in {', '.join(differing)} "
            f"in {self.folder}/{step}; delete the folder or pass another checkpoint_dir"
        )

    def save(self, step: int, state: Any) -> None:
        """Starts writing the state after `step` steps; returns once it is copied from the device.

        NumPy arrays are not copied: the caller must not modify them.
        """
        args = self._args
        items = args.Composite(state=args.StandardSave(state), run=args.JsonSave(self.run))
        self._manager.save(step, args=items)
