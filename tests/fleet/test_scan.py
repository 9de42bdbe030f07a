"""A whole scan: every checkpoint a row, bad ones with their error; nothing read twice, nothing mixed, nothing lost."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import stores
from stores import CNN, MLP

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError, FleetError
from jaxguard.fleet import reading
from jaxguard.fleet.scan import FleetScan, fingerprint
from jaxguard.fleet.scan import scan as scan_fleet
from jaxguard.fleet.scoring import Settings
from jaxguard.fleet.store import Row
from jaxguard.scores import weights
from tests.checkpoints import torch_bytes


def scanned(*targets, **options) -> FleetScan:
    """A scan whose results may be gone: its rows are at hand."""
    with scan_fleet([str(target) for target in targets], **options) as found:
        return found


def by_name(found: FleetScan) -> dict[str, Row]:
    return {os.path.basename(row.uri): row for row in found.rows}


def assert_same(rows: tuple[Row, ...], others: tuple[Row, ...]) -> None:
    """Equal but for the time of the last change."""
    assert [(row.uri, row.sha256, row.bucket, row.error) for row in rows] == [
        (row.uri, row.sha256, row.bucket, row.error) for row in others
    ]
    np.testing.assert_array_equal([row.z for row in rows], [row.z for row in others])
    for row, other in zip(rows, others, strict=True):
        if not row.error:
            np.testing.assert_array_equal(row.features, other.features)


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """The headers and contents that were read."""
    told, load, read = [], checkpoints.load, checkpoints.read_into
    monkeypatch.setattr(checkpoints, "load", lambda path: told.append(str(path)) or load(path))
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
        assert rows[name].features is None
    for name in ("nan.safetensors", "constant.safetensors"):
        assert rows[name].sha256 == checkpoints.load(tmp_path / name).sha256
    assert found.skipped == ((f"{tmp_path}/notes.md", "no checkpoint by its content"),)
    assert len(found.rows) == 12


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
        bad, good = found.rows
        assert good.error == ""
        assert good.uri.endswith("\\xff\n.safetensors")
        assert bad.error
    assert found.reused == 1


def test_the_second_scan_reads_nothing(tmp_path, opens):
    stores.store(tmp_path / "store", 4)
    index = stores.sharded(tmp_path / "store" / "large", stores.leaves(8))
    orbax = stores.write(tmp_path / "store" / "run", stores.leaves(9))
    first = scanned(tmp_path / "store", out=tmp_path / "out")
    assert first.bytes_read == sum(row.stamp.size for row in first.rows)
    assert first.reused == 0
    opens.clear()
    second = scanned(tmp_path / "store", out=tmp_path / "out")
    assert set(opens) <= {str(orbax)}
    assert (second.reused, second.bytes_read) == (6, 0)
    assert [row[:7] for row in second.rows] == [row[:7] for row in first.rows]
    assert_same(first.rows, second.rows)
    assert second.feature_names == first.feature_names
    assert str(index) in {row.uri for row in second.rows}


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
    (before,) = scanned(index, out=tmp_path / "out").rows
    stores.sharded(tmp_path / "model", stores.leaves(2))
    index_state = reading.stamp_of(index)
    (after,) = scanned(index, out=tmp_path / "out").rows
    assert after.stamp == index_state
    assert after.z != before.z


def test_errors_are_tried_again(tmp_path):
    (path,) = stores.store(tmp_path / "store", 1)
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    (row,) = scanned(path, out=tmp_path / "out").rows
    assert row.error
    path.write_bytes(content)
    (row,) = scanned(path, out=tmp_path / "out").rows
    assert row.error == ""


def test_other_settings_do_not_mix(tmp_path, monkeypatch):
    (path,) = stores.store(tmp_path / "store", 1)
    settings = [Settings(), Settings(arch=MLP), Settings(pairing="module_order"), Settings(input_shape=(4, 4, 1))]
    assert len({fingerprint(one) for one in settings}) == 4
    for one in settings[:2]:
        assert scanned(path, out=tmp_path / "out", settings=one).reused == 0
    assert scanned(path, out=tmp_path / "out", settings=settings[0]).reused == 1
    monkeypatch.setattr(weights, "VERSION", weights.VERSION + 1)
    assert scanned(path, out=tmp_path / "out").reused == 0


def test_parts_of_a_store_into_one_folder(tmp_path):
    stores.store(tmp_path / "store", 12)
    whole = scanned(tmp_path / "store")
    parts = [scanned(tmp_path / "store", out=tmp_path / "out", shard=(k, 3)) for k in range(3)]
    assert sum(len(part.rows) for part in parts) == 12
    again = scanned(tmp_path / "store", out=tmp_path / "out")
    assert again.reused == 12
    assert_same(again.rows, whole.rows)


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
        assert len(found.rows) == 2
        assert found.skipped == ()


def test_results_without_a_folder_are_gone_afterwards(tmp_path):
    stores.store(tmp_path / "store", 1)
    with scan_fleet([str(tmp_path / "store")]) as found:
        folder = found.store.folder
        assert found.store.layers([found.rows[0].sha256])
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
    with pytest.raises(CheckpointError, match="found no files"):
        scanned(tmp_path)


EIGHT = """
import sys
import jax
import numpy as np
from jaxguard.fleet.scan import scan

assert jax.local_device_count() == 8
with scan(sys.argv[1:2]) as found:
    for row in found.rows:
        print(row.uri, row.sha256, row.error == "", row.z, *np.asarray(row.features).tolist())
"""


def test_eight_devices_give_the_rows_of_one(tmp_path):
    stores.store(tmp_path, 11)
    stores.write(tmp_path / "x.pt", stores.leaves(20, layout="torch"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(tmp_path)], env=os.environ | {"XLA_FLAGS": flags}, check=True,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    alone = scanned(tmp_path).rows
    lines = done.stdout.splitlines()
    assert len(lines) == 12
    for row, line in zip(alone, lines, strict=True):
        uri, sha256, is_good, z, *features = line.split(" ")
        assert (uri, sha256, is_good) == (row.uri, row.sha256, "True")
        np.testing.assert_allclose(float(z), row.z, 1e-6)
        np.testing.assert_allclose([float(value) for value in features], row.features, 1e-5, 1e-6)


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
from jaxguard.fleet.scan import scan

store._FLUSH_SECONDS = 0.0
seen = []

def watch(state):
    seen.append(state)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

with scan(sys.argv[1:2], out=store.pathlib.Path(sys.argv[2]), memory=20_000, watch=watch):
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
    assert len(found.rows) == 404
    assert not any(row.error for row in found.rows)
    assert_same(found.rows, scanned(tmp_path / "store").rows)
    every = [row for part in parts.glob("*.parquet") for row in pq.read_table(part)["uri"].to_pylist()]
    assert sorted(every) == sorted(row.uri for row in found.rows)
    assert len(found.store.layers([row.sha256 for row in found.rows])) == 4


def test_a_scan_in_a_folder_that_was_moved(tmp_path, monkeypatch):
    """Relative paths are as they were named."""
    stores.store(tmp_path / "store", 2)
    monkeypatch.chdir(tmp_path)
    found = scanned("store", out=pathlib.Path("out"))
    assert [row.uri for row in found.rows] == ["store/0000.safetensors", "store/0001.safetensors"]
