"""What a network returns: refused where no class can be read from it, unless it is declared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from flax import linen as nn
from typer.testing import CliRunner

import jaxguard
from jaxguard import evaluation
from jaxguard.adapters.linen import from_linen
from jaxguard.cli import app, models
from jaxguard.detection import looks
from jaxguard.errors import ArchitectureError, DataError, FingerprintError, GraphError
from jaxguard.graph import channel_graph
from jaxguard.inversion import invert, synthesise
from jaxguard.inversion.recovery import recover
from jaxguard.suspects import ModelOptions, load
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


NO_CLASSES = {
    "tokens": Network({"w": np.ones((3, 5), np.float32)}, lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"].T, (4, 4, 3)),
    "an embedding": Network(
        {"w": np.ones((3, 5), np.float32)},
        lambda v, x: jnp.tanh(x @ v["w"]).mean((1, 2)) @ v["w"].T,
        (4, 4, 3),
        outputs="embedding",
    ),
}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_what_needs_classes_refuses_other_outputs_with_one_error(name):
    network = NO_CLASSES[name]
    match = r"expected logits \[B, K\] for what needs a class per input, got float32"
    with pytest.raises(GraphError, match=match):
        looks.responses().features_fn(network)
    with pytest.raises(GraphError, match=match):
        recover(network, None, jax.random.key(0), most=1, synthesised=1, synthesis_steps=1, steps=1)
    with pytest.raises(FingerprintError, match=rf"owner 0: {match}.*or take tafa-hinge"):
        jaxguard.certify(
            network, "sac", jax.random.key(0), data=Batch(np.zeros((3, 4, 4, 3), np.float32), np.arange(3))
        )


def test_inversion_without_a_network_looks_at_the_logits_themselves():
    graph = NO_CLASSES["tokens"].graph
    with pytest.raises(GraphError, match="needs a class per input"):
        synthesise(graph, NO_CLASSES["tokens"].variables, jax.random.key(0), labels=np.arange(2), steps=1)
    with pytest.raises(DataError, match=r"floating-point logits \[1, K\], got int32\[1, 3\]"):
        whole = lambda v, x: (x.mean((1, 2)) * 9).astype(int)  # noqa: E731
        invert(whole, {}, np.ones((1, 4, 4, 3), np.float32), None, jax.random.key(0), steps=1)


def test_adapters_and_the_command_line_declare_outputs(tmp_path):
    module = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(1), lambda x: x[:, 0]])
    variables = module.init(jax.random.key(0), jnp.ones((1, 4)))
    network = from_linen(module, variables, (4,), outputs="regression")
    assert [layer.name for layer in jaxguard.scan(network).findings[0].layers] == ["layers_0"]
    with pytest.raises(ArchitectureError, match="got outputs as well"):
        load(network, outputs="classes")
    own = models.Models(apply="jax.nn:relu", input_="4", outputs="embedding")
    assert own.options.outputs == "embedding"
    for given, match in (
        (models.Models(apply="jax.nn:relu", outputs="words"), "sequence, regression, embedding, got 'words'"),
        (models.Models(arch="resnet20", outputs="classes"), "expected --apply with it"),
    ):
        with pytest.raises(typer.BadParameter, match=match):
            _ = given.options


@pytest.mark.parametrize("command", ["scan", "evaluate", "repair", "calibrate", "inspect", "fingerprint make"])
def test_commands_take_what_the_function_returns(command):
    shown = CliRunner().invoke(app.app, [*command.split(), "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert "--outputs" in shown.output
