"""A scan, whatever it is of: each its finding, in order; looks where references had them; live networks like files."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import jaxguard
from jaxguard import checkpoints, models, scanning, surgery, suspects
from jaxguard.detection import judging, triggers
from jaxguard.detection import looks as looks_table
from jaxguard.detection.profile import from_json, to_json
from jaxguard.errors import ArchitectureError, DataError, JaxguardError, VerdictError
from jaxguard.fleet import local
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local
from jaxguard.report.schema import to_json as to_json_report
from jaxguard.scanning import Listener, calibrate, scan
from jaxguard.suspects import ModelOptions
from jaxguard.types import Batch, Network, Verdict
from tests.fleet import stores

REFERENCES = 24
MLP = ModelOptions(stores.MLP, stores.SHAPES[stores.MLP])
SEARCH = looks_table.triggers(most=2)


def paths(folder, numbers):
    return [folder / f"{number:04d}.safetensors" for number in numbers]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    stores.store(folder, REFERENCES + 4)
    stores.write(folder / "stranger.safetensors", stores.stranger())
    return folder


@pytest.fixture(scope="module")
def profile(store):
    """By the weights alone."""
    return calibrate(paths(store, range(REFERENCES)))


def live(seed: int) -> Network:
    variables = zoo.randomise(stores.model().shapes(), seed)
    return stores.model().network(jax.tree.map(jnp.asarray, variables))


def backdoored(seed: int) -> Network:
    """One whose output layer leans to one class."""
    network = live(seed)
    kernel = network.variables["params"]["linear"]["kernel"]
    params = {**network.variables["params"], "linear": {"kernel": kernel.at[:, 1].multiply(30)}}
    bias = network.variables["params"]["linear"].get("bias")
    if bias is not None:
        params["linear"]["bias"] = bias
    return network.with_variables({**network.variables, "params": params})


# -- one finding for each


def test_each_has_a_finding_of_its_own_in_their_order(store, profile, tmp_path):
    (tmp_path / "bad.pt").touch()
    (tmp_path / "notes.md").write_text("notes")
    targets = [store / "0025.safetensors", tmp_path, live(30), store / "stranger.safetensors", store / "absent.pt"]
    report = scan(targets, profile=profile, control="each")
    names = [re.split("/", one.provenance.name)[-1] for one in report.findings]
    assert names == ["0025.safetensors", "bad.pt", "network 2", "stranger.safetensors", "absent.pt"]
    assert [one.verdict is Verdict.ERROR for one in report.findings] == [False, True, False, False, True]
    assert "empty file" in report.findings[1].reason
    assert "no such file" in report.findings[4].reason
    assert [path.rpartition("/")[2] for path, _ in report.skipped] == ["notes.md"]
    assert report.findings[0].provenance.sha256 == checkpoints.load(store / "0025.safetensors").sha256
    assert report.findings[3].reason == "the reference profile has no checkpoints of its cohort"
    assert all(0 < one.p_value <= 1 for one in (report.findings[0], report.findings[2]))
    assert [one.cohort for one in report.references] == ["mlp:hidden=8, 3 classes, 4x4x1"]
    assert report.profile == profile.digest[:16]


def test_executors_find_the_same(store, profile, tmp_path):
    executors = (Local(), Stream(), Stream(tmp_path))
    found = [scan(store, profile=profile, executor=one, content_hash="sha256").findings for one in executors]
    for one, other, kept in zip(*found, strict=True):
        assert one.provenance == other.provenance == kept.provenance
        assert (one.verdict, one.cohort, one.looks) == (other.verdict, other.cohort, other.looks)
        np.testing.assert_allclose([one.p_value, one.q_value], [other.p_value, other.q_value])
        np.testing.assert_allclose([one.score, one.z], [other.score, other.z], rtol=1e-3)
        assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
        assert all(layer.scores is not None for layer in one.layers)
    assert scan(store, executor=Stream(tmp_path)).reused == len(found[0])


def test_layers_are_kept_for_the_suspected_and_the_highest(store, profile, monkeypatch):
    monkeypatch.setattr(scanning, "SHOWN", 1)
    report = scan([*paths(store, range(24, 28)), backdoored(40)], profile=profile, control="each")
    shown = [bool(one.layers) for one in report.findings]
    assert report.findings[-1].verdict is Verdict.SUSPECTED
    assert shown == [False, False, False, False, True]
    assert report.findings[-1].layers[0].channels == 8


def test_a_report_is_a_gate(store, profile):
    scan(live(41), profile=profile).raise_for(Verdict.SUSPECTED)
    with pytest.raises(VerdictError, match="epoch 7"):
        scan({"epoch 7": backdoored(41)}, profile=profile).raise_for(Verdict.SUSPECTED)


# -- live networks


def test_a_live_network_is_judged_by_references_that_were_files_and_the_other_way_round(store, profile):
    numbers = range(REFERENCES, REFERENCES + 4)
    files = scan(paths(store, numbers), profile=profile).findings
    lives = scan([live(k) for k in numbers], profile=profile).findings
    of_lives = calibrate([live(k) for k in range(REFERENCES)])
    again = scan(paths(store, numbers), profile=of_lives).findings
    for one, other, third in zip(files, lives, again, strict=True):
        assert one.cohort == other.cohort == third.cohort
        np.testing.assert_allclose([other.score, other.p_value], [one.score, one.p_value], rtol=1e-4)
        assert 0 < third.p_value <= 1
        assert one.verdict is other.verdict is Verdict.NO_EVIDENCE


def own(variables, images):
    x = jax.nn.relu(images.reshape(len(images), -1) @ variables["first"]["w"] + variables["first"]["b"])
    return x @ variables["last"]["w"]


def own_network(seed: int) -> Network:
    draw = np.random.default_rng(seed).normal
    shapes = {"first": {"w": (16, 8), "b": (8,)}, "last": {"w": (8, 3)}}
    variables = jax.tree.map(lambda shape: np.float32(draw(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))
    return Network(variables, own, (4, 4, 1))


@pytest.mark.parametrize("is_run", [True, False])
def test_networks_of_no_known_architecture_are_compared_by_their_leaves(tmp_path, is_run):
    """Files by their owner's function, or by names and shapes alone: a live network is scored as they were."""
    for k in range(REFERENCES):
        stores.write(tmp_path / f"{k}.npz", checkpoints.flatten(own_network(k).variables))
    options = ModelOptions(apply_fn=own, input_shape=(4, 4, 1)) if is_run else None
    made = calibrate(tmp_path, options=options)
    (cohort,) = made.cohorts
    assert cohort.startswith("traced, leaves" if is_run else "structural, leaves")
    (same, other) = scan([own_network(3), own_network(99)], profile=made).findings
    assert {same.cohort, other.cohort} == {cohort}
    assert 0 < other.p_value <= 1
    (file,) = scan(tmp_path / "3.npz", profile=made, options=options).findings
    names = made.cohorts[cohort].first.names
    record = local.examine(suspects.load(own_network(3)), known=made.cohorts)
    assert record.features["weights"].names == names
    assert file.z == pytest.approx(same.z, rel=1e-5)


@pytest.mark.parametrize("name", ["nnx", "per_example", "vit", "scanned_layers"])
def test_models_of_any_library_are_scanned(name):
    apply_fn, variables, images = zoo.case(name)
    network = Network(variables, apply_fn, images.shape[1:])
    (finding,) = scan(network).findings
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert np.isfinite(finding.z)
    z = [
        (np.nanmax(layer.scores) - np.nanmean(layer.scores)) / np.nanstd(layer.scores, ddof=1)
        for layer in finding.layers
        if np.nanstd(layer.scores) > 0
    ]
    assert finding.z == pytest.approx(max(z), rel=1e-4)
    # The channels above one deviation are those that CLP cuts there.
    _, repair = jaxguard.repair(suspects.load(network), "clp", jax.random.key(0), options={"u": 1})
    above = [
        int((layer.scores > np.nanmean(layer.scores) + np.nanstd(layer.scores, ddof=1)).sum())
        for layer in finding.layers
    ]
    assert sum(above) == sum(int(layer.mask.sum()) for layer in repair.layers) > 0
    assert all(layer.z == pytest.approx(finding.z) or layer.z < finding.z for layer in finding.layers if layer.z)


def test_scores_permute_along_with_the_channels():
    network = models.build("cnn:width=0.5", num_classes=10, input_shape=(16, 16, 1))
    network = network.network(zoo.randomise(network.shapes()))
    (group,) = [g for g in network.graph.groups if g.name == "conv3"]
    order = np.roll(np.arange(group.size), 3)
    permuted = network.with_variables(surgery.permute(network.variables, group, order))
    before, after = scan([network, permuted]).findings
    assert before.provenance.sha256 != after.provenance.sha256
    for one, other in zip(before.layers, after.layers, strict=True):
        expected = one.scores[order] if one.name.startswith("conv3 ") else one.scores
        np.testing.assert_allclose(other.scores, expected, rtol=1e-4)


def test_what_cannot_be_scored_says_so():
    network = live(0)
    same = network.with_variables(jax.tree.map(jnp.ones_like, network.variables))
    spoilt = network.with_variables(jax.tree.map(lambda leaf: leaf * jnp.nan, network.variables))
    for one, told in ((same, "every score undefined or the same"), (spoilt, "expected finite values")):
        (finding,) = scan(one).findings
        assert finding.verdict is Verdict.ERROR
        assert told in finding.reason
        with pytest.raises(JaxguardError):
            local.examine(suspects.load(one))
    stranger = suspects.load(Network({"w": np.ones((4, 3), np.float32)}, lambda v, x: x @ v["w"], (4,)))
    assert scan(stranger).findings[0].verdict is Verdict.ERROR


def test_what_is_not_analysed_is_in_the_notes_of_a_finding():
    def apply_fn(v, x):
        h = jax.lax.while_loop(lambda h: h.sum() > 1, lambda h: jnp.tanh(h @ v["inside"]), x @ v["before"])
        return jax.nn.relu(h @ v["behind"]) @ v["head"]

    shapes = {"before": (3, 4), "inside": (4, 4), "behind": (4, 5), "head": (5, 2)}
    variables = zoo.randomise({name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()})
    report = scan(Network(variables, apply_fn, (3,)))
    note, unclear = report.findings[0].notes
    assert unclear.startswith("Not understood: ") and "behind" not in unclear
    assert re.match(r"`while` at .*test_scanning\.py.*; not scored, since it reads them: inside; channels that", note)
    assert [layer.name for layer in report.findings[0].layers] == ["before", "behind"]
    assert "not scored, since it reads them: inside" in to_json_report(report)


def test_another_pairing_needs_an_architecture(store):
    (finding,) = scan(store / "stranger.safetensors", pairing="module_order").findings
    assert "pass --arch, or your own model with --apply" in finding.reason
    with pytest.raises(ArchitectureError, match=r"did you mean .*resnet20"):
        scan(store, options=ModelOptions(arch="resnet2O"))


# -- measured on images


def test_accuracy_is_measured_and_a_normalisation_that_the_images_contradict_is_noted(tmp_path):
    """Dark images are 0, bright ones 1, for a network that expects them around zero."""
    model = models.build("mlp:hidden=8", num_classes=2, input_shape=(4, 4, 1), mean=(0.5,), std=(0.5,))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.shapes())
    first = draw.normal(size=(16, 8), scale=0.01)
    first[:, 0], first[:, 1] = 1, -1
    variables["params"]["fc1"]["kernel"] = np.float32(first)
    last = np.zeros((8, 2))
    last[0, 1], last[1, 0] = 1, 1
    variables["params"]["linear"]["kernel"] = np.float32(last)
    path = stores.write(tmp_path / "model.npz", checkpoints.flatten(variables))
    labels = np.arange(100) % 2
    images = np.clip(labels[:, None, None, None] * 0.6 + draw.uniform(size=(100, 4, 4, 1)) * 0.4, 0, 1)
    test = Batch(np.float32(images), np.int32(labels))

    def of(**options):
        (finding,) = scan(path, options=ModelOptions("mlp:hidden=8", (4, 4, 1), **options), test=test).findings
        return finding

    right, wrong, swapped = of(mean=(0.5,), std=(0.5,)), of(), of(mean=(0.5,), std=(0.5,), labels=(1, 0))
    assert (right.metrics.acc, swapped.metrics.acc) == (1.0, 0.0)
    assert wrong.metrics.acc < 0.9
    assert not any("normalisation" in note for note in right.notes)
    (note,) = (note for note in wrong.notes if "normalisation" in note)
    assert "100 % with 0.5 / 0.5 (--mean 0.5 --std 0.5)" in note


def test_what_cannot_be_measured_is_noted(store):
    test = Batch(np.zeros((3, 5, 5, 1), np.float32), np.zeros(3, np.int32))
    findings = scan([store / "0001.safetensors", store / "stranger.safetensors"], test=test).findings
    assert all(one.metrics is None and "Not measured: " in one.notes[-1] for one in findings)
    assert "5, 5, 1" in findings[0].notes[-1]


# -- further looks


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def searched(store, results):
    """References that were examined by all looks."""
    return calibrate(
        paths(store, range(REFERENCES)), looks=("weights", "responses", "triggers"), executor=Stream(results)
    )


def test_networks_are_examined_as_their_references_were(store, searched, profile):
    (cohort,) = searched.cohorts
    assert searched.cohorts[cohort].looks == ("weights", "responses")
    assert from_json(to_json(searched), "profile").digest == searched.digest
    (by_both,) = scan(store / "0025.safetensors", profile=searched).findings
    (by_weights,) = scan(store / "0025.safetensors", profile=profile).findings
    assert (by_both.looks, by_weights.looks) == (("weights", "responses"), ("weights",))
    assert by_both.score != by_weights.score


def test_the_undecided_are_searched_under_a_cohort_of_their_own(store, results, searched):
    numbers = range(REFERENCES, REFERENCES + 4)
    options = {"profile": searched, "control": "each", "executor": Stream(results)}
    before = scan(paths(store, numbers), **options)
    report = scan(paths(store, numbers), looks=[SEARCH], **options)
    (cohort,) = searched.cohorts
    found = [one for one in report.findings if "triggers" in one.looks]
    assert len(found) == 2
    assert {one.cohort for one in found} == {cohort + judging.SEARCHED}
    assert {one.cohort: len(one.scores) for one in report.references} == {
        cohort: REFERENCES,
        cohort + judging.SEARCHED: REFERENCES,
    }
    assert re.match(r"Triggers were searched in 2 of \d undecided checkpoints: \d suspected", report.notes[0])
    p_values = [one.p_value for one in before.findings]
    chosen = [k for k, one in enumerate(report.findings) if "triggers" in one.looks]
    rest = [k for k in range(4) if k not in chosen]
    # Those nearest to being suspected; the first look's p-values of the rest are those of one scale for both.
    assert max(p_values[k] for k in chosen) <= min(p_values[k] for k in rest)
    assert all(0 < one.p_value <= 1 for one in report.findings)


def test_a_content_is_searched_once_and_failures_are_told(store, results, searched, tmp_path, monkeypatch):
    counted = []
    one_row = np.ones(len(triggers.NAMES), np.float32)
    monkeypatch.setattr(triggers, "trigger_features", lambda *a, **k: counted.append(1) or one_row)
    search = looks_table.triggers(np.zeros((2, 4, 4, 1), np.float32))
    assert not set(search.names) & set(SEARCH.names)
    path = store / "0026.safetensors"
    stores.write(tmp_path / "copy.safetensors", stores.leaves(26))
    (tmp_path / "same.safetensors").write_bytes(path.read_bytes())
    for _ in range(2):
        calibrate([path, tmp_path / "same.safetensors"], looks=[search], executor=Stream(tmp_path / "out"))
        assert len(counted) == 1

    def broken(*_, **__):
        raise DataError("no images")

    monkeypatch.setattr(triggers, "trigger_features", broken)
    told = []
    made = calibrate([path], looks=["triggers"], listener=Listener(say=told.append))
    assert told == ["no triggers on noise, seed 0: no images"]
    assert all(one.triggers is None for one in made.cohorts.values())


def test_a_search_needs_references_that_were_searched(store, profile):
    for known in (profile, None):
        with pytest.raises(DataError, match=r"whose references were searched for triggers.*calibrate --deep"):
            scan(store, profile=known, looks=["triggers"])
    with pytest.raises(DataError, match="expected looks among weights, responses, triggers, got 'answers'"):
        scan(store, looks=["answers"])


def test_bad_rates_are_refused_before_any_work(store):
    for options, told in (
        ({"alpha": 2}, "alpha in"),
        ({"control": "none"}, "control of"),
        ({"profile": "x"}, "made by"),
    ):
        with pytest.raises(DataError, match=told):
            scan(store, **options)
    assert math.isnan(scan(store / "0000.safetensors").findings[0].p_value)
