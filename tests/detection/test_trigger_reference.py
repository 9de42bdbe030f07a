"""Reference networks: the file, comparison by kind and version, and rates that hold for the kinds they are of."""

import json
import math

import numpy as np
import pytest

from jaxguard import conformal
from jaxguard.detection import trigger_reference
from jaxguard.detection.trigger_reference import Rates, ReferenceNetwork, TriggerReference
from jaxguard.errors import DataError
from jaxguard.types import KindResult, TriggerSearch


def document(**changes):
    networks = [
        {"sha256": "aa", "architecture": "mlp:hidden=8", "kinds": {"patch": {"version": 1, "gap": 0.3}}},
        {"sha256": "bb", "architecture": "cnn", "kinds": {"warp": {"version": 2, "gap": 0.7}}},
    ]
    counts = {"found": 1, "of": 20}
    rates = [
        {"alpha": 0.05, "kinds": {"patch": 1}, "false_alarms": counts, "power": {"badnets": {"found": 9, "of": 10}}}
    ]
    source = {"experiment": "universal_reference.py"}
    return {"schema": trigger_reference.SCHEMA, "source": source, "networks": networks, "rates": rates} | changes


def networks(gaps, **more):
    """One reference per row of `{kind: (version, gap)}`."""
    return tuple(ReferenceNetwork(f"{k:02x}", "mlp:hidden=8" if k % 2 else "cnn", gap) for k, gap in enumerate(gaps))


def test_a_file_is_read_as_it_says(tmp_path):
    path = tmp_path / "reference.json"
    assert trigger_reference.load(path) is None
    path.write_text(json.dumps(document()))
    known = trigger_reference.load(path)
    assert [(one.sha256, one.family, dict(one.gaps)) for one in known.networks] == [
        ("aa", "mlp", {"patch": (1, 0.3)}),
        ("bb", "cnn", {"warp": (2, 0.7)}),
    ]
    assert known.rates == (Rates(0.05, {"patch": 1}, (1, 20), {"badnets": (9, 10)}),) and len(known.digest) == 64
    assert known.rates_of([KindResult("patch", 1)]) is known.rates[0]
    for others in ([KindResult("patch", 2)], [KindResult("patch", 1), KindResult("warp", 2)], []):
        assert known.rates_of(others) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        json.dumps(document(schema="other")),
        json.dumps(document(networks=[{"sha256": "aa", "architecture": "cnn"}])),
        json.dumps(document(networks=[{"sha256": "aa", "architecture": "cnn", "kinds": {"patch": 0.3}}])),
        json.dumps(
            document(networks=[{**document()["networks"][0], "kinds": {"patch": {"version": 1, "gap": math.nan}}}])
        ),
        json.dumps(document(rates=[{"alpha": 0.05}])),
    ],
)
def test_a_damaged_file_is_one_error(tmp_path, text):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(DataError, match="expected a reference of schema"):
        trigger_reference.load(path)


def test_kinds_are_joined_and_the_one_that_stands_out_is_named():
    draw = np.random.default_rng(0).exponential(size=(39, 2)) * [1, 100]
    reference = TriggerReference(networks([{"patch": (1, a), "warp": (2, b)} for a, b in draw.tolist()]))
    suspect = [KindResult("patch", 1, 0.5), KindResult("warp", 2, 2000.0)]
    found = reference.compare(suspect, architecture="mlp")
    assert (found.p_value, found.lead, found.number) == (1 / 40, "warp", (19, 39)) and found.height > 1
    assert found.by_kind == {
        "patch": conformal.p_values([0.5], draw[:, 0])[0],
        "warp": 1 / 40,
    }
    alone = reference.compare(suspect[:1])
    assert alone.p_value == found.by_kind["patch"] and alone.lead == "patch"


def test_other_versions_and_kinds_without_a_statement_do_not_count():
    reference = TriggerReference(networks([{"patch": (1, 0.1 * k), "warp": (1, 9.0)} for k in range(4)]))
    strong = KindResult("warp", 2, 99.0)
    found = reference.compare([KindResult("patch", 1, 0.25), strong])
    assert (found.p_value, found.lead, found.unknown, found.by_kind) == (0.4, "patch", ("warp",), {"patch": 0.4})
    silent = [KindResult("patch", 1, 0.25), KindResult("warp", 1, 99.0, problem="all classes flip")]
    assert (reference.compare(silent).p_value, reference.compare(silent).unknown) == (0.4, ())
    nothing = reference.compare([strong])
    assert math.isnan(nothing.p_value) and (nothing.lead, nothing.number) == ("", (0, 0))
    assert math.isnan(TriggerReference(()).compare([KindResult("patch", 1, 0.25)]).p_value)


def test_a_network_is_not_compared_with_itself():
    reference = TriggerReference(networks([{"patch": (1, gap)} for gap in (0.1, 0.9)]))
    assert reference.compare([KindResult("patch", 1, 0.9)], "01").p_value == 1 / 2
    assert reference.compare([KindResult("patch", 1, 0.9)], "ff").p_value == 2 / 3


def test_own_networks_are_added_and_the_file_reads_back(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(document()))
    known = trigger_reference.load(path)
    own = TriggerSearch(results=(KindResult("patch", 2, 0.4), KindResult("warp", 2, math.nan)), shape=(8, 8, 1))
    silent = TriggerSearch(problem="it answers all images alike", results=(KindResult("patch", 2, 0.4),))
    more = trigger_reference.extended(known, {"cc": ("cnn", own), "dd": ("cnn", silent), "bb": ("vgg", own)})
    gaps = {one.sha256: (one.architecture, dict(one.gaps)) for one in more.networks}
    assert gaps == {
        "aa": ("mlp:hidden=8", {"patch": (1, 0.3)}),
        "cc": ("cnn", {"patch": (2, 0.4)}),
        "bb": ("vgg", {"patch": (2, 0.4)}),
    }
    path.write_text(trigger_reference.to_json(more))
    again = trigger_reference.load(path)
    assert (again.networks, again.rates, again.source) == (more.networks, known.rates, {**known.source, "own": 2})
    assert again.digest != known.digest


def test_the_reference_that_ships_is_read_and_can_reach_the_usual_rate():
    known = trigger_reference.load()
    assert known is not None and len(known.networks) >= conformal.needed_references(0.05)
    assert len({one.sha256 for one in known.networks}) == len(known.networks)
    assert all(0 <= found <= number for one in known.rates for found, number in [one.false_alarms, *one.power.values()])
