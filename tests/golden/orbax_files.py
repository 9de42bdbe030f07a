"""Writes `orbax.zip`: one small tree as Orbax stores it, in every layout, for the fuzzer to start from.

    python tests/golden/orbax_files.py

Made with orbax-checkpoint 0.12.8 and tensorstore 0.1.86. `uncompressed` is `ocdbt` once more with its B+tree as plain
bytes, where mutations reach more than a decompressor.
"""

import pathlib
import tempfile
import zipfile

import numpy as np
import tensorstore
from orbax import checkpoint as ocp

TARGET = pathlib.Path(__file__).parent / "orbax.zip"
TREE = {
    "params": {"conv": {"kernel": np.arange(12, dtype=np.float32).reshape(2, 3, 2), "bias": np.ones(2, np.float16)}},
    "step": np.array(3, np.int32),
    "note": "made by hand",
}
LAYOUTS = {"ocdbt": {"use_ocdbt": True}, "folders": {"use_ocdbt": False}, "zarr3": {"use_zarr3": True}}


def write(path: pathlib.Path, **options) -> None:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(TREE), custom_metadata={"arch": "tiny"})


def uncompressed(source: pathlib.Path, target: pathlib.Path) -> None:
    def opened(folder: pathlib.Path, **options):
        base = {"driver": "file", "path": f"{folder}/"}
        return tensorstore.KvStore.open({"driver": "ocdbt", "base": base, **options}).result()

    stored, fresh = opened(source), opened(target, config={"compression": None})
    for key in stored.list().result():
        fresh.write(key, stored.read(key).result().value).result()
    for path in source.iterdir():
        if path.is_file() and path.name != "manifest.ocdbt":
            (target / path.name).write_bytes(path.read_bytes())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for layout, options in LAYOUTS.items():
            write(folder / layout, **options)
        (folder / "uncompressed").mkdir()
        uncompressed(folder / "ocdbt", folder / "uncompressed")
        for step in (1, 2):
            write(folder / "run" / str(step) / "default", use_ocdbt=False)
        with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.name != "commit_success.txt":
                    packed.write(path, path.relative_to(folder))


if __name__ == "__main__":
    main()
