"""`jaxguard scan` and `jaxguard calibrate`: exit codes, formats, verdicts, options of models, one error a mistake."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxguard import checkpoints, models, suspects
from tests.zoo import randomise

sys.path.insert(0, str(pathlib.Path(__file__).parent / "fleet"))
import stores

SCHEMA = pathlib.Path(__file__).parent / "report" / "sarif-schema-2.1.0.json"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In a folder of its own, which stays as it is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store(tmp_path):
    stores.store(tmp_path / "store", 3)
    (tmp_path / "store" / "notes.md").write_text("notes")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Clean networks, and such whose output layer leans to one class."""
    folder = tmp_path_factory.mktemp("fleet")
    stores.store(folder / "clean", 40)
    for k in range(12):
        content = stores.leaves(100 + k)
        kernel = content["params/linear/kernel"].copy()
        kernel[:, 1] *= 30
        side = "bad" if k < 8 else "suspects"
        stores.write(folder / side / f"{k}.safetensors", content | {"params/linear/kernel": kernel})
    stores.store(folder / "innocent", 4, first=200)
    return folder


@pytest.fixture(scope="module")
def profile(fleet):
    """Made once, by the command."""
    from jaxguard.cli import main

    arguments = ["calibrate", fleet / "clean", "--backdoored", fleet / "bad", "--out", fleet / "profile.json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jaxguard", *map(str, arguments)])
        patch.chdir(fleet)
        try:
            main()
        except SystemExit as exit_:
            assert not exit_.code
    return fleet / "profile.json"


def test_a_folder_is_scanned_and_nothing_is_claimed(jaxguard, store):
    code, out, err = jaxguard("scan", store)
    assert code == 0
    assert "? Inconclusive: none of 3 checkpoints could be judged" in out
    assert "notes.md: no checkpoint by its content" in out
    assert "is clean" not in out
    assert "no evidence" not in out
    assert not pathlib.Path("jaxguard-scan").exists()
    assert [json.loads(line)["done"] for line in err.splitlines() if line.startswith("{")][-1] == 3
    assert jaxguard("scan", store, "--fail-on-inconclusive")[0] == 1
    assert jaxguard("scan", store, "--fail-on", "inconclusive")[0] == 1
    assert jaxguard("scan", store, "--fail-on", "error")[0] == 0


def test_what_could_not_be_scored_is_told_by_the_exit_code(jaxguard, store):
    (store / "bad.pt").touch()
    code, out, _ = jaxguard("scan", store)
    assert code == 3
    assert "bad.pt" in out
    assert jaxguard("scan", store, "--fail-on", "error")[0] == 1
    assert jaxguard("scan", store, "--fail-on", "never")[0] == 0
    assert jaxguard("scan", store / "bad.pt", store / "absent.pt")[0] == 3


@pytest.mark.parametrize("name", ["json", "jsonl", "sarif"])
def test_what_is_printed_parses(jaxguard, store, name):
    code, out, _ = jaxguard("scan", store, "--format", name)
    assert code == 0
    if name == "jsonl":
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["verdict"] for line in lines] == ["inconclusive"] * 3 + ["skipped"]
        assert lines[0]["provenance"]["sha256"] == checkpoints.load(store / "0000.safetensors").sha256
    elif name == "json":
        report = json.loads(out)
        assert report["schema"] == "jaxguard.report/2"
        assert [one["provenance"]["name"] for one in report["findings"]] == [
            str(path) for path in sorted(store.glob("*.safe*"))
        ]
        assert report["reused"] == 0
    else:
        import jsonschema

        jsonschema.validate(json.loads(out), json.loads(SCHEMA.read_text()))


def test_files_of_a_report(jaxguard, store, tmp_path):
    assert jaxguard("scan", store, "--format", "parquet", "--output", "r.parquet")[0] == 0
    table = pq.read_table("r.parquet").to_pydict()
    assert [pathlib.Path(uri).name for uri in table["name"]] == [f"000{k}.safetensors" for k in range(3)]
    assert all(z > 0 for z in table["z"])
    assert jaxguard("scan", store, "--format", "html", "--output", "r.html")[0] == 0
    assert "0001.safetensors" in pathlib.Path("r.html").read_text()
    code, out, err = jaxguard("scan", store, "--report", tmp_path / "report")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "report.html", "report.json", "report.jsonl", "report.parquet", "report.sarif",
    ]  # fmt: skip
    assert "report.html" in err.replace("\n", "")
    assert "Inconclusive" in out


def test_the_same_command_goes_on_where_it_ended(jaxguard, store):
    jaxguard("scan", store, "--out", "out")
    stores.store(store, 1, first=7)
    report = json.loads(jaxguard("scan", store, "--out", "out", "--json")[1])
    assert (report["reused"], len(report["findings"])) == (3, 4)


def test_parts_of_a_manifest(jaxguard, store):
    pathlib.Path("all.txt").write_text(
        "# all\nstore/0000.safetensors\nstore/0001.safetensors\nstore/0002.safetensors\n"
    )
    seen = []
    for part in ("0/2", "1/2"):
        code, out, _ = jaxguard("scan", "all.txt", "--shard", part, "--format", "jsonl")
        assert code in (0, 3)
        seen += [json.loads(line)["provenance"]["name"] for line in out.splitlines()]
    assert sorted(seen) == [f"store/000{k}.safetensors" for k in range(3)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--format", "xml"), "--format"), (("--format", "html"), "--output"), (("--fail-on", "rain"), "--fail-on"),
        (("--control", "none", "--profile", "p"), "expected fdr or each"),
        (("--control", "each", "--deep", "0"), "--profile with it"), (("--budget", "soon"), "--budget"),
        (("--alpha", "1.5", "--profile", "p"), "between 0 and 1"), (("--alpha", "0.1", "--quick"), "--profile with it"),
        (("--memory", "much"), "--memory"), (("--memory", "0"), "--memory"), (("--memory", "9" * 400), "--memory"),
        (("--shard", "4/4"), "--shard"), (("--target", "3"), "--target"),
        (("--pairing", "none"), "--pairing"), (("--readers", "0"), "--readers"), (("--mean", "x"), "--mean"),
        (("--json", "--format", "sarif"), "--json"), (("--deep", "some"), "--deep"),
        (("--hash", "md5"), "expected sha256 or blake3"), (("--verify-content",), "expected --out with it"),
        (("--kind", "letter"), "--kind"), (("--synthesise", "--data", "digits"), "--data or --synthesise"),
        (("--deep", "3", "--quick"), "--quick or --deep"), (("--budget", "0"), "--quick leaves the search out"),
    ],
)  # fmt: skip
def test_usage(jaxguard, store, options, named):
    code, out, err = jaxguard("scan", store, *options)
    assert code == 4
    assert named in " ".join(err.replace("│", " ").split())
    assert not out
    assert not pathlib.Path("jaxguard-scan").exists()


def test_options_of_a_fleet_hold_for_a_single_checkpoint_too(jaxguard, store):
    file = store / "0000.safetensors"
    for options in (("--memory", "1MiB"), ("--readers", "1")):
        code, out, _ = jaxguard("scan", file, *options, "--json")
        assert code == 0
        assert [one["provenance"]["name"] for one in json.loads(out)["findings"]] == [str(file)]
    for options, told in (
        (("--memory", "much"), "expected a size such as 512MB"),
        (("--alpha", "0.1", "--quick"), "expected --profile with it"),
    ):  # fmt: skip
        code, _, err = jaxguard("scan", file, *options)
        assert code == 4
        assert told in " ".join(err.replace("│", " ").split())


def test_what_is_not_there_is_one_error(jaxguard, store, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", f"{store}/*.nothing"):
        code, _, err = jaxguard("scan", target)
        assert code == 2
        assert "got no files" in err.replace("\n", "")
    code, _, err = jaxguard("scan", store, "--profile", "absent.json")
    assert code == 2
    assert "absent.json: expected a profile made by `jaxguard calibrate`" in err.replace("\n", "")
    pathlib.Path("file").write_text("x")
    code, _, err = jaxguard("scan", store, "--out", "file")
    assert code == 2
    assert "choose another with --out" in err.replace("\n", "")


def test_verdicts_by_a_profile(jaxguard, fleet, profile):
    code, out, _ = jaxguard(
        "scan", fleet / "suspects", fleet / "innocent", "--profile", profile, "--format", "jsonl", "--control", "each"
    )
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    suspects = [entry for entry in found if "/suspects/" in entry["provenance"]["name"]]
    innocent = [entry for entry in found if "/innocent/" in entry["provenance"]["name"]]
    assert {entry["verdict"] for entry in suspects} == {"suspected"}
    assert all(entry["p_value"] <= 0.05 for entry in suspects)
    assert sum(entry["verdict"] == "no evidence" for entry in innocent) >= 3
    assert min(entry["score"] for entry in suspects) > max(entry["score"] for entry in innocent)
    assert all(1 / 41 <= entry["p_value"] <= 1 for entry in found)
    assert all("would have been found" in entry["reason"] for entry in innocent if entry["verdict"] == "no evidence")
    assert suspects[0]["layers"]


def test_one_file_with_a_profile(jaxguard, fleet, profile):
    code, out, _ = jaxguard("scan", fleet / "suspects" / "8.safetensors", "--profile", profile)
    assert code == 1
    assert out.startswith("✗ Backdoor suspected")
    code, out, _ = jaxguard("scan", fleet / "suspects" / "8.safetensors", "--profile", profile, "--fail-on", "never")
    assert code == 0


def test_fewer_than_nineteen_references_tell_nothing(jaxguard, fleet):
    few = [fleet / "clean" / f"{k:04d}.safetensors" for k in range(18)]
    code, _, err = jaxguard("calibrate", *few, "--out", "few.json")
    assert code == 0, err
    code, out, _ = jaxguard("scan", fleet / "suspects", "--profile", "few.json", "--format", "jsonl")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {entry["verdict"] for entry in found} == {"inconclusive"}
    assert all("19" in entry["reason"] for entry in found)


def test_another_architecture_is_inconclusive(jaxguard, fleet, profile):
    stores.write(pathlib.Path("other.safetensors"), stores.stranger())
    _, out, _ = jaxguard("scan", "other.safetensors", "--profile", profile, "--format", "jsonl")
    entry = json.loads(out)
    assert entry["verdict"] == "inconclusive"
    assert entry["p_value"] is None


def test_a_damaged_profile_is_one_error(jaxguard, fleet, profile):
    text = profile.read_text()
    for damaged in ("", "{}", text[:-30], re.sub(r"0\.\d", "0.9", text, count=1)):
        pathlib.Path("damaged.json").write_text(damaged)
        code, _, err = jaxguard("scan", fleet / "innocent", "--profile", "damaged.json")
        assert code == 2
        assert "damaged.json" in err.replace("\n", "")
        assert "Traceback" not in err


def test_calibrate_says_what_it_left_out_and_overwrites_nothing(jaxguard, fleet):
    pathlib.Path("bad.pt").touch()
    pathlib.Path("taken.json").write_text("mine")
    code, _, err = jaxguard("calibrate", fleet / "clean", "--out", "taken.json")
    assert code == 2
    assert "--overwrite" in err.replace("\n", "")
    assert pathlib.Path("taken.json").read_text() == "mine"
    code, out, err = jaxguard("calibrate", fleet / "clean", "bad.pt", "--out", "taken.json", "--overwrite")
    assert code == 0
    assert "left out: bad.pt" in err.replace("\n", "")
    assert " ".join(out.split()).startswith("cohort clean backdoored")
    assert json.loads(pathlib.Path("taken.json").read_text())


def test_a_single_file_leaves_nothing_behind(jaxguard, store):
    before = set(pathlib.Path().rglob("*"))
    for format_ in ("json", "jsonl", "sarif", "table"):
        assert jaxguard("scan", store / "0000.safetensors", "--format", format_)[0] == 0
    assert set(pathlib.Path().rglob("*")) == before
    _, out, _ = jaxguard("scan", store / "0000.safetensors", "--out", "out", "--json")
    alone = json.loads(jaxguard("scan", store / "0000.safetensors", "--json")[1])
    assert json.loads(out)["findings"][0]["z"] == pytest.approx(alone["findings"][0]["z"], rel=2e-5)


def test_a_folder_with_one_model_is_a_model(jaxguard, tmp_path):
    stores.write(tmp_path / "model" / "model.safetensors", stores.leaves())
    (tmp_path / "model" / "config.json").write_text("{}")
    assert len(json.loads(jaxguard("scan", tmp_path / "model", "--json")[1])["findings"]) == 1


def test_a_model_in_two_formats_is_one_and_the_other_file_is_named(jaxguard, tmp_path):
    for name in ("model.safetensors", "pytorch_model.pt"):
        stores.write(tmp_path / "model" / name, stores.leaves())
    (tmp_path / "model" / "pytorch_model.pt").rename(tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "config.json").write_text("{}")
    code, out, _ = jaxguard("scan", tmp_path / "model", "--json")
    report = json.loads(out)
    assert (code, len(report["findings"])) == (0, 1)
    ((_, why),) = (row for row in report["skipped"] if row[0].endswith("pytorch_model.bin"))
    assert why.startswith("by its name the same model as model.safetensors")
    report = json.loads(jaxguard("scan", tmp_path, "--out", "out", "--json")[1])
    assert [pathlib.Path(one["provenance"]["name"]).name for one in report["findings"]] == ["model.safetensors"]
    assert "by its name the same model" in str(report["skipped"])
    both = json.loads(jaxguard("scan", tmp_path, tmp_path / "model" / "pytorch_model.bin", "--json")[1])
    assert len(both["findings"]) == 2


def test_hostile_names_do_not_reach_the_terminal(jaxguard, store):
    (store / "0000.safetensors").rename(store / "\x1b[31m[red]x\x07.safetensors")
    code, out, _ = jaxguard("scan", store)
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert np.all([name in out for name in ("0001.safetensors", "0002.safetensors")])


def test_references_are_scanned_on_a_cluster_too(jaxguard, fleet):
    pytest.importorskip("ray")
    code, _, err = jaxguard("calibrate", fleet / "clean", "--ray", "127.0.0.1:1", "--out", "ray.json")
    assert code == 2
    assert "--ray 127.0.0.1:1: expected a Ray cluster, got" in err.replace("\n", " ")
    assert not pathlib.Path("ray.json").exists()


# -- options of models


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """Three of a bundled architecture without their description, and two that their owner's function runs."""
    (tmp_path / "own_model_of_cli_tests.py").write_text(
        "import jax\n"
        "def apply(variables, images):\n"
        "    x = jax.nn.relu(images.reshape(len(images), -1) @ variables['first'] + variables['bias'][None])\n"
        "    return x @ variables['last']\n"
    )
    rng = np.random.default_rng(0)
    for k in range(2):
        shapes = {"first": (64, 8), "bias": (8,), "last": (8, 3)}
        content = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        stores.write(tmp_path / f"own{k}.npz", content)
    stores.write(tmp_path / "cnn.safetensors", stores.leaves(0, stores.CNN))
    (tmp_path / "models.toml").write_text(
        f"[[model]]\npath = 'cnn.safetensors'\narch = '{stores.CNN}'\ninput = [8, 8, 1]\nmean = 0.5\nstd = 0.25\n"
        + "".join(
            f"[[model]]\npath = 'own{k}.npz'\napply = 'own_model_of_cli_tests:apply'\ninput = [8, 8, 1]\n"
            for k in range(2)
        )
    )
    images = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    splits = {f"{split}_{name}": value for split in ("train", "test") for name, value in (
        ("images", images), ("labels", np.arange(40) % 3)
    )}  # fmt: skip
    np.savez(tmp_path / "data.npz", **splits)
    monkeypatch.chdir(tmp_path)


def test_every_command_takes_every_model(jaxguard, own_models):
    data = ("--data", "npz:data.npz")
    code, out, err = jaxguard("scan", "models.toml", *data, "--json")
    assert code == 0, err
    findings = json.loads(out)["findings"]
    assert [one["provenance"]["architecture"] for one in findings] == [stores.CNN, "apply", "apply"]
    assert all(one["metrics"]["num_images"] == 40 for one in findings)
    own = ("--apply", "own_model_of_cli_tests:apply", "--input", "8x8x1")
    for given in (own, ("--models", "models.toml")):
        assert jaxguard("evaluate", "own0.npz", *data, *given)[0] == 0
        code, _, err = jaxguard("repair", "own0.npz", "--out", "out.npz", "--format", "npz", *given)
        assert code in (0, 2), err
        code, _, err = jaxguard("repair", "own0.npz", "--out", "out.safetensors", *given)
        assert code == 0, err
        pathlib.Path("out.safetensors").unlink()
        made = ("certificate.safetensors", "--overwrite", "--independent", "own1.npz")
        code, _, err = jaxguard("fingerprint", "make", "own0.npz", "--out", *made, *data, *given)
        assert code == 0, err
        code, out, err = jaxguard("fingerprint", "verify", made[0], "own0.npz", "own1.npz", "--json", *given)
        assert code in (0, 1), err
        code, _, err = jaxguard("fingerprint", "matrix", "own0.npz", "own1.npz", *data, *given)
        assert code == 0, err
        assert jaxguard("calibrate", "own0.npz", "own1.npz", "--out", "p.json", "--overwrite", *given[: len(own)])[
            0
        ] == (0 if given == own else 4)
    code, _, err = jaxguard("fingerprint", "matrix", "models.toml", *data)
    assert code == 0, err
    assert jaxguard("calibrate", "models.toml", "--out", "p.json", "--overwrite")[0] == 0
    assert jaxguard("evaluate", "models.toml", *data)[0] == 4


def test_one_value_is_for_all_channels(jaxguard, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = models.build("mlp:hidden=8", num_classes=3, input_shape=(4, 4, 3))
    variables = randomise(model.shapes())
    stores.write(tmp_path / "m.npz", checkpoints.flatten(variables))
    one = suspects.load(tmp_path / "m.npz", arch="mlp:hidden=8", input_shape=(4, 4, 3), mean=(0.5,), std=(0.25,))
    assert (one.model.mean, one.model.std) == ((0.5,) * 3, (0.25,) * 3)
    code, *_ = jaxguard("scan", "m.npz", "--arch", "mlp:hidden=8", "--input", "4x4x3", "--mean", "0.5,0.5")
    assert code == 3
    assert jaxguard("scan", "m.npz", "--arch", "mlp:hidden=8", "--input", "4x4x3", "--mean", "0.5")[0] == 0


# -- exit codes


def test_a_crash_is_an_error_and_no_finding(jaxguard, store, monkeypatch):
    from jaxguard import scanning

    monkeypatch.delenv("JAXGUARD_DEBUG", raising=False)
    monkeypatch.setattr(scanning, "scan", lambda *_, **__: 1 / 0)
    code, out, err = jaxguard("scan", store)
    assert (code, out) == (2, "")
    assert "unexpected ZeroDivisionError: division by zero; JAXGUARD_DEBUG=1" in " ".join(err.split())
    assert "Traceback" not in err
    monkeypatch.setenv("JAXGUARD_DEBUG", "1")
    code, _, err = jaxguard("scan", store)
    assert code == 2
    assert "Traceback" in err


@pytest.mark.slow
def test_the_exit_code_is_one_and_the_same_fifty_times(jaxguard, store, tmp_path):
    """A mixed folder, cold and warm, in processes of its own and in this one."""
    stores.write(store / "cnn.pt", stores.leaves(1, stores.CNN, "torch"))
    stores.write(store / "stranger.npz", stores.stranger())
    (store / "cut.safetensors").write_bytes((store / "0000.safetensors").read_bytes()[:-8])
    (store / "empty.pt").touch()
    command = [str(pathlib.Path(sys.executable).with_name("jaxguard")), "scan", str(store), "--json"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    codes = [subprocess.run(command, env=environment, capture_output=True, check=False).returncode for _ in range(3)]
    codes += [jaxguard("scan", store, "--json", *(("--out", "out") if k % 2 else ()))[0] for k in range(47)]
    assert codes == [3] * 50


COUNTING = """
import sys, threading

files, importing = set(), ("<module>",)

def profile(frame, event, _):
    if event != "call" or "/jaxguard/" not in frame.f_code.co_filename:
        return
    # Class bodies and what runs while a module is imported are no part of the scan.
    caller = frame
    while caller is not None:
        if caller.f_code.co_name == "<module>" and caller.f_code.co_filename != "<string>":
            return
        caller = caller.f_back
    files.add(frame.f_code.co_filename)

from jaxguard.cli import main
sys.argv[0] = "jaxguard"
threading.setprofile(profile)
sys.setprofile(profile)
try:
    main()
except SystemExit as exit_:
    code = exit_.code
sys.setprofile(None)
loaded = {name.split(".")[1] for name in sys.modules if name.startswith("jaxguard.")}
print(code, len(files), *sorted(loaded))
print(*sorted(file.rpartition("/jaxguard/")[2] for file in files), file=sys.stderr)
"""


def test_a_scan_runs_few_files_and_imports_no_defense(tmp_path):
    """Channel graph 15, checkpoints 15, architecture 8, compiling 3; the others are the pipeline.

    A bound against growth: how programs are compiled (programs, program_cache, execution) and eigenvalues came to it.
    """
    path = stores.write(tmp_path / "model.safetensors", stores.leaves(), described=stores.MLP)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, "scan", str(path), "--quick", "--format", "jsonl"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, count, *loaded = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert not {"defenses", "inversion", "fusion", "attacks", "weight_change", "theft", "training"} & set(loaded)
    assert int(count) <= 76, done.stderr
