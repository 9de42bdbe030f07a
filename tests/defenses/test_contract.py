"""What every row of the DEFENSES table promises, on four kinds of network."""

import functools
import inspect
import pathlib
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import zoo
from flax import linen as nn

from jaxguard import models
from jaxguard.defenses import DEFENSES, Data, DefenseReport
from jaxguard.errors import DefenseError, UnscorableError
from jaxguard.types import Batch, Network


class Row(NamedTuple):
    """What the contract has to know about a defense.

    Attributes:
        needs_clean: it raises without clean images.
        takes_clean: it does something else with them than without.
        needs_mixed: it raises without training images of unknown kind, if only where norms record nothing.
        quick: options with which it edits every family of network within seconds.
        neutral: options with which it is the identity.
    """

    needs_clean: bool
    quick: dict[str, Any]
    neutral: dict[str, Any]
    takes_clean: bool = False
    needs_mixed: bool = False


ROWS = {
    "anp": Row(
        needs_clean=True,
        quick={"steps": 2, "batch_size": 2, "learning_rate": 1.0, "threshold": 0.9},
        neutral={"steps": 0},
    ),
    "bnp": Row(needs_clean=True, quick={"u": 0.5}, neutral={"u": 1e6}, needs_mixed=True),
    "clp": Row(needs_clean=False, quick={"u": 1.0}, neutral={"u": 1e6}),
    "ep": Row(needs_clean=False, quick={"u": 0.5, "bin_width": 0.5}, neutral={"u": 1e6}, needs_mixed=True),
    "fine-pruning": Row(
        needs_clean=True,
        quick={"epochs": 1, "batch_size": 2, "stride": 0.2},
        neutral={"epochs": 0, "max_share": 0.0},
    ),
    "ft": Row(needs_clean=True, quick={"epochs": 1, "batch_size": 2}, neutral={"epochs": 0}),
    "ft-sam": Row(needs_clean=True, quick={"epochs": 1, "batch_size": 2}, neutral={"epochs": 0}),
    "i-bau": Row(needs_clean=True, quick={"rounds": 1, "batch_size": 2, "iterations": 2}, neutral={"rounds": 0}),
    "nad": Row(
        needs_clean=True,
        quick={"teacher_epochs": 1, "epochs": 1, "batch_size": 2},
        neutral={"teacher_epochs": 0, "epochs": 0},
    ),
    "neural-cleanse": Row(
        needs_clean=True,
        quick={"target": 4, "inversion_steps": 2, "epochs": 1, "batch_size": 2},
        neutral={"target": 4, "inversion_steps": 2, "epochs": 0},
    ),
    "otbr": Row(
        needs_clean=False,
        quick={"steps": 1, "batch_size": 4, "gamma": 0.2},
        neutral={"steps": 1, "batch_size": 4, "gamma": 0.0},
    ),
    "rnp": Row(
        needs_clean=True,
        quick={"unlearn_epochs": 1, "epochs": 1, "batch_size": 2, "learning_rate": 10.0, "threshold": 0.9},
        neutral={"unlearn_epochs": 1, "epochs": 0, "batch_size": 2},
    ),
    "shapley": Row(
        needs_clean=False,
        quick={"synthesised": 1, "synthesis_steps": 2, "inversion_steps": 2, "samples": 1, "restore_steps": 1},
        neutral={"synthesised": 1, "synthesis_steps": 2, "inversion_steps": 2, "samples": 1, "max_share": 0.0},
        takes_clean=True,
    ),
    "tsbd": Row(
        needs_clean=True,
        quick={"unlearn_epochs": 1, "epochs": 1, "batch_size": 2, "n": 0.2},
        neutral={"unlearn_epochs": 1, "epochs": 0, "batch_size": 2, "n": 0.0},
    ),
}


class Convolutions(nn.Module):
    """Convolution and norm twice, or a pre-activation block with a shortcut."""

    is_residual: bool

    @nn.compact
    def __call__(self, x, train=False):
        def norm(x):
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))

        if self.is_residual:
            x = nn.Conv(8, (3, 3), use_bias=False)(x)
            x = x + nn.Conv(8, (3, 3), use_bias=False)(norm(x))
            x = norm(x)
        else:
            for width in (8, 12):
                x = norm(nn.Conv(width, (3, 3), (2, 2), use_bias=False)(x))
        return nn.Dense(5)(x.mean((1, 2)))


MODULES = {
    "cnn": (Convolutions(is_residual=False), 8),
    "pre-activation": (Convolutions(is_residual=True), 8),
    "vit": (zoo.ViT(depth=1), 8),
}
FAMILIES = (*MODULES, "mlp")
ALL = ("bnp", "clp", "ep", "otbr")
"""Methods that are quick; those that train are tested on two families, whatever their layers."""

CASES = [(name, family) for name in DEFENSES for family in (FAMILIES if name in ALL else ("cnn", "vit"))]
KEY = jax.random.key(5)

every_defense = pytest.mark.parametrize("name", DEFENSES)
every_case = pytest.mark.parametrize(("name", "family"), CASES)


@functools.cache
def case(family):
    """A network and what its defender has; the same functions each time, so that the defenses' traces are shared."""
    if family == "mlp":
        model = models.build("mlp:hidden=24", num_classes=5, input_shape=(8, 8, 3))
        variables, images = zoo.randomise(model.shapes()), zoo.images(8, 8, 3)
        apply_fn, train_fn = model.apply_fn, model.train_fn
    else:
        module, size = MODULES[family]
        apply_fn, variables, images = zoo.linen(module, size, size, 3)

        def train_fn(variables, images):
            if family == "vit":
                return apply_fn(variables, images), variables
            logits, updates = apply_fn(variables, images, train=True, mutable=["batch_stats"])
            return logits, {**variables, **updates}

    network = Network(variables, apply_fn, jax.ShapeDtypeStruct(images.shape[1:], images.dtype), train_fn)
    return network, Data(clean=Batch(images, np.arange(len(images), dtype=np.int32)))


def given(name, family):
    """Clean and mixed images reach only the methods that need them."""
    network, data = case(family)
    clean = data.clean if ROWS[name].needs_clean else None
    if not ROWS[name].needs_clean:
        network = replace(network, train_fn=None)
    return network, Data(clean, mixed(family) if ROWS[name].needs_mixed else None)


def mixed(family):
    shape = case(family)[0].input_spec.shape
    return np.random.default_rng(6).uniform(size=(12, *shape)).astype(np.float32)


@functools.cache
def repair(name, family):
    """`(repaired, report)`, and whether the defense left its input as it was."""
    network, data = given(name, family)
    before = contents((network, data.clean, data.mixed))
    result = DEFENSES[name](network, data, KEY, **ROWS[name].quick)
    return *result, before == contents((network, data.clean, data.mixed))


def contents(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_row_of_the_table_is_tested_here():
    assert ROWS.keys() == DEFENSES.keys()


def test_the_readme_lists_the_rows():
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    for name, row in DEFENSES.items():
        needs = ", ".join(sorted(row.needs)) or "nothing"
        assert f"| `{name}` | {needs} | {row.title} | {row.paper} |\n" in readme


@every_defense
def test_hyper_parameters_are_keyword_only_with_defaults(name):
    row = DEFENSES[name]
    first, second, third, *options = inspect.signature(row.function).parameters.values()
    assert [first.name, second.name, third.name] == ["network", "data", "key"]
    assert [option.name for option in options] == list(row.parameters)
    for option in row.parameters.values():
        assert option.default is not inspect.Parameter.empty, option
        assert option.help, option
    assert row.options(row.options()) == row.options(), "defaults are within their ranges"
    assert row.parameters.keys() >= ROWS[name].quick.keys() | ROWS[name].neutral.keys()


@every_case
def test_the_input_stays_and_the_result_has_its_form(name, family):
    network, _ = case(family)
    repaired, _, untouched = repair(name, family)
    assert untouched
    assert jax.tree.structure(repaired.variables) == jax.tree.structure(network.variables)
    assert repaired.apply_fn is network.apply_fn
    for ours, theirs in zip(jax.tree.leaves(repaired), jax.tree.leaves(network), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert np.isfinite(ours).all()
    assert contents(repaired) != contents(network)


@every_case
def test_the_report_says_what_was_done(name, family):
    _, report, _ = repair(name, family)
    assert isinstance(report, DefenseReport)
    left_open = {option for option, value in DEFENSES[name].options(ROWS[name].quick).items() if value is None}
    assert report.chosen.keys() <= left_open
    for layer in report.layers:
        assert layer.scores.shape == layer.mask.shape == layer.undefined.shape
        assert layer.mask.dtype == layer.undefined.dtype == bool
    for curve in report.curves.values():
        assert curve.ndim == 1 and np.isfinite(curve).all()


@every_case
def test_the_same_key_gives_the_same_result(name, family):
    again, _ = DEFENSES[name](*given(name, family), KEY, **ROWS[name].quick)
    assert contents(again) == contents(repair(name, family)[0])


@every_case
def test_neutral_hyper_parameters_are_the_identity(name, family):
    network, data = given(name, family)
    repaired, report = DEFENSES[name](network, data, KEY, **ROWS[name].neutral)
    assert contents(repaired) == contents(network)
    assert not any(layer.mask.any() for layer in report.layers)


@every_defense
def test_repairs_can_be_chained(name):
    _, data = given(name, "cnn")
    repaired, _, _ = repair(name, "cnn")
    twice, _ = DEFENSES[name](repaired, data, KEY, **ROWS[name].quick)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(twice))


@every_defense
def test_the_row_names_what_the_method_needs(name):
    network, data = case("mlp")
    data = replace(data, mixed=mixed("mlp"))
    without = {
        "clean images": (network, replace(data, clean=None)),
        "training images": (network, replace(data, mixed=None)),
        "training mode": (replace(network, train_fn=None), data),
    }
    for need, given in without.items():
        if need in DEFENSES[name].needs:
            with pytest.raises(DefenseError, match=f"expected .* for {name}.* got (none|None)"):
                DEFENSES[name](*given, KEY, **ROWS[name].quick)
        elif need == "training images" and ROWS[name].needs_mixed:
            with pytest.raises(UnscorableError, match=rf"{name} .*data\.mixed"):
                DEFENSES[name](*given, KEY, **ROWS[name].quick)
        elif need == "clean images":
            found, full = (DEFENSES[name](network, one, KEY, **ROWS[name].quick)[0] for one in (given[1], data))
            assert (contents(found) != contents(full)) == ROWS[name].takes_clean
    assert ("clean images" in DEFENSES[name].needs) == ROWS[name].needs_clean


@every_defense
def test_weights_that_are_not_finite_are_an_error(name):
    network, data = given(name, "mlp")
    broken = jax.tree.map(lambda leaf: leaf * np.nan, network)
    with pytest.raises((DefenseError, UnscorableError), match=r"expected (a )?finite (loss|parameters)"):
        DEFENSES[name](broken, data, KEY, **ROWS[name].quick)
