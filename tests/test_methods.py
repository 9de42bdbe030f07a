"""A method's options: read off its signature, converted and checked in one place."""

from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge, Interval

from jaxguard import methods
from jaxguard.errors import JaxguardError, OptionError
from jaxguard.methods import Method, Named, checked

FUNCTIONS = {"none": None, "double": lambda x: 2 * x}


@checked
def prune_all(
    x,
    y=0,
    *,
    epochs: Annotated[int, Ge(0)] = 100,
    share: Annotated[float, Interval(ge=0, lt=1)] = 0.5,
    rate: methods.Positive = 0.1,
    stop: Annotated[int | None, Ge(1)] = None,
    order: Literal["up", "down"] = "up",
    strict: bool = False,
    exclude: str = "",
    betas: tuple[float, float] = (0.9, 0.999),
    weights: Sequence[methods.NonNegative] = (1.0, 2.0),
    augment: Annotated[object | None, Named(FUNCTIONS)] = None,
):
    """Prunes.

    Args:
        x: input.
        y: another.
        epochs: passes over
            the images.
        share: of the channels: 0 is none.

    Returns:
        The options.
    """
    return x, y, {name: value for name, value in locals().items() if name not in ("x", "y")}


ROW = Method(prune_all, "Prunes all", frozenset({"clean images"}), "Nobody 2020")


def test_options_are_derived_from_signature_and_docstring():
    assert ROW.name == "prune-all"
    assert list(ROW.parameters) == [
        "epochs", "share", "rate", "stop", "order", "strict", "exclude", "betas", "weights", "augment",
    ]  # fmt: skip
    assert [option.expects for option in ROW.parameters.values()] == [
        "a whole number >= 0",
        "a number in [0, 1)",
        "a number > 0",
        "a whole number >= 1, or none",
        "one of up, down",
        "true or false",
        "text",
        "a list of 2 numbers",
        "a list, each a number >= 0",
        "one of none, double, or a function",
    ]
    assert ROW.parameters["epochs"].help == "passes over the images."
    assert ROW.parameters["share"].help == "of the channels: 0 is none."
    assert ROW.parameters["rate"].help == ""
    assert ROW.parameters["share"].default == 0.5


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("epochs", "3", 3),
        ("epochs", np.int64(3), 3),
        ("share", "0.25", 0.25),
        ("share", 0, 0.0),
        ("rate", "1e-3", 1e-3),
        ("rate", np.float32(0.5), 0.5),
        ("rate", jnp.array(0.5), 0.5),
        ("stop", "none", None),
        ("stop", "null", None),
        ("stop", "7", 7),
        ("order", "down", "down"),
        ("strict", "true", True),
        ("strict", "False", False),
        ("strict", np.bool_(True), True),
        ("exclude", "3", "3"),
        ("betas", "[0, 0.5]", (0.0, 0.5)),
        ("betas", [0.5, 1], (0.5, 1.0)),
        ("weights", "[]", ()),
        ("weights", (1, 2, 3), (1.0, 2.0, 3.0)),
        ("augment", "double", FUNCTIONS["double"]),
        ("augment", abs, abs),
        ("augment", "none", None),
    ],
)
def test_values_and_their_text_are_converted_by_the_annotation(name, given, value):
    found = ROW.options({name: given})[name]
    assert found == value and type(found) is type(value)
    assert prune_all(0, **{name: given})[2][name] == value


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("epochs", bad) for bad in ("abc", "1.5", 1.0, True, None, -1, "-1", [1])),
        *(("share", bad) for bad in (1, "1", -0.1, "nan", float("nan"), "", True, None, [0.5])),
        *(("rate", bad) for bad in (0, -1, "0.0")),
        *(("stop", bad) for bad in (0, "x", 1.5)),
        *(("order", bad) for bad in ("sideways", 1, None, ["up"])),
        *(("strict", bad) for bad in ("1", 1, "yes", None)),
        *(("exclude", bad) for bad in (3, None)),
        *(("betas", bad) for bad in ([1], "[1, 2, 3]", "0.5", 0.5, "[a, b]", None)),
        *(("weights", bad) for bad in ([-1.0], ["a"], "{}x", 3)),
        *(("augment", bad) for bad in ("triple", 3)),
    ],
)
def test_bad_values_are_one_clear_error(name, given):
    for call in (lambda: ROW.options({name: given}), lambda: prune_all(0, **{name: given})):
        with pytest.raises(OptionError) as error:
            call()
        assert str(error.value).startswith(f"expected {ROW.parameters[name].expects} for {name} of prune-all, got ")
        assert repr(given) in str(error.value)
    assert issubclass(OptionError, JaxguardError)


def test_the_message_in_full():
    with pytest.raises(OptionError) as error:
        ROW.options({"epochs": "abc"})
    assert str(error.value) == (
        "expected a whole number >= 0 for epochs of prune-all, got 'abc'; leave it out for the default, 100"
    )


def test_unknown_names_are_guessed():
    with pytest.raises(OptionError, match=r"expected an option of prune-all \(epochs, .*got 'epoch'; .* epochs\?"):
        prune_all(0, epoch=3)
    with pytest.raises(OptionError, match=r"got 'zzz'$"):
        ROW.options({"zzz": 3})
    rows = methods.table(ROW)
    assert methods.find(rows, "prune-all", "defense") is ROW
    with pytest.raises(OptionError, match=r"expected a defense \(prune-all\), got 'prune'; did you mean prune-all"):
        methods.find(rows, "prune", "defense")


def test_calls_pass_positional_arguments_and_defaults_on():
    x, y, options = ROW(1, y=2, share=0.25)
    assert (x, y) == (1, 2)
    assert options == {**ROW.options(), "share": 0.25}
    assert list(ROW.options({"share": 0.25})) == list(ROW.parameters)


def test_a_record_is_plain_data():
    record = ROW.record({"augment": FUNCTIONS["double"], "weights": [1, 2]})
    assert record["augment"] == "double" and record["weights"] == [1.0, 2.0] and record["stop"] is None
    assert ROW.record({"augment": abs})["augment"] == repr(abs)
    assert ROW.record()["augment"] == "none"


def test_hyper_parameters_can_be_traced():
    @checked
    def scaled(x, *, rate: methods.Positive = 1.0):
        return rate * x

    assert jax.vmap(lambda rate: scaled(2.0, rate=rate))(jnp.array([1.0, 3.0])).tolist() == [2.0, 6.0]


@checked
@methods.options_of(prune_all)
def prune_and_train(x, *, rate: methods.Count = 3, **pruning):
    """Prunes, then trains.

    Args:
        x: input.
        rate: its own.
        pruning: options of `prune_all`.
    """
    return rate, prune_all(x, **pruning)[2]


def test_options_handed_on_are_stated_once():
    row = Method(prune_and_train, "")
    assert list(row.parameters) == ["rate", *(name for name in ROW.parameters if name != "rate")]
    for name, option in row.parameters.items():
        assert (option == ROW.parameters[name]) == (name != "rate")
    assert row.parameters["rate"].help == "its own."
    rate, used = row(0, rate="2", epochs="7", order="down")
    assert rate == 2 and (used["epochs"], used["order"], used["rate"]) == (7, "down", 0.1)
    for given in ({"epochs": -1}, {"pruning": {}}, {"zzz": 3}):
        with pytest.raises(OptionError, match="of prune-and-train"):
            row(0, **given)
