"""Square patches: where they lie, and their pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Patches(NamedTuple):
    """Squares of one edge.

    Attributes:
        corners: int `[N, 2]`, row and column of the top left pixel.
        pixels: float32 `[N, edge, edge, C]`.
    """

    corners: np.ndarray
    pixels: np.ndarray

    @property
    def edge(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    def label(self, row: int) -> str:
        """One of them in words."""
        top, left = self.corners[row]
        return f"a {self.edge}x{self.edge} patch at ({top}, {left})"

    def take(self, rows: np.ndarray) -> Patches:
        """Some of them, in another order."""
        return Patches(self.corners[rows], self.pixels[rows])

    def beside(self, others: Patches, number: int) -> Patches:
        """Groups of these, each with its group of others behind it.

        Args:
            others: of the same edge.
            number: of groups; both sides have equally many patches in each.

        Returns:
            All patches, group by group.
        """
        parts = zip(self, others, strict=True)
        rows = [[half.reshape(number, -1, *half.shape[1:]) for half in pair] for pair in parts]
        return Patches(*(np.concatenate(pair, axis=1).reshape(-1, *pair[0].shape[2:]) for pair in rows))

    def placed(self, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Masks float32 `[N, H, W, 1]` and patterns `[N, H, W, C]` on empty images of a shape `(H, W, C)`."""
        masks = np.zeros((len(self.pixels), *shape[:2], 1), np.float32)
        shown = np.zeros((len(self.pixels), *shape), np.float32)
        for k, (top, left) in enumerate(self.corners):
            masks[k, top : top + self.edge, left : left + self.edge] = 1
            shown[k, top : top + self.edge, left : left + self.edge] = self.pixels[k]
        return masks, shown

    def with_pixels_of(self, shown: np.ndarray) -> Patches:
        """The same squares with the pixels of `[N, H, W, C]`."""
        return cut_out(shown, self.corners, self.edge)

    def shifted(self, by: np.ndarray, shape: tuple[int, int, int]) -> Patches:
        """Moved by int `[N, 2]` or `[2]` pixels, but not out of an image of a shape."""
        return self._replace(corners=np.clip(self.corners + by, 0, np.array(shape[:2]) - self.edge))

    def resized(self, edge: int, side: tuple[int, int], shape: tuple[int, int, int]) -> Patches:
        """Cropped or continued by their border pixels, inside an image.

        Args:
            edge: of the new patches.
            side: of 0 or 1 for rows and columns: 0 keeps the top (left) border where it is, 1 the other one.
            shape: `(H, W, C)` of the image.

        Returns:
            As many patches.
        """
        more = edge - self.edge
        if more < 0:
            rows, columns = (slice(-more * one, -more * one + edge) for one in side)
            pixels = self.pixels[:, rows, columns]
        else:
            pixels = np.pad(
                self.pixels, ((0, 0), *((more * one, more * (1 - one)) for one in side), (0, 0)), mode="edge"
            )
        return Patches(self.corners, pixels).shifted(-more * np.array(side), shape)


def cut_out(shown: np.ndarray, corners: np.ndarray, edge: int) -> Patches:
    """Squares of images `[N, H, W, C]`, one of each."""
    pairs = zip(shown, corners, strict=True)
    return Patches(corners, np.stack([one[top : top + edge, left : left + edge] for one, (top, left) in pairs]))


def at_different_places(corners: np.ndarray, scores: np.ndarray, number: int) -> np.ndarray:
    """The best of several patches, at most two at one place unless there are too few places.

    Args:
        corners: int `[N, 2]`, their places.
        scores: `[N]`, the higher the better.
        number: that are wanted.

    Returns:
        int `[min(N, number)]`, numbers of patches.

    Example:
        >>> at_different_places(np.array([[0, 0], [0, 0], [0, 0], [1, 0]]), np.array([4.0, 3, 2, 1]), 3).tolist()
        [0, 1, 3]
    """
    order = np.argsort(-scores, kind="stable")
    chosen: list[int] = []
    for k in order:
        if (corners[chosen] == corners[k]).all(1).sum() < 2:
            chosen.append(int(k))
        if len(chosen) == number:
            break
    return np.array((chosen + [int(k) for k in order if k not in chosen])[:number])


def edges_of(height: int, width: int) -> tuple[int, ...]:
    """Edges of the patches for an image: 2 to 6 pixels at 32, as shares of the shorter edge, and 3 at least.

    Example:
        >>> edges_of(32, 32), edges_of(28, 28), edges_of(16, 16), edges_of(8, 8)
        ((2, 3, 4, 5, 6), (2, 3, 4, 5), (2, 3), (2, 3))
    """
    shorter = min(height, width)
    edges = {max(2, round(share * shorter / 32)) for share in range(2, 7)} | {max(3, round(3 * shorter / 32))}
    return tuple(sorted(edge for edge in edges if edge <= shorter))


def grid(height: int, width: int, edge: int, stride: int) -> np.ndarray:
    """Top left corners of squares all over an image, the borders included.

    Args:
        height: of the image.
        width: of the image.
        edge: of the squares.
        stride: pixels between neighbours, at most; the last ones may be nearer.

    Returns:
        int `[P, 2]`, rows and columns.

    Example:
        >>> grid(5, 3, 3, 2).tolist()
        [[0, 0], [2, 0]]
    """

    def along(length: int) -> list[int]:
        last = max(length - edge, 0)
        return sorted({*range(0, last + 1, stride), last})

    return np.array([(top, left) for top in along(height) for left in along(width)])
