"""`jaxguard fingerprint`: certificates, verdicts and exit codes from the command line."""

import functools
import json

import jax
import pytest

from jaxguard import checkpoints, models, suspects

MODEL = models.build("mlp:hidden=24x24", num_classes=10, input_shape=(16, 16, 1))
SETTINGS = ("--data", "digits", "--set", "variant=normal", "--set", "num_probes=40")


@pytest.fixture
def fingerprint(jaxguard):
    return functools.partial(jaxguard, "fingerprint")


def save(path, seed, change=0.0):
    variables = jax.tree.map(lambda leaf: leaf * (1 + change), MODEL.init(jax.random.key(seed)))
    checkpoints.save(path, checkpoints.flatten(variables), metadata=suspects.description(MODEL))
    return path


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "mine.safetensors", 0)
    save(tmp_path / "copy.safetensors", 0, 0.02)
    for seed in range(1, 21):
        save(tmp_path / f"other-{seed}.safetensors", seed)
    return tmp_path


def make(fingerprint, folder, *more, independents="other-*.safetensors"):
    out = folder / "certificate.safetensors"
    found = fingerprint(
        "make", folder / "mine.safetensors", "--out", out, *SETTINGS, "--independent", folder / independents, *more
    )
    return out, found


def test_make_and_verify(fingerprint, folder):
    held, (code, out, _) = make(fingerprint, folder)
    assert code == 0
    assert "40 probes, 20 independent models" in out
    digest = out.split("sha256 ")[1].strip()
    code, out, _ = fingerprint("verify", held, folder / "copy.safetensors", folder / "mine.safetensors", "--json")
    assert code == 1
    (report,) = json.loads(out)["ownerships"]
    assert report["certificate"] == digest
    assert [one["verdict"] for one in report["verifications"]] == ["suspected"] * 2
    code, out, _ = fingerprint("verify", held, folder / "copy.safetensors", "--report", folder / "report")
    assert code == 1
    assert "copy suspected" in out
    assert "copy suspected" in (folder / "report" / "report.html").read_text()


def test_a_stranger_is_no_finding_and_too_few_references_are_inconclusive(fingerprint, folder):
    stranger = save(folder / "stranger.safetensors", 77)
    held, _ = make(fingerprint, folder)
    code, out, _ = fingerprint("verify", held, stranger)
    assert (code, "no evidence" in out) == (0, True)
    held, _ = make(fingerprint, folder, "--overwrite", independents="other-1*.safetensors")
    code, out, _ = fingerprint("verify", held, folder / "copy.safetensors")
    assert (code, "inconclusive" in out) == (0, True)
    code, *_ = fingerprint("verify", held, folder / "copy.safetensors", "--fail-on-inconclusive")
    assert code == 1


def test_matrix(fingerprint, folder):
    code, out, _ = fingerprint(
        "matrix", folder / "mine.safetensors", folder / "other-1.safetensors",
        "--against", folder / "copy.safetensors", "--against", folder / "other-[12].safetensors", *SETTINGS, "--json",
    )  # fmt: skip
    assert code == 0
    (found,) = json.loads(out)["matrices"]
    assert [name.rsplit("/", 1)[1] for name in found["suspects"]] == [
        "copy.safetensors", "other-1.safetensors", "other-2.safetensors",
    ]  # fmt: skip
    rows = found["scores"]
    assert max(rows[0]) == rows[0][0]
    assert max(rows[1]) == rows[1][1]


def test_nothing_is_overwritten_unasked(fingerprint, folder):
    held, _ = make(fingerprint, folder)
    before = held.read_bytes()
    _, (code, _, err) = make(fingerprint, folder)
    assert code == 2
    assert "--overwrite" in err
    assert held.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("make", "MINE", "--out", "NEW", "--data", "digits", "--method", "sak"), 4, "expected a fingerprint (akh"),
        (("make", "MINE", "--out", "NEW", "--data", "digits", "--set", "colour=1"), 4, "expected an option of sac"),
        (("make", "MINE", "--out", "NEW"), 2, "image"),
        (("make", "MINE", "--out", "NEW", "--independent", "none-*"), 4, "expected files of this pattern"),
        (("verify", "MINE", "MINE"), 2, "expected a jaxguard fingerprint certificate"),
        (("verify", "MINE", "http://127.0.0.1:9/x", "--header", "X-Key"), 2, "certificate"),
        (("verify", "MINE", "MINE", "--gives", "votes"), 4, "expected logits or probs"),
    ],
)
def test_bad_usage_gets_one_clear_error(fingerprint, folder, arguments, code, message):
    known = {"MINE": folder / "mine.safetensors", "NEW": folder / "new.safetensors"}
    found, _, err = fingerprint(*(known.get(word, word) for word in arguments))
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert not (folder / "new.safetensors").exists()


def test_a_key_for_an_api_is_in_no_message(fingerprint, folder, monkeypatch):
    held, _ = make(fingerprint, folder)
    monkeypatch.setenv("TOKEN", "hush-hush")
    address = ("http://127.0.0.1:9/predict", "--endpoint", "retries=0", "--endpoint", "timeout=1")
    code, out, err = fingerprint("verify", held, *address, "--header", "X-Key: $TOKEN")
    assert code == 2
    assert "127.0.0.1:9" in err
    code, *_, missing = fingerprint("verify", held, *address, "--header", "X-Key: $ABSENT")
    assert code == 4
    assert "X-Key" in missing
    assert "hush" not in out + err + missing
