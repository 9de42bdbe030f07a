"""Where single equations take channels: axes and offsets worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax

from jaxguard.graph import channel_graph
from jaxguard.graph.streams import Stream, moved
from jaxguard.graph.tracing import trace

pytestmark = pytest.mark.usefixtures("usual_promotion")

CHANNELS_LAST = Stream((3,), ((7, 0),))
ENDS = None


def last_equation(apply, *shapes):
    """The last equation of a function of arrays of the given shapes, and the shapes of its program."""
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    program = trace(lambda arrays, _: apply(*arrays), arrays, arrays[0])
    return program.equations[-1], program.shapes


@pytest.mark.parametrize(
    ("apply", "stream"),
    [
        (lambda x: lax.transpose(x, (0, 3, 1, 2)), Stream((1,), ((7, 0),))),
        (lambda x: x[:, None], Stream((4,), ((7, 0),))),
        (lambda x: x.reshape(2, 1, 5, 4, 6), Stream((4,), ((7, 0),))),
        (lambda x: x.reshape(2, 20, 6), Stream((2,), ((7, 0),))),
        (lambda x: x.reshape(2, 120), ENDS),
        (lambda x: x.reshape(2, 5, 4, 2, 3), ENDS),
        (lambda x: lax.squeeze(lax.slice(x, (0, 0, 0, 0), (2, 1, 4, 6)), (1,)), Stream((2,), ((7, 0),))),
        (lambda x: x.sum((1, 2)), Stream((1,), ((7, 0),))),
        (lambda x: x.sum(3), ENDS),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"), CHANNELS_LAST),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1, 2), (1, 1, 1, 1), "VALID"), ENDS),
        (lambda x: lax.slice(x, (0, 1, 0, 0), (2, 5, 4, 6), (1, 2, 1, 1)), CHANNELS_LAST),
        (lambda x: lax.slice(x, (0, 0, 0, 2), (2, 5, 4, 6)), ENDS),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0)]), CHANNELS_LAST),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0)] * 3 + [(2, 3, 0)]), Stream((3,), ((7, 2),))),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0)] * 3 + [(0, 0, 1)]), ENDS),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 0)] * 3 + [(-1, 0, 0)]), ENDS),
        (lambda x: lax.rev(x, (1,)), CHANNELS_LAST),
        (lambda x: lax.rev(x, (3,)), ENDS),
        (lambda x: lax.tile(x, (1, 2, 1, 1)), CHANNELS_LAST),
        (lambda x: lax.tile(x, (1, 1, 1, 2)), ENDS),
    ],
)
def test_of_one_operand(apply, stream):
    eqn, shapes = last_equation(apply, (2, 5, 4, 6))
    assert moved(eqn, [CHANNELS_LAST, *[None] * (len(eqn.inputs) - 1)], shapes) == stream


def test_channels_over_two_axes_move_together_but_are_not_shifted():
    heads = Stream((1, 2), ((0, 0),))
    eqn, shapes = last_equation(lambda x: lax.transpose(x, (1, 0, 2)), (5, 3, 4))
    assert moved(eqn, [heads], shapes) == Stream((0, 2), ((0, 0),))
    eqn, shapes = last_equation(lambda x: lax.pad(x, 0.0, [(0, 0, 0), (1, 0, 0), (0, 0, 0)]), (5, 3, 4))
    assert moved(eqn, [heads, None], shapes) is None


def test_of_several_operands():
    first, second = Stream((1,), ((0, 0),)), Stream((1,), ((1, 2),))
    eqn, shapes = last_equation(lambda x, y: jnp.concatenate([x, y, x], 1), (2, 3), (2, 5))
    assert moved(eqn, [first, second, first], shapes) == Stream((1,), ((0, 0), (1, 5), (0, 8)))
    assert moved(eqn, [None, second, None], shapes) == Stream((1,), ((1, 5),))
    assert moved(eqn, [first, Stream((0,), ((1, 0),)), None], shapes) is None


def test_a_layer_of_one_channel_is_followed():
    eqn, shapes = last_equation(lambda x: lax.transpose(x, (1, 0)), (4, 1))
    assert moved(eqn, [Stream((1,), ((0, 0),))], shapes) == Stream((0,), ((0, 0),))


def test_a_norm_behind_flattened_positions_belongs_to_the_convolution():
    def model(v, x):
        x = lax.conv_general_dilated(x, v["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x.reshape(len(x), -1, 4)
        x = (x - v["bn"]["mean"]) / jnp.sqrt(v["bn"]["var"] + 1e-5) * v["bn"]["scale"] + v["bn"]["bias"]
        return jax.nn.relu(x).mean(1) @ v["head"]

    struct = jax.ShapeDtypeStruct
    bn = {name: struct((4,), np.float32) for name in ("mean", "var", "scale", "bias")}
    v = {"bn": bn, "conv": {"kernel": struct((3, 3, 2, 4), np.float32)}, "head": struct((4, 3), np.float32)}
    graph = channel_graph(model, v, zoo.images(6, 6, 2))
    (affine,) = graph.affines
    assert (affine.name, affine.sources) == ("bn", ((0, 0),))
    assert [part.path for part in (affine.scale, affine.var, affine.mean, affine.bias)] == [
        "bn/scale",
        "bn/var",
        "bn/mean",
        "bn/bias",
    ]
