"""The command line: exit codes, one clear error for each bad input, nothing written half."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxguard import checkpoints, data, models, suspects
from jaxguard.defenses import DEFENSES


@pytest.fixture(scope="module")
def model():
    return models.build("cnn:width=0.5", num_classes=10, input_shape=(16, 16, 1))


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "model.safetensors"
    leaves = checkpoints.flatten(model.init(jax.random.key(0)))
    checkpoints.save(path, leaves, metadata=suspects.description(model))
    return path


@pytest.fixture
def colour_images(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "colour.npz"
    splits = {}
    for split, count in (("train", 40), ("test", 20)):
        splits[f"{split}_images"] = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        splits[f"{split}_labels"] = np.arange(count) % 10
    np.savez(path, **splits)
    return f"npz:{path}"


def rewritten(checkpoint, **changed):
    leaves = checkpoints.load(checkpoint).read_all()
    leaves.update({name.replace("__", "/"): array for name, array in changed.items()})
    path = checkpoint.with_name("changed.safetensors")
    metadata = dict(checkpoints.load(checkpoint).metadata)
    checkpoints.save(path, {k: v for k, v in leaves.items() if v is not None}, metadata=metadata, overwrite=True)
    return path


def test_help_is_instant_and_loads_no_array_library():
    code = "import sys, jaxguard.cli.app; sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_looking_for_code_loads_no_array_library(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"cprofile\nrun\n(I1\ntR.")
    code = (
        "import atexit, sys, jaxguard.cli\n"
        "atexit.register(lambda: print(*({'jax', 'numpy', 'jinja2', 'pyarrow', 'matplotlib'} & set(sys.modules))))\n"
        f"sys.argv = ['jaxguard', 'scan', '--code-only', {str(tmp_path)!r}]\n"
        "jaxguard.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "profile.run(1)" in done.stdout
    assert not done.stdout.splitlines()[-1], "an array library was imported"


def test_scan_says_inconclusive_and_never_clean(jaxguard, checkpoint):
    code, out, _ = jaxguard("scan", checkpoint)
    assert code == 0
    assert out.startswith("? Inconclusive.")
    assert "is clean" not in out
    code, *_ = jaxguard("scan", checkpoint, "--fail-on-inconclusive")
    assert code == 1


def test_scan_prints_json_and_writes_a_page(jaxguard, checkpoint, tmp_path):
    folder = tmp_path / "report"
    code, out, _ = jaxguard("scan", checkpoint, "--json", "--data", "digits", "--report", folder)
    assert code == 0
    (scan,) = json.loads(out)["findings"]
    assert scan["provenance"]["architecture"] == "cnn:width=0.5"
    assert scan["provenance"]["size"] == checkpoint.stat().st_size
    assert scan["provenance"]["sha256"] == checkpoints.load(checkpoint).sha256
    assert len(scan["layers"]) == 6
    assert scan["metrics"]["num_images"] == len(data.load("digits").test.labels)
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "report.json").read_text())["findings"][0]["z"] == scan["z"]


def test_the_precision_of_the_command_line_is_used_and_named(jaxguard, checkpoint):
    found = {}
    for precision in ("highest", "default", "bfloat16"):
        code, out, _ = jaxguard("scan", checkpoint, "--quick", "--json", "--precision", precision)
        assert code == 0
        report = json.loads(out)
        assert report["environment"]["precision"] == precision
        found[precision] = report["findings"][0]["z"]
    assert found["highest"] == found["default"] != found["bfloat16"]
    assert found["bfloat16"] == pytest.approx(found["highest"], rel=0.1)


def test_the_two_pairings_differ_on_a_preactivation_network(jaxguard, tmp_path):
    model = models.build("preactresnet18:width=0.125", num_classes=10, input_shape=(32, 32, 3))
    path = tmp_path / "preact.safetensors"
    checkpoints.save(path, checkpoints.flatten(model.init(jax.random.key(0))), metadata=suspects.description(model))
    layers = {}
    for how in ("dataflow", "module_order"):
        code, out, _ = jaxguard("scan", path, "--json", "--pairing", how)
        assert code == 0
        layers[how] = [layer["name"] for layer in json.loads(out)["findings"][0]["layers"]]
    assert len(layers["dataflow"]) == 17
    assert len(layers["module_order"]) == 16


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_repair_writes_a_checkpoint_that_drops_in(jaxguard, checkpoint, tmp_path, suffix):
    source = checkpoint
    if not suffix:
        source = tmp_path / "orbax"
        original = checkpoints.load(checkpoint)
        checkpoints.save(source, original.read_all(), format="orbax", metadata=dict(original.metadata))
    out = tmp_path / f"repaired{suffix}"
    code, printed, err = jaxguard("repair", source, "--out", out, "--set", "u=1", "--data", "digits")
    assert code == 0, err
    assert "CLP" in printed
    before, after = checkpoints.load(source), checkpoints.load(out)
    assert after.format == before.format
    assert after.leaves == before.leaves
    changed = [name for name in before.leaves if not np.array_equal(before.read(name), after.read(name))]
    assert changed
    assert all("/bn" in name for name in changed)
    assert jaxguard("scan", out)[0] == 0


def test_repair_of_a_torch_file_keeps_its_names_and_layout(jaxguard, tmp_path):
    model = models.build("wideresnet-16-1", num_classes=10, input_shape=(32, 32, 3))
    path, out = tmp_path / "torch.safetensors", tmp_path / "repaired.safetensors"
    safetensors.numpy.save_file(models.unbind(model, model.init(jax.random.key(0)), "torch"), path)
    code, _, err = jaxguard("repair", path, "--arch", "wideresnet-16-1", "--out", out, "--set", "u=2")
    assert code == 0, err
    assert checkpoints.load(out).leaves == checkpoints.load(path).leaves


def test_ft_sam_from_the_command_line(jaxguard, checkpoint, tmp_path):
    out = tmp_path / "repaired.safetensors"
    arguments = ("--method", "ft-sam", "--set", "epochs=1", "--set", "augment=crop", "--data", "digits")
    code, printed, err = jaxguard(
        "repair", checkpoint, "--out", out, *arguments, "--images-per-class", 2, "--attack", "badnets", "--json"
    )
    assert code == 0, err
    repair = json.loads(printed)["repairs"][0]
    assert repair["options"]["epochs"] == 1
    assert repair["before"]["asr"] is not None
    assert repair["der"] is not None


def test_evaluate_prints_the_metrics(jaxguard, checkpoint):
    code, out, _ = jaxguard("evaluate", checkpoint, "--data", "digits", "--attack", "blended", "--json")
    assert code == 0
    assert json.loads(out)["num_images"] == len(data.load("digits").test.labels)


def test_attacks_that_depend_on_the_label_are_counted_on_their_images(jaxguard, checkpoint):
    labels = np.asarray(data.load("digits").test.labels)
    for arguments, counted in (
        (("badnets", "--target", "all"), len(labels)),
        (("badnets", "--target", "3"), (labels != 3).sum()),
        (("source-specific", "--target", "3"), (labels == 0).sum()),
    ):
        code, out, err = jaxguard("evaluate", checkpoint, "--data", "digits", "--json", "--attack", *arguments)
        assert code == 0, err
        assert json.loads(out)["num_triggered"] == counted
    for target in ("-1", "some", "10"):
        code, _, err = jaxguard("evaluate", checkpoint, "--data", "digits", "--attack", "badnets", "--target", target)
        assert code in (2, 4) and "expected a class" in " ".join(err.split()), err


def test_inspect_shows_leaves_and_graph(jaxguard, checkpoint):
    code, out, _ = jaxguard("inspect", checkpoint)
    assert code == 0
    for expected in ("safetensors", "params/conv1/kernel", "conv1 -> bn1", "permuted together"):
        assert expected in out


@pytest.fixture
def stranger(tmp_path):
    """A network of no architecture that jaxguard knows."""
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (6, 3, 3, 3), "a.bias": (6,), "b.weight": (5, 24), "b.bias": (5,), "out.weight": (2, 5)}
    path = tmp_path / "stranger.safetensors"
    safetensors.numpy.save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, path
    )
    return path


def test_a_scan_needs_no_architecture(jaxguard, stranger):
    code, out, _ = jaxguard("scan", stranger, "--json")
    (scan,) = json.loads(out)["findings"]
    assert code == 0
    assert scan["provenance"]["architecture"] == "unknown"
    assert "names and shapes" in scan["notes"][0]
    assert [len(layer["scores"]) for layer in scan["layers"]] == [6, 5]


def test_inspect_needs_no_architecture(jaxguard, stranger, tmp_path):
    code, out, _ = jaxguard("inspect", stranger)
    assert code == 0
    assert "a.weight" in out
    assert "architecture unknown" in out
    table = tmp_path / "table.safetensors"
    safetensors.numpy.save_file({"a.weight": np.zeros((2, 3), np.float32)}, table)
    code, out, _ = jaxguard("inspect", table)
    assert code == 0
    assert "expected hidden kernels" in out


def test_the_weights_of_a_file_can_be_chosen(jaxguard, model, tmp_path):
    leaves = checkpoints.flatten(model.init(jax.random.key(0)))
    averaged = {f"ema_{name}": leaf + 1 for name, leaf in leaves.items() if name.startswith("params/")}
    checkpoints.save(tmp_path / "both.safetensors", leaves | averaged)
    code, out, _ = jaxguard("inspect", tmp_path / "both.safetensors")
    assert code == 0 and "averages of the weights (ema_params); the raw weights were taken" in out
    code, out, _ = jaxguard("inspect", tmp_path / "both.safetensors", "--weights", "ema")
    assert code == 0 and "The averaged weights ema_params were taken" in out and "cnn:width=0.5: ChannelGraph(" in out
    code, out, _ = jaxguard("scan", tmp_path / "both.safetensors", "--weights", "ema", "--json")
    assert code == 0 and "The averaged weights ema_params were taken" in out
    code, _, err = jaxguard("inspect", tmp_path / "both.safetensors", "--weights", "polyak")
    assert code == 2 and "got no 'polyak'" in err


def test_inspect_tells_the_architecture_from_the_leaves(jaxguard, model, tmp_path):
    path = tmp_path / "plain.safetensors"
    checkpoints.save(path, models.unbind(model, model.init(jax.random.key(0)), "torch"))
    code, out, _ = jaxguard("inspect", path)
    assert code == 0
    assert "cnn:width=0.5: ChannelGraph(" in out


OWN_MODEL = """
import jax, jax.numpy as jnp

def apply(variables, images):
    kernel = jnp.transpose(variables["a.weight"], (2, 3, 1, 0))
    x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(x + variables["a.bias"][None, None, None]).reshape(len(images), -1)
    x = jax.nn.relu(x @ variables["b.weight"].T + variables["b.bias"][None])
    return x @ variables["out.weight"].T
"""


def test_a_model_of_the_users_own(jaxguard, stranger, tmp_path, monkeypatch):
    (tmp_path / "own_model_of_a_test.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    own = ("--apply", "own_model_of_a_test:apply", "--input", "4x4x3")
    code, out, _ = jaxguard("inspect", stranger, *own)
    assert code == 0
    assert "apply: ChannelGraph(3 producers" in out
    code, _, err = jaxguard("repair", stranger, *own, "--set", "u=0.5", "--out", tmp_path / "repaired.safetensors")
    assert code == 0, err
    repaired, before = checkpoints.load(tmp_path / "repaired.safetensors"), checkpoints.load(stranger)
    assert repaired.leaves == before.leaves
    cut = [name for name in before.leaves if not np.array_equal(before.read(name), repaired.read(name))]
    assert "a.weight" in cut
    assert "out.weight" not in cut


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--apply", "no_such_module_of_a_test:apply"), "can be imported"),
        (("--apply", "json"), "MODULE:FUNCTION"),
        (("--apply", "json:nothing"), "can be imported"),
        (("--apply", "json:__name__"), "expected a function"),
        (("--init", "json:loads"), "--apply"),
        (("--apply", "json:loads", "--arch", "cnn"), "--arch"),
    ],
)
def test_bad_functions_are_bad_usage(jaxguard, stranger, arguments, told):
    code, _, err = jaxguard("scan", stranger, *arguments)
    assert code == 4
    assert told in " ".join(err.split())


def test_an_unknown_architecture_cannot_be_run_or_repaired(jaxguard, stranger, tmp_path):
    for arguments in (
        ("evaluate", stranger, "--data", "digits"),
        ("repair", stranger, "--out", tmp_path / "out.safetensors"),
    ):
        code, _, err = jaxguard(*arguments)
        assert code == 2
        assert "pass --arch, or your own model with --apply" in " ".join(err.split())
    assert not (tmp_path / "out.safetensors").exists()


# -- bad input: one clear error, and nothing written


def test_missing_file(jaxguard, tmp_path):
    code, out, err = jaxguard("scan", tmp_path / "absent.safetensors", "--arch", "cnn")
    assert code == 3
    assert "no such file" in " ".join(out.split())
    code, out, err = jaxguard("scan", tmp_path / "absent.safetensors", "--json")
    assert code == 3
    assert "no such file" in json.loads(out)["findings"][0]["reason"]
    assert "no such file" in " ".join(err.split())
    assert jaxguard("repair", tmp_path / "absent.safetensors", "--out", tmp_path / "x.safetensors")[0] == 2


def test_truncated_safetensors(jaxguard, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    code, out, _ = jaxguard("scan", checkpoint, "--json")
    assert code == 3
    assert json.loads(out)["findings"][0]["verdict"] == "error"
    code, _, err = jaxguard("inspect", checkpoint)
    assert code == 2
    assert err.startswith("DamagedError")


def test_wrong_shape(jaxguard, checkpoint):
    path = rewritten(checkpoint, params__conv2__kernel=np.zeros((3, 3, 8, 9), np.float32))
    code, out, _ = jaxguard("scan", path, "--json")
    assert code == 3
    reason = json.loads(out)["findings"][0]["reason"]
    assert all(told in reason for told in ("conv2", "(3, 3, 8, 9)", "(3, 3, 8, 8)"))


def test_wrong_architecture(jaxguard, checkpoint):
    code, out, _ = jaxguard("scan", checkpoint, "--arch", "resnet20", "--json")
    assert code == 3
    assert "resnet20" in json.loads(out)["findings"][0]["reason"]
    code, _, err = jaxguard("scan", checkpoint, "--arch", "resnet2O")
    assert code == 2
    assert "resnet20" in err


def test_nothing_to_score(jaxguard, tmp_path):
    path = tmp_path / "table.safetensors"
    safetensors.numpy.save_file({"a.weight": np.zeros((2, 3), np.float32)}, path)
    code, out, _ = jaxguard("scan", path)
    assert code == 3
    assert "xpected hidden kernels" in " ".join(out.split())


def test_nan_weights(jaxguard, checkpoint, tmp_path):
    kernel = checkpoints.load(checkpoint).read("params/conv3/kernel").copy()
    kernel[0, 0, 0, 0] = np.nan
    out = tmp_path / "repaired.safetensors"
    code, _, err = jaxguard("repair", rewritten(checkpoint, params__conv3__kernel=kernel), "--out", out)
    assert code == 2
    assert "params/conv3/kernel" in err
    assert not out.exists()


def test_empty_clean_set(jaxguard, checkpoint, tmp_path):
    out = tmp_path / "repaired.safetensors"
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--method", "ft-sam", "--data", "digits", "--clean", 0)
    assert code == 2
    assert "clean images" in err
    assert not out.exists()


def test_no_clean_set_at_all(jaxguard, checkpoint, tmp_path):
    out = tmp_path / "repaired.safetensors"
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--method", "ft-sam")
    assert code == 2
    assert "DefenseError" in err
    assert not out.exists()


def test_colour_images_into_a_grayscale_model(jaxguard, checkpoint, colour_images):
    code, _, err = jaxguard("evaluate", checkpoint, "--data", colour_images)
    assert code == 2
    assert "DataError" in err
    assert "16, 16, 3]" in " ".join(err.split())
    assert "16, 16, 1]" in err


def test_nothing_to_score_is_code_3(jaxguard, model, tmp_path):
    path = tmp_path / "constant.safetensors"
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), model.shapes())
    checkpoints.save(path, checkpoints.flatten(ones), metadata=suspects.description(model))
    code, out, _ = jaxguard("scan", path)
    assert code == 3
    assert "every score undefined or the same" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan",),
        ("scan", "x", "--input", "32x32"),
        ("scan", "x", "--mean", "a,b"),
        ("scan", "x", "--pairing", "random"),
        ("scan", "x", "--precision", "float32"),
        ("scan", "x", "--attack", "badnets"),
        ("repair", "x"),
        ("repair", "x", "--out", "y", "--set", "u"),
        ("evaluate", "x"),
        ("nonsense",),
    ],
)
def test_bad_usage_is_code_4(jaxguard, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    code, _, err = jaxguard(*arguments)
    assert code == 4, err
    assert err


def test_unknown_methods_and_options_name_what_exists(jaxguard, checkpoint, tmp_path):
    out = tmp_path / "repaired.safetensors"
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--method", "magic")
    assert code == 4
    assert all(name in err for name in DEFENSES)
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--set", "v=2")
    assert code == 4
    assert "u, pairing, eps" in err
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--method", "ft", "--set", "epochs=abc")
    assert code == 4
    assert "expected a whole number >= 0 for epochs of ft, got 'abc'" in " ".join(err.split())
    assert not out.exists()


def test_methods_are_listed_with_what_they_need_and_their_options(jaxguard):
    code, out, _ = jaxguard("methods", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["defenses"].keys() == DEFENSES.keys()
    assert {name for name, row in found["defenses"].items() if not row["needs"]} == {"clp", "otbr", "shapley"}
    assert found["defenses"]["ep"]["needs"] == ["training images"]
    code, out, _ = jaxguard("methods", "ft")
    assert code == 0
    assert all(name in out for name in DEFENSES["ft"].parameters)
    code, out, _ = jaxguard("methods")
    assert code == 0
    assert all(name in out for name in (*DEFENSES, "badnets"))
    assert jaxguard("methods", "magic")[0] == 4


def test_ep_from_the_command_line(jaxguard, checkpoint, tmp_path):
    out = tmp_path / "repaired.safetensors"
    code, _, err = jaxguard("repair", checkpoint, "--out", out, "--method", "ep")
    assert code == 2
    assert "data.mixed" in err and "--mixed" in err
    digits = data.load("digits", seed=0)
    np.savez(tmp_path / "mixed.npz", images=digits.train.images[:64])
    code, _, err = jaxguard(
        "repair", checkpoint, "--out", out, "--method", "ep", "--set", "u=1", "--mixed", tmp_path / "mixed.npz"
    )
    assert code == 0, err
    assert out.exists()


def test_an_existing_file_is_not_overwritten_unasked(jaxguard, checkpoint):
    content = checkpoint.read_bytes()
    code, _, err = jaxguard("repair", checkpoint, "--out", checkpoint)
    assert code == 2
    assert "--overwrite" in err
    assert checkpoint.read_bytes() == content
    assert jaxguard("repair", checkpoint, "--out", checkpoint, "--overwrite", "--set", "u=1")[0] == 0
    assert checkpoint.read_bytes() != content
