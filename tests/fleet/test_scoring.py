"""A stream's scores are those of one checkpoint alone, whatever file the weights came in."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stores
from stores import CNN, MLP

from jaxguard import checkpoints, execution, models, suspects
from jaxguard.fleet import local, reading, scoring
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Settings
from jaxguard.fleet.stream import Failure, Scored, stream
from jaxguard.fleet.structure import structure_of
from jaxguard.graph import pairing
from jaxguard.kernels import lipschitz
from jaxguard.scores import structural, weights
from jaxguard.scores.channel_bounds import bounds_of
from jaxguard.scores.weights import SUMMARY
from jaxguard.suspects import ModelOptions
from tests.zoo import randomise


def scored(path, settings=None) -> Scored:
    (result,) = stream([str(path)], settings)
    assert isinstance(result, Scored), result
    return result


def is_raw(path) -> bool:
    opened = reading.open_one(str(path))
    assert isinstance(opened, reading.Opened), opened
    return opened.structure.is_raw


def summary(scores: np.ndarray) -> dict[str, float]:
    """By numpy, in double precision."""
    known = scores[np.isfinite(scores)].astype(np.float64)
    mean, std = known.mean(), known.std(ddof=1)
    return {
        "undefined": len(scores) - len(known), "mean": mean, "std": std, "largest": known.max(),
        "channel": int(np.nanargmax(scores)), "z": (known.max() - mean) / std,
        "above": int((known > mean + 3 * std).sum()),
    }  # fmt: skip


def assert_like_one_alone(path, result: Scored, rtol: float = 2e-5, **how) -> None:
    """Against one checkpoint alone, opened and scored on the other way."""
    suspect = suspects.load(path, **{k: v for k, v in how.items() if k != "pairing"})
    report = local.examine(suspect, how.get("pairing", "dataflow"))
    assert result.scope.architecture == report.provenance.architecture
    assert result.content == (report.sha256,)
    assert [layer.name for layer in result.scope.layers] == [layer.name for layer in report.layers]
    for layer, row in zip(report.layers, result.scores.layers[0], strict=True):
        expected = summary(np.asarray(layer.scores))
        for name, value in zip(SUMMARY, row, strict=True):
            np.testing.assert_allclose(value, expected[name], rtol, 1e-6, err_msg=f"{layer.name} {name}")


FILES = {
    "flax safetensors": ("a.safetensors", MLP, "flax"), "torch safetensors": ("a.safetensors", MLP, "torch"),
    "npz": ("a.npz", MLP, "flax"), "msgpack": ("a.msgpack", MLP, "flax"), "orbax": ("a", MLP, "flax"),
    "pytorch zip": ("a.pt", MLP, "torch"), "convolutions": ("a.safetensors", CNN, "flax"),
    "convolutions of torch": ("a.pt", CNN, "torch"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "spec", "layout"), FILES.values(), ids=FILES)
def test_every_format_scores_like_one_checkpoint_alone(tmp_path, file, spec, layout):
    path = stores.write(tmp_path / file, stores.leaves(1, spec, layout))
    result = scored(path)
    assert result.scope.architecture == spec
    assert is_raw(path) == file.endswith(".safetensors")
    assert_like_one_alone(path, result)


@pytest.mark.parametrize(
    "spec",
    [
        "resnext50_32x4d:width=0.0625", "vgg11:width=0.0625,classifier=torchvision",
        "convnext-tiny:width=0.0833,depths=1x1x1x1", "vit-tiny-4:width=0.0625,depth=1,heads=2",
    ],
)  # fmt: skip
def test_kernels_as_they_lie_are_bounded_like_those_in_the_variables(tmp_path, spec):
    """Grouped and strided convolutions, dense layers behind maps, projections: all kinds that torch holds otherwise."""
    model = models.build(spec, num_classes=10, input_shape=(32, 32, 3))
    variables = randomise(model.shapes(), 0)
    leaves = models.unbind(model, variables, "torch")
    binding = models.binding_of(model, leaves)
    graph = model.network(model.shapes()).graph
    layers = pairing.layers(graph)
    path = stores.write(tmp_path / "a.safetensors", leaves)
    structure = structure_of(checkpoints.load(path))
    kernels = scoring.recipe_of(structure, Settings(ModelOptions(spec, (32, 32, 3)))).kernels
    assert sum(np.prod(kernel.shape) for kernel in kernels.values()) > 0.6 * sum(leaf.size for leaf in leaves.values())
    grams = [
        lipschitz.scaled_grams(jnp.asarray(leaves[name]).reshape(one.shape), is_channels_first=one.is_channels_first)
        for name, one in kernels.items()
    ]
    norms = dict(zip(map(binding.paths.__getitem__, kernels), lipschitz.norms_of(grams), strict=True))
    bounds = jax.jit(bounds_of, static_argnums=(0, 1, 2))
    expected, _ = bounds(graph, layers, 0.0, variables)
    found, _ = bounds(graph, layers, 0.0, variables, norms)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(tmp_path, dtype):
    path = stores.write(tmp_path / "a.safetensors", stores.rounded(stores.leaves(2), dtype))
    result = scored(path)
    assert not is_raw(path)
    assert_like_one_alone(path, result)


def test_shards_and_a_repository(tmp_path):
    index = stores.sharded(tmp_path / "model", stores.leaves(3, layout="torch"))
    assert_like_one_alone(index, scored(index))
    folder = tmp_path / "repository"
    stores.write(folder / "model.safetensors", stores.leaves(3))
    (folder / "config.json").write_text('{"model_type": "mlp"}')
    assert_like_one_alone(folder, scored(folder))


def test_an_unknown_architecture_is_scored_by_its_leaves(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.stranger())
    result = scored(path)
    assert result.scope.architecture == "unknown"
    assert "names and shapes" in result.scope.notes[0]
    assert len(result.scope.feature_names) == result.scores.features.shape[1] == 2 * len(weights.LAYER)
    assert_like_one_alone(path, result)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_leaves_of_other_types_are_passed_over(tmp_path, suffix):
    counted = {"fc1.num_batches_tracked": np.array(7), "mask": np.array([True, False, True])}
    path = stores.write(tmp_path / f"a{suffix}", stores.stranger() | counted)
    result = scored(path)
    assert is_raw(path) == (suffix == ".safetensors")
    assert_like_one_alone(path, result)


@pytest.mark.parametrize("odd", [np.array([True]), np.ones(3, np.float16), np.array([1, 2], np.uint8)])
def test_leaves_at_odd_addresses(tmp_path, odd):
    """A leaf before the others that makes all their places no multiple of four."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(stores.safetensors_bytes([("odd", odd), *stores.stranger().items()]))
    result = scored(path)
    assert not is_raw(path)
    assert_like_one_alone(path, result)


def test_leaves_in_another_order_than_their_names(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(stores.safetensors_bytes(list(reversed(stores.leaves(4).items()))))
    result = scored(path)
    assert is_raw(path)
    assert_like_one_alone(path, result)


def test_the_description_in_a_file_names_its_architecture(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(5), described=MLP)
    result = scored(path)
    assert result.scope.cohort == "mlp:hidden=8, 3 classes, 4x4x1"
    assert_like_one_alone(path, result)


def test_the_settings_name_it_too(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(6, CNN))
    result = scored(path, Settings(ModelOptions(CNN, (8, 8, 1)), "module_order"))
    assert_like_one_alone(path, result, arch=CNN, input_shape=(8, 8, 1), pairing="module_order")
    (failed,) = stream([str(path)], Settings(ModelOptions("resnet20")))
    assert isinstance(failed, Failure)
    assert "resnet20" in failed.error


def test_features_are_those_of_the_variables(tmp_path):
    """Read from a row of the file's bytes, they are what the traceable function gives for the bound variables."""
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(7, CNN, "torch"))
    result, network = scored(path), suspects.load(path).network
    layers = pairing.layers(network.graph, "dataflow")
    expected = jax.jit(weights.weight_features, static_argnums=(0, 1))(network.graph, layers, network.variables)
    assert result.scope.feature_names == weights.feature_names(layers)
    np.testing.assert_allclose(result.scores.features[0], expected.features, 1e-4, 1e-5)


def test_structural_features_are_those_of_the_leaves(tmp_path):
    content = stores.stranger(3)
    path = stores.write(tmp_path / "a.safetensors", content)
    producers = structural.read(content).producers
    expected = jax.jit(weights.structural_features, static_argnums=0)(producers, content)
    np.testing.assert_allclose(scored(path).scores.features[0], expected.features, 1e-4, 1e-5)


def test_a_stack_scores_each_of_its_rows(tmp_path):
    """Every row of a stack as if it were alone, in files of different formats and lengths."""
    paths = stores.store(tmp_path, 5)
    (result,) = stream(map(str, paths))
    assert [file.uri for file in result.files] == list(map(str, paths))
    for number, path in enumerate(paths):
        alone = scored(path)
        np.testing.assert_array_equal(result.scores.layers[number], alone.scores.layers[0])
        np.testing.assert_array_equal(result.scores.features[number], alone.scores.features[0])


def test_rows_may_be_scored_several_at_once_as_on_accelerators(tmp_path, monkeypatch):
    paths = [str(stores.write(tmp_path / f"{k}.safetensors", stores.leaves(k, CNN, "torch"))) for k in range(5)]
    (single,) = stream(paths)
    monkeypatch.setattr(execution, "checkpoints_at_once", lambda: 4)
    (several,) = stream(paths)
    assert isinstance(single, Scored)
    assert isinstance(several, Scored)
    assert several.content == single.content
    for found, expected in zip(several.scores, single.scores, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_score_of_a_row_is_the_largest_of_its_layers(tmp_path):
    path = stores.write(tmp_path / "a.safetensors", stores.leaves(8, CNN))
    with Stream().run([str(path)], Settings()) as found:
        (row,) = found.records
        layers = found.layers([row.sha256])[row.sha256]
    report = local.examine(suspects.load(path))
    np.testing.assert_allclose(row.z, report.z, 2e-5)
    assert [layer.name for layer in layers] == [layer.name for layer in report.layers]
    for layer, alone in zip(layers, report.layers, strict=True):
        expected = summary(np.asarray(alone.scores))
        assert layer.channels == len(alone.scores)
        assert (layer.channel, layer.above, layer.undefined) == (expected["channel"], expected["above"], 0)
        assert math.isclose(layer.z, expected["z"], rel_tol=2e-5)
    assert row.sha256 == checkpoints.load(path).sha256
