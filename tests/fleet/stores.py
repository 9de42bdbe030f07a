"""Stores of tiny checkpoints, in every way that one can lie on a disk."""

from __future__ import annotations

import functools
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors.numpy

from jaxguard import checkpoints, models, suspects
from jaxguard.models import Model
from tests.checkpoints import torch_bytes
from tests.zoo import randomise

MLP, CNN = "mlp:hidden=8", "cnn:width=0.12"
CLASSES = 3
SHAPES = {MLP: (4, 4, 1), CNN: (8, 8, 1)}
Leaves = dict[str, np.ndarray]


@functools.cache
def model(spec: str = MLP) -> Model:
    return models.build(spec, num_classes=CLASSES, input_shape=SHAPES[spec])


def leaves(seed: int = 0, spec: str = MLP, layout: str = "flax") -> Leaves:
    """Random weights under the names, in the layout of flax or torch."""
    variables = randomise(model(spec).shapes(), seed)
    found = checkpoints.flatten(variables) if layout == "flax" else models.unbind(model(spec), variables, layout)
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def stranger(seed: int = 0) -> Leaves:
    """A network of no architecture that jaxguard knows."""
    rng = np.random.default_rng(seed)
    shapes = {"a.weight": (6, 3, 3, 3), "a.bias": (6,), "b.weight": (5, 24), "b.bias": (5,), "out.weight": (2, 5)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(path: pathlib.Path, content: Mapping[str, np.ndarray], *, described: str | None = None) -> pathlib.Path:
    """Write a checkpoint as its suffix says, by the library that such files come from where there is one here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = suspects.description(model(described)) if described else None
    content = {name: np.ascontiguousarray(leaf) for name, leaf in content.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(dict(content), path, metadata=metadata)
    elif path.suffix == ".npz":
        np.savez(path, **content)
    elif path.suffix == ".pt":
        path.write_bytes(torch_zip(content))
    else:
        checkpoints.save(path, content, metadata=metadata)
    return path


def store(folder: pathlib.Path, count: int, *, first: int = 0) -> list[pathlib.Path]:
    """`count` multi-layer perceptrons of one structure, all different."""
    return [write(folder / f"{k:04d}.safetensors", leaves(k)) for k in range(first, first + count)]


def sharded(folder: pathlib.Path, content: Mapping[str, np.ndarray], count: int = 2) -> pathlib.Path:
    """As `save_pretrained` leaves large models."""
    folder.mkdir(parents=True, exist_ok=True)
    names, weight_map = list(content), {}
    for k in range(count):
        file = f"model-{k + 1:05d}-of-{count:05d}.safetensors"
        write(folder / file, {name: content[name] for name in names[k::count]})
        weight_map |= dict.fromkeys(names[k::count], file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def torch_zip(content: Mapping[str, np.ndarray]) -> bytes:
    """What `torch.save` makes of a state dict of float tensors."""
    entries, storages = {}, {}
    for number, (name, leaf) in enumerate(content.items()):
        strides = [step // leaf.itemsize for step in leaf.strides]
        stored = torch_bytes.storage(str(number), leaf.size)
        entries[name] = torch_bytes.tensor(leaf.shape, strides, stored=stored)
        storages[str(number)] = leaf.astype("<f4").tobytes()
    return torch_bytes.zipped(torch_bytes.mapping(**entries), storages)


def safetensors_bytes(content: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """A safetensors file with its leaves in this very order, which the library would change for alignment."""
    codes = {"float32": "F32", "float16": "F16", "bool": "BOOL", "int64": "I64", "bfloat16": "BF16", "uint8": "U8"}
    header, data = {}, io.BytesIO()
    for name, leaf in content:
        start = data.tell()
        data.write(leaf.tobytes())
        header[name] = {
            "dtype": codes[leaf.dtype.name],
            "shape": list(leaf.shape),
            "data_offsets": [start, data.tell()],
        }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data.getvalue()


def rounded(content: Mapping[str, np.ndarray], dtype: str) -> Leaves:
    """The leaves in another element type."""
    found = np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    return {name: leaf.astype(found) for name, leaf in content.items()}
