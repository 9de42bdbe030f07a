"""What every row of the DEFENSES table promises, on four kinds of network."""

import functools
import inspect
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.defenses import DEFENSES, Context, DefenseReport
from jaxguard.errors import DefenseError, UnscorableError
from jaxguard.graph import channel_graph
from jaxguard.types import Batch


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
BUNDLED = {
    "cnn": ("cnn:width=0.5", 16),
    "pre-activation": ("wideresnet-10-1:width=0.25", 16),
    "mlp": ("mlp:hidden=24", 8),
}
FAMILIES = (*BUNDLED, "vit")
KEY = jax.random.key(5)

every_defense = pytest.mark.parametrize("name", DEFENSES)
every_family = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def case(family):
    """`(variables, context)`, the same functions each time, so that the defenses' traces are shared."""
    if family in BUNDLED:
        spec, size = BUNDLED[family]
        model = models.build(spec, num_classes=10, input_shape=(size, size, 3))
        variables, images = zoo.randomise(model.shapes()), zoo.images(size, size, 3)
        apply_fn, train_fn = model.apply_fn, model.train_fn
    else:
        apply_fn, variables, images = zoo.ZOO[family]()

        def train_fn(variables, images):
            return apply_fn(variables, images), variables

    graph = channel_graph(apply_fn, variables, images)
    return variables, Context(apply_fn, train_fn, graph, Batch(images, np.arange(len(images), dtype=np.int32)))


def given(name, family):
    """Clean and mixed images reach only the methods that need them."""
    variables, context = case(family)
    context = context if ROWS[name].needs_clean else Context(context.apply_fn, graph=context.graph)
    return variables, replace(context, mixed=mixed(family)) if ROWS[name].needs_mixed else context


def mixed(family):
    shape = case(family)[1].clean.images.shape[1:]
    return np.random.default_rng(6).uniform(size=(12, *shape)).astype(np.float32)


@functools.cache
def repair(name, family):
    """`(repaired, report)`, and whether the defense left its input as it was."""
    variables, context = given(name, family)
    before = contents((variables, context.clean, context.mixed))
    result = DEFENSES[name](variables, context, KEY, **ROWS[name].quick)
    return *result, before == contents((variables, context.clean, context.mixed))


def contents(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_row_of_the_table_is_tested_here():
    assert ROWS.keys() == DEFENSES.keys()


@every_defense
def test_hyper_parameters_are_keyword_only_with_defaults(name):
    first, second, third, *options = inspect.signature(DEFENSES[name]).parameters.values()
    assert [first.name, second.name, third.name] == ["variables", "context", "key"]
    for option in options:
        assert option.kind is inspect.Parameter.KEYWORD_ONLY, option
        assert option.default is not inspect.Parameter.empty, option
    assert {option.name for option in options} >= ROWS[name].quick.keys() | ROWS[name].neutral.keys()


@every_family
@every_defense
def test_the_input_stays_and_the_result_has_its_form(name, family):
    variables, _ = case(family)
    repaired, _, untouched = repair(name, family)
    assert untouched
    assert jax.tree.structure(repaired) == jax.tree.structure(variables)
    for ours, theirs in zip(jax.tree.leaves(repaired), jax.tree.leaves(variables), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert np.isfinite(ours).all()
    assert contents(repaired) != contents(variables)


@every_family
@every_defense
def test_the_report_says_what_was_done(name, family):
    _, report, _ = repair(name, family)
    assert isinstance(report, DefenseReport) and report.method == name
    options = [p.name for p in inspect.signature(DEFENSES[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert sorted(report.options) == sorted(options)
    for option, value in ROWS[name].quick.items():
        assert report.options[option] == value
    for layer in report.layers:
        assert layer.scores.shape == layer.mask.shape == layer.undefined.shape
        assert layer.mask.dtype == layer.undefined.dtype == bool
    for curve in report.curves.values():
        assert curve.ndim == 1 and np.isfinite(curve).all()


@every_family
@every_defense
def test_the_same_key_gives_the_same_result(name, family):
    variables, context = given(name, family)
    again, _ = DEFENSES[name](variables, context, KEY, **ROWS[name].quick)
    assert contents(again) == contents(repair(name, family)[0])


@every_family
@every_defense
def test_neutral_hyper_parameters_are_the_identity(name, family):
    variables, context = given(name, family)
    repaired, report = DEFENSES[name](variables, context, KEY, **ROWS[name].neutral)
    assert contents(repaired) == contents(variables)
    assert not any(layer.mask.any() for layer in report.layers)


@every_defense
def test_repairs_can_be_chained(name):
    _, context = given(name, "cnn")
    repaired, _, _ = repair(name, "cnn")
    twice, _ = DEFENSES[name](repaired, context, KEY, **ROWS[name].quick)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(twice))


@every_defense
def test_clean_images_are_asked_for_where_they_are_needed(name):
    variables, context = case("mlp")
    context = replace(context, mixed=mixed("mlp")) if ROWS[name].needs_mixed else context
    without = replace(context, clean=None)
    if ROWS[name].needs_clean:
        with pytest.raises(DefenseError, match=rf"expected clean images, came none in context\.clean, and {name}"):
            DEFENSES[name](variables, without, KEY, **ROWS[name].quick)
    else:
        repaired, _ = DEFENSES[name](variables, without, KEY, **ROWS[name].quick)
        with_images, _ = DEFENSES[name](variables, context, KEY, **ROWS[name].quick)
        assert (contents(repaired) != contents(with_images)) == ROWS[name].takes_clean


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.needs_mixed])
def test_mixed_images_are_asked_for_where_they_are_needed(name):
    variables, context = given(name, "mlp")
    with pytest.raises((DefenseError, UnscorableError), match=rf"{name} .*context\.mixed|context\.mixed, and {name}"):
        DEFENSES[name](variables, replace(context, mixed=None), KEY, **ROWS[name].quick)


@every_defense
def test_weights_that_are_not_finite_are_an_error(name):
    variables, context = given(name, "mlp")
    broken = jax.tree.map(lambda leaf: leaf * np.nan, variables)
    with pytest.raises(DefenseError, match=r"expected (a )?finite (loss|parameters)"):
        DEFENSES[name](broken, context, KEY, **ROWS[name].quick)
