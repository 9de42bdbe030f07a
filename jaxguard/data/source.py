"""The result of a data source, before the clean split is drawn."""

from dataclasses import dataclass

from jaxguard.types import Batch


@dataclass(frozen=True)
class Source:
    """The official splits.

    Attributes:
        train: empty, `[0, H, W, C]`, if a pack is for testing only.
        test: never empty.
        num_classes: `K`.
        image_size: default side to resize to; None keeps the size.
    """

    train: Batch
    test: Batch
    num_classes: int
    image_size: int | None = None
