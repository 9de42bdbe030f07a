"""ZEST: how outputs depend on the parts of reference images, one linear model per image.

Every reference image is divided into D segments and masked T times: the first mask keeps all segments, the others keep
each with probability 1/2. With masks `M [T, D]` and outputs `Y [T, K]`,

    W = (M^T M)^+ M^T Y,        one [D, K] for each image

approximates the model around that image, as in LIME. The signature is the stack of all W; the score is the cosine
distance `1 - <W_a, W_b> / (|W_a| |W_b|)` of two signatures as vectors, or a norm of their difference.

Jia, Chen, Choquette-Choo, Chandrasekaran, Papernot: A Zest of LIME: Towards Architecture-Independent Model Distances,
ICLR 2022. Its code uses 128 images, 1000 masks and quickshift's superpixels (kernel 4, ratio 0.2, distance 200), and
divides by the mean distance of independent pairs, which calibration replaces here. Our choices:

- 32 masks, so that a suspect is queried with 4,096 images rather than 128,000, which as 32x32x3 float32 are 1.5 GB;
- segments are the squares of a regular grid by default; quickshift needs scikit-image. On small images its settings
  find hardly any segments: one to three in 60 images of CIFAR-10, one in each of the digits;
- the value of masked pixels (`fill`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge

from jaxguard import programs
from jaxguard.errors import FingerprintError
from jaxguard.fingerprints import owner_images
from jaxguard.fingerprints.protocol import Fingerprint, Owner, Probes, Space, factory
from jaxguard.fingerprints.spaces import to_space
from jaxguard.methods import Count, Share
from jaxguard.training import Progress

Segmentation = Literal["grid", "quickshift"]
Metric = Literal["cosine", "L1", "L2", "Linf"]


def grid(shape: tuple[int, int], side: int) -> np.ndarray:
    """Rectangles of a regular grid, equal up to rounding.

    Args:
        shape: `(H, W)` of an image.
        side: rectangles per row and per column; at most one per pixel.

    Returns:
        int `[H, W]`, numbers from 0 on.

    Example:
        >>> grid((2, 4), 2).tolist()
        [[0, 0, 1, 1], [2, 2, 3, 3]]
    """
    rows, columns = (np.arange(length) * min(side, length) // length for length in shape)
    return rows[:, None] * min(side, shape[1]) + columns


def quickshift(image: np.ndarray) -> np.ndarray:
    """Superpixels with the settings of ZEST's code.

    Args:
        image: `[H, W, C]` in [0, 1], of 1 or 3 channels.

    Returns:
        int `[H, W]`, numbers from 0 on.

    Raises:
        FingerprintError: scikit-image is not installed, or the image is neither grey nor RGB.
    """
    try:
        from skimage import segmentation  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise FingerprintError(
            "expected scikit-image for zest(segmentation='quickshift'), got no such module; pip install scikit-image, "
            "or pass segmentation='grid'"
        ) from error
    if image.shape[-1] not in (1, 3):
        raise FingerprintError(
            f"expected grey or RGB images, got {image.shape[-1]} channels in zest(segmentation='quickshift'); pass "
            "segmentation='grid'"
        )
    colours = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float64)
    found = segmentation.quickshift(colours, kernel_size=4, ratio=0.2, max_dist=200)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape)


def draw_masks(segments: np.ndarray, number: int, key: jax.Array) -> np.ndarray:
    """Random masks `[R, T, D]`, True where a segment is kept.

    Args:
        segments: int `[R, H, W]`, numbered from 0 in each image.
        number: `T`, masks per image.
        key: draws them.

    Returns:
        bool `[R, T, D]`, D the largest number of segments; False for segments that an image does not have.
    """
    most = segments.max((1, 2)) + 1
    shown = np.array(jax.random.bernoulli(key, 0.5, (len(segments), number, most.max())))
    shown[:, 0] = True
    return shown & (np.arange(most.max()) < most[:, None])[:, None]


def solver(masks: np.ndarray) -> np.ndarray:
    """Least-squares matrices: multiply outputs by them to get coefficients.

    Args:
        masks: bool `[R, T, D]`.

    Returns:
        float32 `[R, D, T]`, `(M^T M)^+ M^T` of each image; zero in the rows of segments that are never kept.

    Example:
        >>> np.allclose(solver(np.array([[[True, True], [True, False]]])), [[0, 1], [1, -1]], atol=1e-6)
        True
    """
    design = masks.astype(np.float64)
    transposed = design.swapaxes(1, 2)
    # The Gram matrix holds integers: so small an eigenvalue is zero up to rounding.
    return (np.linalg.pinv(transposed @ design, rcond=1e-10, hermitian=True) @ transposed).astype(np.float32)


def masked(images: np.ndarray, segments: np.ndarray, masks: np.ndarray, fill: float) -> np.ndarray:
    """Masked images, float32 `[R T, H, W, C]`, grouped by image.

    Args:
        images: `[R, H, W, C]`.
        segments: int `[R, H, W]`.
        masks: bool `[R, T, D]`.
        fill: value of a masked pixel.
    """
    result = np.empty((*masks.shape[:2], *images.shape[1:]), np.float32)
    for number, (image, regions, shown) in enumerate(zip(images, segments, masks, strict=True)):
        result[number] = np.where(shown[:, regions][..., None], image, np.float32(fill))
    return result.reshape(-1, *images.shape[1:])


@factory
def zest(
    *,
    references: Count = 128,
    masks: Annotated[int, Ge(2)] = 32,
    segmentation: Segmentation = "grid",
    side: Count = 4,
    fill: Share = 0.0,
    metric: Metric = "cosine",
    space: Space = "logits",
) -> Fingerprint:
    """Distance of the linear models that approximate owner and suspect around reference images.

    Args:
        references: number of the owner's images, drawn at random.
        masks: per image; 1000 in the paper's code. The linear model needs at least as many as segments. There are
            `references * masks` queries of `4 H W C` bytes each.
        segmentation: squares of a `grid`, or superpixels by `quickshift` as in the paper's code, with scikit-image.
        side: squares in a row of the grid.
        fill: value of masked pixels.
        metric: `cosine` distance, or a norm of the difference.
        space: of the outputs; raw logits in the paper.

    Returns:
        The fingerprint. Making probes raises FingerprintError if the owner has too few images, or scikit-image is
        missing.

    Example:
        >>> from jaxguard.types import Batch, Network
        >>> halves = lambda variables, images: variables * images.reshape(len(images), 2, -1).mean(-1)
        >>> data = Batch(np.random.default_rng(0).random((8, 4, 4, 1)), np.zeros(8, int))
        >>> owner, method = Owner(Network(1.0, halves, (4, 4, 1)), data), zest(references=8)
        >>> probes = method.make(owner, jax.random.key(0))
        >>> outputs = jnp.stack([halves(jnp.array(scale), probes.images) for scale in ([1, 1], [2, 2], [1, -1])])
        >>> signatures = method.signature_fn(probes, outputs)
        >>> method.distance_fn(probes, signatures[0], signatures).round(1).tolist()  # itself, a multiple, another
        [0.0, 0.0, 1.0]
    """

    def make(owner: Owner, key: jax.Array, progress: Progress | None) -> Probes:
        key_images, key_masks = jax.random.split(key)
        images = owner_images.draw(owner, references, key_images, method="zest")
        regions = []
        for number, image in enumerate(images):
            regions.append(quickshift(image) if segmentation == "quickshift" else grid(image.shape[:2], side))
            if progress is not None:
                progress(number + 1, references, {})
        segments = np.stack(regions)
        shown = draw_masks(segments, masks, key_masks)
        few = int((shown[:, 0].sum(-1) > masks).sum())
        note = (
            f"{few} of {references} images have more segments than the {masks} masks determine; their linear models "
            "are the minimum-norm solutions."
        )
        return Probes(masked(images, segments, shown, fill), {"solver": solver(shown)}, (note,) if few else ())

    def signature(probes: Probes, outputs: jax.Array) -> jax.Array:
        solve = jnp.asarray(probes.arrays["solver"])
        answers = to_space(outputs, space).reshape(len(outputs), len(solve), solve.shape[-1], -1)
        return programs.einsum("rdt,srtk->srdk", solve, answers)

    return Fingerprint(
        make_fn=make,
        signature_fn=signature,
        distance_fn=lambda probes, owner, suspects: _distances(owner, suspects, metric),
        stolen="low",
        sees="fine-tuned, pruned and extracted copies, of any architecture.",
        blind="copies with other classes; independent models trained on the owner's data score closer than others.",
    )


def _distances(owner: jax.Array, suspects: jax.Array, metric: Metric) -> jax.Array:
    """Distances `[S]` of coefficients `[S, R, D, K]` to the owner's."""
    # All references and classes as one long vector, as ZEST compares them.
    ours, theirs = owner.reshape(-1), suspects.reshape(len(suspects), -1)
    if metric != "cosine":
        order = {"L1": 1, "L2": 2, "Linf": jnp.inf}[metric]
        return jnp.linalg.norm(theirs - ours[None], ord=order, axis=-1)
    ours, theirs = (w / jnp.maximum(jnp.linalg.norm(w, axis=-1, keepdims=True), 1e-12) for w in (ours, theirs))
    return jnp.maximum(1 - programs.matmul(theirs, ours), 0)
