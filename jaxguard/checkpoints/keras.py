"""Keras files: whole models and weights in HDF5 (`.h5`, `.weights.h5`), and the `.keras` archive.

Weights are leaves, optimizer state is left out. Of a model's configuration only class and layer names are reported:
nothing is built from it, and the code that Lambda layers carry in it stays text. Leaves are named as the file names
them: `conv2d/kernel` (layer and weight) in whole-model files, `layers/conv2d/vars/0` in those of Keras 3.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxguard.checkpoints import archive, hdf5, header, limits, mapping, refusals
from jaxguard.checkpoints.checkpoint import Checkpoint

_WEIGHTS, _CONFIG, _VERSION = "model.weights.h5", "config.json", "metadata.json"
_WHOLE_MODEL = "model_weights"
_OPTIMIZERS = ("optimizer", "optimizer_weights", "_optimizer")
_MAX_CONFIG_BYTES = 2**26


def recognises(path: pathlib.Path) -> bool:
    """True for an HDF5 file, and for a zip archive with the members of a `.keras` file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(len(hdf5.MAGIC)) == hdf5.MAGIC:
            return True
    return {_WEIGHTS, _CONFIG} <= set(archive.member_names(path))


def open_checkpoint(path: pathlib.Path, given: str) -> Checkpoint:
    """Walks the groups of a Keras file, without reading a weight.

    Args:
        path: a regular file; it must not be shortened in place while the arrays are in use.
        given: the path as the user wrote it.

    Returns:
        A checkpoint whose `metadata` has `keras_version` and `layers`, a JSON list of (class, name) pairs, where the
        file has them.

    Raises:
        DamagedError: damaged HDF5 or zip, or weights that are announced but not there.
        HostileError: a trick of HDF5 or zip.
        UnsupportedError: no weights at all.
    """
    content = mapping.mapped(path)
    texts: dict[str, Any] = {}
    beside: dict[str, str] = {}
    if content[: len(hdf5.MAGIC)].tobytes() == hdf5.MAGIC:
        opened = hdf5.open_hdf5(content, given)
        texts = dict(opened.root)
    else:
        members = archive.open_archive(path, given)
        texts["model_config"] = members.read(_CONFIG, _MAX_CONFIG_BYTES)
        if _VERSION in members.members:
            version = header.parse(members.read(_VERSION, _MAX_CONFIG_BYTES), given).get("keras_version")
            texts["keras_version"] = version
        opened = hdf5.open_hdf5(members.view(_WEIGHTS), given)
        others = members.members.keys() - {_WEIGHTS, _CONFIG, _VERSION}
        beside = members.beside | dict.fromkeys(sorted(others), "a member that holds no weights")
    if any("pandas_type" in attributes for attributes in opened.groups.values()):
        raise refusals.unsupported(given, "weights in HDF5", "tables of pandas", "save the arrays as npz")
    prefix = f"{_WHOLE_MODEL}/" if _WHOLE_MODEL in opened.groups else ""
    attributes = opened.groups[_WHOLE_MODEL] if prefix else opened.root
    if "layer_names" in attributes or "layer_names0" in attributes:
        names = _layered_names(opened, attributes, prefix)
    else:
        names = {path: path for path in opened.arrays}
    left_out = {path: why for path, why in opened.left_out.items() if path not in names.values()}
    if not names and not left_out:
        raise refusals.unsupported(given, "at least one weight", "a file without any", "save the model's weights")
    leaves = {name: opened.arrays[path] for name, path in names.items() if path in opened.arrays}
    left_out |= {name: opened.left_out[path] for name, path in names.items() if path in opened.left_out}

    def read_fn(wanted: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: opened.read(names[name]) for name in wanted}

    return Checkpoint(given, "keras", leaves, _metadata(texts, given), path, read_fn, left_out=left_out, beside=beside)


def _layered_names(opened: hdf5.Hdf5, attributes: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """`{layer/weight: path}` in the order of the layers; of a nested model, the weights under their full names."""
    names: dict[str, str] = {}
    given = opened.given
    for layer in [*_texts(attributes, "layer_names", given), "top_level_model_weights"]:
        group = f"{prefix}{layer}"
        if group not in opened.groups:
            if layer == "top_level_model_weights":
                continue
            raise refusals.damaged(given, f"the layer {header.shown(layer)} that it names", "none")
        weights = _texts(opened.groups[group], "weight_names", given)
        clean = [weight.rsplit(":", 1)[0] for weight in weights]
        short = [weight.rsplit("/", 1)[-1] for weight in clean]
        for weight, full, last in zip(weights, clean, short, strict=True):
            name = f"{layer}/{last if short.count(last) == 1 else full.removeprefix(f'{layer}/')}"
            path = f"{group}/{weight}"
            if path not in opened.arrays or name in names:
                found = "two" if name in names else "none"
                where = f"{given}: layer {header.shown(layer)}"
                raise refusals.damaged(where, f"one weight {header.shown(weight)}", found)
            names[name] = path
    return names


def _texts(attributes: Mapping[str, Any], name: str, given: str) -> list[str]:
    """A list of names, which Keras splits over `name0`, `name1`, ... where it is long."""
    parts = [attributes[name]] if name in attributes else []
    while name not in attributes and f"{name}{len(parts)}" in attributes:
        parts.append(attributes[f"{name}{len(parts)}"])
    values = [value for part in parts for value in np.asarray(part).reshape(-1).tolist()]
    if len(values) > limits.MAX_LEAVES or any(
        not isinstance(value, (bytes, str)) or len(value) > limits.MAX_NAME_LENGTH for value in values
    ):
        expected = f"at most {limits.MAX_LEAVES} names of {limits.MAX_NAME_LENGTH} characters in {name}"
        raise refusals.damaged(given, expected, header.shown(values))
    try:
        return [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise refusals.damaged(given, f"names in {name}", str(error)) from error


def _metadata(texts: Mapping[str, Any], given: str) -> dict[str, str]:
    """The version, and the class and name of every layer in the configuration; not the configuration."""
    found = {}
    for name in ("keras_version", "backend"):
        value = texts.get(name)
        if isinstance(value, (bytes, str)):
            found[name] = header.shown(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)[1:-1]
    config = texts.get("model_config")
    if isinstance(config, (bytes, str)):
        model = header.parse(config.encode() if isinstance(config, str) else config, given)
        layers = _layers(model)
        if layers:
            found["layers"] = json.dumps(layers, ensure_ascii=False)
    return found


def _layers(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, dict) else config
    found = []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("class_name"), str):
            inner = entry.get("config")
            name = entry.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
            found.append((entry["class_name"][:100], str(name)[:100]))
    return found[:10_000]
