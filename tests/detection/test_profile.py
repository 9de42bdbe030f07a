"""Profiles as text: exact, and refused where they are not what was written."""

import dataclasses
import json

import numpy as np
import pytest
from references import fleet, with_weights

from jaxguard.detection.calibration import calibrate
from jaxguard.detection.profile import KIND, Profile, from_json, to_json
from jaxguard.errors import DataError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def profile() -> Profile:
    clean = fleet(RNG, 25, triggers=0)
    guilty = fleet(RNG, 12, shift=2, triggers=2)
    guilty[3] = with_weights(guilty[3], np.full(4, np.nan))
    few = fleet(RNG, 3, cohort="few")
    return calibrate([*clean, *few], guilty)


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
    assert read.cohorts["small"].triggers is not None
    assert np.isnan(read.cohorts["small"].first.backdoored.scores).sum() == 1
    assert "NaN" not in text


def test_the_digest_covers_everything(profile):
    digests = {profile.digest}
    small = profile.cohorts["small"]
    for name, changed in {
        "triggers": None,
        "first": dataclasses.replace(small.first, names=("a", "b", "c", "e")),
    }.items():
        one = dataclasses.replace(small, **{name: changed})
        digests.add(dataclasses.replace(profile, cohorts=profile.cohorts | {"small": one}).digest)
    digests.add(dataclasses.replace(profile, notes=()).digest)
    assert len(digests) == 4


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
        (("cohorts", "small", "first", "clean", "scores", 0), -9.0),
        (("cohorts", "small", "first", "clean", "sha256", 0), "00"),
        (("cohorts", "small", "triggers"), None),
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
    text = changed(to_json(profile), "kind", value=KIND.replace(", 3", ", 2"))
    with pytest.raises(
        DataError, match="expected a jaxguard reference profile, 3, got 'jaxguard reference profile, 2'"
    ):
        from_json(text, "p.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("cohorts",), None),
        (("cohorts", "small", "first", "combinations", 0, "usable"), [True]),
        (("cohorts", "small", "first", "combinations", 0, "centre"), [0.0]),
        (("cohorts", "small", "first", "combinations", 0, "kind"), "vote"),
        (("cohorts", "small", "first", "combinations", 0, "coefficients"), "many"),
        (("cohorts", "small", "first", "clean", "scores"), [0.5]),
        (("cohorts", "small", "first", "clean", "folds", 0), 7),
    ],
)
def test_inconsistent_contents_are_refused_even_with_their_digest(profile, path, value):
    text = changed(to_json(profile), *path, value=value)
    try:
        from_json(text, "p.json")
    except DataError as error:
        found = str(error).split("got ")[1].split(";")[0]
    with pytest.raises(DataError, match="got them incomplete or inconsistent"):
        from_json(changed(text, "digest", value=found), "p.json")
