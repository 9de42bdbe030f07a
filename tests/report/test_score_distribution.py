"""Drawings of a fleet show shares, references and suspects where they are, and the highest layer."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fleets import NAN, finding, fleet, layers, reference, unjudged
from samples import HOSTILE

from jaxguard.report.figures import channels, scores
from jaxguard.types import Verdict

SVG = "{http://www.w3.org/2000/svg}"
PATH = re.compile(r"[ML] (-?[\d.]+) (-?[\d.]+)")


def shapes(svg: str, style: str) -> list[np.ndarray]:
    """Corners `[n, 2]` of all paths with a style."""
    found = [path for path in ElementTree.fromstring(svg).iter(f"{SVG}path") if style in path.attrib.get("style", "")]
    return [np.array(PATH.findall(path.attrib["d"]), float) for path in found]


def diamonds(svg: str, style: str = "fill: var(--alert") -> np.ndarray:
    uses = [use for use in ElementTree.fromstring(svg).iter(f"{SVG}use") if style in use.attrib.get("style", "")]
    return np.array(sorted((float(use.attrib["x"]), float(use.attrib["y"])) for use in uses))


def label(svg: str) -> str:
    found = re.search(r'aria-label="(.*?)"', svg)
    assert found is not None
    return found[1]


def test_suspects_are_where_their_scores_are():
    """Three scores on a line: the middle one stands in the middle."""
    found = [finding(str(k), Verdict.SUSPECTED, score=score) for k, score in enumerate((2.0, 5.0, 8.0))]
    found += [finding(str(k), score=score) for k, score in enumerate(np.linspace(-2, 2, 50))]
    drawing = scores.score_distribution(found, reference("cnn"), name="a")
    places = diamonds(drawing)
    assert len(places) == 3
    assert places[1, 0] == pytest.approx(places[[0, 2], 0].mean(), abs=0.01)
    assert np.ptp(places[:, 1]) == 0


def test_bars_are_shares():
    """Half the checkpoints in one bin and half in another: two bars of one height; all references in one: twice it."""
    found = [finding(str(k), score=float(k % 2)) for k in range(20)]
    known = dataclasses.replace(reference("cnn"), scores=np.zeros(7), suspects=np.empty(0))
    drawing = scores.score_distribution(found, known, name="a")
    (bars,) = shapes(drawing, "fill: var(--after")
    (line,) = [shape for shape in shapes(drawing, "stroke: var(--ink") if len(shape) > 10]
    floor = bars[:, 1].max()
    heights = floor - bars[:, 1]
    assert set(np.round(heights / heights.max(), 3)) == {0.0, 1.0}
    assert (floor - line[:, 1]).max() == pytest.approx(2 * heights.max(), rel=1e-3)
    assert "stroke-dasharray" not in drawing


def test_description_tells_the_numbers():
    report = fleet(200, cohorts=1)
    drawing = scores.score_distribution(report.findings, report.references[0], name="a")
    known = report.references[0]
    assert label(drawing).startswith("Distribution of the score: 178 checkpoints -")
    assert f"64 clean references {known.scores.min():.3g} to {known.scores.max():.3g}" in label(drawing)
    assert "suspected ones 4.5 to 4.75" in label(drawing)


def test_without_scores_nothing_is_drawn():
    assert scores.score_distribution(unjudged().findings, None, name="a") == ""
    assert scores.score_distribution([finding(score=NAN, z=NAN)], reference("cnn"), name="a") == ""


def test_thousands_of_suspects_stay_one_small_picture():
    found = [finding(str(k), Verdict.SUSPECTED, score=float(k)) for k in range(5000)]
    drawing = scores.score_distribution(found, None, name="a")
    assert 100 <= len(diamonds(drawing)) <= 151
    assert len(drawing) < 40_000


def test_the_highest_layer_is_marked_and_named():
    found = layers(18, 0)
    drawing = channels.layer_profile(found, name="a")
    (place,) = diamonds(drawing)
    dots = diamonds(drawing, "fill: var(--before")
    assert len(dots) == 18
    assert place[0] == pytest.approx(dots[9, 0], abs=0.01)  # the outlier is in the tenth
    assert place[1] == dots[:, 1].min()
    shown = [text.text for text in ElementTree.fromstring(drawing).iter(f"{SVG}text")]
    assert f"{found[9].name.split(' -> ')[0]}[{found[9].channel}]" in shown
    assert label(drawing).endswith(f"{found[9].z:.3g}, in {found[9].name.replace('>', '&gt;')}.")


def test_layers_without_scores():
    silent = dataclasses.replace(layers(1, 0)[0], z=NAN, channel=-1)
    assert channels.layer_profile((silent,), name="a") == ""
    assert channels.layer_profile((), name="a") == ""
    drawing = channels.layer_profile((silent, *layers(3, 0), silent), name="a")
    assert len(diamonds(drawing, "fill: var(--before")) == 3


def test_hostile_names_are_text():
    strange = dataclasses.replace(layers(1, 0)[0], name=HOSTILE)
    drawing = channels.layer_profile((strange,), name="a")
    ElementTree.fromstring(drawing)
    assert "<script" not in drawing
    assert "\u202e" not in drawing
