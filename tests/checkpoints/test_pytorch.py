"""PyTorch files, both containers: what torch wrote is found under torch's names, to the bit."""

import json
import pathlib
import struct

import numpy as np
import pytest
import torch_bytes as handmade

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, UnsupportedError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "pytorch"
BOTH = ["data_parallel", "dtypes", "module", "parameters", "state_dict", "strided", "training"]
ORIGINALS = {
    "WRN-16-1-S-model_best.pth.tar": ("c10_bd_wrn16_nad_student", "pytorch-legacy"),
    "badnet.pth": ("mnist_bd_badnet_shihao", "pytorch-legacy"),
    "badnet_clean.pth": ("c10_clean_lenet_sash", "pytorch"),
    "resnet20-12fca82f.th": ("c10_clean_resnet20_aka", "pytorch-legacy"),
    "trojai-pdf-model.pt": ("pdf_bd_mlp_trojai", "pytorch"),
}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (found[name].shape, found[name].dtype) == (leaf.shape, leaf.dtype), name
        assert found[name].tobytes() == leaf.tobytes(), name


@pytest.mark.parametrize("name", [*BOTH, *(f"{name}_legacy" for name in BOTH), "script"])
def test_what_torch_saved_is_what_is_read(name):
    checkpoint = checkpoints.load(GOLDEN / f"{name}.pt")
    expected = checkpoints.load(GOLDEN / f"{name.removesuffix('_legacy')}.safetensors").read_all()
    assert checkpoint.format == ("pytorch-legacy" if name.endswith("_legacy") else "pytorch")
    found, specs = checkpoint.read_all(), dict(checkpoint.leaves)
    for leaf, others in checkpoint.aliases.items():
        found |= dict.fromkeys(others, found[leaf])
        specs |= dict.fromkeys(others, specs[leaf])
    assert_same({leaf: found[leaf] for leaf in expected}, expected)
    assert found.keys() == expected.keys()
    assert {leaf: (spec.shape, spec.dtype) for leaf, spec in specs.items()} == {
        leaf: (array.shape, array.dtype) for leaf, array in expected.items()
    }


@pytest.mark.parametrize("name", ["training", "training_legacy"])
def test_what_lies_beside_the_model_is_named(name):
    checkpoint = checkpoints.load(GOLDEN / f"{name}.pt")
    assert checkpoint.metadata == {
        "best_acc1": "93.5",
        "epoch": "10",
        "arch": "tiny",
        "args.lr": "0.25",
        "state_dict": "net",
    }
    assert {name.split(".")[0] for name in checkpoint.left_out} == {"ema", "optimizer", "best_acc1"}


@pytest.mark.parametrize("name", ["module", "module_legacy"])
def test_classes_of_a_pickled_module_are_reported(name):
    metadata = checkpoints.load(GOLDEN / f"{name}.pt").metadata
    assert metadata.keys() == {"foreign_classes"}
    assert metadata["foreign_classes"].startswith("__main__.Net, torch.nn.modules.container.Sequential, ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quantized", r"'w': a quantized tensor\), which is not supported"),
        ("sparse", r"'w': a sparse tensor\), which is not supported"),
        ("complex128", "'w': a tensor of type 'torch.ComplexDoubleStorage'"),
        ("conjugate", "'w': a tensor marked as conjugate"),
        ("no_tensors", "expected a pickle that holds arrays or tensors, got one without any"),
    ],
)
def test_what_cannot_be_read_says_so(name, message):
    with pytest.raises(UnsupportedError, match=message):
        checkpoints.load(GOLDEN / f"{name}.pt")


@pytest.mark.parametrize("name", ORIGINALS)
def test_files_as_their_authors_published_them(name, shared_data):
    folder = shared_data / "checkpoints"
    reference, format = ORIGINALS[name]
    card = json.loads((folder / f"{reference}.json").read_text())
    checkpoint = checkpoints.load(folder / "originals" / name)
    assert checkpoint.format == format
    assert checkpoint.sha256 == card["source"]["sha256_original"]
    # The references were stored without DataParallel's prefix and without the counters of BatchNorm.
    found = {leaf.removeprefix("module."): array for leaf, array in checkpoint.read_all().items()}
    kept = {leaf: array for leaf, array in found.items() if not leaf.endswith("num_batches_tracked")}
    assert_same(kept, checkpoints.load(folder / f"{reference}.safetensors").read_all())


def test_leaves_of_a_zip_are_read_only_views_of_the_file():
    checkpoint = checkpoints.load(GOLDEN / "strided.pt")
    whole, rows = (checkpoint.read(name) for name in ("whole", "rows"))
    assert not whole.flags.writeable and whole.flags.aligned
    assert np.shares_memory(whole, rows)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_unaligned_leaves_of_a_stream_are_copied(tmp_path):
    for padding in range(4):
        program = handmade.mapping(w=handmade.tensor(), note=handmade.text("x" * padding))
        (tmp_path / "x.pth").write_bytes(handmade.legacy(program))
        leaf = checkpoints.load(tmp_path / "x.pth").read("w")
        assert leaf.flags.aligned and not leaf.flags.writeable
        np.testing.assert_array_equal(leaf, np.arange(6, dtype=np.float32).reshape(2, 3))


def test_big_endian_storages_are_swapped(tmp_path):
    brain = handmade.storage("1", 2, "torch BFloat16Storage")
    program = handmade.mapping(w=handmade.tensor(), b=handmade.tensor((2,), (1,), stored=brain))
    content = {"0": struct.pack(">6f", *range(6)), "1": b"\x3f\x80\xc0\x00"}
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program, content, order=b"big"))
    found = checkpoints.load(tmp_path / "x.pt").read_all()
    np.testing.assert_array_equal(found["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert found["w"].dtype.isnative
    assert found["b"].astype(float).tolist() == [1.0, -2.0]


def test_a_deflated_archive_opens_as_well(tmp_path):
    program = handmade.mapping(w=handmade.tensor(strides=(1, 2)))
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program, compression=8))
    np.testing.assert_array_equal(checkpoints.load(tmp_path / "x.pt").read("w"), [[0, 2, 4], [1, 3, 5]])


def test_a_part_of_a_storage_in_a_stream(tmp_path):
    part = handmade.storage(rest=b"(" + handmade.text("part") + handmade.numbers(2, 3)[1:])
    program = handmade.mapping(w=handmade.tensor((3,), (1,), stored=part))
    (tmp_path / "x.pth").write_bytes(handmade.legacy(program))
    assert checkpoints.load(tmp_path / "x.pth").read("w").tolist() == [2.0, 3.0, 4.0]


W, V = handmade.tensor(), handmade.tensor(stored=handmade.storage("1"))
LAYER = handmade.mapping(**{"conv1.weight": W})
LAYER_2 = handmade.mapping(**{"conv1.weight": V})
CHOICES = {
    "bare": (handmade.mapping(**{"conv1.weight": W, "bn.bias": V}), ["conv1.weight", "bn.bias"], {}),
    "nested twice": (
        handmade.mapping(state_dict=handmade.mapping(net=LAYER, optimizer=LAYER)),
        ["conv1.weight"],
        {"state_dict": "state_dict.net"},
    ),
    "weights before their average": (
        handmade.mapping(ema=LAYER, model=LAYER),
        ["conv1.weight"],
        {"state_dict": "model"},
    ),
    "average alone": (handmade.mapping(model=b"N", ema=LAYER), ["conv1.weight"], {"state_dict": "ema"}),
    "unknown key": (
        handmade.mapping(victim=LAYER, epoch=b"I3\n"),
        ["conv1.weight"],
        {"state_dict": "victim", "epoch": "3"},
    ),
    "two unknown models": (
        handmade.mapping(generator=LAYER, critic=LAYER_2, optimizer_g=LAYER),
        ["generator.conv1.weight", "critic.conv1.weight"],
        {},
    ),
    "params beside other collections": (
        handmade.mapping(params=handmade.mapping(kernel=W), batch_stats=handmade.mapping(mean=V)),
        ["params.kernel", "batch_stats.mean"],
        {},
    ),
    "nested layers": (
        handmade.mapping(model=handmade.mapping(conv=handmade.mapping(w=W))),
        ["conv.w"],
        {"state_dict": "model"},
    ),
    "beside an optimizer without a name": (
        b"](" + LAYER + handmade.mapping(state=LAYER, param_groups=b"]") + b"e",
        ["conv1.weight"],
        {"state_dict": "0"},
    ),
    "a list": (b"](" + W + V + b"e", ["0", "1"], {}),
    "one tensor": (W, ["0"], {}),
    "tied": (
        b"}(" + handmade.text("a.w") + W + b"p0\n" + handmade.text("b.w") + b"g0\n" + b"u",
        ["a.w"],
        {},
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_model_is_chosen_by_rule(case, tmp_path):
    program, names, metadata = CHOICES[case]
    content = dict.fromkeys("01", struct.pack("<6f", *range(6)))
    (tmp_path / "x.pt").write_bytes(handmade.zipped(program, content))
    checkpoint = checkpoints.load(tmp_path / "x.pt")
    assert list(checkpoint.leaves) == names
    assert checkpoint.metadata == metadata


def test_training_state_alone_is_no_model(tmp_path):
    (tmp_path / "x.pt").write_bytes(handmade.zipped(handmade.mapping(optimizer=LAYER)))
    with pytest.raises(CheckpointError, match=r"the weights of a model, got training state alone \(optimizer"):
        checkpoints.load(tmp_path / "x.pt")
