"""Drawings show the right channels and rates, and change no global state."""

import base64
import io
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxguard.errors import DataError
from jaxguard.report.figures import channels, pictures, rates
from jaxguard.types import LayerScores, Metrics, Repair, TriggerExample


def layer(scores: list[float], threshold: float, cut: tuple[int, ...] = (), name: str = "conv -> bn") -> LayerScores:
    array = np.array(scores)
    return LayerScores(name, array, threshold, np.isin(np.arange(array.size), cut), np.isnan(array))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def decode(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_standardize_matches_the_definition():
    scores = np.random.default_rng(0).normal(3, 2, 50)
    own = channels.standardize(layer(scores.tolist(), 7.0))
    np.testing.assert_allclose(own.z, (scores - scores.mean()) / np.sqrt(((scores - scores.mean()) ** 2).sum() / 49))
    assert own.threshold == pytest.approx((7.0 - scores.mean()) / scores.std(ddof=1))


def test_no_z_score_exceeds_the_limit():
    one_hot = channels.standardize(layer([0.0] * 15 + [1.0], 9.0))
    assert one_hot.z.max() == pytest.approx(one_hot.limit)  # the extreme case attains (n - 1) / sqrt(n)


def test_undefined_channels_do_not_move_the_others():
    with_nan = channels.standardize(layer([np.nan, 1.0, 2.0, 3.0], 4.0))
    np.testing.assert_allclose(with_nan.z, [np.nan, -1, 0, 1])
    assert with_nan.threshold == pytest.approx(2)


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0, 2.0], [np.nan, np.nan]])
def test_a_layer_without_spread_has_no_z_score(scores):
    own = channels.standardize(layer(scores, 1.0))
    assert np.isnan(own.z).all()
    assert np.isnan(own.threshold)


@pytest.mark.parametrize("count", [1, 3, 60])
def test_every_layer_is_labelled(count):
    layers = [layer([1.0, 2.0, 3.0, 4.0], 3.5, (3,), f"block{index}") for index in range(count)]
    shown = texts(channels.channel_strips(layers, name="a"))
    assert [text for text in shown if text.startswith("block")] == [f"block{index}" for index in range(count)]


def test_kinds_of_channels_have_their_own_marks():
    scores = [1.0, 1.1, 1.2, 1.1, 1.0, 1.3, 9.0, 9.5]
    shown = texts(channels.channel_strips([layer(scores, 5.0, (6,))], name="a"))
    assert {"channel", "threshold", "above threshold", "cut"} <= set(shown)
    assert "above threshold" not in texts(channels.channel_strips([layer(scores, 5.0, (6, 7))], name="a"))
    assert "threshold" not in texts(channels.channel_strips([layer(scores, np.inf)], name="a"))


def test_description_counts():
    drawing = channels.channel_strips([layer([1.0, 1.1, np.nan, 1.3, 9.0, 9.5], 5.0, (4,))], name="a")
    assert 'aria-label="Scores of 6 channels in 1 layers: 2 above their layer&#x27;s threshold, 1 cut' in drawing


@pytest.mark.parametrize(
    ("one", "remark"),
    [
        (layer([1.0, 1.1, 1.2, np.nan], 9.9), "1 undefined, out of reach"),
        (layer([1.0, 1.1, 1.2], np.inf), "no threshold"),
        (layer([np.nan, np.nan], np.inf), "all undefined"),
        (layer([1.0, 1.1, 1.2], 1.15), None),
    ],
)
def test_remarks(one, remark):
    other = layer([1.0, 2.0, 3.0, 4.0, 9.0], 8.0)
    shown = set(texts(channels.channel_strips([other, one], name="a")))
    known = {"1 undefined, out of reach", "no threshold", "all undefined", "out of reach"}
    assert shown & known == ({remark} if remark else set())


def test_nothing_to_draw():
    assert channels.channel_strips([layer([np.nan, np.nan], np.inf)], name="a") == ""


def test_text_is_never_markup_nor_mathematics():
    shown = texts(channels.channel_strips([layer([1.0, 2.0, 3.0], 2.5, name="$\\frac{1}$</text><script>")], name="a"))
    assert "$\\frac{1}$</text><script>" in shown


def test_ids_are_prefixed_and_resolve():
    drawing = channels.channel_strips([layer([1.0, 2.0, 3.0, 9.0], 5.0, (3,))], name="fig7")
    ids = re.findall(r'\bid="([^"]+)"', drawing)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("fig7-") for name in ids)
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', drawing)) <= set(ids)


def test_placeholders_all_become_variables(full):
    cut = layer([1.0, 1.1, 1.2, 9.0, 9.5], 5.0, (3,))
    drawing = channels.channel_strips([cut], name="a") + rates.rate_bars(full.repairs[0], name="b")
    assert "#0102" not in drawing
    assert {"var(--ink", "var(--alert", "var(--before", "var(--after"} <= set(re.findall(r"var\(--\w+", drawing))


def test_same_report_same_drawing(full):
    drawings = {channels.channel_strips(full.repairs[1].layers, name="a") for _ in range(2)}
    assert len(drawings) == 1


def test_rate_bars_label_every_rate(full):
    shown = texts(rates.rate_bars(full.repairs[0], name="a"))
    assert shown == ["ACC", "98.9 %", "98.1 %", "ASR", "99.7 %", "0.6 %", "RA", "0.3 %", "97.1 %"]


def test_rate_bars_without_a_trigger_show_acc_alone():
    repair = Repair("m", "ft", {}, before=Metrics(0.9), after=Metrics(0.8))
    assert texts(rates.rate_bars(repair, name="a")) == ["ACC", "90.0 %", "80.0 %"]
    assert rates.rate_bars(Repair("m", "ft", {}), name="a") == ""


@pytest.mark.parametrize("channels", [1, 3])
def test_trigger_strips_show_the_pixels(channels):
    clean = np.zeros((2, 4, 4, channels))
    triggered = clean.copy()
    triggered[:, 3, 3] = 0.25
    strips = pictures.trigger_strips(TriggerExample(clean, triggered, "badnets", 0))
    assert (strips.gain, strips.num_images) == (4, 2)
    shown = decode(strips.difference)
    factor = 32  # 4 pixels enlarged to 128
    assert shown.shape == (128, 2 * 128 + 8, 4)
    np.testing.assert_array_equal(shown[3 * factor :, 3 * factor : 128], 255)
    assert shown[: 3 * factor, :128, :3].max() == 0
    assert shown[:, 128:136, 3].max() == 0  # the gap is transparent
    assert decode(strips.triggered)[-1, -1, 0] == 64


def test_a_faint_difference_is_not_amplified_into_noise():
    clean = np.full((1, 2, 2, 1), 0.5)
    assert pictures.trigger_strips(TriggerExample(clean, clean + 1e-4, "wanet", 0)).gain == pictures.MAX_GAIN
    assert pictures.trigger_strips(TriggerExample(clean, clean, "none", 0)).gain == 1


@pytest.mark.parametrize(
    "shapes", [((2, 4, 4, 1), (2, 4, 4, 3)), ((2, 4, 4), (2, 4, 4)), ((0, 4, 4, 3), (0, 4, 4, 3)), ((1, 4, 4, 2),) * 2]
)
def test_trigger_of_wrong_shape(shapes):
    clean, triggered = map(np.zeros, shapes)
    with pytest.raises(DataError, match="one shape"):
        pictures.trigger_strips(TriggerExample(clean, triggered, "badnets", 0))


def test_drawing_leaves_matplotlib_as_it_was():
    program = """
import sys, numpy as np
from jaxguard.report import files, table, schema, sarif, page
assert not {"matplotlib", "jinja2", "PIL"} & set(sys.modules), "imported before anything is drawn"
import matplotlib
before = matplotlib.rcParams.copy()
from jaxguard.report.figures import channels
from jaxguard.types import LayerScores
channels.channel_strips([LayerScores("a", np.arange(4.0), 2.5, np.arange(4) > 2, np.zeros(4, bool))], name="a")
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
