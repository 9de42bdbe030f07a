"""The strip of scores puts suspects and independent models on one axis, and the bar where accusations begin."""

import dataclasses
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from samples import HOSTILE, ownership

from jaxguard.report import evidence, wording
from jaxguard.report.figures import ownership as strip
from jaxguard.types import Verdict

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def label(svg: str) -> str:
    found = re.search(r'aria-label="(.*?)"', svg)
    assert found is not None
    return found[1]


def marks_of(svg: str, style: str) -> np.ndarray:
    """Places `[n, 2]` of the marks of one style, in drawing units."""
    uses = [use for use in ElementTree.fromstring(svg).iter(f"{SVG}use") if style in use.attrib.get("style", "")]
    return np.array([(float(use.attrib["x"]), float(use.attrib["y"])) for use in uses])


def test_every_suspect_has_a_row_by_its_score():
    one = ownership(3, 4, null=True)
    shown = texts(strip.score_strip(one, name="a"))
    ranked = sorted(one.verifications, key=lambda found: -found.score)
    names = [found.suspect.removeprefix("runs/suspects/") for found in ranked]
    assert [text for text in shown if text.endswith(".safetensors")] == names
    assert {"39 independent models", "independent", "copy suspected", "no evidence", "p ≤ 0.05 beyond"} <= set(shown)
    assert f"p 0.025, null {wording.rate(ranked[0].null_p_value)}" in shown
    assert "ZEST score, higher is more like the owner" in shown


def test_places_are_the_scores():
    """References and suspects share one linear axis: their places in the drawing are an affine map of their scores."""
    one = ownership(2, 3, references=20, alpha=0.05)
    drawing = strip.score_strip(one, name="a")
    accused = marks_of(drawing, "fill: var(--alert")[:, 0]
    others = marks_of(drawing, "fill: var(--after")[:, 0]
    references = marks_of(drawing, "fill: #7d8fa3")[:, 0]
    scores = np.array([found.score for found in one.verifications])
    bad = np.array([found.verdict is Verdict.SUSPECTED for found in one.verifications])
    places = np.concatenate([np.sort(accused[: bad.sum()]), np.sort(others[: (~bad).sum()]), np.sort(references)[-20:]])
    values = np.concatenate([np.sort(scores[bad]), np.sort(scores[~bad]), np.sort(one.references)])
    assert len(places) == len(values)
    slope, intercept = np.polyfit(values, places, 1)
    np.testing.assert_allclose(slope * values + intercept, places, atol=0.02)
    assert slope > 0


def test_the_legend_leaves_out_what_is_not_there():
    few = texts(strip.score_strip(ownership(1, 2, references=5), name="a"))
    assert {"inconclusive", "5 independent models"} <= set(few)
    assert not {"p ≤ 0.05 beyond", "copy suspected", "no evidence"} & set(few)
    none = texts(strip.score_strip(ownership(1, 2, references=0), name="a"))
    assert not [text for text in none if "independent" in text]


def test_of_many_suspects_the_rest_shares_a_row():
    drawing = strip.score_strip(ownership(20, 60, references=400), name="a")
    shown = texts(drawing)
    assert sum(text.endswith(".safetensors") for text in shown) == strip.MAX_ROWS
    assert "40 others" in shown
    assert len(drawing) < 300_000  # hundreds of dots are one picture
    assert label(drawing).startswith("ZEST scores against runs/owner.safetensors: 400 independent models score -0.6")


def test_description_tells_the_bar():
    one = ownership(1, 1)
    bar = evidence.threshold(one)
    assert label(strip.score_strip(one, name="a")).endswith(f"; p at most 0.05 beyond {bar:.3g}.")


@pytest.mark.parametrize("references", [0, 1, 39])
@pytest.mark.parametrize("suspects", [0, 1])
def test_any_count_is_drawn(references, suspects):
    one = ownership(suspects, 0, references=references)
    drawing = strip.score_strip(one, name="a")
    assert bool(drawing) == bool(references + suspects)
    assert "nan" not in drawing.lower()


def test_scores_that_are_not_finite_are_left_out():
    one = ownership(2, 0)
    lost = dataclasses.replace(one.verifications[0], score=math.inf, p_value=math.nan)
    shown = texts(strip.score_strip(dataclasses.replace(one, verifications=(lost, one.verifications[1])), name="a"))
    assert sum("safetensors" in text for text in shown) == 1
    assert strip.score_strip(dataclasses.replace(one, verifications=(lost,), references=np.zeros(0)), name="a") == ""


def test_hostile_names_are_text():
    one = ownership(1, 0)
    found = dataclasses.replace(one.verifications[0], suspect=HOSTILE)
    drawing = strip.score_strip(
        dataclasses.replace(one, owner=HOSTILE, method=HOSTILE, verifications=(found,)), name="a"
    )
    assert "<script" not in drawing
    assert not set("\x1b\u202e") & set(drawing)
    assert any("$\\frac{$" in text for text in texts(drawing))
