"""Every leaf of a file is accounted for: counts and bytes add up, and a reader is told where much is not understood."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxguard import checkpoints, models, scanning, suspects
from jaxguard.checkpoints import LeafSpec
from jaxguard.errors import InternalError
from jaxguard.fleet import accounting
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local
from jaxguard.report import headlines, page, sarif, schema
from jaxguard.suspects import ModelOptions
from jaxguard.types import Verdict
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


def own(variables, images):
    return jax.nn.relu(images.reshape(len(images), -1) @ variables["a.weight"].T) @ variables["out.weight"].T


@pytest.mark.parametrize("executor", [Local(), Stream()], ids=["local", "stream"])
def test_every_finding_has_its_account_whichever_way_it_was_scanned(tmp_path, executor, monkeypatch):
    """Paths, URLs, a function of one's own, in files with entries beside the model, more of them than are shown."""
    monkeypatch.setattr(scanning, "SHOWN", 1)
    rng = np.random.default_rng(0)
    leaves = {"a.weight": rng.normal(size=(6, 12)), "out.weight": rng.normal(size=(2, 6))}
    leaves = {name: leaf.astype(np.float32) for name, leaf in leaves.items()}
    extras = {"num_batches_tracked": np.zeros((), np.int64), "loss.weight": np.ones(3, np.float32)}
    for k in range(3):
        stores.write(tmp_path / f"{k}.safetensors", {name: leaf + k for name, leaf in (leaves | extras).items()})
    stores.write(tmp_path / "mlp.safetensors", stores.leaves())
    stores.write(tmp_path / "nan.safetensors", {name: leaf * np.nan for name, leaf in leaves.items()})
    options = ModelOptions(
        apply_fn=own, input_shape=(2, 2, 3), init_fn=lambda: leaves | {"num_batches_tracked": np.zeros(1)}
    )
    ways = [([str(tmp_path / "mlp.safetensors")], None), ([f"file://{tmp_path}/mlp.safetensors"], None)]
    ways += [([str(tmp_path / f"{k}.safetensors") for k in range(3)], one) for one in (None, options)]
    ways += [([str(tmp_path / "nan.safetensors")], None)]
    for names, how in ways:
        for name, finding in zip(names, scanning.scan(names, executor=executor, options=how).findings, strict=True):
            checkpoint = checkpoints.load(name)
            require_exact(checkpoint.leaves, finding.leaves)
            assert dict(finding.left_out) == dict(checkpoint.left_out)
            states = {one.name: one.state for one in finding.leaves}
            if "nan" in name:
                assert finding.verdict is Verdict.ERROR and set(states.values()) == {"not understood"}
            elif "mlp" not in name:
                assert "loss.weight" in finding.left_out and "loss.weight" not in states
                assert (states["a.weight"], states["out.weight"]) == ("scored", "not a layer"), finding.reason


def test_an_account_that_does_not_add_up_is_an_internal_error_that_names_the_leaf():
    specs = {name: LeafSpec((2, 3), np.dtype(np.float32)) for name in ("a", "b")}
    good = accounting.by_names(specs)
    assert accounting.require_whole(specs, good) == good
    wrong = [good[:1], (*good, good[0]), (good[0], dataclasses.replace(good[1], nbytes=1))]
    wrong += [(good[0], dataclasses.replace(good[1], state="lost")), (good[0], dataclasses.replace(good[1], name="c"))]
    for accounts, name in zip(wrong, "bab" + "bc", strict=True):
        with pytest.raises(InternalError, match=f"'{name}'.*bug of jaxguard"):
            accounting.require_whole(specs, tuple(accounts))


def test_a_fleet_says_in_how_many_checkpoints_much_is_not_understood(tmp_path):
    for k in range(3):
        odd = {"odd.strange": np.ones((99, 98), np.float32)} if k else {}
        stores.write(tmp_path / f"{k}.safetensors", stores.stranger(k) | odd)
    report = scanning.scan(str(tmp_path), executor=Stream())
    assert "more than a tenth of the weights is not understood in 2" in headlines.scan_headline(report).lead
    assert [one.is_unclear for one in report.findings] == [False, True, True]
