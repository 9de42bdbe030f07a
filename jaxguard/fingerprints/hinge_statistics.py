"""Statistics of outputs along hinges: profiles, their similarity, and a p-value that needs no other model.

Along the normal u of a hinge at x, a model is queried at `x + t delta u`. The linear trend of the profile, `t` in
[-3, 3], is removed, so that constant offsets of a suspect do not count. Second differences at the centre, `t = 0`, are
compared with those at controls, `t` in {-3, -2, 2, 3}, which were not chosen for a bend of the owner's network.
Controls are near because models trained on the same task have dense hyperplanes in the same regions: far from a hinge
of the owner, independent models bend less. `experiments/hinge_controls.py` measures what far controls would accuse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import stats

from jaxguard import programs

REACH = 3
"""Half width of a profile, in deltas."""

CONTROLS = (-3, -2, 2, 3)
"""Centres of the control differences, in deltas."""

FARTHEST = 4
"""Farthest point that the outer control differences need, in deltas."""

LEAST_NORM = 1e-30
"""Profiles with a smaller norm count as zero: they have no direction."""


def offsets(points: int, *, controls: bool) -> np.ndarray:
    """Query points along a hinge's normal, in deltas.

    Args:
        points: of the profile, `6 k + 1`, so that whole deltas are among them.
        controls: whether to add the points that only the control differences need.

    Returns:
        float64 `[T]`, profile first.

    Example:
        >>> offsets(7, controls=False).tolist()
        [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
        >>> offsets(7, controls=True)[7:].tolist()
        [-4.0, 4.0]
    """
    profile = np.linspace(-REACH, REACH, points)
    return np.concatenate([profile, [-FARTHEST, FARTHEST]]) if controls else profile


def profiles(answers: jax.Array, points: int) -> jax.Array:
    """Profiles without their linear trend, `(I - A A^+) g` with `A = [1, t]`.

    Args:
        answers: `[..., T, m]` at `offsets`.
        points: of the profile.

    Returns:
        float32 `[..., points, m]`.

    Example:
        >>> line = 5 + 2 * offsets(7, controls=False)
        >>> bool(jnp.abs(profiles(jnp.asarray(line)[:, None], 7)).max() < 1e-5)
        True
    """
    # A constant and a slope: what is left of a profile without them is its bend alone.
    design = np.stack([np.ones(points), offsets(points, controls=False)], axis=1)
    without = np.eye(points) - design @ np.linalg.pinv(design)
    own = answers[..., :points, :].astype(jnp.float32)
    # Subtract the middle first: the remainder is small, and so is its rounding error.
    centred = own - own[..., points // 2 : points // 2 + 1, :]
    return programs.einsum("st,...tm->...sm", jnp.asarray(without, jnp.float32), centred)


def profile_similarity(owner: jax.Array, suspects: jax.Array) -> jax.Array:
    """Mean cosine of profiles, hinge by hinge.

    Args:
        owner: `[N, T, m]`.
        suspects: `[S, N, T, m]`.

    Returns:
        `[S]` in [-1, 1]; a hinge at which either model is linear counts as 0.
    """
    first, second = (array.reshape(*array.shape[:-2], -1) for array in (owner, suspects))
    first, second = _unit(first), _unit(second)
    return programs.einsum("nd,snd->sn", first, second).mean(-1)


def profile_cka(owner: jax.Array, suspects: jax.Array) -> jax.Array:
    """Linear CKA of all profiles, `||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)`, for outputs of any two widths.

    Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019. Profiles are
    centred already.

    Args:
        owner: `[N, T, m]`.
        suspects: `[S, N, T, m']`.

    Returns:
        `[S]` in [0, 1]; 0 if either model is linear everywhere.
    """

    def gram(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.linalg.norm(programs.matmul(a.T, b))

    def similarity(other: jax.Array) -> jax.Array:
        # Scaled as a whole first: CKA does not change, but its products would overflow or underflow.
        x, y = (_unit(array.reshape(-1)).reshape(-1, array.shape[-1]) for array in (owner, other))
        whole = gram(x, x) * gram(y, y)
        return jnp.where(whole > 0, gram(x, y) ** 2 / jnp.where(whole > 0, whole, 1), 0)

    return lax.map(similarity, suspects)


def _unit(rows: jax.Array) -> jax.Array:
    """Rows of norm one; rows without a direction become 0."""
    peaks = jnp.abs(rows).max(-1, keepdims=True)
    scaled = rows / jnp.where(peaks > LEAST_NORM, peaks, 1)  # squares of small numbers would underflow
    norms = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return jnp.where(peaks > LEAST_NORM, scaled / jnp.where(norms > 0, norms, 1), 0)


def second_differences(answers: np.ndarray, points: int, at: int) -> np.ndarray:
    """Norms of `f(t + 1) - 2 f(t) + f(t - 1)`, in deltas.

    Args:
        answers: `[..., T, m]` at `offsets(points, controls=True)`.
        points: of the profile.
        at: the centre `t`.

    Returns:
        float64 `[...]`.
    """
    places = offsets(points, controls=True)
    # Float64: differences of nearly equal float32 answers, whose rounding must not decide a rank test.
    low, middle, high = (
        answers[..., int(np.argmin(np.abs(places - t))), :].astype(np.float64) for t in (at - 1, at, at + 1)
    )
    return np.linalg.norm((high - middle) - (middle - low), axis=-1)


def self_null(answers: np.ndarray, points: int) -> np.ndarray:
    """P-value under the null hypothesis that a model bends at the hinges no more than beside them.

    One-sided Wilcoxon signed-rank test, over hinges, of the second difference at the centre minus its mean over the
    controls. The mean is less skewed than a single difference, which makes the test conservative.

    Args:
        answers: `[S, N, T, m]` at `offsets(points, controls=True)`.
        points: of the profile.

    Returns:
        float64 `[S]`; 1 for a model that bends nowhere.

    Example:
        >>> t = offsets(7, controls=True)
        >>> hinge, line = np.abs(t), t
        >>> answers = np.stack([np.tile(g[:, None], (20, 1, 1)) for g in (hinge, line)])
        >>> (self_null(answers, 7) < 1e-4).tolist()
        [True, False]
    """
    centre = second_differences(answers, points, 0)
    beside = np.mean([second_differences(answers, points, at) for at in CONTROLS], axis=0)
    return np.array([_wilcoxon(row) for row in centre - beside])


def _wilcoxon(differences: np.ndarray) -> float:
    if not differences.any():
        return 1.0
    _, p_value = stats.wilcoxon(differences, alternative="greater")
    return float(np.asarray(p_value))
