import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.kernels import eigenvalues, lipschitz

RNG = np.random.default_rng(0)
U = np.array([0.0, 0.5, 1.0, 3.0, 10.0], np.float32)


def reference(kernel):
    return np.linalg.norm(np.asarray(kernel, np.float64), ord=2, axis=(1, 2))


def norms(kernel):
    return np.asarray(jax.jit(lipschitz.spectral_norms)([jnp.asarray(kernel, jnp.float32)])[0])


def nearly_equal(channels, taps, fan_in, gap, count):
    """Kernels whose `count` leading singular values are 1 and `count - 1` times `1 - gap`, the others below 0.9."""
    size = min(taps, fan_in)
    values = np.concatenate([[1.0], np.full(count - 1, 1 - gap), np.linspace(0.9, 0.1, size - count)])
    left = np.linalg.qr(RNG.normal(size=(channels, taps, size)))[0]
    right = np.linalg.qr(RNG.normal(size=(channels, fan_in, size)))[0]
    return np.einsum("cts,s,cds->ctd", left, values, right).astype(np.float32)


# ---------------------------------------------------------------- spectral norms against float64 SVDs


@pytest.mark.parametrize(
    "shape",
    [
        (64, 9, 64),
        (32, 9, 3),
        (24, 9, 1),
        (24, 25, 1),
        (10, 1, 77),
        (1, 9, 16),
        (6, 49, 3),
        (5, 16, 16),
        (2, 400, 400),
        (3, 1, 1),
    ],
    ids=[
        "3x3",
        "RGB stem",
        "depthwise",
        "depthwise 5x5",
        "dense",
        "one channel",
        "7x7 stem",
        "square",
        "large",
        "scalar",
    ],
)
def test_random_kernels_of_every_shape(shape):
    kernel = RNG.normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(norms(kernel), reference(kernel), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 0.0])
def test_leading_singular_values_that_are_nearly_equal(gap, count):
    kernel = nearly_equal(64, 9, 32, gap, count)
    np.testing.assert_allclose(norms(kernel), reference(kernel), rtol=1e-5)


@pytest.mark.parametrize("squarings", [4, 8, 12, 16])
def test_the_stated_error_bound_holds_for_the_worst_gap(squarings):
    """Two eigenvalues `1` and `1 - x / p` of a diagonal matrix, for which the error is known in closed form."""
    exponent = 2.0**squarings
    gap = np.linspace(0.01, 3, 200) / exponent
    gram = np.zeros((2, 2, len(gap)), np.float32)
    gram[0, 0], gram[1, 1] = 1, 1 - gap
    shortfall = 1 - np.asarray(eigenvalues.largest(gram, squarings=squarings), np.float64)
    rounding = 3e-7
    assert shortfall.min() > -rounding
    assert shortfall.max() < 2.0 ** -(squarings + 2) + rounding
    weight = (1 - gap) ** (2 * exponent)
    np.testing.assert_allclose(shortfall, gap * weight / (1 + weight), atol=rounding)


def test_rank_one_kernels():
    taps, fan_in = RNG.normal(size=(8, 9, 1)), RNG.normal(size=(8, 1, 20))
    kernel = (taps * fan_in).astype(np.float32)
    np.testing.assert_allclose(norms(kernel), reference(kernel), rtol=1e-6)
    # |a b^T| = |a| |b|, by hand
    np.testing.assert_allclose(norms([[[3.0, 0.0], [4.0, 0.0]]]), [5.0], rtol=1e-6)


def test_a_dead_channel_has_norm_zero_and_leaves_its_neighbours_alone():
    kernel = RNG.normal(size=(5, 9, 4)).astype(np.float32)
    kernel[2] = 0
    got = norms(kernel)
    assert got[2] == 0
    np.testing.assert_allclose(got, reference(kernel), rtol=1e-6)
    np.testing.assert_array_equal(norms(np.zeros((3, 9, 4))), 0)


@pytest.mark.parametrize("scale", [1e-34, 1e-20, 1e-10, 1e15, 1e30, 5e36])
def test_the_norm_of_a_scaled_kernel_neither_underflows_nor_overflows(scale):
    kernel = (RNG.normal(size=(16, 9, 8)) * scale).astype(np.float32)
    np.testing.assert_allclose(norms(kernel), reference(kernel), rtol=1e-6)
    mixed = np.concatenate([kernel, kernel / np.float32(scale)])
    np.testing.assert_allclose(norms(mixed), reference(mixed), rtol=1e-6)


@pytest.mark.parametrize("fan_in", [256, 300])
@pytest.mark.parametrize("scale", [1.0, 1e18])
def test_a_large_kernel_is_as_exact_on_its_own_path(scale, fan_in):
    kernel = (RNG.normal(size=(256, 9, fan_in)) * scale).astype(np.float32)
    np.testing.assert_allclose(norms(kernel), reference(kernel), rtol=2e-6)


def test_a_norm_beyond_float32_is_infinite_and_denormal_numbers_are_small():
    assert norms(np.full((1, 9, 64), 1e38))[0] == np.inf
    assert 0 <= norms(np.full((1, 9, 4), 1e-40))[0] < 1e-38


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_channel(bad):
    kernel = RNG.normal(size=(6, 9, 4)).astype(np.float32)
    clean = norms(kernel)
    kernel[3, 5, 1] = bad
    got = norms(kernel)
    assert np.isnan(got[3])
    np.testing.assert_allclose(np.delete(got, 3), np.delete(clean, 3), rtol=1e-6)


def test_padding_fan_in_or_taps_with_zeros_changes_nothing():
    kernel = RNG.normal(size=(6, 9, 5)).astype(np.float32)
    expected = norms(kernel)
    np.testing.assert_allclose(norms(np.pad(kernel, ((0, 0), (0, 0), (0, 11)))), expected, rtol=1e-6)
    np.testing.assert_allclose(norms(np.pad(kernel, ((0, 0), (3, 4), (0, 0)))), expected, rtol=1e-6)


def test_order_of_taps_and_signs_do_not_matter():
    kernel = RNG.normal(size=(6, 9, 5)).astype(np.float32)
    shuffled = -kernel[:, RNG.permutation(9)][:, :, RNG.permutation(5)]
    np.testing.assert_allclose(norms(shuffled), norms(kernel), rtol=1e-6)


# ---------------------------------------------------------------- batching


def layers_of(seed):
    rng = np.random.default_rng(seed)
    shapes = [(8, 9, 3), (16, 9, 8), (16, 1, 8), (10, 1, 16), (12, 9, 1), (4, 9, 12), (5, 2, 9)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_layers_of_one_gram_size_share_a_batch_and_come_back_in_order():
    kernels = layers_of(0)
    together = lipschitz.spectral_norms(kernels)
    assert [norm.shape for norm in together] == [(len(kernel),) for kernel in kernels]
    for kernel, norm in zip(kernels, together, strict=True):
        np.testing.assert_allclose(norm, reference(kernel), rtol=1e-6)
    assert lipschitz.spectral_norms([]) == []


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e25])
def test_channels_that_lie_first_have_the_same_norms_either_side_up(factor):
    kernels = [kernel * factor for kernel in layers_of(0)]
    either = [kernel.swapaxes(1, 2) if k % 2 else kernel for k, kernel in enumerate(kernels)]
    found = lipschitz.spectral_norms([*either, *kernels], channels_first=range(len(kernels)))
    for kernel, first, last in zip(kernels, found, found[len(kernels) :], strict=False):
        np.testing.assert_allclose(first, last, rtol=1e-6)
        np.testing.assert_allclose(first / factor, reference(kernel / factor), rtol=1e-5)


# ---------------------------------------------------------------- affine scales


def test_affine_scales_by_hand():
    got = lipschitz.affine_scales(jnp.array([2.0, -3.0, 0.0]), jnp.array([4.0, 9.0, 1.0]))
    np.testing.assert_allclose(got, [1.0, 1.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(lipschitz.affine_scales(jnp.ones(1), jnp.array([3.0]), eps=1.0), [0.5], rtol=1e-6)


def test_affine_scales_without_scale_or_variance():
    np.testing.assert_array_equal(lipschitz.affine_scales(jnp.array([-2.0, 3.0]), None), [2.0, 3.0])
    np.testing.assert_allclose(lipschitz.affine_scales(None, jnp.array([4.0, 0.25])), [0.5, 2.0], rtol=1e-6)
    assert lipschitz.affine_scales(None, None) == 1


def test_no_scale_is_defined_where_the_variance_is_not_positive_and_finite():
    var = jnp.array([0.0, -1.0, jnp.nan, jnp.inf, -jnp.inf, 4.0, 1e-40])
    got = np.asarray(lipschitz.affine_scales(jnp.ones(7), var))
    np.testing.assert_array_equal(np.isnan(got), [True, True, True, True, True, False, True])
    assert got[5] == 0.5
    got = np.asarray(lipschitz.affine_scales(jnp.zeros(2), jnp.zeros(2)))
    assert np.isnan(got).all()  # 0 / 0 is no score, and 0 would be one
    np.testing.assert_array_equal(np.isnan(lipschitz.affine_scales(None, var, eps=1e-5)), [0, 1, 1, 1, 1, 0, 0])


# ---------------------------------------------------------------- thresholds


def test_thresholds_are_mean_plus_u_unbiased_deviations():
    scores = RNG.gamma(2.0, size=100).astype(np.float32)
    mean, std = scores.astype(np.float64).mean(), scores.astype(np.float64).std(ddof=1)
    np.testing.assert_allclose(lipschitz.thresholds(scores, U), mean + U * std, rtol=1e-6)
    assert np.shape(lipschitz.thresholds(scores, 3.0)) == ()
    np.testing.assert_allclose(lipschitz.thresholds(scores, 3.0), mean + 3 * std, rtol=1e-6)
    np.testing.assert_allclose(lipschitz.z_scores(scores), (scores - mean) / std, rtol=1e-5, atol=1e-6)


def test_thresholds_leave_out_channels_without_a_score():
    scores = RNG.gamma(2.0, size=40).astype(np.float32)
    holes = scores.copy()
    holes[[3, 17]] = np.nan
    holes[20] = np.inf
    kept = np.delete(scores, [3, 17, 20]).astype(np.float64)
    np.testing.assert_allclose(lipschitz.thresholds(holes, U), kept.mean() + U * kept.std(ddof=1), rtol=1e-6)
    z = np.asarray(lipschitz.z_scores(holes))
    np.testing.assert_array_equal(np.isnan(z), np.isnan(holes))
    assert z[20] == np.inf


@pytest.mark.parametrize("scores", [[1.0], [np.nan, 2.0, np.nan], [np.nan, np.nan], []])
def test_fewer_than_two_scores_set_no_threshold(scores):
    scores = np.array(scores, np.float32)
    np.testing.assert_array_equal(lipschitz.thresholds(scores, U), np.inf)
    assert np.isnan(lipschitz.z_scores(scores)).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e-20, 7e15, 2e38])
@pytest.mark.parametrize("channels", [2, 3, 37, 512])
def test_a_constant_layer_has_no_channel_above_its_threshold(value, channels):
    scores = np.full(channels, value, np.float32)
    for u in (*U, np.inf):
        assert not (scores > np.asarray(lipschitz.thresholds(scores, u))).any()
    assert np.isnan(lipschitz.z_scores(scores)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15, 1e30])
def test_thresholds_scale_with_the_scores(scale):
    scores = RNG.gamma(2.0, size=64).astype(np.float32)
    expected = np.asarray(lipschitz.thresholds(scores, U), np.float64) * scale
    np.testing.assert_allclose(lipschitz.thresholds(scores * np.float32(scale), U), expected, rtol=1e-5)


def test_no_z_score_exceeds_what_the_width_allows():
    """One channel apart from n - 1 equal ones is the extreme: z = (n - 1) / sqrt(n)."""
    for n in (2, 8, 64):
        scores = np.ones(n, np.float32)
        scores[0] = 1e6
        np.testing.assert_allclose(np.max(lipschitz.z_scores(scores)), (n - 1) / n**0.5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(9, 16, 8), (16, 9, 8), (1, 5, 3)])
def test_gram_matrices_as_a_tpu_makes_them_are_those_of_products(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = kernel if shape[0] <= shape[1] else kernel.swapaxes(0, 1)
    expected = np.einsum("sdc,tdc->stc", rows, rows)
    np.testing.assert_allclose(lipschitz._grams_by_vector(jnp.asarray(rows)), expected, rtol=1e-4, atol=1e-4)
    first = jnp.asarray(np.moveaxis(kernel, -1, 0))
    np.testing.assert_allclose(lipschitz._grams_of_transposed(first), expected, rtol=1e-4, atol=1e-4)


def test_in_a_batch_the_common_case_stays_a_branch_and_one_extreme_kernel_scales_all():
    kernels = np.random.default_rng(0).normal(size=(3, 4, 8, 6)).astype(np.float32)
    kernels *= np.array([1, 1e25, 1e-30], np.float32)[:, None, None, None]

    def norms(kernel):
        return lipschitz.norms_of([lipschitz.scaled_grams(kernel, is_channels_first=False)])[0]

    batched = jax.vmap(norms)(jnp.asarray(kernels))
    expected = np.linalg.norm(np.transpose(kernels.astype(np.float64), (0, 3, 1, 2)), 2, axis=(2, 3))
    np.testing.assert_allclose(batched, expected, rtol=1e-4)
    assert "cond[" in str(jax.make_jaxpr(jax.vmap(norms))(jnp.asarray(kernels)))


@pytest.mark.parametrize("size", range(1, 10))
def test_gram_matrices_by_slab_are_those_of_products(size):
    rows = np.random.default_rng(0).normal(size=(size, 32, 5)).astype(np.float32)
    expected = np.einsum("sdc,tdc->stc", rows, rows)
    np.testing.assert_allclose(lipschitz._grams_by_slab(jnp.asarray(rows)), expected, rtol=1e-4, atol=1e-4)


def test_eigenvalues_of_many_matrices_are_found_in_blocks_of_which_the_last_is_not_full():
    rows = np.random.default_rng(0).normal(size=(2700, 4, 6)).astype(np.float32)
    gram = rows @ rows.swapaxes(1, 2)
    assert gram.size > 2 * eigenvalues._BLOCK and gram.size % eigenvalues._BLOCK
    expected = np.linalg.eigvalsh(gram.astype(np.float64))[:, -1]
    np.testing.assert_allclose(eigenvalues.largest(np.moveaxis(gram, 0, -1)), expected, rtol=2e-6)
