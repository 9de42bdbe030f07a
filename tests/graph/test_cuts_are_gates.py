"""For every kind of model: a cut in the leaves is a gate of 0 in the traced program, or it is refused by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from written_models import WRITTEN

from jaxguard import models, surgery
from jaxguard.graph import channel_graph, cuts, pairing
from jaxguard.graph.views import laid_out
from jaxguard.models.densenet import DenseNet
from jaxguard.models.mobilenet_v3 import SMALL as SMALL_STAGES
from jaxguard.models.mobilenet_v3 import MobileNetV3
from jaxguard.models.resnet import ResNet

SMALL = {"width": "0.125", "depth": "1", "depths": "1x1x1x1"}


SHALLOW = {
    "resnet50": ResNet(num_classes=10, blocks=(1, 2, 1, 1), width=0.125, entry="cifar"),
    "resnext50_32x4d": ResNet(num_classes=10, blocks=(1, 1, 1, 1), groups=32, base=4, width=0.5),
    "densenet121": DenseNet(num_classes=10, blocks=(2, 3, 1, 1), growth=4, channels=8),
    "mobilenet_v3_small": MobileNetV3(num_classes=10, stages=SMALL_STAGES[:3], units=64),
}


def family(name):
    if name in SHALLOW:
        return functools.partial(zoo.linen, SHALLOW[name], 32, 32, 3)
    options = [f"{option}={value}" for option, value in SMALL.items() if option in models.ARCHITECTURES[name].options]
    return functools.partial(zoo.bundled, f"{name}:{','.join(options)}")


FAMILIES = {f"{name} of the table": family(name) for name in zoo.kinds() if name != "mobilenet_v3_large"}
SLOW = {"linen LSTM", "linen scan", "equinox", "from_nnx", *FAMILIES}
MODELS = {**zoo.ZOO, **WRITTEN, **FAMILIES}
REFUSED = {
    "linen LSTM": {"LSTMCell_0/h" + gate for gate in "ifgo"},
    "linen spectral norm": {"Dense_1"},
    "a kernel and its transpose": {"w", "w#2"},
}
"""Layers that no edit of the leaves cuts alone: a first step with a bias and no image, a norm over all channels."""


def gates(graph):
    """Value -> axes of its channels, for what a layer's channels are: behind a producer's own norm, or a shared one."""
    found = {producer.gate: producer.gate_axes for producer in graph.producers}
    return found | {affine.end: affine.begin_axes for affine in graph.affines}


def gated(graph, where, variables, images, factors):
    def after(value, array):
        if str(value) not in factors:
            return array
        axes = where[value]
        factor = laid_out(factors[str(value)], axes, [array.shape[k] for k in axes], array.ndim)
        return array * factor.astype(array.dtype)

    program = graph.program_at(images)
    known = {**graph.leaves(program, variables), program.images: images}
    return program.evaluate(known, after=after)[program.logits]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)
def test_a_cut_is_a_gate_of_zero(name):
    if name in zoo.ZOO:
        compare(name, zoo.graph(name), *zoo.case(name)[1:])
        return
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # as users' code is written
        model = MODELS[name]()
        compare(name, channel_graph(*model, strict=name in FAMILIES), *model[1:])


def compare(name, graph, variables, images):
    images = jnp.asarray(images)
    where = gates(graph)
    sizes = {v: int(np.prod([graph.program.shapes[v][k] for k in axes])) for v, axes in where.items()}
    ones = {str(value): np.ones(size, np.float32) for value, size in sizes.items()}
    run = jax.jit(lambda v, factors: gated(graph, where, v, images, factors))
    plain = np.asarray(run(variables, ones))
    assert np.isfinite(plain).all()
    hidden = [producer.name for k, producer in enumerate(graph.producers) if k not in graph.outputs]
    layers = dict.fromkeys([*pairing.layers(graph), *(pairing.alone(graph, name) for name in hidden)])
    refused, moved = set(), 0
    for layer in layers:
        if cuts.why_uncuttable(graph, layer):
            refused.add(layer.name)
            continue
        mask = np.arange(layer.channels) % 2 == 1
        uses = graph.producers if layer.affine is None else graph.affines
        ends = [uses[k].gate if layer.affine is None else uses[k].end for k in layer.uses]
        expected = run(variables, {**ones, **{str(end): (~mask).astype(np.float32) for end in ends}})
        got = run(surgery.cut(graph, variables, layer, mask), ones)
        scale = np.abs(plain).max()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * scale, err_msg=layer.name)
        moved += not np.allclose(expected, plain, rtol=1e-3, atol=1e-3 * scale)
    assert {name.partition("#")[0] for name in refused} == {one.partition("#")[0] for one in REFUSED.get(name, ())}
    assert moved or refused
