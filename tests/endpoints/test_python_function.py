"""Python functions as endpoints: every answer is checked, and none is believed that is not a row of finite numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faulty_server import CLASSES, images, scores_of

from jaxguard import endpoints
from jaxguard.errors import DataError, EndpointError, JaxguardError, OptionError


def test_batches_add_up_to_the_whole():
    sizes = []

    def model(batch):
        sizes.append(len(batch))
        return scores_of(batch)

    endpoint = endpoints.local(model, batch_size=4)
    scores = endpoint(images(10))
    assert sizes == [4, 4, 2]
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, scores_of(images(10)), rtol=1e-12)


def test_any_function_can_be_queried():
    np.testing.assert_allclose(endpoints.query(scores_of, images(3)), scores_of(images(3)))
    partial = functools.partial(np.einsum, "bhwc,kc->bk", optimize=False)
    with pytest.raises(EndpointError, match="einsum"):
        endpoints.query(partial, images(3))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_jax_models_answer_in_any_real_dtype(dtype):
    model = jax.jit(lambda batch: jnp.round(batch.sum((1, 2))).astype(dtype))
    expected = np.round(images(3).sum((1, 2)))
    np.testing.assert_array_equal(endpoints.query(model, images(3)), expected)


def test_lists_are_answers_too():
    np.testing.assert_array_equal(endpoints.query(lambda batch: [[1, 2.5]] * len(batch), images(2)), [[1, 2.5]] * 2)


def test_labels_become_one_hot():
    endpoint = endpoints.local(lambda batch: scores_of(batch).argmax(1), kind="labels", num_classes=CLASSES)
    expected = np.eye(CLASSES)[scores_of(images(9)).argmax(1)]
    np.testing.assert_array_equal(endpoint(images(9)), expected)
    np.testing.assert_array_equal(
        endpoints.local(lambda b: [2.0, 0], kind="labels", num_classes=3)(images(2)), np.eye(3)[[2, 0]]
    )


def test_equal_images_are_asked_for_once():
    asked = []
    twice = np.concatenate([images(3), images(5)])
    scores = endpoints.local(lambda batch: asked.append(len(batch)) or scores_of(batch))(twice)
    assert asked == [5]
    np.testing.assert_allclose(scores, scores_of(twice))


def test_progress_counts_images():
    calls = []
    endpoints.query(endpoints.local(scores_of, batch_size=2), images(5), progress=lambda *call: calls.append(call))
    assert calls == [(2, 5), (4, 5), (5, 5)]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (np.zeros((1, 3)), r"\[2, K\], one for each of 2 images, got 1 answers"),
        (np.zeros((3, 3)), "got 3 answers"),
        (np.zeros(2), r"got shape \(2,\) of ndarray; pass kind=\"labels\""),
        (np.zeros((2, 3, 1)), r"got shape \(2, 3, 1\)"),
        (np.zeros((2, 1)), "expected 2 to 100000 scores per image, got 1; a single probability"),
        (np.zeros((2, 0)), "got 0"),
        (np.array([[1, 2], [3, NAN]]), r"got nan in answers\[1\]\[1\] of the batch \(1 of 4 numbers\)"),
        (np.array([[1, -INF], [3, NAN]]), r"got -inf in answers\[0\]\[1\] of the batch \(2 of 4"),
        (np.array([[1, 1e39], [3, 4]]), r"got 1e\+39 in answers\[0\]\[1\]"),
        (np.ones((2, 3), bool), "dtype bool"),
        (np.ones((2, 3), complex), "dtype complex128"),
        (np.full((2, 3), "1"), "expected real numbers, got dtype <U1"),
        (np.full((2, 3), None), "dtype object"),
        (None, r"got shape \(\) of NoneType"),
        ({"scores": 1}, "of dict"),
        (((1, 2), (3,)), "got tuple that numpy cannot read"),
        ([[1, 2], [3]], r"got 2 in answers\[0\] and 1 in answers\[1\]"),
        ([[1, 2], [3, "4"]], r"got a string in answers\[1\]\[1\]"),
        ([[1, None], [3, 4]], r"got null in answers\[0\]\[1\]"),
        ([[1, 2], [True, 4]], r"got a boolean in answers\[1\]\[0\]"),
        ([[1, 2], {"a": 1}], r"expected a list of scores per image, got an object in answers\[1\]"),
        ([[1, 2], [[3], 4]], r"got a list in answers\[1\]\[0\]"),
        ([[1, NAN], [3, 4]], r"got nan in answers\[0\]\[1\]"),
        ([[1, 10**400], [3, 4]], "got an integer that is larger"),
        ([1, 2], r"got a int in answers\[0\] of the batch; pass kind=\"labels\""),
    ],
)
def test_other_answers_are_no_answers(found, words):
    with pytest.raises(EndpointError, match=words) as raised:
        endpoints.query(lambda batch: found, images(2))
    assert "batch 1 of 1 (images[0] to images[1])" in str(raised.value)
    assert isinstance(raised.value, JaxguardError)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([0, 3], r"expected labels in \[0, 3\), got 3 in answers\[1\]"),
        ([-1, 0], r"got -1 in answers\[0\]"),
        ([0.5, 0], r"got 0.5 in answers\[0\]"),
        ([NAN, 0], "got nan"),
        ([0, "cat"], r"expected an integer label, got a string in answers\[1\]"),
        ([[0, 1, 0], [1, 0, 0]], r"got a list in answers\[0\] of the batch; pass kind=\"scores\""),
        (np.eye(3)[:2], r"got shape \(2, 3\) of ndarray; pass kind=\"scores\""),
        ([0], "got 1 answers"),
    ],
)
def test_other_labels_are_no_labels(found, words):
    with pytest.raises(EndpointError, match=words):
        endpoints.local(lambda batch: found, kind="labels", num_classes=3)(images(2))


def test_the_number_of_classes_must_not_change():
    widths = iter([4, 4, 3])
    endpoint = endpoints.local(lambda batch: np.ones((len(batch), next(widths))), batch_size=2)
    with pytest.raises(EndpointError, match=r"batch 3 of 3 \(images\[4\] to images\[4\]\): expected 4 .* got 3"):
        endpoint(images(5))
    with pytest.raises(EndpointError, match="expected 7 scores per image, got 5; pass num_classes=5"):
        endpoints.local(scores_of, num_classes=7)(images(2))


def test_an_exception_of_the_function_is_the_cause():
    def model(batch):
        raise RuntimeError("out of memory")

    with pytest.raises(EndpointError, match=r"got RuntimeError: out of memory; .*\(2, 4, 4, 3\)") as raised:
        endpoints.query(model, images(2))
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.full((2, 4, 4, 3), 1.5),
        np.full((2, 4, 4, 3), np.nan),
    ],
)
def test_images_are_checked_before_anyone_is_asked(given):
    def model(batch):
        raise AssertionError

    with pytest.raises(DataError, match="images: expected"):
        endpoints.query(model, given)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"kind": "logits"},
        {"kind": "labels"},
        {"num_classes": 1},
        {"version": "", "cache": "answers.db"},
    ],
)
def test_arguments_are_checked(options):
    with pytest.raises(
        (EndpointError, OptionError), match=next(iter(options)) if options != {"kind": "labels"} else "num_classes"
    ):
        endpoints.local(scores_of, **options)
