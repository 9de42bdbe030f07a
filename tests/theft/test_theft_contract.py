"""What every row of the THEFTS table promises, on four kinds of network."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import zoo

from jaxguard import models
from jaxguard.errors import DataError, OptionError, UnscorableError
from jaxguard.methods import Method
from jaxguard.theft import THEFTS, TheftError, TheftReport
from jaxguard.types import Batch, Network


class Row(NamedTuple):
    """What the contract has to know about a theft.

    Attributes:
        quick: options with which it makes a copy within seconds.
        neutral: options with which the copy is the owner, if there are any.
        num_classes: of the copy.
        keeps_architecture: whether the copy always has the owner's architecture, number of classes included.
        keeps_function: whether it computes the owner's logits, up to rounding.
    """

    quick: dict[str, Any]
    neutral: dict[str, Any] | None = None
    num_classes: int = 10
    keeps_architecture: bool = True
    keeps_function: bool = False


STUDENT = models.build("mlp:hidden=12", num_classes=10, input_shape=(8, 8, 3))
TRAIN = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}
ROWS = {
    "fine-tune-all": Row(TRAIN, {"epochs": 0}),
    "fine-tune-last": Row(TRAIN, {"epochs": 0}),
    "head-reset": Row(TRAIN),
    "fine-pruning": Row({**TRAIN, "share": 0.3, "every": 1000}, {"share": 0.0}),
    "quantisation": Row({"bits": 3}),
    "permutation": Row({}, keeps_function=True),
    "rescaling": Row({}, {"factor": 1.0}, keeps_function=True),
    "transfer": Row({**TRAIN, "num_classes": 7}, num_classes=7, keeps_architecture=False),
    "label-extraction": Row({**TRAIN, "student": STUDENT}, keeps_architecture=False),
    "distillation": Row({**TRAIN, "student": STUDENT}, keeps_architecture=False),
    "adversarial-extraction": Row(
        {**TRAIN, "student": STUDENT, "extraction": TRAIN, "attack_steps": 2}, keeps_architecture=False
    ),
}
FAMILIES = {
    "conv-BN": "cnn:width=0.25",
    "pre-activation": "wideresnet-10-1:width=0.25",
    "no norm": "mlp:hidden=12x8",
    "ViT": "vit-tiny-4:width=0.0625,depth=1,heads=2",
}
KEY = jax.random.key(5)

FEW = {name for name, row in ROWS.items() if "epochs" in row.quick} - {"fine-tune-all", "fine-pruning"}
"""Thefts that train as `fine-tune-all` does; they are tested on two families."""

every_theft = pytest.mark.parametrize("name", THEFTS)
every_case = pytest.mark.parametrize(
    ("name", "family"),
    [(name, one) for name in THEFTS for one in FAMILIES if name not in FEW or one in ("conv-BN", "no norm")],
)


@functools.cache
def owner_of(family):
    model = models.build(FAMILIES[family], num_classes=10, input_shape=(8, 8, 3))
    return model.network(zoo.randomise(model.shapes()))


def data():
    images = np.random.default_rng(2).uniform(size=(4, 8, 8, 3)).astype(np.float32)
    return Batch(images, np.array([0, 3, 5, 6], np.int32))


def given(name):
    return data() if "data" in THEFTS[name].needs else None


@functools.cache
def stolen(name, family):
    """`(copy, report)`, and whether the theft left its input as it was."""
    owner, images = owner_of(family), given(name)
    before = contents((owner.variables, images))
    result = THEFTS[name](owner, images, KEY, **ROWS[name].quick)
    return *result, before == contents((owner.variables, images))


def contents(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def forms(tree):
    return [(np.shape(leaf), np.asarray(leaf).dtype) for leaf in jax.tree.leaves(tree)]


def logits(network):
    return np.asarray(jax.jit(network.apply_fn)(network.variables, data().images))


def test_every_row_of_the_table_is_tested_here():
    assert ROWS.keys() == THEFTS.keys()


@every_theft
def test_hyper_parameters_are_keyword_only_with_defaults(name):
    first, second, third, *options = inspect.signature(THEFTS[name].function).parameters.values()
    assert [first.name, second.name, third.name] == ["owner", "data", "key"]
    for option in options:
        assert option.kind is inspect.Parameter.KEYWORD_ONLY, option
        assert option.default is not inspect.Parameter.empty, option
    known = Method(THEFTS[name].function, "").parameters
    assert THEFTS[name].defaults.keys() <= known.keys()
    assert all(option.help for option in known.values())
    assert ("epochs" in known) == ("epochs" in {**ROWS[name].quick})


@every_case
def test_the_owner_stays_and_the_copy_works(name, family):
    owner = owner_of(family)
    copy, _, untouched = stolen(name, family)
    assert untouched
    assert contents(copy.variables) != contents(owner.variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(copy.variables))
    assert logits(copy).shape == (4, ROWS[name].num_classes)
    if ROWS[name].keeps_architecture:
        assert copy.apply_fn == owner.apply_fn and copy.graph is owner.graph
        assert jax.tree.structure(copy.variables) == jax.tree.structure(owner.variables)
        assert forms(copy.variables) == forms(owner.variables)
    assert jax.eval_shape(copy.graph.run, copy.variables, data().images).shape == logits(copy).shape
    ours, theirs = logits(copy), logits(owner)
    close = ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    assert close == ROWS[name].keeps_function


@every_case
def test_the_report_says_what_was_done(name, family):
    _, report, _ = stolen(name, family)
    assert isinstance(report, TheftReport)
    for curve in report.curves.values():
        assert curve.ndim == 1 and len(curve) and np.isfinite(curve).all()
    assert report.queries == (4 if THEFTS[name].access == "queries" else 0)


@pytest.mark.parametrize("family", ["conv-BN", "no norm"])
@every_theft
def test_the_same_key_gives_the_same_copy(name, family):
    again, _ = THEFTS[name](owner_of(family), given(name), KEY, **ROWS[name].quick)
    assert contents(again.variables) == contents(stolen(name, family)[0].variables)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.neutral is not None])
def test_neutral_hyper_parameters_are_the_identity(name, family):
    owner = owner_of(family)
    copy, _ = THEFTS[name](owner, given(name), KEY, **ROWS[name].neutral)
    assert contents(copy.variables) == contents(owner.variables)


@every_theft
def test_another_key_gives_another_copy_where_anything_is_drawn(name):
    other, _ = THEFTS[name](owner_of("no norm"), given(name), jax.random.key(6), **ROWS[name].quick)
    same = contents(other.variables) == contents(stolen(name, "no norm")[0].variables)
    assert same == (name == "quantisation")


@pytest.mark.parametrize("name", [name for name, row in THEFTS.items() if row.access == "queries"])
def test_queries_look_at_answers_alone(name):
    """The owner's weights are folded into a function, and the thief's labels are nonsense."""
    owner = owner_of("conv-BN")
    closed = functools.partial(lambda weights, _, images: owner.apply_fn(weights, images), owner.variables)
    box = Network({}, closed, owner.input_spec)
    nonsense = Batch(data().images, np.full(4, -7))
    copy, _ = THEFTS[name](box, nonsense, KEY, **ROWS[name].quick)
    for ours, theirs in zip(
        jax.tree.leaves(copy.variables), jax.tree.leaves(stolen(name, "conv-BN")[0].variables), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@every_theft
def test_images_are_asked_for_where_they_are_needed(name):
    owner = owner_of("no norm")
    if "data" not in THEFTS[name].needs:
        copy, _ = THEFTS[name](owner, data(), KEY, **ROWS[name].quick)
        assert contents(copy.variables) == contents(stolen(name, "no norm")[0].variables)
        return
    for nothing in (None, Batch(data().images[:0], data().labels[:0]), Batch(data().images, data().labels[:2])):
        with pytest.raises(DataError, match="expected images with one label each, got"):
            THEFTS[name](owner, nothing, KEY, **ROWS[name].quick)


@every_theft
def test_weights_that_are_not_finite_are_an_error(name):
    owner = owner_of("no norm")
    broken = owner.with_variables(jax.tree.map(lambda leaf: leaf * np.nan, owner.variables))
    with pytest.raises((TheftError, UnscorableError), match=r"expected (a )?finite (parameters|answers|loss)"):
        THEFTS[name](broken, given(name), KEY, **ROWS[name].quick)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "epochs" in row.quick])
def test_settings_out_of_range_are_an_error(name):
    for option, value in (
        ("epochs", -1), ("batch_size", 0), ("learning_rate", -0.1), ("momentum", 1.0), ("schedule", "linear"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=f"for {option} of .*, got {value!r}"):
            THEFTS[name](owner_of("no norm"), data(), KEY, **{**ROWS[name].quick, option: value})


@every_theft
def test_unknown_options_are_named(name):
    with pytest.raises(OptionError, match=r"expected an option of .*, got 'epoch'"):
        THEFTS[name](owner_of("no norm"), given(name), KEY, epoch=1)


def test_thefts_chain():
    """A pruned, disguised, quantised copy is stolen once more, and transferred."""
    network = owner_of("conv-BN")
    for name in ("fine-pruning", "rescaling", "permutation", "quantisation", "distillation", "transfer"):
        network, _ = THEFTS[name](network, data(), KEY, **ROWS[name].quick)
    assert logits(network).shape == (4, 7)
