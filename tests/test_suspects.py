"""From a checkpoint to a suspect and back: what was told, what was carried over, what is refused."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxguard import checkpoints, models, repairs, scanning, suspects
from jaxguard.errors import ArchitectureError, CheckpointError
from jaxguard.fleet import local

RNG = np.random.default_rng(0)


def random_leaves(spec, layout="torch"):
    model = models.build(spec, num_classes=4, input_shape=(32, 32, 3))
    variables = jax.tree.map(lambda leaf: RNG.uniform(0.5, 1.5, leaf.shape).astype(np.float32), model.shapes())
    return models.unbind(model, variables, layout)


def cut(suspect):
    """Something changed: at this threshold about a third of all channels are."""
    return repairs.repair(suspect, "clp", jax.random.key(0), options={"u": 0.5})[0]


def test_leaves_that_are_no_part_of_the_model_and_dtypes_survive(tmp_path):
    leaves = {f"module.{name}": leaf for name, leaf in random_leaves("resnet20:width=0.5").items()}
    leaves = {name: leaf.astype(ml_dtypes.bfloat16) if leaf.ndim == 4 else leaf for name, leaf in leaves.items()}
    leaves["module.bn1.num_batches_tracked"] = np.array(7)
    checkpoints.save(tmp_path / "source.safetensors", leaves, metadata={"epoch": "3"})
    repaired = cut(suspects.load(tmp_path / "source.safetensors"))
    suspects.save(repaired, tmp_path / "repaired.safetensors")
    before, after = (checkpoints.load(tmp_path / f"{name}.safetensors") for name in ("source", "repaired"))
    assert after.leaves == before.leaves
    assert after.metadata["epoch"] == "3"
    changed = {name for name in before.leaves if not np.array_equal(before.read(name), after.read(name))}
    assert changed
    assert all(name.endswith(("weight", "bias")) and ".bn" in name for name in changed)
    assert after.read("module.bn1.num_batches_tracked") == 7


@pytest.mark.parametrize(
    ("format", "suffix"), [("safetensors", ".safetensors"), ("orbax", ""), ("msgpack", ".msgpack")]
)
def test_a_repaired_checkpoint_keeps_its_format(format, suffix, tmp_path):
    source, target = tmp_path / f"source{suffix}", tmp_path / f"repaired{suffix}"
    checkpoints.save(source, random_leaves("cnn:width=0.5", "flax"))
    suspect = suspects.load(source)
    assert suspect.architecture == "cnn:width=0.5"
    suspects.save(cut(suspect), target)
    assert checkpoints.load(target).format == format
    assert {*checkpoints.load(target).leaves} == {*checkpoints.load(source).leaves}


def test_a_format_that_is_only_read_comes_back_as_safetensors(tmp_path):
    leaves = random_leaves("cnn:width=0.5")
    np.savez(tmp_path / "source.npz", **leaves)
    repaired = cut(suspects.load(tmp_path / "source.npz"))
    suspects.save(repaired, tmp_path / "repaired.safetensors")
    after = checkpoints.load(tmp_path / "repaired.safetensors")
    assert after.format == "safetensors"
    assert {*after.leaves} == {*leaves}


@pytest.mark.parametrize("name", ["repaired.pth", "repaired.bin", "repaired.npz", "repaired.h5", "repaired.msgpack"])
def test_a_name_that_others_would_misread_is_refused(name, tmp_path):
    checkpoints.save(tmp_path / "source.safetensors", random_leaves("cnn:width=0.5"))
    suspect = suspects.load(tmp_path / "source.safetensors")
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors .* written as safetensors"):
        suspects.save(suspect, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_a_format_without_a_writer_is_refused(tmp_path):
    checkpoints.save(tmp_path / "source.safetensors", random_leaves("cnn:width=0.5"))
    suspect = suspects.load(tmp_path / "source.safetensors")
    with pytest.raises(CheckpointError, match="can be written"):
        suspects.require_writable(tmp_path / "out.npz", suspect, format="npz")


def apply(variables, images):
    hidden = jax.nn.relu(images @ variables["params"]["in"]["w"])
    return hidden @ variables["params"]["out"]["w"]


def init():
    return {"params": {"in": {"w": jnp.zeros((5, 6))}, "out": {"w": jnp.zeros((6, 2))}}}


def save_tree(path, **shapes):
    checkpoints.save(path, {name.replace("__", "."): RNG.normal(size=shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("separator", ["__", "/"])
def test_a_function_of_the_users_own_gets_the_tree_that_init_gives(separator, tmp_path):
    path = tmp_path / "own.safetensors"
    save_tree(
        path, **{separator.join(("params", name, "w")): shape for name, shape in (("in", (5, 6)), ("out", (6, 2)))}
    )
    suspect = suspects.load(path, apply_fn=apply, init_fn=init, input_shape=(5,))
    assert suspect.architecture == "apply"
    assert [producer.channels for producer in suspect.network.graph.producers] == [6, 2]
    assert jax.tree.leaves(suspect.network)[0].dtype == jnp.float32
    suspects.save(cut(suspect), tmp_path / "repaired.safetensors")
    after = checkpoints.load(tmp_path / "repaired.safetensors")
    assert after.leaves == checkpoints.load(path).leaves
    assert "jaxguard" not in after.metadata


def test_init_is_asked_for_shapes_only(tmp_path):
    def expensive():
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, leaf.shape) + jax.random.normal(jax.random.key(0)), init()
        )

    path = tmp_path / "own.safetensors"
    save_tree(path, params__in__w=(5, 6), params__out__w=(6, 2))
    suspect = suspects.load(path, apply_fn=apply, init_fn=expensive, input_shape=(5,))
    np.testing.assert_allclose(
        suspect.network.variables["params"]["in"]["w"], checkpoints.load(path).read("params.in.w"), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"params__in__w": (5, 6)}, "leaf 'params/out/w' (6, 2) is missing"),
        ({"params__in__w": (5, 7), "params__out__w": (6, 2)}, "leaf 'params/in/w' is (5, 7), init gives (5, 6)"),
        ({"params__in__w": (5, 6), "params__out__w": (6, 2), "b": (3,)}, "leaf 'b' is not part of what init gives"),
    ],
)
def test_leaves_that_init_does_not_give_are_named(shapes, told, tmp_path):
    save_tree(tmp_path / "own.safetensors", **shapes)
    with pytest.raises(CheckpointError) as caught:
        suspects.load(tmp_path / "own.safetensors", apply_fn=apply, init_fn=init, input_shape=(5,))
    assert told in str(caught.value)


def test_an_unknown_network_is_scanned_but_not_run(tmp_path):
    save_tree(tmp_path / "own.safetensors", a__weight=(6, 3, 3, 3), b__weight=(2, 6))
    suspect = suspects.load(tmp_path / "own.safetensors")
    assert (suspect.architecture, suspect.network) == (suspects.UNKNOWN, None)
    assert suspect.leaves["a/weight" if "a/weight" in suspect.leaves else "a.weight"].shape == (6, 3, 3, 3)
    (finding,) = scanning.scan(suspect).findings
    assert [layer.name for layer in finding.layers] == ["a"]
    assert finding.notes == suspect.notes
    with pytest.raises(ArchitectureError, match="module_order"):
        local.examine(suspect, "module_order")
    with pytest.raises(ArchitectureError, match="--apply"):
        repairs.repair(suspect, "clp", jax.random.key(0))


def test_a_guess_is_told(tmp_path):
    model = models.build("vit-tiny-16:width=0.5", num_classes=4, input_shape=(32, 32, 3))
    leaves = models.unbind(model, model.init(jax.random.key(0)), "timm")
    checkpoints.save(tmp_path / "vit.safetensors", leaves)
    assert "number of heads" in suspects.load(tmp_path / "vit.safetensors").notes[0]
    assert suspects.load(tmp_path / "vit.safetensors", arch="vit-tiny-16:width=0.5,heads=1").notes == ()


@pytest.mark.parametrize("spec", ["mlp:hidden=6", "cnn:width=0.25"])
def test_an_activation_that_no_leaf_shows_is_a_guess(tmp_path, spec):
    model = models.build(spec, num_classes=4, input_shape=(8, 8, 1))
    checkpoints.save(tmp_path / "model.safetensors", models.unbind(model, model.init(jax.random.key(0)), "torch"))
    (note,) = suspects.load(tmp_path / "model.safetensors", input_shape=(8, 8, 1)).notes
    assert note.startswith("The activation, relu, is a guess") and note.endswith("Pass --arch where that is not so.")
    told = suspects.load(tmp_path / "model.safetensors", arch=f"{spec},activation=tanh", input_shape=(8, 8, 1))
    assert told.notes == () and told.architecture.endswith("activation=tanh")
