"""Executors: every checkpoint a record, bad ones with their error; nothing read twice, nothing mixed, nothing lost."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
import stores
from stores import CNN, MLP

from jaxguard import checkpoints
from jaxguard.detection.records import WEIGHTS, Record
from jaxguard.errors import CheckpointError, FleetError
from jaxguard.fleet import reading
from jaxguard.fleet.discovery import discover
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local, Results, Settings
from jaxguard.scores import weights
from jaxguard.suspects import ModelOptions
from tests.checkpoints import torch_bytes


@contextlib.contextmanager
def run(*targets, settings=None, watch=None, **options) -> Iterator[Results]:
    """A stream over whatever lies there."""
    executor = Stream(**options)
    found = discover([str(target) for target in targets], shard=executor.shard, results=executor.out)
    with executor.run([model.name for model in found.models], settings or Settings(), watch=watch) as results:
        yield results


def scanned(*targets, **options) -> Results:
    """Results whose folder may be gone: the records are at hand."""
    with run(*targets, **options) as found:
        return found


def values_of(record: Record) -> np.ndarray:
    return record.features[WEIGHTS].values


def by_name(found: Results) -> dict[str, Record]:
    return {os.path.basename(record.name): record for record in found.records}


def assert_same(records: list[Record], others: list[Record], rtol: float = 0.0) -> None:
    """Equal but for the time of the last change."""
    for record, other in zip(records, others, strict=True):
        assert (record.provenance, record.cohort, record.notes, bool(record.error)) == (
            other.provenance, other.cohort, other.notes, bool(other.error)
        )  # fmt: skip
        np.testing.assert_allclose(record.z, other.z, rtol)
        if not record.error:
            assert record.features[WEIGHTS].names == other.features[WEIGHTS].names
            np.testing.assert_allclose(values_of(record), values_of(other), rtol, rtol / 10)


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """The headers and contents that were read."""
    told, load, read = [], checkpoints.load, checkpoints.read_into
    monkeypatch.setattr(checkpoints, "load", lambda path, **given: told.append(str(path)) or load(path, **given))
    monkeypatch.setattr(checkpoints, "read_into", lambda path, *a, **k: told.append(str(path)) or read(path, *a, **k))
    return told


def constant() -> stores.Leaves:
    return {name: np.ones_like(leaf) for name, leaf in stores.leaves().items()}


def spoilt(value: float) -> stores.Leaves:
    content = stores.leaves()
    kernel = content["params/fc1/kernel"].copy()
    kernel[0, 0] = value
    return content | {"params/fc1/kernel": kernel}


def test_bad_files_are_rows_and_the_others_go_on(tmp_path):
    good = stores.store(tmp_path, 3)
    stores.write(tmp_path / "nan.safetensors", spoilt(np.nan))
    stores.write(tmp_path / "infinite.npz", spoilt(np.inf))
    stores.write(tmp_path / "constant.safetensors", constant())
    stores.write(tmp_path / "integers.safetensors", {"w": np.arange(4)})
    stores.write(tmp_path / "table.safetensors", {"embedding": np.ones((9, 3), np.float32)})
    (tmp_path / "cut.safetensors").write_bytes(good[0].read_bytes()[:-8])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "hostile.pt").write_bytes(torch_bytes.zipped(b"cos\nsystem\n(" + torch_bytes.text("false") + b"tR"))
    (tmp_path / "notes.md").write_text("notes")
    expected = {
        "nan.safetensors": "finite weights", "infinite.npz": "finite weights", "constant.safetensors": "differ",
        "integers.safetensors": "floating-point", "table.safetensors": "hidden kernels", "empty.pt": "empty file",
        "cut.safetensors": "expected", "hostile.pt": "system", "absent.npz": "no such file",
    }  # fmt: skip
    found = scanned(tmp_path, tmp_path / "absent.npz")
    rows = by_name(found)
    assert {name for name, row in rows.items() if row.error} == expected.keys()
    assert rows.keys() - expected.keys() == {path.name for path in good}
    for name, words in expected.items():
        assert words in rows[name].error, rows[name].error
        assert not rows[name].features
    for name in ("nan.safetensors", "constant.safetensors"):
        assert rows[name].sha256 == checkpoints.load(tmp_path / name).sha256
    assert discover([str(tmp_path)]).skipped == ((f"{tmp_path}/notes.md", "no checkpoint by its content"),)
    assert len(found.records) == 12


def test_a_checkpoint_larger_than_the_memory_is_scored_in_parts_and_one_that_cannot_be_is_a_row(tmp_path):
    stores.write(tmp_path / "large.safetensors", stores.leaves(0, CNN))
    stores.write(tmp_path / "small.safetensors", stores.leaves(0))
    whole, parts, none = (by_name(scanned(tmp_path, memory=memory)) for memory in (2**20, 2000, 200))
    assert not parts["large.safetensors"].error
    np.testing.assert_allclose(parts["large.safetensors"].z, whole["large.safetensors"].z, rtol=1e-5)
    assert all("raise --memory to" in row.error for row in none.values())


def test_names_that_are_no_text(tmp_path):
    (path,) = stores.store(tmp_path / "store", 1)
    os.rename(path, os.fsencode(tmp_path) + b"/store/\xff\n.safetensors")
    (tmp_path / "store" / "bad.pt").touch()
    for _ in range(2):
        found = scanned(tmp_path / "store", out=tmp_path / "out")
        bad, good = found.records
        assert good.error == ""
        assert good.name.endswith("\\xff\n.safetensors")
        assert bad.error
    assert found.reused == 1


def test_the_second_scan_reads_nothing(tmp_path, opens):
    stores.store(tmp_path / "store", 4)
    index = stores.sharded(tmp_path / "store" / "large", stores.leaves(8))
    orbax = stores.write(tmp_path / "store" / "run", stores.leaves(9))
    first = scanned(tmp_path / "store", out=tmp_path / "out")
    assert first.bytes_read == sum(row.provenance.size for row in first.records)
    assert first.reused == 0
    opens.clear()
    second = scanned(tmp_path / "store", out=tmp_path / "out")
    assert set(opens) <= {str(orbax)}
    assert (second.reused, second.bytes_read) == (6, 0)
    assert_same(first.records, second.records)
    assert str(index) in {row.name for row in second.records}


def test_what_changed_is_scored_again_and_nothing_else(tmp_path, opens):
    paths = stores.store(tmp_path / "store", 4)
    before = by_name(scanned(tmp_path / "store", out=tmp_path / "out"))
    stores.write(paths[1], stores.leaves(50))
    os.utime(paths[2], ns=(1, 1))
    new = stores.write(tmp_path / "store" / "new.npz", stores.leaves(60))
    opens.clear()
    found = scanned(tmp_path / "store", out=tmp_path / "out")
    after = by_name(found)
    assert set(opens) == {str(paths[1]), str(paths[2]), str(new)}
    assert found.reused == 2
    assert after[paths[1].name].sha256 == checkpoints.load(paths[1]).sha256 != before[paths[1].name].sha256
    assert after[paths[1].name].z != before[paths[1].name].z
    assert after[paths[2].name].z == before[paths[2].name].z
    assert scanned(tmp_path / "store", out=tmp_path / "out").reused == 5


def test_a_shard_that_changed_is_noticed(tmp_path):
    index = stores.sharded(tmp_path / "model", stores.leaves(1))
    (before,) = scanned(index, out=tmp_path / "out").records
    stores.sharded(tmp_path / "model", stores.leaves(2))
    index_state = reading.stamp_of(index)
    (after,) = scanned(index, out=tmp_path / "out").records
    assert (after.provenance.size, after.modified) == index_state
    assert after.z != before.z


def test_errors_are_tried_again(tmp_path):
    (path,) = stores.store(tmp_path / "store", 1)
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    (row,) = scanned(path, out=tmp_path / "out").records
    assert row.error
    path.write_bytes(content)
    (row,) = scanned(path, out=tmp_path / "out").records
    assert row.error == ""


def test_other_settings_do_not_mix(tmp_path, monkeypatch):
    (path,) = stores.store(tmp_path / "store", 1)
    opened = [ModelOptions(), ModelOptions(arch=MLP), ModelOptions(input_shape=(4, 4, 1)), ModelOptions(mean=(0.5,))]
    settings = [Settings(pairing="module_order"), *map(Settings, opened)]
    assert len({one.key for one in settings}) == 5
    for one in settings[1:3]:
        assert scanned(path, out=tmp_path / "out", settings=one).reused == 0
    assert scanned(path, out=tmp_path / "out", settings=settings[1]).reused == 1
    monkeypatch.setattr(weights, "VERSION", weights.VERSION + 1)
    assert scanned(path, out=tmp_path / "out").reused == 0


def test_parts_of_a_store_into_one_folder(tmp_path):
    stores.store(tmp_path / "store", 12)
    whole = scanned(tmp_path / "store")
    parts = [scanned(tmp_path / "store", out=tmp_path / "out", shard=(k, 3)) for k in range(3)]
    assert sum(len(part.records) for part in parts) == 12
    again = scanned(tmp_path / "store", out=tmp_path / "out")
    assert again.reused == 12
    assert_same(again.records, whole.records)


def test_a_damaged_part_is_one_error(tmp_path):
    stores.store(tmp_path / "store", 1)
    scanned(tmp_path / "store", out=tmp_path / "out")
    (tmp_path / "out" / "checkpoints" / "x.parquet").write_bytes(b"half")
    with pytest.raises(FleetError, match="move it away"):
        scanned(tmp_path / "store", out=tmp_path / "out")


def test_results_inside_the_store_are_neither_checkpoints_nor_passed_over(tmp_path):
    stores.store(tmp_path, 2)
    for _ in range(2):
        found = scanned(tmp_path, out=tmp_path / "jaxguard-scan")
        assert len(found.records) == 2
        assert discover([str(tmp_path)], results=tmp_path / "jaxguard-scan").skipped == ()


def test_results_without_a_folder_are_gone_afterwards(tmp_path):
    stores.store(tmp_path / "store", 1)
    with run(tmp_path / "store") as found:
        folder = found.store.folder
        assert found.store.layers([found.records[0].sha256])
    assert not folder.exists()


def test_the_watch_is_told(tmp_path):
    stores.store(tmp_path / "store", 3)
    (tmp_path / "store" / "bad.pt").touch()
    states = []
    scanned(tmp_path / "store", out=tmp_path / "out", watch=states.append)
    last = states[-1]
    assert last[:4] == (4, 4, 1, 0)
    assert last.bytes_read == sum(path.stat().st_size for path in (tmp_path / "store").iterdir())
    assert [state.done for state in states] == sorted(state.done for state in states)
    scanned(tmp_path / "store", out=tmp_path / "out", watch=states.append)
    assert states[-1][:4] == (4, 4, 1, 3)


def test_a_target_that_cannot_be_listed_is_one_error(tmp_path):
    with pytest.raises(CheckpointError, match="got no files"):
        scanned(tmp_path)


EIGHT = """
import sys
import jax
import numpy as np
from jaxguard.fleet.discovery import discover
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Settings

assert jax.local_device_count() == 8
with Stream().run([model.name for model in discover(sys.argv[1]).models], Settings()) as found:
    for row in found.records:
        print(row.name, row.sha256, row.error == "", row.z, *row.features["weights"].values.tolist())
"""


def test_eight_devices_give_the_rows_of_one(tmp_path):
    stores.store(tmp_path, 11)
    stores.write(tmp_path / "x.pt", stores.leaves(20, layout="torch"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)], env=os.environ | {"XLA_FLAGS": flags}, check=True,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    alone = scanned(tmp_path).records
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    for row, line in zip(alone, lines, strict=True):
        uri, sha256, is_good, z, *features = line.split(" ")
        assert (uri, sha256, is_good) == (row.name, row.sha256, "True")
        np.testing.assert_allclose(float(z), row.z, 1e-6)
        np.testing.assert_allclose([float(value) for value in features], values_of(row), 1e-5, 1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_killed_in_mid_scan_nothing_is_lost(tmp_path, seed):
    """SIGKILL after the first results are written; the same command then ends as if nothing had happened."""
    (first, *_) = stores.store(tmp_path / "store", 4)
    for k in range(400):
        shutil.copy(first.with_name(f"{k % 4:04d}.safetensors"), tmp_path / "store" / f"copy-{k}.safetensors")
    out, parts = tmp_path / "out", tmp_path / "out" / "checkpoints"
    killed = """
import os, signal, sys
from jaxguard.fleet import store
from jaxguard.fleet.discovery import discover
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Settings

store._FLUSH_SECONDS = 0.0
seen = []

def watch(state):
    seen.append(state)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

models = [model.name for model in discover(sys.argv[1]).models]
with Stream(sys.argv[2], memory=20_000).run(models, Settings(), watch=watch):
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", killed, str(tmp_path / "store"), str(out), str(5 + 9 * seed)], check=False, timeout=200
    )
    assert done.returncode == -9
    written = [row for part in parts.glob("*.parquet") for row in pq.read_table(part)["uri"].to_pylist()]
    assert 0 < len(written) < 404
    assert len(set(written)) == len(written)
    found = scanned(tmp_path / "store", out=out)
    assert found.reused == len(written)
    assert len(found.records) == 404
    assert not any(row.error for row in found.records)
    assert_same(found.records, scanned(tmp_path / "store").records)
    every = [row for part in parts.glob("*.parquet") for row in pq.read_table(part)["uri"].to_pylist()]
    assert sorted(every) == sorted(row.name for row in found.records)
    assert len(found.store.layers([row.sha256 for row in found.records])) == 4


def test_a_scan_in_a_folder_that_was_moved(tmp_path, monkeypatch):
    """Relative paths are as they were named."""
    stores.store(tmp_path / "store", 2)
    monkeypatch.chdir(tmp_path)
    found = scanned("store", out=pathlib.Path("out"))
    assert [row.name for row in found.records] == ["store/0000.safetensors", "store/0001.safetensors"]


def test_one_after_the_other_gives_the_records_of_a_stream(tmp_path):
    stores.store(tmp_path, 3)
    for k, layout in enumerate(("flax", "torch")):
        stores.write(tmp_path / f"cnn{k}.pt", stores.leaves(k, CNN, layout))
    stores.write(tmp_path / "stranger.safetensors", stores.stranger())
    stores.write(tmp_path / "nan.safetensors", spoilt(np.nan))
    (tmp_path / "empty.pt").touch()
    names = [model.name for model in discover(str(tmp_path)).models]
    with Local().run(names, Settings()) as found:
        assert_same(found.records, scanned(tmp_path).records, rtol=1e-5)
    for record in found.records:
        assert record.error or all(len(layer.scores) == layer.channels for layer in record.layers)


def own(variables, images):
    """The stranger, as its owner runs it."""
    kernel = jnp.transpose(variables["a.weight"], (2, 3, 1, 0))
    x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(x + variables["a.bias"]).reshape(len(images), -1)
    return jax.nn.relu(x @ variables["b.weight"].T + variables["b.bias"]) @ variables["out.weight"].T


def test_checkpoints_of_a_function_of_ones_own_are_streamed_too(tmp_path):
    for k in range(3):
        stores.write(tmp_path / f"{k}.safetensors", stores.stranger(k))
    settings = Settings(ModelOptions(apply_fn=own, input_shape=(4, 4, 3)))
    found = scanned(tmp_path, settings=settings)
    with Local().run([record.name for record in found.records], settings) as alone:
        assert_same(found.records, alone.records, rtol=1e-5)
    assert {record.cohort.partition(",")[0] for record in found.records} == {"traced"}
    assert any(name.startswith("head: ") for name in found.records[0].features[WEIGHTS].names)
    (structural,) = {record.cohort for record in scanned(tmp_path).records}
    assert structural.startswith("structural, leaves ")
