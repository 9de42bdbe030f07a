"""The drawings of a pruning show every cut, mark what was kept, and rank channels over the whole model."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from samples import HOSTILE, pruning_path, shapley_layers

from jaxguard.errors import DataError
from jaxguard.report.figures import pruning
from jaxguard.types import LayerScores

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def label(svg: str) -> str:
    found = re.search(r'aria-label="(.*?)"', svg)
    assert found is not None
    return found[1]


def layer(scores: list[float], errors: list[float] | None, cut: tuple[int, ...] = (), name: str = "conv"):
    array = np.array(scores)
    mask = np.isin(np.arange(array.size), cut)
    return LayerScores(name, array, np.inf, mask, np.isnan(array), None if errors is None else np.array(errors))


def test_curve_tells_what_was_kept_and_what_was_tried():
    path = pruning_path(shapley_layers())
    drawing = pruning.pruning_curve(path, name="a")
    shown = texts(drawing)
    assert {"clean accuracy", "success of the recovered trigger", "9 kept", "only tried", "channels cut"} <= set(shown)
    assert label(drawing) == (
        "Of 14 cuts 9 were kept: success of the recovered trigger 98.0 % → 7.4 %, clean accuracy 99.0 % → 97.2 %; "
        "after all 14 that were tried 1.7 % and 86.2 %."
    )


@pytest.mark.parametrize(("tried", "chosen"), [(1, 0), (1, 1), (14, 14), (100, 3)])
def test_curve_of_any_length(tried, chosen):
    path = pruning_path(shapley_layers((64, 64)), tried=tried, chosen=chosen)
    shown = texts(pruning.pruning_curve(path, name="a"))
    assert f"{chosen} kept" in shown
    assert ("only tried" in shown) == (chosen < tried)


def lines(svg: str, variable: str, dashed: bool) -> list[np.ndarray]:
    """Points of the strokes of a colour, in drawing units."""
    paths = [
        element.attrib["d"]
        for element in ElementTree.fromstring(svg).iter(f"{SVG}path")
        if f"stroke: var(--{variable}" in element.attrib.get("style", "")
        and ("stroke-dasharray" in element.attrib["style"]) == dashed
        and "clip" not in element.attrib
    ]
    return [np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path), float) for path in paths]


def test_curve_passes_through_the_rates():
    path = dataclasses.replace(
        pruning_path(shapley_layers(), tried=4, chosen=2),
        attack=np.array([1.0, 0.5, 0.25, 0.25, 0.0]),
        accuracy=np.array([1.0, 1.0, 1.0, 0.5, 0.0]),
    )
    drawing = pruning.pruning_curve(path, name="a")
    (kept,) = [points for points in lines(drawing, "alert", dashed=False) if len(points) == 3]
    np.testing.assert_allclose(np.diff(kept[:, 0]), np.diff(kept[:, 0])[0])  # one cut, one step
    np.testing.assert_allclose(np.diff(kept[:, 1])[0], 2 * np.diff(kept[:, 1])[1], rtol=1e-4)  # 50 points, then 25
    beyond = [points for points in lines(drawing, "muted", dashed=True) if len(points) == 3]
    assert len(beyond) == 2
    np.testing.assert_allclose(beyond[1][0], kept[-1], rtol=1e-4)  # what was tried goes on from what was kept
    np.testing.assert_allclose(beyond[0][-1], beyond[1][-1], rtol=1e-4)  # both end at 0


def test_undefined_rates_leave_a_gap():
    path = pruning_path(shapley_layers(), tried=3, chosen=2)
    path.attack[:] = np.nan
    assert "success of the recovered trigger undefined → undefined" in label(pruning.pruning_curve(path, name="a"))


def test_no_cut_is_no_curve():
    assert pruning.pruning_curve(pruning_path(shapley_layers(), tried=0, chosen=0), name="a") == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"attack": np.zeros(14)},
        {"accuracy": np.zeros((15, 1))},
        {"chosen": 15},
        {"chosen": -1},
        {"values": np.zeros(15)},
        {"errors": np.zeros(0)},
    ],
)
def test_a_path_that_does_not_fit_is_refused(wrong):
    path = dataclasses.replace(pruning_path(shapley_layers()), **wrong)
    with pytest.raises(DataError, match="in the pruning path"):
        pruning.pruning_curve(path, name="a")


def test_rank_is_over_all_layers_and_leaves_out_the_undefined():
    layers = [
        layer([0.1, np.nan, 0.3], [0.01, 0.01, np.inf], (2,), "a"),
        layer([0.2, 0.3, -0.5], None, (0,), "b"),
    ]
    ranked = pruning.rank(layers)
    assert ranked.names == ["a[2]", "b[1]", "b[0]", "a[0]", "b[2]"]  # ties in program order
    np.testing.assert_array_equal(ranked.scores, [0.3, 0.3, 0.2, 0.1, -0.5])
    np.testing.assert_array_equal(ranked.errors, [np.nan, np.nan, np.nan, 0.01, np.nan])
    np.testing.assert_array_equal(ranked.is_cut, [True, False, True, False, False])


def test_ranking_names_the_highest_and_counts_the_others():
    layers = shapley_layers()
    drawing = pruning.ranked_scores(layers, name="a", quantity="Shapley value")
    shown = texts(drawing)
    assert [text for text in shown if text.startswith("layer")] == pruning.rank(layers).names[: pruning.MAX_ROWS]
    assert {"the other 81", "Shapley value", "channel", "cut", "± standard error"} <= set(shown)
    assert label(drawing).startswith("Shapley value of 111 channels in 3 layers, the 30 highest one by one")
    assert label(drawing).endswith("; 9 cut; 1 undefined.")


def test_ranking_of_few_channels_without_errors_or_cuts():
    shown = texts(pruning.ranked_scores([layer([1.0, 2.0], [np.nan, np.inf])], name="a", quantity="score"))
    assert [text for text in shown if text.startswith("conv")] == ["conv[1]", "conv[0]"]
    assert not {"cut", "± standard error", "the other 0"} & set(shown)


def test_whiskers_are_the_standard_errors():
    drawing = pruning.ranked_scores([layer([3.0, 2.0], [0.25, 0.5])], name="a", quantity="score")
    first, second = (
        points[:, 0]
        for points in lines(drawing, "ink", dashed=False)
        if len(points) == 2 and points[0, 1] == points[1, 1] > 0
    )
    unit = first.mean() - second.mean()  # the scores are 1 apart
    np.testing.assert_allclose([np.ptp(first) / unit, np.ptp(second) / unit], [0.5, 1.0], rtol=1e-4)


def test_nothing_to_rank():
    assert pruning.ranked_scores([layer([np.nan], [np.nan])], name="a", quantity="score") == ""


def test_names_are_never_markup_nor_mathematics():
    shown = texts(pruning.ranked_scores([layer([1.0], [0.1], name="$x$</text><b>")], name="a", quantity="score"))
    assert "$x$</text><b>[0]" in shown
    drawing = pruning.ranked_scores([layer([1.0], [0.1], name=HOSTILE)], name="a", quantity="score")
    assert not set("\x1b\u202e") & set(drawing)


def test_colours_are_variables_and_ids_prefixed():
    layers = shapley_layers()
    drawing = pruning.pruning_curve(pruning_path(layers), name="p") + pruning.ranked_scores(
        layers, name="r", quantity="score"
    )
    assert "#0102" not in drawing
    assert all(name.startswith(("p-", "r-")) for name in re.findall(r'\bid="([^"]+)"', drawing))
    assert drawing == pruning.pruning_curve(pruning_path(layers), name="p") + pruning.ranked_scores(
        layers, name="r", quantity="score"
    )
