"""A certificate comes back as it was written, and not at all once it was changed."""

import dataclasses

import numpy as np
import pytest

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, FingerprintError
from jaxguard.fingerprints import Probes
from jaxguard.fingerprints.certificate import Certificate, Reference, load, save

RNG = np.random.default_rng(0)
CERTIFICATE = Certificate(
    method="sac",
    options={"space": "logits", "quality": 25, "halved": True, "seed": None},
    probes=Probes(
        RNG.random((5, 4, 4, 1), np.float32),
        {"labels": np.arange(5, dtype=np.int32), "mask": np.array([True, False]), "delta": np.array(0.5)},
        ("Only five.",),
    ),
    signature=RNG.normal(size=(5, 3)).astype(np.float32),
    num_classes=3,
    owner="mine.safetensors",
    owner_sha256="ab" * 32,
    references=(Reference("a", "", -0.25), Reference("b", "cd" * 32, 1 / 3)),
)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "mine.safetensors"
    save(CERTIFICATE, path)
    return path


def test_it_comes_back_as_it_was(written):
    found = load(written)
    for name in ("method", "options", "num_classes", "owner", "owner_sha256", "references", "digest"):
        assert getattr(found, name) == getattr(CERTIFICATE, name)
    assert found.probes.notes == CERTIFICATE.probes.notes
    assert found.leaves.keys() == CERTIFICATE.leaves.keys()
    for name, array in CERTIFICATE.leaves.items():
        np.testing.assert_array_equal(found.leaves[name], array)
        assert found.leaves[name].dtype == array.dtype


@pytest.mark.parametrize(
    "change",
    [
        {"method": "akh"},
        {"options": {"space": "probs"}},
        {"references": ()},
        {"references": (Reference("a", "", -0.26), Reference("b", "cd" * 32, 1 / 3))},
        {"signature": CERTIFICATE.signature + np.float32(1e-6)},
        {"probes": CERTIFICATE.probes._replace(images=CERTIFICATE.probes.images[::-1])},
        {"probes": CERTIFICATE.probes._replace(arrays={})},
    ],
)
def test_its_digest_covers_everything(change):
    assert dataclasses.replace(CERTIFICATE, **change).digest != CERTIFICATE.digest


def test_one_changed_byte_is_noticed(written):
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    written.write_bytes(content)
    with pytest.raises(FingerprintError, match="changed after it was made"):
        load(written)


def test_a_setting_changed_in_the_file_is_noticed(written):
    file = checkpoints.load(written)
    metadata = dict(file.metadata) | {"references": "[]"}
    checkpoints.save(written, {k: v.copy() for k, v in file.read_all().items()}, metadata=metadata, overwrite=True)
    with pytest.raises(FingerprintError, match="changed after it was made"):
        load(written)


def test_a_checkpoint_is_no_certificate(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoints.save(path, {"w": np.ones(3, np.float32)})
    with pytest.raises(FingerprintError, match=r"expected a jaxguard fingerprint certificate.*fingerprint make"):
        load(path)


def test_nothing_is_overwritten_unasked(written):
    with pytest.raises(CheckpointError):
        save(CERTIFICATE, written)
    with pytest.raises(FingerprintError, match=r"ends in \.safetensors"):
        save(CERTIFICATE, written.with_suffix(".npz"))
