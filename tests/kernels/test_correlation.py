import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxguard.kernels import correlation

KERNELS = [("cosine", False), ("cosine", True), ("rbf", False)]


def golden():
    """The models behind the numbers that the authors' functions gave."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 10))
    b = a + 0.3 * rng.standard_normal((6, 10))
    c = rng.standard_normal((6, 10))
    return [np.float32(each) for each in (a, b, c)]


def outputs(num_suspects, num_probes, num_classes=10, seed=0, *, noise=1.0):
    rng = np.random.default_rng(seed)
    owner = rng.normal(size=(num_probes, num_classes)).astype(np.float32)
    suspects = owner + noise * rng.normal(size=(num_suspects, num_probes, num_classes))
    return owner, suspects.astype(np.float32)


def rows_of(*models):
    return [correlation.unit_rows(jnp.asarray(each)) for each in models]


def unit(model):
    return np.asarray(model, np.float64) / np.linalg.norm(np.asarray(model, np.float64), axis=-1, keepdims=True)


def reference(owner, suspect, kernel, halved):
    """Whole matrices in float64, from squared distances rather than products."""

    def matrix(model):
        rows = unit(model)
        squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        return np.exp(-squares) if kernel == "rbf" else squares / (4 if halved else 2)

    return np.abs(matrix(owner) - matrix(suspect)).mean()


@pytest.mark.parametrize(
    ("kernel", "halved", "entry", "near", "far"),
    [("cosine", True, 0.7609051, 0.0525250, 0.1997665), ("rbf", False, 0.0476620, 0.0347654, 0.1197011)],
)
def test_numbers_of_the_authors_functions(kernel, halved, entry, near, far):
    a, b, c = rows_of(*golden())
    assert correlation.matrix(a, kernel=kernel, halved=halved)[0, 1] == pytest.approx(entry, abs=1e-6)
    found = correlation.distances(a, jnp.stack([b, c]), kernel=kernel, halved=halved)
    np.testing.assert_allclose(found, [near, far], atol=1e-6)


def test_numbers_of_the_authors_functions_for_labels():
    a, b, c = (correlation.label_rows(model.argmax(-1), 10) for model in golden())
    assert correlation.matrix(a, halved=True)[0, 1] == pytest.approx(0.0880478, abs=1e-6)
    found = correlation.distances(a, jnp.stack([b, c]), halved=True)
    np.testing.assert_allclose(found, [0, 0.0048915], atol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_labels_give_a_constant_times_whether_they_differ(num_classes):
    labels = np.random.default_rng(1).integers(num_classes, size=30)
    one, other = np.exp(1.0), np.exp(0.01)
    cosine = (2 * one * other + (num_classes - 2) * other**2) / (one**2 + (num_classes - 1) * other**2)
    found = correlation.matrix(correlation.label_rows(labels, num_classes), halved=True)
    np.testing.assert_allclose(found, (1 - cosine) / 2 * (labels[:, None] != labels), atol=1e-6)


def test_a_matrix_by_hand():
    rows = correlation.unit_rows(jnp.array([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(correlation.matrix(rows), [[0, 1, 2], [1, 0, 1], [2, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(correlation.matrix(rows, halved=True)[0], [0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(correlation.matrix(rows, kernel="rbf")[0], np.exp([0, -2, -4]), rtol=1e-5)


@pytest.mark.parametrize(("kernel", "halved"), KERNELS)
@pytest.mark.parametrize("num_probes", [1, 7, 50])
def test_distances_against_whole_float64_matrices(num_probes, kernel, halved):
    owner, suspects = outputs(5, num_probes)
    found = correlation.distances(*rows_of(owner, suspects), kernel=kernel, halved=halved)
    expected = [reference(owner, suspect, kernel, halved) for suspect in suspects]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_rbf_is_a_map_of_the_cosine_matrix():
    (rows,) = rows_of(outputs(1, 40)[0])
    cosine = correlation.matrix(rows, halved=True)
    np.testing.assert_allclose(correlation.matrix(rows, kernel="rbf"), np.exp(-4 * cosine), atol=1e-6)


@pytest.mark.parametrize(("kernel", "halved"), KERNELS)
def test_a_model_differs_from_itself_by_nothing(kernel, halved):
    (rows,) = rows_of(outputs(1, 60)[0])
    assert correlation.distances(rows, rows[None], kernel=kernel, halved=halved, tile=16).tolist() == [0.0]


def test_positive_scales_of_rows_and_the_order_of_probes_do_not_matter():
    owner, suspects = outputs(3, 40)
    expected = correlation.distances(*rows_of(owner, suspects))
    scales = np.random.default_rng(2).uniform(0.01, 100, size=(40, 1)).astype(np.float32)
    np.testing.assert_allclose(correlation.distances(*rows_of(owner * scales, suspects / scales)), expected, rtol=1e-5)
    order = np.random.default_rng(3).permutation(40)
    np.testing.assert_allclose(correlation.distances(*rows_of(owner[order], suspects[:, order])), expected, rtol=1e-5)


def test_suspects_may_have_another_number_of_classes():
    owner, _ = outputs(1, 40, num_classes=10)
    _, suspects = outputs(4, 40, num_classes=3, seed=5)
    found = correlation.distances(*rows_of(owner, suspects), tile=16)
    np.testing.assert_allclose(found, [reference(owner, each, "cosine", False) for each in suspects], rtol=2e-5)
    padded = np.pad(owner, ((0, 0), (0, 7)))  # classes that never get anything
    np.testing.assert_allclose(correlation.distances(*rows_of(owner, padded[None])), [0], atol=1e-6)


# ---------------------------------------------------------------- tiles, batches, workers


@pytest.mark.parametrize(("kernel", "halved"), KERNELS)
@pytest.mark.parametrize("tile", [1, 16, 49])
def test_tiles_are_the_whole(tile, kernel, halved):
    owner, suspects = outputs(3, 50, num_classes=4)
    owner[3] = suspects[1, 7] = 0  # zero rows are no padding
    rows = rows_of(owner, suspects)
    whole = correlation.distances(*rows, kernel=kernel, halved=halved, tile=50)
    np.testing.assert_allclose(correlation.distances(*rows, kernel=kernel, halved=halved, tile=tile), whole, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_batches_change_and_reorder_nothing(batch_size):
    owner, suspects = outputs(7, 30)
    found = correlation.distances(*rows_of(owner, suspects), tile=8, batch_size=batch_size)
    np.testing.assert_allclose(found, [reference(owner, each, "cosine", False) for each in suspects], rtol=2e-5)


def test_no_suspects_have_no_distances():
    owner, suspects = outputs(1, 5)
    assert correlation.distances(*rows_of(owner, suspects[:0])).shape == (0,)


def test_no_program_holds_matrices_of_all_suspects_or_a_whole_large_one():
    owner, suspects = jnp.zeros((10_000, 10)), jnp.zeros((20, 10_000, 10))
    compare = jax.jit(lambda *rows: correlation.distances(*rows, tile=1024))
    used = compare.lower(owner, suspects).compile().memory_analysis()
    assert used.temp_size_in_bytes < 64e6  # one matrix is 400 MB; the padded suspects are 8 MB


# ---------------------------------------------------------------- edges


def test_rows_without_a_direction():
    rows = correlation.unit_rows(jnp.array([[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [1e30, 1e30], [3e-20, 4e-20]]))
    assert rows[0].tolist() == [0, 0]
    assert np.isnan(rows[1:4]).all()
    assert np.abs(rows[4]).max() < 1e-6  # as the reference divides by at least 1e-12


def test_a_suspect_that_answers_nonsense_has_no_distance_and_leaves_others_alone():
    owner, suspects = outputs(3, 20)
    expected = np.asarray(correlation.distances(*rows_of(owner, suspects), tile=8))
    suspects[1, 4, 2] = np.nan
    found = np.asarray(correlation.distances(*rows_of(owner, suspects), tile=8))
    assert np.isnan(found).tolist() == [False, True, False]
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert np.isnan(correlation.label_rows(np.array([-1, 2, 10]), 10)).all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("bad", [{"kernel": "linear"}, {"tile": 0}, {"batch_size": 0}])
def test_bad_settings_are_named(bad):
    owner, suspects = outputs(2, 5)
    with pytest.raises(ValueError, match=next(iter(bad))):
        correlation.distances(*rows_of(owner, suspects), **bad)
