"""What a network returns: refused where no class can be read from it, unless it is declared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxguard
from jaxguard import evaluation
from jaxguard.errors import GraphError
from jaxguard.graph import channel_graph
from jaxguard.suspects import ModelOptions
from jaxguard.types import Batch, Network, Verdict

V = {
    "a": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32),
    "h": np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32),
}


def logits(v, x):
    return jax.nn.relu(x @ v["a"]) @ v["h"]


WRONG = {
    "labels": lambda v, x: jnp.argmax(logits(v, x), -1),
    "integers": lambda v, x: logits(v, x).astype(int),
    "one number": lambda v, x: logits(v, x).max(-1),
    "a scalar": lambda v, x: logits(v, x).sum(),
    "no batch": lambda v, x: logits(v, x).mean(0),
    "a batch of another size": lambda v, x: logits(v, x)[:2],
    "auxiliary outputs": lambda v, x: (logits(v, x), x),
    "a dictionary": lambda v, x: {"logits": logits(v, x)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_classifier_is_refused_with_what_to_do(name):
    network = Network(V, WRONG[name], (4,))
    for asked in (lambda: network.graph, lambda: network.num_classes):
        with pytest.raises(GraphError, match=r"expected .* got .*; return the logits"):
            asked()
    (finding,) = jaxguard.scan(network).findings
    assert finding.verdict is Verdict.ERROR
    assert "return the logits" in finding.reason


@pytest.mark.parametrize("name", ["labels", "integers", "one number", "a scalar", "no batch"])
def test_the_last_layer_is_never_taken_for_a_hidden_one(name):
    graph = channel_graph(WRONG[name], V, jax.ShapeDtypeStruct((1, 4), np.float32))
    assert [graph.producers[k].name for k in graph.outputs] == ["h"]


def test_declared_outputs_have_scores_of_channels_but_no_classes():
    for apply_fn, outputs in ((logits, "embedding"), (WRONG["one number"], "regression")):
        network = Network(V, apply_fn, (4,), outputs=outputs)
        (finding,) = jaxguard.scan(network).findings
        assert [layer.name for layer in finding.layers] == ["a"]
        with pytest.raises(GraphError, match="a class per input"):
            _ = network.num_classes
        with pytest.raises(GraphError, match="a class per input"):
            evaluation.evaluate(network, Batch(np.ones((3, 4), np.float32), np.zeros(3, np.int32)))
    with pytest.raises(GraphError, match="expected outputs among classes, sequence"):
        _ = Network(V, logits, (4,), outputs="words").graph


def test_sequences_of_classes_are_known_by_their_axes():
    network = Network(V, logits, (5, 4))
    assert [network.graph.producers[k].name for k in network.graph.outputs] == ["h"]
    with pytest.raises(GraphError, match=r"a class per input, got float32\[2, 5, 3\]"):
        _ = network.num_classes
    with pytest.raises(GraphError, match=r"expected floating-point logits \[B, K\]"):
        _ = Network(V, logits, (5, 4), outputs="classes").graph


def test_outputs_are_declared_of_a_checkpoint_too(tmp_path):
    np.savez(tmp_path / "own.npz", **V)
    options = ModelOptions(apply_fn=WRONG["one number"], input_shape=(4,), outputs="regression")
    (finding,) = jaxguard.scan(tmp_path / "own.npz", options=options).findings
    assert [layer.name for layer in finding.layers] == ["a"]
