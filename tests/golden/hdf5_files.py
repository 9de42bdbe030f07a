"""Writes small HDF5 files in `hdf5/` with h5py: storages and structures that Keras weights may have, and hostile ones.

    python tests/golden/hdf5_files.py

Arrays named `0`, `1`, ... in the sound files are `numpy.arange(70.0).reshape(10, 7) + name`, as the dtype at hand.
"""

import pathlib
import zlib

import h5py
import ml_dtypes
import numpy as np

FOLDER = pathlib.Path(__file__).parent / "hdf5"
VALUES = np.arange(70.0).reshape(10, 7)


def storages(file: h5py.File) -> None:
    group = file.create_group("layers/dense/vars")
    group["0"] = VALUES.astype(np.float32)
    group.create_dataset("1", data=VALUES + 1, chunks=(4, 7), compression="gzip", shuffle=True)
    group.create_dataset("2", data=(VALUES + 2).astype(np.float16), chunks=(3, 3))
    group.create_dataset("10", data=(VALUES + 10).astype(">f4"))
    stored = group.create_dataset("3", data=(VALUES + 3).astype(ml_dtypes.bfloat16))
    stored.attrs["dtype"] = "bfloat16"  # as Keras does
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((10, 7))
    made = h5py.h5d.create(group.id, b"4", h5py.h5t.IEEE_F32LE, space, compact)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, (VALUES + 4).astype(np.float32))
    group["5"] = np.float32(5)
    group["6"] = np.zeros((0, 7), np.float32)


def dense(file: h5py.File) -> None:
    """New-style groups with many entries and attributes, in heaps and trees of their own."""
    group = file.create_group("layers/dense/vars", track_order=True)
    for index in range(20):
        group[str(index)] = (VALUES + index).astype(np.float32)
        group.attrs[f"note {index}"] = "x" * 50


def circle(file: h5py.File) -> None:
    group = file.create_group("layers")
    group["0"] = VALUES
    group["again"] = file["/"]
    group["and again"] = group


def external(file: h5py.File) -> None:
    file["layers/0"] = VALUES
    file["layers/1"] = h5py.ExternalLink("/etc/hostname", "/")


def soft_circle(file: h5py.File) -> None:
    file["0"] = VALUES
    file["1"] = h5py.SoftLink("/1")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("0", (4,), np.uint8, external=[("/etc/hostname", 0, 4)])


def bomb(file: h5py.File) -> None:
    made = file.create_dataset("0", (16,), np.uint8, chunks=(16,), compression="gzip")
    made.id.write_direct_chunk((0,), zlib.compress(bytes(2**24), 9))


def missing_chunks(file: h5py.File) -> None:
    made = file.create_dataset("0", (10, 7), np.float32, chunks=(5, 7), compression="gzip")
    made[:5] = VALUES[:5]


def vast(file: h5py.File) -> None:
    file.create_dataset("0", (2**40,), np.float32, chunks=(2**20,), compression="gzip")


def text(file: h5py.File) -> None:
    file["0"] = np.array(["a", "b"], dtype=object)


def compound(file: h5py.File) -> None:
    file["0"] = np.zeros(3, [("a", np.float32), ("b", np.int8)])


def mixed(file: h5py.File) -> None:
    file["layers/dense/kernel"] = VALUES
    file["layers/dense/words"] = np.array(["a", "b"], dtype=object)
    file["layers/dense/record"] = np.zeros(3, [("a", np.float32), ("b", np.int8)])
    file["layers/dense/wide"] = np.ones(2, np.complex128)


def pandas() -> None:
    """A table as `DataFrame.to_hdf` writes it, by PyTables."""
    import pandas

    frame = pandas.DataFrame({"epoch": [1, 2], "loss": [0.5, 0.25]})
    frame.to_hdf(FOLDER / "pandas.h5", key="history", mode="w")


def unwritten(file: h5py.File) -> None:
    file.create_dataset("0", (10, 7), np.float32)


def lying_names(file: h5py.File) -> None:
    file["model_weights/dense/kernel"] = VALUES
    file["model_weights"].attrs["layer_names"] = np.array([b"dense"])
    file["model_weights/dense"].attrs["weight_names"] = np.array([b"kernel", b"bias"])


def long_names(file: h5py.File) -> None:
    group = file.create_group("model_weights")
    group["dense/kernel"] = VALUES
    group.attrs["layer_names"] = np.array(["x" * 2000, "dense"], dtype=object)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for fill in (
        *(storages, dense, circle, external, soft_circle, external_storage, bomb, missing_chunks, vast, text),
        *(compound, unwritten, lying_names, long_names, mixed),
    ):
        with h5py.File(FOLDER / f"{fill.__name__}.h5", "w", libver="v108" if fill is dense else None) as file:
            fill(file)
    pandas()


if __name__ == "__main__":
    main()
