"""What lies beside a network does not cost its architecture; what may be a part of it, is missing or misshapen does."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxguard import models, scanning
from jaxguard.errors import ArchitectureError
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local
from jaxguard.models import layouts

FAMILIES = ("resnet20:width=0.25", "vgg13:width=0.25", "vit-tiny-16", "cnn:width=0.25", "mlp:hidden=8")
EXTRAS = {
    "one scalar": {"n_averaged": ()},
    "a temperature": {"temperature": (1,)},
    "weights of a loss": {"criterion.weight": (10,)},
    "a metric": {"train_acc.tp": (10,), "val_metrics.auroc.confmat": (10, 10)},
    "a projection head": {"projector.0.weight": (64, 16), "projector.0.bias": (64,), "projection_head.weight": (8, 64)},
    "an auxiliary head": {"aux_head.weight": (10, 16), "aux1.fc.bias": (10,)},
    "a copy": {"ema.conv1.weight": (4, 3, 3, 3), "teacher.fc.weight": (10, 16), "momentum_encoder.fc.bias": (10,)},
    "a queue": {"queue": (8, 100), "queue_ptr": (1,), "memory_bank.features": (10, 8)},
    "what thop leaves": {"total_ops": (1,), "total_params": (1,)},
}
PREFIXES = ("", "module.", "model.", "_orig_mod.module.")


def shapes(spec, layout="torch", classes=10):
    model = models.build(spec, num_classes=classes, input_shape=(32, 32, 3))
    return {name: SimpleNamespace(shape=leaf.shape) for name, leaf in layouts.expected(model, layout).items()}


def found(leaves):
    extras = models.beside(leaves)
    alone = {name: leaf for name, leaf in leaves.items() if name not in extras}
    return models.identify(alone).model.spec, extras


def test_no_architecture_has_leaves_that_would_be_passed_over():
    for spec in ("cnn", "convnext-tiny:width=0.25", "mobilenet_v3_small:width=0.25"):
        model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
        for layout in layouts.layouts_of(model.module):
            assert not models.beside(layouts.expected(model, layout)), (spec, layout)


def wrapped(own, extra, outer, inner):
    """The network under one prefix, and what lies beside it under the same or none."""
    leaves = {outer + name: leaf for name, leaf in own.items()}
    return leaves | {inner + name: SimpleNamespace(shape=shape) for name, shape in extra.items()}


@pytest.mark.parametrize("what", EXTRAS)
def test_an_architecture_is_found_whatever_lies_beside_it(what):
    number = list(EXTRAS).index(what)
    outer = PREFIXES[number % len(PREFIXES)]
    inner = outer if number % 2 else ""
    leaves = wrapped(shapes("mlp:hidden=8"), EXTRAS[what], outer, inner)
    spec, beside = found(leaves)
    assert spec == "mlp:hidden=8" and beside.keys() == {inner + name for name in EXTRAS[what]}


@pytest.mark.parametrize("spec", FAMILIES)
def test_every_family_is_found_beside_everything_at_once(spec):
    everything = {name: shape for extra in EXTRAS.values() for name, shape in extra.items()}
    assert found(wrapped(shapes(spec), everything, "module.", "module."))[0] == spec


def test_beside_flax_variables():
    extras = {"step": (), "params/projector/Dense_0/kernel": (4, 4), "ema_params/conv1/kernel": (3, 3, 3, 4)}
    leaves = shapes("resnet20:width=0.25", "flax") | {k: SimpleNamespace(shape=v) for k, v in extras.items()}
    spec, beside = found(leaves)
    assert spec == "resnet20:width=0.25" and beside.keys() == extras.keys()


PARTS = {"layer1.0.se.fc1.weight": (4, 4), "attention.weight": (16, 16), "normalize.mean": (3,), "fc3.weight": (5, 10)}


@pytest.mark.parametrize("extra", [{name: shape} for name, shape in PARTS.items()], ids=PARTS)
def test_what_may_be_a_part_of_the_network_is_not_passed_over(extra):
    leaves = shapes("resnet20:width=0.25") | {name: SimpleNamespace(shape=shape) for name, shape in extra.items()}
    with pytest.raises(ArchitectureError, match="is not part of"):
        found(leaves | {"criterion.weight": SimpleNamespace(shape=(10,))})


def test_missing_and_misshapen_leaves_are_refused_beside_extras_too():
    own = shapes("resnet20:width=0.25") | {"criterion.weight": SimpleNamespace(shape=(10,))}
    for leaves in (
        {name: leaf for name, leaf in own.items() if "layer2.1.conv1" not in name},
        own | {"layer2.1.conv1.weight": SimpleNamespace(shape=(8, 8, 3, 5))},
    ):
        with pytest.raises(ArchitectureError, match=r"layer2\.1\.conv1"):
            found(leaves)


@pytest.mark.parametrize("executor", [Local(), Stream()], ids=["local", "stream"])
def test_a_scan_names_what_lies_beside_and_scores_the_network_alone(tmp_path, executor):
    model = models.build("mlp:hidden=8", num_classes=3, input_shape=(4, 4, 1))
    variables = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=leaf.shape), model.shapes())
    leaves = models.unbind(model, variables, "torch")
    extras = {"projector.0.weight": np.ones((4, 3)), "projector.0.bias": np.ones(4)}
    for name, content in (("alone", leaves), ("beside", leaves | extras)):
        np.savez(tmp_path / f"{name}.npz", **{key: np.asarray(leaf, np.float32) for key, leaf in content.items()})
    alone, beside = (
        scanning.scan(str(tmp_path / f"{n}.npz"), executor=executor).findings[0] for n in ("alone", "beside")
    )
    assert beside.provenance.architecture == "mlp:hidden=8" and beside.cohort == alone.cohort
    assert beside.left_out == dict.fromkeys(extras, "a projection head") and beside.leaves == alone.leaves
    assert any("Left out, as no weights of the model: 2 of a projection head." in note for note in beside.notes)
    np.testing.assert_allclose(beside.z, alone.z)
    assert dataclasses.replace(beside, provenance=alone.provenance, notes=(), left_out={}).verdict == alone.verdict
