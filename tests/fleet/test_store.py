"""Results on disk: whole parts or none, the latest row of each checkpoint, settings apart, one error for damage."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxguard.errors import FleetError
from jaxguard.fleet.reading import Failure, File, Stamp
from jaxguard.fleet.scoring import Scope, Scores
from jaxguard.fleet.store import Store, text
from jaxguard.fleet.stream import Scored
from jaxguard.graph.pairing import Layer
from jaxguard.scores.weights import SUMMARY
from jaxguard.types import Provenance

NAMES = ("one: z", "two: z", "head")
SCOPE = Scope("mlp", "mlp, 3 classes", (Layer("one", (), None, 8), Layer("two", (), None, 4)), NAMES, ("A note.", "B."))


def scored(uris: list[str], value: float = 1.0, scope: Scope = SCOPE, hashes: list[str] | None = None) -> Scored:
    """Checkpoints whose numbers tell where they belong: `value`, then by checkpoint, layer and column."""
    count, shape = len(uris), (len(uris), len(scope.layers), len(SUMMARY))
    layers = value + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    features = value + np.arange(count * len(scope.feature_names), dtype=np.float32).reshape(count, -1)
    files = tuple(File(uri, Stamp(10 + k, 100 + k), "npz") for k, uri in enumerate(uris))
    return Scored(
        scope, files, tuple(hashes or [f"{uri}-hash" for uri in uris]), Scores(layers, features, np.ones(count, bool))
    )


def parts(folder, name: str = "checkpoints") -> list[str]:
    return sorted(os.listdir(folder / name))


def test_rows_come_back_as_they_went(tmp_path):
    store = Store(tmp_path / "out", "s")
    store.add(scored(["a", "b"]))
    store.add(Failure("c", Stamp(5, 6), "expected x\nfound y", "npz", "ff"))
    store.flush()
    rows = Store(tmp_path / "out", "s").records()
    assert list(rows) == ["a", "b", "c"]
    b, c = rows["b"], rows["c"]
    assert b.provenance == Provenance("b", "b-hash", 11, "npz", "mlp")
    assert (b.cohort, b.modified) == ("mlp, 3 classes", 101)
    place = SUMMARY.index("z")
    assert b.z == 1 + 3 * len(SUMMARY) + place
    assert b.features["weights"].names == NAMES
    np.testing.assert_array_equal(b.features["weights"].values, [4, 5, 6])
    assert b.notes == ("A note.", "B.")
    assert b.error == ""
    assert (c.provenance, c.modified) == (Provenance("c", "ff", 5, "npz"), 6)
    assert c.error == "expected x\nfound y"
    assert not c.features
    assert np.isnan(c.z)
    assert Store(tmp_path / "out", "s").feature_names() == {"mlp, 3 classes": NAMES}


def test_layers_come_back_by_content(tmp_path):
    store = Store(tmp_path, "s")
    store.add(scored(["a", "b"]))
    store.flush()
    found = store.layers(["b-hash", "unknown"])
    assert list(found) == ["b-hash"]
    first, second = found["b-hash"]
    values = 1 + np.arange(28).reshape(2, 2, 7)[1]
    assert (first.name, first.channels, second.name, second.channels) == ("one", 8, "two", 4)
    for layer, row in zip((first, second), values, strict=True):
        assert [getattr(layer, name) for name in SUMMARY] == list(row)
        assert all(isinstance(getattr(layer, name), int) for name in ("undefined", "channel", "above"))


def test_the_latest_row_holds(tmp_path):
    for value in (1.0, 2.0):
        store = Store(tmp_path, "s")
        store.add(scored(["a"], value))
        store.flush()
    store.add(Failure("b", Stamp(0, 0), "expected something"))
    store.flush()
    store.add(scored(["b"], 3.0))
    store.flush()
    rows = Store(tmp_path, "s").records()
    assert rows["a"].features["weights"].values[0] == 2.0
    assert rows["b"].error == ""
    assert len(parts(tmp_path)) == 4


def test_settings_do_not_mix(tmp_path):
    other = SCOPE._replace(feature_names=("other: z", "more"))
    for settings, value, scope in (("s", 1.0, SCOPE), ("t", 2.0, other)):
        store = Store(tmp_path, settings)
        store.add(scored(["a"], value, scope))
        store.flush()
    first, second = Store(tmp_path, "s"), Store(tmp_path, "t")
    assert (
        first.records()["a"].features["weights"].values[0],
        second.records()["a"].features["weights"].values[0],
    ) == (1.0, 2.0)
    assert first.feature_names() == {"mlp, 3 classes": NAMES}
    assert second.feature_names() == {"mlp, 3 classes": ("other: z", "more")}
    assert first.layers(["a-hash"])["a-hash"][0].undefined == 1
    assert second.layers(["a-hash"])["a-hash"][0].undefined == 2
    assert Store(tmp_path, "u").records() == {}


def test_feature_names_of_earlier_scans_are_still_known(tmp_path):
    store = Store(tmp_path, "s")
    store.add(scored(["a"]))
    store.flush()
    store = Store(tmp_path, "s")
    store.add(scored(["b"], scope=SCOPE._replace(cohort="other", feature_names=("x",))))
    store.flush()
    assert store.feature_names() == {"mlp, 3 classes": NAMES, "other": ("x",)}


def test_checkpoints_in_which_nothing_is_defined_are_errors(tmp_path):
    result = scored(["a", "b", "c"])
    z = SUMMARY.index("z")
    result.scores.layers[0, :, z] = np.nan
    result.scores.layers[1, 0, z] = np.nan
    store = Store(tmp_path, "s")
    store.add(result)
    store.flush()
    a, b, c = store.records().values()
    assert "a: expected channels that differ" in a.error
    assert (b.error, c.error) == ("", "")
    assert b.z == result.scores.layers[1, 1, z]


def test_text_that_parquet_cannot_hold(tmp_path):
    scope = SCOPE._replace(layers=(Layer("half \ud800", (), None, 8),), notes=("\udcfe",))
    store = Store(tmp_path, "s")
    store.add(scored(["a\udcff"], scope=scope, hashes=["k"]))
    store.add(Failure("b\ud800", Stamp(0, 0), "got \udcff"))
    store.flush()
    rows = store.records()
    assert list(rows) == [text("a\udcff"), text("b\ud800")] == ["a\\xff", "b\\ud800"]
    assert rows["b\\ud800"].error == "got \\xff"
    assert store.layers(["k"])["k"][0].name == "half \\ud800"


def test_results_of_searches_for_triggers(tmp_path):
    store = Store(tmp_path, "s")
    assert store.look("triggers") == {}
    store.add_look("triggers", {"a": np.array([1, 2], np.float32), "b": np.array([3], np.float32)})
    store.add_look("triggers", {"c": np.zeros(0, np.float32)})
    found = Store(tmp_path, "s").look("triggers")
    assert {name: values.tolist() for name, values in found.items()} == {"a": [1, 2], "b": [3], "c": []}
    assert Store(tmp_path, "t").look("triggers") == Store(tmp_path, "s").look("responses") == {}


def test_results_are_written_every_two_seconds(tmp_path, monkeypatch):
    from jaxguard.fleet import store as module

    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    store = Store(tmp_path, "s")
    counts = []
    for second in (0.5, 1.0, 2.1, 3.0, 4.5):
        now[0] = second
        store.add(scored([str(second)]))
        counts.append(len(store.records()))
    assert counts == [0, 0, 3, 3, 5]


def test_what_a_kill_leaves_half_is_not_read(tmp_path, monkeypatch):
    store = Store(tmp_path, "s")
    store.add(scored(["a"]))
    store.flush()

    def killed(table, path, **_):
        path.write_bytes(b"PAR1 half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", killed)
        store.add(scored(["b"]))
        with pytest.raises(KeyboardInterrupt):
            store.flush()
    half = tmp_path / "checkpoints" / ".00001.parquet.x.partial"
    half.mkdir()
    (half / "fresh").write_bytes(b"PAR1 half")
    assert list(Store(tmp_path, "s").records()) == ["a"]
    store.flush()
    assert list(Store(tmp_path, "s").records()) == ["a", "b"]


@pytest.mark.parametrize("kind", ["empty", "cut", "foreign", "text"])
@pytest.mark.parametrize("table", ["checkpoints", "layers"])
def test_a_damaged_or_foreign_part_is_one_error(tmp_path, kind, table):
    store = Store(tmp_path, "s")
    store.add(scored(["a"]))
    store.flush()
    (good,) = (tmp_path / table).glob("*.parquet")
    bad = tmp_path / table / "zz.parquet"
    if kind == "foreign":
        pq.write_table(pa.table({"x": [1]}), bad)
    else:
        bad.write_bytes({"empty": b"", "cut": good.read_bytes()[:-20], "text": b"hello"}[kind])
    with pytest.raises(FleetError, match=r"zz.parquet: expected a part of a scan's results, got .*; move it away"):
        store.records() if table == "checkpoints" else store.layers(["a-hash"])
    if table == "checkpoints" and kind != "foreign":
        with pytest.raises(FleetError, match=r"zz.parquet"):
            store.feature_names()


def test_a_folder_that_cannot_be_used_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FleetError, match=r"file: expected a folder for results, got .*; choose another with --out"):
        Store(tmp_path / "file", "s")
    store = Store(tmp_path / "out", "s")
    store.add(scored(["a"]))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(FleetError, match="No space left on device"):
        store.flush()
    monkeypatch.undo()
    store.flush()
    assert list(store.records()) == ["a"]


def test_several_processes_write_to_one_folder(tmp_path):
    stores = [Store(tmp_path, "s") for _ in range(3)]
    for number, store in enumerate(stores):
        for k in range(3):
            store.add(scored([f"{number}-{k}"]))
            store.flush()
    assert len(parts(tmp_path)) == 9
    assert sorted(stores[0].records()) == [f"{number}-{k}" for number in range(3) for k in range(3)]
