"""Profiles as text: exact, and refused where they are not what was written."""

import dataclasses
import json
import math

import numpy as np
import pytest
from references import DEEP_NAMES, NAMES, fleet

from jaxguard.detection.calibration import calibrate
from jaxguard.detection.profile import KIND, Profile, from_json, to_json
from jaxguard.errors import DataError
from jaxguard.types import LayerSummary

RNG = np.random.default_rng(0)


def layer(z: float) -> LayerSummary:
    return LayerSummary("conv1", 8, 0, 1.0, 0.1, 10 * z, 3, z, 0)


@pytest.fixture(scope="module")
def profile() -> Profile:
    clean = [one._replace(layers=(layer(k),)) for k, one in enumerate(fleet(RNG, 25, deep=0))]
    guilty = fleet(RNG, 12, shift=2, deep=2)
    guilty[3] = guilty[3]._replace(features=np.full(4, np.nan))
    few = fleet(RNG, 3, bucket="few")
    return calibrate([*clean, *few], guilty, names=NAMES | {"few": tuple("abcd")}, deep_names=DEEP_NAMES)


def equal(one: object, other: object) -> bool:
    """Of nested dataclasses, to the last bit."""
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            equal(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)
        )
    if isinstance(one, (dict, tuple)):
        pairs = zip(one.items(), other.items(), strict=True) if isinstance(one, dict) else zip(one, other, strict=True)
        return type(one) is type(other) and all(equal(*pair) for pair in pairs)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one == other or bool(np.isnan([one, other]).all())


def test_a_profile_survives_as_text_to_the_last_bit(profile):
    text = to_json(profile)
    read = from_json(text, "p.json")
    assert equal(read, profile)
    assert read.digest == profile.digest == json.loads(text)["digest"]
    assert to_json(read) == text
    assert read.buckets["small"].deep is not None
    assert np.isnan(read.buckets["small"].weights.backdoored.scores).sum() == 1
    assert "NaN" not in text


def test_the_digest_covers_everything(profile):
    digests = {profile.digest}
    small = profile.buckets["small"]
    for name, changed in {
        "layers": (small.layers[0]._replace(z_mean=math.nextafter(small.layers[0].z_mean, 9)),),
        "deep": None,
        "weights": dataclasses.replace(small.weights, names=("a", "b", "c", "e")),
    }.items():
        one = dataclasses.replace(small, **{name: changed})
        digests.add(dataclasses.replace(profile, buckets=profile.buckets | {"small": one}).digest)
    digests.add(dataclasses.replace(profile, notes=()).digest)
    assert len(digests) == 5


def test_layers_are_summed_up(profile):
    (found,) = profile.buckets["small"].layers
    assert found.name == "conv1"
    assert found[1:] == pytest.approx((12, np.std(np.arange(25), ddof=1), 120, 10 * np.std(np.arange(25), ddof=1)))


def changed(text: str, *path: str | int, value: object) -> str:
    """The same text with one value replaced."""
    whole = json.loads(text)
    place = whole
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("notes",), ["another"]),
        (("buckets", "small", "weights", "clean", "scores", 0), -9.0),
        (("buckets", "small", "weights", "clean", "sha256", 0), "00"),
        (("buckets", "small", "deep"), None),
        (("digest",), "00"),
        (("digest",), None),
    ],
)
def test_a_changed_profile_is_refused(profile, path, value):
    with pytest.raises(DataError, match=r"p\.json: expected contents of digest .* changed or damaged"):
        from_json(changed(to_json(profile), *path, value=value), "p.json")


@pytest.mark.parametrize(
    "text", ["", "{", b"\xff\xfe\x00", "[" * 100_000, "[]", "{}", "3", '{"kind": 7}', '{"kind": "receipt, 1"}']
)
def test_what_is_no_profile_is_refused(text):
    with pytest.raises(DataError, match=r"p\.json: expected a jaxguard reference profile"):
        from_json(text, "p.json")


def test_a_cut_file_is_refused(profile):
    with pytest.raises(DataError, match="expected a jaxguard reference profile"):
        from_json(to_json(profile)[:-100], "p.json")


def test_another_version_is_refused(profile):
    text = changed(to_json(profile), "kind", value=KIND.replace(", 1", ", 2"))
    with pytest.raises(
        DataError, match="expected a jaxguard reference profile, 1, found 'jaxguard reference profile, 2'"
    ):
        from_json(text, "p.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("buckets",), None),
        (("buckets", "small", "weights", "combinations", 0, "usable"), [True]),
        (("buckets", "small", "weights", "combinations", 0, "centre"), [0.0]),
        (("buckets", "small", "weights", "combinations", 0, "kind"), "vote"),
        (("buckets", "small", "weights", "combinations", 0, "coefficients"), "many"),
        (("buckets", "small", "weights", "clean", "scores"), [0.5]),
        (("buckets", "small", "weights", "clean", "folds", 0), 7),
    ],
)
def test_inconsistent_contents_are_refused_even_with_their_digest(profile, path, value):
    text = changed(to_json(profile), *path, value=value)
    try:
        from_json(text, "p.json")
    except DataError as error:
        found = str(error).split("found ")[1].split(";")[0]
    with pytest.raises(DataError, match="found them incomplete or inconsistent"):
        from_json(changed(text, "digest", value=found), "p.json")
