"""Networks that others trained: opened, bound, measured, scanned and cut, on real images of CIFAR-10."""

import io
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from jaxguard import data, evaluation, repairs, scanning, suspects
from jaxguard.attacks import Attack, known
from jaxguard.scores import structural
from jaxguard.scores.structural import NOT_A_LAYER, SCORED
from jaxguard.suspects import Suspect
from jaxguard.types import Batch

NUM_IMAGES = 300
TOLERANCE = 0.06  # three standard errors of an accuracy of 85 % on 300 images
ARCHITECTURES = {
    "c10_bd_wrn16_nad_student": "wideresnet-16-1",
    "c10_bd_wrn16_abl_grid": "wideresnet-16-1",
    "c10_clean_resnet20_aka": "resnet20",
}
BACKDOORED = [name for name in ARCHITECTURES if "_bd_" in name]


class Published(NamedTuple):
    """A checkpoint, the attack its authors describe, and the accuracy measured on all 10,000 test images."""

    suspect: Suspect
    attack: Attack | None
    acc: float


@pytest.fixture(scope="session")
def cifar(shared_data: pathlib.Path) -> Batch:
    """The first test images: tiles of the pack's first contact sheet, stored as lossless WebP."""
    path = shared_data / "cifar10" / "test.npz"
    if not path.is_file():
        pytest.skip(f"needs CIFAR-10's test images: no file {path}")
    with np.load(path, allow_pickle=False) as pack:
        height, width = pack["hw"]
        sheet = Image.open(io.BytesIO(pack["webp"][: pack["offsets"][1]].tobytes())).convert("RGB")
        rows = np.asarray(sheet).reshape(-1, height, int(pack["cols"]), width, 3)
        tiles = rows.swapaxes(1, 2).reshape(-1, height, width, 3)
        labels = pack["labels"][:NUM_IMAGES].astype(np.int32)
    return Batch(tiles[:NUM_IMAGES].astype(np.float32) / 255, labels)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def published(request: pytest.FixtureRequest, shared_data: pathlib.Path) -> Published:
    return open_published(shared_data, request.param)


def open_published(shared_data: pathlib.Path, name: str) -> Published:
    folder = shared_data / "checkpoints"
    card = json.loads((folder / f"{name}.json").read_text())
    suspect = suspects.load(folder / card["file"], arch=ARCHITECTURES[name], **card["preprocess"])
    attack = None
    if card["attack"]:
        attack = known(data.load_trigger(folder / card["attack"]["trigger_file"]), target=card["attack"]["target"])
    return Published(suspect, attack, card["measured"]["acc"])


def test_accuracy_and_attack_success_are_the_published_ones(published: Published, cifar: Batch):
    suspect = published.suspect
    assert suspect.layout == "torch"
    network = suspect.require_network()
    metrics = evaluation.evaluate(network, cifar, published.attack, batch_size=100)
    assert abs(metrics.acc - published.acc) < TOLERANCE
    assert metrics.num_images == NUM_IMAGES
    if published.attack:
        assert metrics.asr is not None and metrics.asr > 0.95


def test_scan_scores_every_batch_norm_and_concludes_nothing(published: Published):
    (finding,) = scanning.scan(published.suspect).findings
    scored = sum(layer.channels for layer in finding.layers)
    normalised = sum(affine.channels for affine in published.suspect.network.graph.affines)
    assert scored == normalised
    assert not any(layer.undefined for layer in finding.layers)
    assert 1 < finding.z < max((layer.channels - 1) / layer.channels**0.5 for layer in finding.layers)
    assert finding.verdict == "inconclusive"


@pytest.mark.parametrize("name", BACKDOORED)
def test_clp_cuts_few_channels_and_the_attack_weakens(name: str, shared_data: pathlib.Path, cifar: Batch):
    suspect, attack, _ = open_published(shared_data, name)
    few = Batch(cifar.images[:100], cifar.labels[:100])
    before = {path: np.array(leaf) for path, leaf in flat(suspect)}
    repaired, report = repairs.repair(suspect, "clp", jax.random.key(0), test=few, attack=attack, options={"u": 2.0})
    cut = sum(int(layer.mask.sum()) for layer in report.layers)
    assert 0 < cut < 0.05 * sum(len(layer.mask) for layer in report.layers)
    assert report.before and report.after and report.before.asr and report.after.asr is not None
    assert report.after.asr < report.before.asr
    assert {path for path, leaf in flat(repaired) if not np.array_equal(leaf, before[path])} == report.change.keys()


def flat(suspect: Suspect) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree.leaves_with_path(suspect.network.variables)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)) for path, leaf in leaves]


def test_a_repaired_network_goes_back_under_the_names_it_came_with(shared_data: pathlib.Path, tmp_path: pathlib.Path):
    suspect, *_ = open_published(shared_data, BACKDOORED[0])
    suspects.save(suspect, tmp_path / "same.safetensors")
    again = suspects.load(tmp_path / "same.safetensors")
    assert again.layout == "torch"
    assert again.checkpoint is not None and suspect.checkpoint is not None
    assert set(again.checkpoint.leaves) == set(suspect.checkpoint.leaves)
    for (path, leaf), (_, same) in zip(flat(suspect), flat(again), strict=True):
        np.testing.assert_array_equal(leaf, same, err_msg=path)


IDENTIFIED = ARCHITECTURES | {
    "c10_ft_wrn16_nad_teacher": "wideresnet-16-1",
    "c10_repaired_wrn16_nad_erased": "wideresnet-16-1",
    "c10_clean_resnet32_aka": "resnet32",
    "c10_clean_resnet44_aka": "resnet44",
}
ORIGINALS = {
    "WRN-16-1-S-model_best.pth.tar": ("pytorch-legacy", "wideresnet-16-1"),
    "resnet20-12fca82f.th": ("pytorch-legacy", "resnet20"),
    "badnet.pth": ("pytorch-legacy", suspects.UNKNOWN),
    "badnet_clean.pth": ("pytorch", suspects.UNKNOWN),
    "trojai-pdf-model.pt": ("pytorch", suspects.UNKNOWN),
    "mnist_lenet5.h5": ("keras", suspects.UNKNOWN),
}
"""As their authors published them: format, and the architecture that the leaves tell."""


@pytest.mark.slow
def test_every_network_opens_and_can_be_scanned_with_no_further_word(shared_data: pathlib.Path):
    paths = sorted((shared_data / "checkpoints").glob("*.safetensors"))
    assert len(paths) == 35
    for path in paths:
        suspect = suspects.load(path)
        assert suspect.architecture == IDENTIFIED.get(path.stem, suspects.UNKNOWN)
        if suspect.network is None:
            reading = structural.read(suspect.leaves)
            assert reading.producers and {state for _, state, _ in reading.accounts} == {SCORED, NOT_A_LAYER}


@pytest.mark.parametrize("name", ORIGINALS)
def test_files_as_they_were_published_open_and_are_scanned(name: str, shared_data: pathlib.Path):
    suspect = suspects.load(shared_data / "checkpoints" / "originals" / name)
    assert suspect.checkpoint is not None
    assert (suspect.checkpoint.format, suspect.architecture) == ORIGINALS[name]
    assert np.isfinite(scanning.scan(suspect).findings[0].z)


def test_the_scan_of_a_published_file_is_that_of_its_safetensors_twin(shared_data: pathlib.Path):
    folder = shared_data / "checkpoints"
    twins = {
        "WRN-16-1-S-model_best.pth.tar": "c10_bd_wrn16_nad_student",
        "mnist_lenet5.h5": "mnist_clean_lenet5_deepjudge",
        "trojai-pdf-model.pt": "pdf_bd_mlp_trojai",
    }
    for original, twin in twins.items():
        paths = (folder / "originals" / original, folder / f"{twin}.safetensors")
        findings = scanning.scan(paths).findings
        for published, converted in zip(*(finding.layers for finding in findings), strict=True):
            assert published.name == converted.name
            np.testing.assert_array_equal(published.scores, converted.scores)
