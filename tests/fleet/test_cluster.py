"""A fleet scan on a Ray cluster: rows as on one machine, whatever dies."""

import os
import pickle
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores

from jaxguard.errors import FleetError
from jaxguard.fleet import cluster
from jaxguard.fleet.discovery import discover
from jaxguard.fleet.executors import Ray, Stream
from jaxguard.fleet.local import Settings
from jaxguard.fleet.pool import share
from jaxguard.fleet.reading import Known, Stamp, stamp_of
from jaxguard.fleet.worker import Worker, version

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'jaxguard[ray]'")

PLAIN = 40


def run(targets, *, watch=None, **options):
    """A scan of whatever lies there, on a cluster where there is an address."""
    executor = Ray(**options) if "address" in options else Stream(**options)
    names = [model.name for model in discover(targets, results=executor.out).models]
    return executor.run(names, Settings(), watch=watch)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    from ray_nodes import Nodes

    with pytest.MonkeyPatch.context() as environment:
        # Workers compile on their own; nothing twice.
        environment.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        environment.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = Nodes()
        yield found
        found.cluster.shutdown()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Perceptrons, then convolutional networks, then a damaged file."""
    folder = tmp_path_factory.mktemp("fleet")
    stores.store(folder, PLAIN)
    for k in range(16):
        stores.write(folder / f"cnn{k}.safetensors", stores.leaves(k, stores.CNN))
    (folder / "damaged.safetensors").write_bytes((folder / "cnn0.safetensors").read_bytes()[:-4])
    return folder


@pytest.fixture(scope="module")
def expected(fleet):
    with run([str(fleet)]) as found:
        assert len(found.records) == PLAIN + 17
        return found.records


@pytest.fixture
def chunks(monkeypatch):
    """All chunks of the scans of a test."""
    from ray_nodes import Watched

    made = []
    monkeypatch.setattr(cluster, "Chunks", lambda uris: made.append(Watched(uris)) or made[-1])
    return made


def assert_same(rows, expected, *, folder):
    assert [row.name for row in rows] == [os.path.relpath(row.name, folder) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row.provenance == replace(other.provenance, name=row.name)
        assert (row.cohort, row.notes, row.modified) == (other.cohort, other.notes, other.modified)
        if other.error:
            assert row.error == other.error.replace(f"{folder}/", "")
        else:
            assert row.error == ""
            values = [one.features["weights"].values for one in (row, other)]
            np.testing.assert_allclose(*values, rtol=1e-6)
            np.testing.assert_allclose(row.z, other.z, rtol=1e-6)


def test_rows_are_those_of_a_local_scan_also_after_an_interruption(nodes, fleet, expected, tmp_path, monkeypatch):
    nodes.ensure(1)
    monkeypatch.chdir(fleet)

    def interrupt(state):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        run(["*.safetensors"], out=tmp_path, address=nodes.address, watch=interrupt),
    ):
        pass
    assert not ray.is_initialized()
    states = []
    with run(["*.safetensors"], out=tmp_path, address=nodes.address, watch=states.append) as found:
        assert 0 < found.reused < len(expected)
        assert_same(found.records, expected, folder=fleet)
        layers = found.layers([row.sha256 for row in found.records if not row.error])
    assert len(layers) == len(expected) - 1
    assert [state.done for state in states] == sorted({state.done for state in states})
    assert (states[-1].done, states[-1].failed) == (len(expected), 1)
    # nothing is left to do: no cluster is asked
    with run(["0*.safetensors"], out=tmp_path, address="127.0.0.1:1") as found:
        assert found.reused == len(found.records) == PLAIN


def test_a_node_killed_in_mid_scan_loses_nothing_and_one_that_joins_takes_over(  # noqa: PLR0917
    nodes, fleet, expected, chunks, tmp_path, monkeypatch
):
    nodes.ensure(1)
    monkeypatch.chdir(fleet)
    killed = []

    def kill(state):
        # Sixteen perceptrons are done, sixteen convolutional networks are being compiled.
        if not killed:
            (node,) = set(chunks[0].out.values())
            killed.append((node, list(chunks[0].out)))
            nodes.kill(node)
            nodes.add()

    targets = ["00[01]*.safetensors", "cnn*.safetensors", "00[23]*.safetensors", "damaged.safetensors"]
    with run(targets, out=tmp_path, address=nodes.address, watch=kill) as found:
        rows = found.records
        assert_same(sorted(rows, key=lambda row: row.name), list(expected), folder=fleet)
    ((node, out),) = killed
    # until Ray tells that the node is dead, it may have been given more
    assert [chunk for chunk, _ in chunks[0].losses][: len(out)] == out
    assert {where for _, where in chunks[0].losses} == {node}
    # as they were written, not only the latest of each
    tables = [pq.read_table(part) for part in (tmp_path / "checkpoints").glob("*.parquet")]
    assert sorted(pa.concat_tables(tables).column("uri").to_pylist()) == sorted(row.name for row in rows)


def test_one_checkpoint_that_kills_workers_does_not_stop_the_fleet(nodes, fleet, chunks, tmp_path):
    nodes.ensure(2)

    def plant():
        """Runs in each worker process: two files behave as a bug in a library would."""
        from jaxguard.fleet import reading

        fill = reading.fill

        def filled(opened, row, *named):
            if opened.uri.endswith("0005.safetensors"):
                os._exit(1)
            if opened.uri.endswith("0020.safetensors"):
                raise RuntimeError("the device is gone")
            return fill(opened, row, *named)

        reading.fill = filled

    ray.init(nodes.address, runtime_env={"worker_process_setup_hook": plant}, log_to_driver=False)
    try:
        with run([str(fleet / "00*.safetensors")], out=tmp_path, address=nodes.address) as found:
            failed = {os.path.basename(row.name): row.error for row in found.records if row.error}
            assert len(found.records) == PLAIN
        # a program that is connected already stays so
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert failed.keys() == {"0005.safetensors", "0020.safetensors"}
    assert "lost 3 workers" in failed["0005.safetensors"]
    assert "the device is gone" in failed["0020.safetensors"]
    assert "\n" not in failed["0005.safetensors"] + failed["0020.safetensors"]
    alone = [chunk.uris for chunk, _ in chunks[0].losses if len(chunk.uris) == 1]
    assert {os.path.basename(uri) for uris in alone for uri in uris} == failed.keys()


def test_a_cluster_whose_nodes_have_another_version_is_refused(nodes, fleet, monkeypatch):
    nodes.ensure(1)
    monkeypatch.setattr(cluster, "version", lambda: "jaxguard 9.9")
    with (
        pytest.raises(FleetError, match=r"expected jaxguard 9\.9, as where the scan was started, got jaxguard 0"),
        run([str(fleet)], address=nodes.address),
    ):
        pass


def test_a_file_that_the_worker_cannot_see_is_a_failure_that_says_so(tmp_path, monkeypatch):
    (seen,) = stores.store(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    worker = Worker({})
    worker.prepare(version(), str(tmp_path / "no such folder"), Settings(), 2**28, None)
    missing = str(tmp_path / "elsewhere.safetensors")
    results, seconds = worker.score([str(seen), missing], {})
    (failure,) = (result for result in results if hasattr(result, "error"))
    assert failure.uri == missing
    assert "expected a file that every node can read, got none on" in failure.error
    assert seconds > 0


def test_results_are_plain_data(fleet):
    worker = Worker({})
    worker.prepare(version(), os.getcwd(), Settings(), 2**28, None)
    uris = [str(fleet / f"cnn{k}.safetensors") for k in range(16)]
    results, _ = worker.score(uris, {})
    assert len(pickle.dumps(results)) < 10 * os.path.getsize(uris[0])
    (scorer,) = worker.scorers.values()
    again, _ = worker.score(uris, {uris[0]: stamp_of(uris[0]), uris[1]: Stamp(1, 1)})
    assert list(worker.scorers.values()) == [scorer]
    assert [result for result in again if isinstance(result, Known)] == [Known(uris[0])]


def test_shares_of_nodes(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    assert share({"CPU": 1.0, "memory": 1e9}) == ({"num_cpus": 1}, 1, {})
    assert share({"CPU": 3}) == ({"num_cpus": 3}, 1, {})
    assert share({"CPU": 11}) == ({"num_cpus": 4}, 2, {})
    assert share({"memory": 1e9})[1] == 0
    assert share({"CPU": 8, "GPU": 2}) == (
        {"num_cpus": 0, "num_gpus": 1},
        2,
        {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    options, count, environment = share({"CPU": 96, "TPU": 4})
    assert (options, count) == ({"num_cpus": 0, "resources": {"TPU": 4}}, 1)
    assert environment == {"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/programs")
    assert share({"CPU": 1})[2] == {"JAX_COMPILATION_CACHE_DIR": "/programs"}


@pytest.mark.parametrize("address", ["auto-matic", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_no_cluster_is(jaxguard, fleet, tmp_path, address):
    code, out, err = jaxguard("scan", fleet, "--out", tmp_path, "--ray", address)
    assert (code, out) == (2, "")
    assert f"--ray {address}: expected a Ray cluster, got" in err
    assert "pass local" in err


def test_without_ray_the_error_says_what_to_install(jaxguard, fleet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = jaxguard("scan", fleet, "--out", tmp_path, "--ray", "local")
    assert code == 2
    assert "pip install 'jaxguard[ray]'" in err
