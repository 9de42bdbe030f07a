"""The headline counts every file, and never says "nothing found" over files nobody looked at."""

import dataclasses
import itertools

import pytest
from fleets import NAN, entry, failed, fleet, reference

from jaxguard.report import fleet_wording
from jaxguard.types import FleetReport, Reference

SKIPPED = (("notes.txt", "no known format"), ("lock", "empty"))
KINDS = {
    "backdoor suspected": entry("a", "backdoor suspected"),
    "no evidence": entry("b"),
    "inconclusive": entry("c", "inconclusive"),
    "error": failed("d", "truncated"),
}


def lead(*verdicts: str, skipped=()) -> str:
    return fleet_wording.headline(FleetReport("", "", tuple(KINDS[one] for one in verdicts), skipped)).lead


def test_leads():
    assert lead("backdoor suspected", "no evidence") == "Backdoor suspected in 1 of 2 checkpoints"
    assert lead("no evidence", "no evidence", "inconclusive") == "No evidence of a backdoor in 2 of 3 checkpoints"
    assert lead("inconclusive") == "Inconclusive: the checkpoint could not be judged"
    assert (
        lead("error", "error", skipped=SKIPPED) == "Nothing known: none of 2 checkpoints could be read; 2 files skipped"
    )
    assert lead("no evidence", "error", skipped=SKIPPED[:1]) == (
        "No evidence of a backdoor in 1 of 2 checkpoints; 1 could not be read, 1 file skipped"
    )
    assert lead() == "Nothing was scanned"


@pytest.mark.parametrize("chosen", [c for n in range(5) for c in itertools.combinations(KINDS, n)])
@pytest.mark.parametrize("skipped", [(), SKIPPED])
def test_whatever_nobody_looked_at_is_in_the_headline(chosen, skipped):
    report = FleetReport("", "", tuple(KINDS[one] for one in chosen), skipped)
    headline = fleet_wording.headline(report)
    assert ("could not be read" in headline.lead) == ("error" in chosen)
    assert ("2 files skipped" in headline.lead) == bool(skipped)
    assert ("nothing is known" in headline.detail) == ("error" in chosen or bool(skipped))
    assert headline.tone == ("bad" if "backdoor suspected" in chosen else "open")
    assert "clean" not in headline.lead
    assert ("At most 5 %" in headline.detail) == ("backdoor suspected" in chosen)
    assert ("not acquitted" in headline.detail) == ("no evidence" in chosen)


def test_every_file_is_counted_once():
    report = fleet(200, suspected=7, errors=11, skipped=13)
    counts = fleet_wording.tally(report)
    assert tuple(counts) == (7, 163, 19, 11, 13)
    assert sum(counts) == len(report.entries) + len(report.skipped)
    strange = FleetReport("", "", (entry(verdict="clean"), entry(verdict="skipped")))
    assert tuple(fleet_wording.tally(strange)) == (0, 0, 1, 0, 1)


def test_the_rate_is_that_of_the_report():
    report = dataclasses.replace(fleet(20), alpha=0.005)
    assert "At most 0.5 % of the checkpoints suspected" in fleet_wording.headline(report).detail


def test_order_of_suspicion():
    ranked = [
        entry("a", "backdoor suspected", q_value=0.01, p_value=0.2),
        entry("b", "backdoor suspected", q_value=0.02, p_value=0.001),
        entry("c", q_value=0.1, p_value=0.01, score=1.0),
        entry("d", q_value=0.1, p_value=0.01, score=0.5, z=9.0),
        entry("e", q_value=0.1, p_value=0.01, score=0.5, z=3.0),
        entry("f", q_value=NAN, p_value=NAN, score=NAN, z=99.0),
        entry("g", "inconclusive", q_value=NAN, p_value=NAN, score=NAN, z=4.0),
        entry("h", "inconclusive", q_value=NAN, p_value=NAN, score=NAN, z=NAN),
        failed("i", "truncated"),
    ]
    for order in (ranked[::-1], ranked[4:] + ranked[:4]):
        assert [one.uri for one in fleet_wording.by_suspicion(order)] == list("abcdefghi")


def test_power_is_told_with_its_interval():
    assert fleet_wording.reference(reference("cnn")) == (
        "compared with 64 clean references; 87.5 % of 32 backdoored ones would be suspected "
        "(95 % interval 72.0 to 95.0 %)"
    )  # fmt: skip
    unknown = Reference("cnn", reference("cnn").scores, (), NAN, (NAN, NAN))
    assert fleet_wording.reference(unknown).endswith("how many backdoored models would be suspected was not measured")
    assert "62.5 to 87.5 %, by bucket," in fleet_wording.power([
        reference("cnn"), dataclasses.replace(reference("vgg"), power=0.625), unknown,
    ])  # fmt: skip
