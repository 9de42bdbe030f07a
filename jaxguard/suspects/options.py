"""What a user says of a model: its architecture or function, its normalisation, its classes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from jaxguard.errors import ArchitectureError, DataError
from jaxguard.models import architecture
from jaxguard.suspects import opening
from jaxguard.suspects.suspect import Suspect
from jaxguard.types import ApplyFn, Batch
from jaxguard.types.network import Outputs


@dataclass(frozen=True)
class ModelOptions:
    """How a checkpoint is opened; everything may be left out.

    Attributes:
        arch: specification such as `resnet20:width=0.5`.
        input_shape: of one image.
        mean: subtracted from images in [0, 1], per channel or one value for all.
        std: what they are divided by, likewise.
        apply_fn: the user's own model, `(variables, images) -> logits`, in place of `arch`.
        init_fn: `() -> variables` of that model.
        outputs: what `apply_fn` returns: `classes`, a `sequence` of them, a `regression` or an `embedding`.
        labels: `[K]` class of the data set that each logit stands for; by default the logit's own number.

    Raises:
        ArchitectureError: no such architecture, or options that exclude each other.
    """

    arch: str | None = None
    input_shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    apply_fn: ApplyFn | None = None
    init_fn: Callable[[], Any] | None = None
    labels: tuple[int, ...] | None = None
    outputs: Outputs | None = None

    def __post_init__(self) -> None:
        if self.arch is not None:
            architecture.parse(self.arch)
        if self.init_fn is not None and self.apply_fn is None:
            raise ArchitectureError("expected apply together with init, got init alone; name the model's function too")
        if self.apply_fn is not None and (self.arch or self.mean or self.std):
            raise ArchitectureError(
                "expected apply without arch, mean and std, got both: the function normalises; give one of them"
            )

    def load(self, path: str | os.PathLike[str]) -> Suspect:
        """Opens a checkpoint, see `jaxguard.suspects.load`."""
        chosen = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "labels"}
        return opening.load(path, **chosen)

    @property
    def key(self) -> str:
        """JSON that names these options, functions by module and name: results of equal ones can be compared."""
        told = {}
        for one in fields(self):
            value = getattr(self, one.name)
            is_function = callable(value)
            told[one.name] = (
                f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value)}" if is_function else value
            )
        return json.dumps(told, sort_keys=True)

    def relabelled(self, batch: Batch) -> Batch:
        """Images with the numbers of the logits that stand for their classes.

        Raises:
            DataError: a class that no logit stands for.
        """
        if self.labels is None:
            return batch
        logit_of = {label: k for k, label in enumerate(self.labels)}
        unknown = sorted({*np.asarray(batch.labels).tolist()} - logit_of.keys())
        if unknown:
            raise DataError(
                f"expected images of the classes {sorted(logit_of)}, got class {unknown[0]} as well; complete the "
                "labels of the model"
            )
        labels = np.array([logit_of[label] for label in np.asarray(batch.labels).tolist()], np.int32)
        return Batch(batch.images, labels)
