"""A fleet scan on a Ray cluster: rows as on one machine, whatever dies."""

import os

import numpy as np
import pytest
import stores

from jaxguard.fleet import cluster
from jaxguard.fleet.scan import scan

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'jaxguard[ray]'")

PLAIN = 40


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
    with scan([str(fleet)]) as found:
        assert len(found.rows) == PLAIN + 17
        return found.rows


@pytest.fixture
def chunks(monkeypatch):
    """All chunks of the scans of a test."""
    from ray_nodes import Watched

    made = []
    monkeypatch.setattr(cluster, "Chunks", lambda uris: made.append(Watched(uris)) or made[-1])
    return made


def assert_same(rows, expected, *, folder):
    assert [row.uri for row in rows] == [os.path.relpath(row.uri, folder) for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in ("sha256", "stamp", "format", "architecture", "bucket", "notes"):
            assert getattr(row, name) == getattr(other, name)
        if other.error:
            assert row.error == other.error.replace(f"{folder}/", "")
        else:
            assert row.error == ""
            np.testing.assert_allclose(row.features, other.features, rtol=1e-6)
            np.testing.assert_allclose(row.z, other.z, rtol=1e-6)


def test_rows_are_those_of_a_local_scan_also_after_an_interruption(nodes, fleet, expected, tmp_path, monkeypatch):
    nodes.ensure(2)
    monkeypatch.chdir(fleet)

    def interrupt(state):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        scan(["*.safetensors"], out=tmp_path, address=nodes.address, watch=interrupt),
    ):
        pass
    assert not ray.is_initialized()
    states = []
    with scan(["*.safetensors"], out=tmp_path, address=nodes.address, watch=states.append) as found:
        assert 0 < found.reused < len(expected)
        assert_same(found.rows, expected, folder=fleet)
        layers = found.store.layers([row.sha256 for row in found.rows if not row.error])
    assert len(layers) == len(expected) - 1
    assert [state.done for state in states] == sorted({state.done for state in states})
    assert (states[-1].done, states[-1].failed) == (len(expected), 1)
    # nothing is left to do: no cluster is asked
    os.remove("damaged.safetensors")
    with scan(["*.safetensors"], out=tmp_path, address="127.0.0.1:1") as found:
        assert found.reused == len(found.rows) == len(expected) - 1
