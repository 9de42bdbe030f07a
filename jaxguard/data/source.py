"""What every source of data hands over, before the clean split is drawn."""

from dataclasses import dataclass

from jaxguard.types import Batch


@dataclass(frozen=True)
class Source:
    """The official splits.

    Attributes:
        train: may be empty, `[0, H, W, C]`, where a pack is for testing only.
        test: never empty.
        num_classes: `K`.
        image_size: side to resize to unless the caller says otherwise; None leaves the images as they are.
    """

    train: Batch
    test: Batch
    num_classes: int
    image_size: int | None = None
