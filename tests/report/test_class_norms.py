"""The drawing of all classes' norms puts median, threshold and classes where the indices say they are."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.textpath import TextPath
from samples import recovered

from jaxguard.report.figures import class_norms
from jaxguard.types import RecoveredTrigger

SVG = "{http://www.w3.org/2000/svg}"


def trigger(norms: list[float], anomaly: list[float], target: int | None = None) -> RecoveredTrigger:
    ones, nothing = np.ones(len(norms)), np.zeros((0, 2, 2, 1))
    return RecoveredTrigger(np.array(norms), ones, np.array(anomaly), target, np.zeros(0, int), nothing, nothing, "")


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("classes", [3, 10, 43, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scale_is_the_one_the_indices_were_made_with(classes, dtype):
    found = recovered(classes, size=4)
    found = dataclasses.replace(found, norms=found.norms.astype(dtype), anomaly=found.anomaly.astype(dtype))
    own = class_norms.scale(found)
    median = np.median(found.norms)
    assert own.median == pytest.approx(median, rel=1e-4)
    assert own.flag == pytest.approx(median - 2 * 1.4826 * np.median(np.abs(found.norms - median)), rel=1e-3)


def test_classes_without_a_working_patch_count_with_what_their_index_says():
    norms = np.array([6.0, 40, 44, 50, 55, 30, 20])  # the last two did not work: their index is that of 1024 pixels
    counted = np.array([6.0, 40, 44, 50, 55, 1024, 1024])
    below = 50 - counted
    found = trigger(norms.tolist(), (below / (1.4826 * 10)).tolist(), target=0)
    assert class_norms.scale(found).median == pytest.approx(50)
    assert class_norms.scale(found).deviation == pytest.approx(14.826)
    np.testing.assert_allclose(class_norms.counted_norms(found), counted)
    assert "its patch fails" in texts(class_norms.class_norms(found, name="a"))


@pytest.mark.parametrize(
    ("norms", "anomaly"),
    [
        ([], []),
        ([5.0], [0.0]),
        ([5.0, 50.0], [0.67, -0.67]),  # two classes: always the same two indices
        ([7.0, 7.0, 7.0], [0.0, 0.0, 0.0]),
        ([5.0, 50.0, 60.0, 70.0], [3.0, 0.5, 2.0, -1.0]),  # no line
        ([5.0, 50.0, 60.0], [-3.0, 0.0, 1.0]),  # grows with the norm
        ([np.nan, np.nan, 1.0], [np.nan, 1.0, np.nan]),
    ],
)
def test_no_scale(norms, anomaly):
    found = trigger(norms, anomaly)
    assert np.isnan([*class_norms.scale(found), class_norms.scale(found).flag]).all()
    np.testing.assert_array_equal(class_norms.counted_norms(found), norms)
    shown = texts(class_norms.class_norms(found, name="a")) if np.isfinite(norms).any() else []
    assert not {"median", "anomaly index 2"} & set(shown)


def test_kinds_of_classes_have_their_own_marks():
    kinds = {"class", "its patch fails", "undefined", "flagged", "suspected", "median", "anomaly index 2"}
    norms = np.array([5.0, 10, 46, 48, 50, 52, 54, 56, np.nan])
    found = trigger(norms.tolist(), ((49 - norms) / 4).tolist(), target=0)
    found.success[4] = 0.2
    shown = texts(class_norms.class_norms(found, name="a"))
    assert kinds <= set(shown)
    assert "class 0" in shown
    alone = texts(class_norms.class_norms(trigger([48.0, 50, 52], [0.67, 0, -0.67]), name="a"))
    assert kinds & set(alone) == {"class", "median", "anomaly index 2"}


def test_a_threshold_out_of_reach_is_not_drawn():
    found = trigger([10.0, 50.0, 90.0], [0.67, 0.0, -0.67])
    assert class_norms.scale(found).flag < 0
    shown = texts(class_norms.class_norms(found, name="a"))
    assert "median" in shown
    assert "anomaly index 2" not in shown


def test_logarithmic_only_where_the_spread_asks_for_it():
    def ticks(norms: list[float]) -> set[str]:
        return set(texts(class_norms.class_norms(trigger(norms, [1.0, 0.0, -1.0]), name="a")))

    assert "0" in ticks([5.0, 50.0, 100.0]) and "60" in ticks([30.0, 50.0, 70.0])
    assert {"10", "100"} <= ticks([2.0, 50.0, 400.0])
    assert "0" in ticks([0.0, 50.0, 400.0])  # zero has no logarithm


def test_description():
    drawing = class_norms.class_norms(trigger([10.0, 50.0, 52.0, np.nan], [20.0, 0.0, -1.0, np.nan], 0), name="a")
    label = re.search(r'aria-label="(.*?)"', drawing)
    assert label is not None
    assert label[1] == (
        "L1 norms of the recovered triggers of 4 classes: 10.0 to 52.0 pixels; median 50.0, threshold 46.0; "
        "1 undefined; class 0 suspected (L1 norm 10.0, anomaly index 20.00)."
    )


def test_nothing_to_draw():
    assert class_norms.class_norms(trigger([np.nan, np.nan], [np.nan, np.nan]), name="a") == ""


@pytest.mark.parametrize("classes", [2, 10, 43, 200, 1000])
@pytest.mark.parametrize("target", [None, "last"])
def test_every_text_lies_within_the_drawing(classes, target):
    found = recovered(classes, target=classes - 1 if target else None, size=4)
    found.success[1] = 0
    drawing = ElementTree.fromstring(class_norms.class_norms(found, name="a"))
    width = float(drawing.attrib["viewBox"].split()[2])
    for element in drawing.iter(f"{SVG}text"):
        x = float(element.attrib.get("x", 0))
        extent = TextPath((0, 0), element.text, size=7).get_extents().width
        if "text-anchor: end" in element.attrib["style"]:
            x -= extent
        assert x > -1 and (x + extent < width or "rotate(-90" in element.attrib["transform"]), element.text
