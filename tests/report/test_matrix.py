"""The heat map shows every score at its place, and puts suspects of one family side by side."""

import base64
import dataclasses
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from samples import HOSTILE, fingerprint_matrix
from scipy.cluster import hierarchy

from jaxguard.errors import DataError
from jaxguard.report.figures import matrix as matrix_map
from jaxguard.types import FingerprintMatrix

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def cells(svg: str) -> np.ndarray:
    """Pixels of the heat map, `[B, A, 4]`."""
    uri = re.findall(r'href="data:image/png;base64,([^"]+)"', svg)[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGBA"))


def scored(scores: np.ndarray) -> FingerprintMatrix:
    owners, suspects = (tuple(f"{kind}{k}" for k in range(size)) for kind, size in zip("os", scores.shape, strict=True))
    return FingerprintMatrix("sac", {}, owners, suspects, -scores, scores)


def test_families_lie_side_by_side():
    family = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    scores = np.where(family == np.arange(3)[:, None], 0.9, 0.1) + np.linspace(0, 0.01, 27).reshape(3, 9)
    order = matrix_map.arrange(scores)
    assert sorted(order.suspects) == list(range(9))
    assert np.count_nonzero(np.diff(family[order.suspects])) == 2
    assert family[order.suspects][[0, 3, 6]].tolist() == order.owners.tolist()  # owners follow, so the map is diagonal


def test_the_tree_is_the_one_of_average_linkage():
    scores = np.random.default_rng(0).normal(size=(4, 12))
    order = matrix_map.arrange(scores)
    tops = np.sort(order.heights[:, 1])
    np.testing.assert_allclose(tops, np.sort(hierarchy.linkage(scores.T, "average")[:, 2]))
    # The first join of two leaves stands at the distance of the two, between their rows.
    lowest = int(np.argmin(order.heights[:, 1]))
    one, other = order.suspects[order.places[lowest][[0, 2]].astype(int)]
    assert order.heights[lowest, 1] == pytest.approx(np.linalg.norm(scores[:, one] - scores[:, other]))
    assert int(np.argmax(scores.max(0)[order.suspects])) < 6  # the highest score is in the first half


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (2, 2), (0, 3), (3, 0)])
def test_small_matrices_are_arranged(shape):
    order = matrix_map.arrange(np.random.default_rng(0).normal(size=shape))
    assert sorted(order.owners) == list(range(shape[0]))
    assert sorted(order.suspects) == list(range(shape[1]))
    assert len(order.heights) == (shape[1] - 1 if min(shape) > 1 else 0)


def test_undefined_scores_do_not_stop_the_order():
    scores = np.array([[0.5, np.nan, np.inf, 0.1], [np.nan] * 4, [0.2, 0.3, -np.inf, 0.3]])
    assert sorted(matrix_map.arrange(scores).suspects) == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(1, 3), (3, 4), (5, 20), (30, 100)])
def test_every_cell_has_its_colour(shape):
    scores = np.random.default_rng(1).normal(size=shape)
    drawing = matrix_map.heat_map(scored(scores), name="a")
    order = matrix_map.arrange(scores)
    expected = scores[np.ix_(order.owners, order.suspects)].T
    shown = cells(drawing)
    assert shown.shape[:2] == expected.shape
    brightness = shown[..., :3].reshape(-1, 3) @ [0.2126, 0.7152, 0.0722]
    by_score = brightness[np.argsort(expected.ravel())]
    assert (np.diff(by_score) > -1).all()  # brighter is higher, up to the rounding of colours
    assert np.ptp(brightness) > 150
    assert (shown[..., 3] == 255).all()


def test_names_are_in_the_order_of_the_cells():
    scores = np.random.default_rng(2).normal(size=(4, 7))
    order = matrix_map.arrange(scores)
    shown = texts(matrix_map.heat_map(scored(scores), name="a"))
    assert [text for text in shown if re.fullmatch(r"s\d", text)] == [f"s{k}" for k in order.suspects]
    assert [text for text in shown if re.fullmatch(r"o\d", text)] == [f"o{k}" for k in order.owners]


def test_few_cells_hold_their_numbers():
    scores = np.array([[0.11, 0.52], [0.93, np.nan]])
    shown = texts(matrix_map.heat_map(scored(scores), name="a"))
    assert {"0.11", "0.52", "0.93", "–"} <= set(shown)
    many = matrix_map.MAX_NUMBERS + 1
    assert "0.50" not in texts(matrix_map.heat_map(scored(np.full((2, many), 0.5)), name="a"))


def test_undefined_cells_are_empty():
    scores = np.array([[0.1, np.nan, 0.3], [0.2, 0.3, 0.4]])
    drawing = matrix_map.heat_map(scored(scores), name="a")
    assert (cells(drawing)[..., 3] == 0).sum() == 1
    assert "0.1 to 0.4, 1 undefined;" in drawing


def test_nothing_defined_is_nothing_drawn():
    assert matrix_map.heat_map(scored(np.full((2, 3), np.nan)), name="a") == ""
    assert matrix_map.heat_map(scored(np.zeros((0, 3))), name="a") == ""


def test_large_matrices_drop_the_names_that_nobody_could_read():
    scores = np.random.default_rng(0).normal(size=(60, 300))
    drawing = matrix_map.heat_map(scored(scores), name="a")
    assert not [text for text in texts(drawing) if re.fullmatch(r"[os]\d+", text)]
    assert cells(drawing).shape[:2] == (300, 60)


def test_both_ends_of_the_colours_stand_out_from_white_and_from_black():
    def contrast(colour: tuple[float, ...], background: float) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        low, high = sorted((float(np.dot(linear, [0.2126, 0.7152, 0.0722])), background))
        return (high + 0.05) / (low + 0.05)

    colours = matrix_map._colours()
    for end, paper in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
        assert contrast(colours(end), paper) > 1.2


def test_a_matrix_that_does_not_fit_is_refused():
    wrong = dataclasses.replace(scored(np.zeros((2, 3))), scores=np.zeros((3, 2)))
    with pytest.raises(DataError, match="in the fingerprint matrix"):
        matrix_map.heat_map(wrong, name="a")


def test_hostile_names_are_text():
    matrix = dataclasses.replace(
        fingerprint_matrix(2, 3), method=HOSTILE, owners=(HOSTILE,) * 2, suspects=(HOSTILE,) * 3
    )
    drawing = matrix_map.heat_map(matrix, name="a")
    assert "<script" not in drawing
    assert not set("\x1b\u202e") & set(drawing)
