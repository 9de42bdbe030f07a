"""A trigger that was found, on whole images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Trigger:
    """What turns an image into one with the trigger; parts that are None do nothing.

    Attributes:
        mask: `[H, W, 1]` or `[H, W, C]` opacity in [0, 1], with `pattern`.
        pattern: `[H, W, C]` in [0, 1]: the image becomes `x (1 - mask) + pattern mask`.
        delta: `[H, W, C]`, added; the result is clipped to [0, 1].
        flow: `[H, W, 2]`, rows and columns from each pixel to the place whose value it takes, in pixels.
        labels: int `[K]`, what images of each class are to be taken for; None where that is not known.

    Example:
        >>> import numpy as np
        >>> Trigger(delta=np.full((1, 2, 1), 0.25)).stamp(np.array([[[0.5], [1.0]]])).ravel().tolist()
        [0.75, 1.0]
        >>> Trigger(flow=np.full((1, 2, 2), [0, 0.5])).stamp(np.array([[[0.5], [1.0]]])).ravel().tolist()
        [0.75, 1.0]
    """

    mask: np.ndarray | None = None
    pattern: np.ndarray | None = None
    delta: np.ndarray | None = None
    flow: np.ndarray | None = None
    labels: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parts that change an image, by name."""
        parts = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "labels"}
        return {name: part for name, part in parts.items() if part is not None}

    def stamp(self, images: Any) -> Any:
        """Images with the trigger.

        Args:
            images: `[..., H, W, C]` in [0, 1], of NumPy or JAX.

        Returns:
            The same kind of array.
        """
        if self.flow is not None:
            images = moved(images, self.flow)
        if self.mask is not None:
            mask = _like(images, self.mask)
            images = images * (1 - mask) + _like(images, self.pattern) * mask
        return images if self.delta is None else (images + _like(images, self.delta)).clip(0, 1)


def _like(images: Any, part: Any) -> np.ndarray:
    """A part `[H, W, C]` of the type and rank of images `[..., H, W, C]`."""
    import numpy as np

    return np.asarray(part, images.dtype).reshape((1,) * (images.ndim - 3) + np.shape(part))


def moved(images: Any, flow: Any) -> Any:
    """Every pixel from where the flow points, between pixels by bilinear interpolation, at borders the border.

    Args:
        images: `[..., H, W, C]`, of NumPy or JAX.
        flow: `[H, W, 2]`, rows and columns to the place, in pixels; of JAX for a gradient by it.

    Returns:
        Images of the same shape.
    """
    np, (height, width) = flow.__array_namespace__(), flow.shape[:2]
    row = np.clip(np.arange(height, dtype=flow.dtype)[:, None] + flow[..., 0], 0, height - 1)
    column = np.clip(np.arange(width, dtype=flow.dtype)[None] + flow[..., 1], 0, width - 1)
    # The last pixel but one is the last to begin with, so that a whole pixel lies beside every place.
    top = np.clip(np.floor(row), 0, max(height - 2, 0)).astype(np.int32)
    left = np.clip(np.floor(column), 0, max(width - 2, 0)).astype(np.int32)
    down, along = ((at - corner.astype(flow.dtype))[..., None] for at, corner in ((row, top), (column, left)))
    down, along = (part.astype(images.dtype).reshape((1,) * (images.ndim - 3) + part.shape) for part in (down, along))
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    upper = images[..., top, left, :] * (1 - along) + images[..., top, right, :] * along
    lower = images[..., below, left, :] * (1 - along) + images[..., below, right, :] * along
    return upper * (1 - down) + lower * down
