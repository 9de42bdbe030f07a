"""Every leaf of a file is accounted for: counts and bytes add up, and a reader is told where much is not understood."""

import json
import pathlib

import numpy as np
import pytest

from jaxguard import checkpoints, models, scanning, suspects
from jaxguard.fleet import accounting
from jaxguard.fleet.executors import Stream
from jaxguard.report import headlines, page, sarif, schema
from tests.fleet import stores

STATES = {"scored", "not a layer", "not understood"}


def require_exact(leaves, accounts):
    assert [one.name for one in accounts] == list(leaves)
    assert sum(one.nbytes for one in accounts) == sum(leaf.nbytes for leaf in leaves.values())
    assert sum(one.numbers for one in accounts) == sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
    assert {one.state for one in accounts} <= STATES and all(one.reason for one in accounts)


@pytest.mark.parametrize("layout", ["torch", "flax"])
@pytest.mark.parametrize("spec", ["resnet20:width=0.25", "vit-tiny-16", "mobilenet_v2:width=0.25", "convnext-tiny"])
def test_by_graph_and_by_names_the_same_leaves_are_scored(spec, layout):
    """The channel graph is the oracle of the names, for the kernels of every family."""
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    leaves = models.unbind(model, _filled(model), layout)
    graph = model.network(model.shapes()).graph
    ours = accounting.by_names(leaves)
    theirs = accounting.by_graph(graph, leaves, models.binding_of(model, leaves).paths)
    require_exact(leaves, ours)
    require_exact(leaves, theirs)
    kernels = {name for name, leaf in leaves.items() if sum(size > 1 for size in leaf.shape) >= 2}
    assert {one.name for one in ours if one.state == "scored"} & kernels == {
        one.name for one in theirs if one.state == "scored"
    } & kernels


def _filled(model):
    import jax

    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.shapes())


def test_the_published_networks_account_exactly(shared_data: pathlib.Path):
    """35 networks that others trained, by their headers."""
    paths = sorted((shared_data / "checkpoints").glob("*.safetensors"))
    assert len(paths) == 35
    for path in paths:
        leaves = checkpoints.load(path).leaves
        accounts = accounting.by_names(leaves)
        require_exact(leaves, accounts)
        assert "not understood" not in {one.state for one in accounts}


def test_a_stream_and_a_scan_in_process_give_one_account(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.stranger(3))
    (local,), (streamed,) = (scanning.scan(str(path), executor=one).findings for one in (None, Stream()))
    assert local.leaves == streamed.leaves
    require_exact(checkpoints.load(path).leaves, local.leaves)


def test_every_output_says_where_much_is_not_understood(tmp_path):
    content = stores.stranger(3) | {"odd.strange": np.ones((99, 98), np.float32)}
    path = stores.write(tmp_path / "a.safetensors", content)
    report = scanning.scan(str(path))
    assert report.findings[0].is_unclear
    assert "more than a tenth of the weights is not understood" in headlines.scan_headline(report).lead
    assert "odd.strange" in page.to_html(report) and "not understood" in page.to_html(report)
    assert schema.from_json(schema.to_json(report)).findings[0].leaves == report.findings[0].leaves
    told = json.loads(sarif.to_sarif(report))["runs"][0]["invocations"][0]["toolExecutionNotifications"]
    assert any(one["level"] == "warning" and "odd.strange" in one["message"]["text"] for one in told)


def test_a_live_network_accounts_for_its_variables():
    import jax.numpy as jnp

    from jaxguard.types import Network

    mlp = lambda v, x: jnp.maximum(x @ v["w1"], 0) @ v["w2"]  # noqa: E731
    network = Network({"w1": np.ones((4, 8), np.float32), "w2": np.ones((8, 2), np.float32)}, mlp, (4,))
    assert [(one.name, one.state) for one in accounting.of_suspect(suspects.load(network))] == [
        ("w1", "scored"),
        ("w2", "not a layer"),
    ]
