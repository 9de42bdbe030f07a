"""A profile that was made by other numerics is used where its witness agrees, and nowhere else."""

import dataclasses
import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxguard
from jaxguard import checkpoints, programs
from jaxguard.detection import agreement, looks
from jaxguard.detection.calibration import calibrate
from jaxguard.detection.profile import Profile, from_json, to_json
from jaxguard.detection.records import Features, Record
from jaxguard.detection.trigger_reference import ReferenceNetwork, TriggerReference
from jaxguard.errors import DataError
from jaxguard.fleet import discovery, examination, witnesses
from jaxguard.programs import Numerics
from jaxguard.suspects import load
from jaxguard.types import KindResult, Network, Provenance, TriggerSearch, Verdict
from tests.fleet import stores

REFERENCES = 24
CHIP = Numerics("tpu", "highest")
RNG = np.random.default_rng(0)


def record(name: str, shift: float = 0.0) -> Record:
    return Record(Provenance(name, name), "small", {"weights": Features(("a", "b", "c"), RNG.normal(shift, size=3))})


@pytest.fixture(scope="module")
def known():
    made = calibrate([record(f"{k:04x}") for k in range(40)])
    return dataclasses.replace(made.cohorts["small"], witness={"weights": np.array([1.0, np.nan, 3.0])})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    stores.store(folder, REFERENCES + 2)
    return folder


@pytest.fixture(scope="module")
def profile(store):
    return jaxguard.calibrate(
        [store / f"{k:04d}.safetensors" for k in range(REFERENCES)], looks=("weights", "responses")
    )


def made_by(profile: Profile, numerics: Numerics | None, factor: float = 1.0) -> Profile:
    """As if it had been made elsewhere, the features of its witness multiplied by a factor."""
    cohorts = {
        name: dataclasses.replace(one, witness={look: factor * values for look, values in one.witness.items()})
        for name, one in profile.cohorts.items()
    }
    return dataclasses.replace(profile, cohorts=cohorts, numerics=numerics)


# ---------------------------------------------------------------- the shift


def test_the_shift_bounds_what_any_score_moves_by(known):
    moved = np.array([0.02, 0.0, -0.03])
    bound = agreement.shift(known, {"weights": known.witness["weights"] + moved})
    deviation = np.std(known.first.clean.scores)
    points = RNG.normal(size=(200, 3))
    for one in known.first.combinations:
        found = np.abs(one.score(points + moved) - one.score(points)) / deviation
        assert 0 < found.max() <= bound * (1 + 1e-9)


def test_a_fitted_score_moves_by_the_shift_exactly():
    clean, bad = [record(f"{k:04x}") for k in range(40)], [record(f"b{k:03x}", 3.0) for k in range(12)]
    known = calibrate(clean, bad).cohorts["small"]
    known = dataclasses.replace(known, witness={"weights": np.zeros(3)})
    moved = np.array([0.01, 0.02, -0.01])
    expected = [abs(one.score(moved[None]) - one.score(np.zeros((1, 3))))[0] for one in known.first.combinations]
    found = agreement.shift(known, {"weights": moved})
    assert found == pytest.approx(max(expected) / np.std(known.first.clean.scores))


@pytest.mark.parametrize(
    "here",
    [None, {}, {"responses": np.ones(3)}, {"weights": np.ones(2)}, {"weights": np.array([np.nan, np.nan, 3.0])}],
)
def test_what_cannot_be_compared_agrees_with_nothing(known, here):
    assert agreement.shift(known, here) == np.inf


def test_what_is_undefined_in_both_is_no_difference(known):
    assert agreement.shift(known, {"weights": np.array([1.0, np.nan, 3.0])}) == 0


# ---------------------------------------------------------------- the witness


def test_a_witness_depends_on_names_and_shapes_alone(store):
    first, second = (agreement.witness(load(store / f"000{k}.safetensors")) for k in (0, 1))
    for one, other in zip(*(checkpoints.flatten(s.network.variables).values() for s in (first, second)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_numbers_of_a_witness_are_these():
    """As every version and machine must draw them."""
    variables = {"conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}, "norm": {"scale": np.ones(2, np.float32)}}
    apply_fn = lambda v, x: x.sum() * v["norm"]["scale"]  # noqa: E731
    witness = agreement.witness(load(Network(variables, apply_fn, (4,)), name="network")).require_network().variables
    kernel, scale = witness["conv"]["kernel"], witness["norm"]["scale"]
    assert kernel.dtype == scale.dtype == np.float32
    random = np.random.RandomState(3772919121)
    np.testing.assert_array_equal(kernel, (np.sqrt(2 / 18) * random.standard_normal((3, 3, 2, 4))).astype(np.float32))
    assert ((scale >= 0.5) & (scale <= 1.5)).all()


# ---------------------------------------------------------------- a scan


def test_a_profile_holds_how_it_was_made_and_comes_back_whole(profile):
    again = from_json(to_json(profile), "memory")
    assert again.numerics == profile.numerics == ("cpu", "highest")
    assert again.digest == profile.digest
    for name, one in profile.cohorts.items():
        assert one.witness.keys() == {"weights", "responses"}
        for look, values in one.witness.items():
            np.testing.assert_array_equal(again.cohorts[name].witness[look], values)


def test_an_older_profile_is_read_and_what_is_assumed_is_said(profile, store):
    document = json.loads(to_json(made_by(profile, None)))
    for cohort in document["cohorts"].values():
        del cohort["witness"]
    body = {name: document[name] for name in ("cohorts", "notes")}
    older = from_json(json.dumps({"kind": document["kind"], "digest": sha256_of(body), **body}), "older")
    report = jaxguard.scan(store / "0024.safetensors", profile=older, deep=0)
    assert report.findings[0].p_value == pytest.approx(
        jaxguard.scan(store / "0024.safetensors", profile=profile, deep=0).findings[0].p_value
    )
    assert "does not say how its features were computed; highest precision on cpu is assumed" in report.notes[0]
    with jaxguard.precision("bfloat16"):
        (finding,) = jaxguard.scan(store / "0024.safetensors", profile=older, deep=0).findings
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "that their features agree could not be shown; scan by highest (--precision), or" in finding.reason


def sha256_of(body) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def test_numerics_that_agree_are_used_and_named(profile, store):
    target = store / "0024.safetensors"
    here, there = (jaxguard.scan(target, profile=one, deep=0) for one in (profile, made_by(profile, CHIP)))
    assert here.findings[0].p_value == there.findings[0].p_value
    assert not any("agree" in note for note in here.notes)
    (note,) = [note for note in there.notes if "agree" in note]
    assert "the profile was made by highest precision on tpu, this scan by highest precision on cpu; they agree" in note
    assert here.environment["precision"] == "highest"


def test_numerics_that_disagree_are_inconclusive_and_say_what_to_do(profile, store):
    report = jaxguard.scan(store, profile=made_by(profile, CHIP, 1.2), deep=0)
    for one in report.findings:
        assert one.verdict is Verdict.INCONCLUSIVE
        assert np.isnan(one.p_value)
        assert "made by highest precision on tpu, this scan by highest precision on cpu" in one.reason
        assert "their features disagree: scores would move by" in one.reason
        assert one.reason.endswith("0.05 is accepted; calibrate again here")
    assert report.references == ()


def test_a_scan_in_bfloat16_does_not_use_a_profile_of_float32_unseen(profile, store):
    with jaxguard.precision("bfloat16"):
        report = jaxguard.scan(store / "0024.safetensors", profile=profile, deep=0)
        known = profile.cohorts[report.findings[0].cohort]
        moved = programs.numerics()
    assert moved == ("cpu", "bfloat16")
    assert report.environment["precision"] == "bfloat16"
    assert report.findings[0].verdict is Verdict.INCONCLUSIVE
    assert "this scan by bfloat16 precision on cpu, and their features disagree" in report.findings[0].reason
    assert known.refused == ""  # the profile itself stays


def test_a_profile_made_in_bfloat16_is_used_in_bfloat16(store):
    with jaxguard.precision("bfloat16"):
        own = jaxguard.calibrate([store / f"{k:04d}.safetensors" for k in range(REFERENCES)])
        (finding,) = jaxguard.scan(store / "0024.safetensors", profile=own, deep=0).findings
    assert own.numerics == ("cpu", "bfloat16")
    assert 0 < finding.p_value <= 1


def test_a_refused_entry_is_no_numerics(profile):
    document = json.loads(to_json(profile))
    body = {name: document[name] for name in ("cohorts", "notes")} | {"numerics": ["cpu"] * 3}
    with pytest.raises(DataError, match="incomplete or inconsistent"):
        from_json(json.dumps({"kind": document["kind"], "digest": sha256_of(body), **body}), "memory")


def test_leaves_that_are_no_floats_are_zeros():
    assert agreement._fixed("steps", np.ones(3, np.int32)).tolist() == [0, 0, 0]
    assert agreement._fixed("w", jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


# ---------------------------------------------------------------- trigger searches


def searched(*networks: ReferenceNetwork, gap: float = 0.7) -> tuple[TriggerSearch, TriggerReference]:
    return TriggerSearch(results=(KindResult("patch", 2, gap),)), TriggerReference(networks)


NETWORKS = [ReferenceNetwork(f"{k}", "mlp", {"patch": (2, k / 10)}) for k in range(9)]


def test_a_search_says_how_far_its_gap_may_have_moved():
    found, reference = searched(*NETWORKS)
    spread = np.std(np.arange(9) / 10)
    assert agreement.doubted(found, reference, 0.0) is found
    near = agreement.doubted(found, reference, 0.01 * spread)
    assert not near.problem and "gaps could move by 0.04 of" in near.left_out[0]
    far = agreement.doubted(found, reference, 0.02 * spread)
    assert "they could move by 0.08 of the references' standard deviation, 0.05 is accepted" in far.problem
    assert far.problem.endswith("search on a cpu")
    with jaxguard.precision("default"):
        assert agreement.doubted(found, reference, np.inf).problem.endswith("search by highest (--precision)")


def test_what_is_not_compared_with_references_needs_no_agreement():
    found, _ = searched()
    others = TriggerReference((ReferenceNetwork("a", "mlp", {"patch": (1, 0.5)}),))
    for reference in (None, TriggerReference(()), others):
        assert agreement.doubted(found, reference, 1.0) is found


def test_logits_are_compared_in_both_precisions(store):
    network = load(store / "0000.safetensors").network
    assert witnesses.logit_error(network) == 0
    with jaxguard.precision("bfloat16"):
        error = witnesses.logit_error(network)
    assert 1e-4 < error < 0.2


def test_results_of_a_cluster_say_what_was_not_checked(profile, store):
    (model,) = discovery.discover(store / "0000.safetensors").models
    with examination.examined([model], None, pairing="dataflow", listener=examination.Listener()) as seen:
        assert witnesses.comparable(profile, seen, looks.ordered(()), "dataflow")[1] == []
        seen.results[0].by_workers = True
        (note,) = witnesses.comparable(profile, seen, looks.ordered(()), "dataflow")[1]
    assert "whether their backend is that of this machine, cpu, was not checked" in note


def test_networks_of_unknown_function_have_a_witness_by_names_and_shapes(tmp_path):
    shapes = {"enc.0.weight": (6, 5), "enc.1.weight": (8, 6), "enc.2.weight": (4, 8)}
    for k in range(12):
        random = np.random.default_rng(k)
        leaves = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        checkpoints.save(tmp_path / f"{k:02d}.safetensors", leaves)
    paths = sorted(tmp_path.iterdir())
    made = jaxguard.calibrate(paths[:11])
    ((name, known),) = made.cohorts.items()
    assert name.startswith("structural") and known.witness.keys() == {"weights"}
    reports = [
        jaxguard.scan(paths[11], profile=one, deep=0, alpha=0.1)
        for one in (made, made_by(made, CHIP), made_by(made, CHIP, 1.2))
    ]
    first, second, third = (report.findings[0] for report in reports)
    assert 0 < first.p_value == second.p_value
    assert third.verdict is Verdict.INCONCLUSIVE and "their features disagree" in third.reason
