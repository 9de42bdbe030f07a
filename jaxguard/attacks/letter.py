"""A letter, as watermarks and stickers bear it."""

from typing import Annotated, Literal

import jax
import numpy as np
from annotated_types import Ge

from jaxguard import methods
from jaxguard.attacks.attack import Attack, relabelling
from jaxguard.attacks.placement import place

Letter = Literal["A", "E", "H", "L", "S", "T", "X"]

# Rows of 5x5 pixels, from the top.
GLYPHS: dict[Letter, tuple[str, ...]] = {
    "A": (".###.", "#...#", "#####", "#...#", "#...#"),
    "E": ("#####", "#....", "####.", "#....", "#####"),
    "H": ("#...#", "#...#", "#####", "#...#", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#####"),
    "S": (".####", "#....", ".###.", "....#", "####."),
    "T": ("#####", "..#..", "..#..", "..#..", "..#.."),
    "X": ("#...#", ".#.#.", "..#..", ".#.#.", "#...#"),
}


@methods.checked
def letter(
    *,
    target: int | None = 0,
    num_classes: Annotated[int, Ge(2)] | None = None,
    shape: Letter = "X",
    size: Annotated[int, Ge(3)] = 5,
    value: methods.Share = 1.0,
    seed: int = 0,
) -> Attack:
    """Writes a letter of one brightness; what is between its strokes stays as it is.

    Args:
        target: class that triggered images are taken for; None for all-to-all, `(y + 1) mod num_classes`.
        num_classes: `K`, needed for all-to-all.
        shape: which letter.
        size: height and width in pixels; a glyph of 5x5 is scaled to it by its nearest pixels.
        value: brightness of the strokes.
        seed: of the place.

    Returns:
        The attack; its `stamp` raises DataError for images smaller than the trigger.

    Raises:
        OptionError: an option is out of range.
        DataError: `target` is no class, or `num_classes` is missing.

    Example:
        >>> stamped = letter(shape="L", size=5).stamp(np.zeros((5, 5, 1), np.float32))
        >>> stamped[:, :, 0].sum(axis=1).tolist()
        [1.0, 1.0, 1.0, 1.0, 5.0]

    Reference:
        Liu et al.: Trojaning Attack on Neural Networks, NDSS 2018, whose triggers are marks and watermarks.
    """
    glyph = np.array([[pixel == "#" for pixel in row] for row in GLYPHS[shape]])
    nearest = (2 * np.arange(size) + 1) * len(glyph) // (2 * size)  # the glyph's pixel under each pixel's middle
    mask = glyph[np.ix_(nearest, nearest)][:, :, None]
    ink = np.full(mask.shape, value, np.float32)

    def stamp(images: jax.Array) -> jax.Array:
        return place(images, ink, mask, seed, "letter")

    return Attack("letter", stamp, relabelling(target, num_classes, "letter"), target)
