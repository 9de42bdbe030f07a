"""SIGKILL of `jaxguard scan` in mid-scan: the same command then ends as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import stores

SIZES, EACH = range(8, 16), 16
"""Hidden units of the networks, so many programs to compile, and how many there are of each: work for some seconds."""

PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("fleet") / "store", np.random.default_rng(0)
    for size in SIZES:
        shapes = {"fc1/kernel": (16, size), "fc1/bias": (size,), "linear/kernel": (size, 3), "linear/bias": (3,)}
        for number in range(EACH):
            content = {f"params/{name}": rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}
            stores.write(folder / f"{size}-{number:02d}.safetensors", content)
    return folder


def killed(command: list[str], out: pathlib.Path, programs: pathlib.Path) -> list[str]:
    """Start the command, and kill it once there are results; which they are."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_SECONDS
    try:
        while process.poll() is None and time.monotonic() < end and not any(out.glob("checkpoints/*.parquet")):
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before there were any results"
    return [uri for part in out.glob("checkpoints/*.parquet") for uri in pq.read_table(part)["uri"].to_pylist()]


def test_nothing_is_lost_and_nothing_scored_twice(jaxguard, store, tmp_path):
    out, count = tmp_path / "out", len(SIZES) * EACH
    command = pathlib.Path(sys.executable).with_name("jaxguard")
    written = killed([str(command), "scan", str(store), "--out", str(out)], out, tmp_path / "programs")
    assert 0 < len(set(written)) == len(written) < count
    # What is left behind where it died while it wrote a part.
    half = out / "checkpoints" / ".0.parquet.half.partial"
    half.mkdir()
    (half / "fresh").write_bytes(b"PAR1")

    report = json.loads(jaxguard("scan", store, "--out", out, "--json")[1])
    assert report["reused"] == len(written)
    undisturbed = json.loads(jaxguard("scan", store, "--out", tmp_path / "other", "--json")[1])
    assert undisturbed["reused"] == 0
    assert len(report["findings"]) == count
    for entry, other in zip(report["findings"], undisturbed["findings"], strict=True):
        assert entry.pop("z") == pytest.approx(other.pop("z"), rel=1e-5)
        assert entry == other

    # Whoever reads the folder as one table finds each checkpoint once.
    tables = [pq.read_table(folder / "checkpoints").sort_by("uri") for folder in (out, tmp_path / "other")]
    assert tables[0]["uri"].to_pylist() == sorted(str(path) for path in store.iterdir())
    for name in ("uri", "content", "size", "cohort", "error"):
        assert tables[0][name].to_pylist() == tables[1][name].to_pylist()
    features = [np.stack(table["features"].to_pylist()) for table in tables]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
    layers = pq.read_table(out / "layers")["content"].to_pylist()
    assert sorted(layers) == sorted(pq.read_table(tmp_path / "other" / "layers")["content"].to_pylist())
