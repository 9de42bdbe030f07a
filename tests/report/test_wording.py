"""Values and names are written without loss of meaning, and no name can drive a terminal."""

import math

import numpy as np
import pytest
from samples import HOSTILE

from jaxguard.report import wording


def test_percent_never_rounds_to_a_false_extreme():
    assert wording.percent(1 - 1e-9) == ">99.9 %"
    assert wording.percent(1e-9) == "<0.1 %"
    assert wording.percent(math.nan) == "undefined"
    for permille in range(1, 1000):
        assert wording.percent(permille / 1000) == f"{permille // 10}.{permille % 10} %"


def test_printable_leaves_no_control_or_direction_mark():
    text = "".join(map(chr, range(0x20))) + "\x7f\x9b\u200f\u202e\u2066\udcff\ufeff" + "é → 网络"
    shown = wording.printable(text)
    assert shown.isprintable()
    assert shown.endswith("é → 网络")


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("shapley", "ShapPruning"),
        ("i-bau", "i-BAU"),
        ("fine-pruning", "Fine-Pruning"),
        ("Shapley", "ShapPruning"),
        ("tsbd", "TSBD"),
        ("otbr", "OTBR"),
        ("ft-sam", "FT-SAM"),
    ],
)
def test_methods_are_named_as_in_their_papers(method, name):
    assert wording.method_name(method) == name


def test_pixels_have_three_digits_and_no_exponent():
    shown = [wording.pixels(norm) for norm in (0.0123, 0.5, 5.8, 44.0, 999.96, 50176.0, -1.0, math.inf)]
    assert shown == ["0.012", "0.500", "5.80", "44.0", "1000", "50176", "-1.00", "undefined"]


def test_estimates_share_their_decimals():
    assert wording.estimates([0.25, -1.0, math.nan], [0.00041, 2.0, 0.1]) == [
        "0.25000 ± 0.00041", "-1.00000 ± 2.00000", "undefined ± 0.10000",
    ]  # fmt: skip
    assert wording.estimates([1.0, 2.0], [math.inf, 0.0]) == ["1.0000 ± undefined", "2.0000 ± 0.0000"]
    assert wording.estimates([1.0], [30.0]) == ["1.00 ± 30.00"]
    assert wording.estimates([], []) == []


def test_odds_never_make_a_p_value_smaller():
    for p in np.geomspace(1.1e-6, 1, 500):
        said = wording.odds(float(p))
        count, _, rest = said.replace(",", "").partition(" time")
        if rest.startswith(" in"):
            assert 1 / int(rest.split()[1]) >= p * (1 - 1e-9), said
        elif said != "always":
            assert int(count) / 100 >= p * (1 - 1e-9), said
    assert wording.odds(math.nan) == "undefined"


def test_p_values_are_short():
    shown = [wording.rate(p) for p in (0.05, 1 / 3, 0.0, math.nan, None)]
    assert shown == ["0.05", "0.33", "<1e-300", "–", "–"]


def test_aligned():
    assert wording.aligned([-0.0123, -0.0131]) == ["-0.012300", "-0.013100"]
    assert wording.aligned([12345.6, 0.0]) == ["12346", "0"]
    assert wording.aligned([0.0, 0.0, math.inf]) == ["0.00", "0.00", "–"]
    assert wording.aligned([0.5, 1.0], digits=2) == ["0.50", "1.00"]
    assert wording.aligned([]) == []


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([], []),
        (["runs/m.npz"], ["runs/m.npz"]),
        (["runs/a.npz", "runs/b.npz"], ["a.npz", "b.npz"]),
        (["runs/a/m.npz", "runs/b/m.npz"], ["a", "b"]),
        (["a/b", "a/b/c", "a"], ["a/b", "a/b/c", "a"]),
        (["/x/m", "https://h/x/m"], ["/x/m", "https://h/x/m"]),
        (["m", "m", "n/m"], ["m", "m", "n/m"]),
        (["", "x"], ["", "x"]),
    ],
)
def test_what_all_paths_share_is_left_out(names, short):
    assert wording.unshared(names) == short
    assert len(set(wording.distinct(names))) == len(set(names))


def test_long_names_that_differ_in_the_middle_are_numbered():
    names = [f"a-very-long-name-of-a-model-{k}-with-a-very-long-end-as-well.npz" for k in range(3)]
    assert wording.distinct(names) == [f"{k}: {wording.shorten(names[0])}" for k in (1, 2, 3)]
    assert all(name.isprintable() for name in wording.distinct([HOSTILE, f"{HOSTILE}2"]))
