"""Headlines say what the numbers say, count every file, and acquit nobody."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from fleets import NAN, failed, finding, fleet
from samples import ownership, ownership_report, recovered

from jaxguard.report import headlines
from jaxguard.types import (
    Finding,
    LayerScores,
    LayerSummary,
    Metrics,
    Provenance,
    Repair,
    Report,
    TriggerSearch,
    Verdict,
)

SKIPPED = (("notes.txt", "no known format"), ("lock", "empty"))
KINDS = {
    Verdict.CODE_EXECUTION: finding("x", Verdict.CODE_EXECUTION),
    Verdict.CONFIRMED: finding("e", Verdict.CONFIRMED),
    Verdict.SUSPECTED: finding("a", Verdict.SUSPECTED),
    Verdict.NO_EVIDENCE: finding("b"),
    Verdict.NO_TRIGGER: finding("f", Verdict.NO_TRIGGER),
    Verdict.INCONCLUSIVE: finding("c", Verdict.INCONCLUSIVE),
    Verdict.ERROR: failed("d", "truncated"),
}


def lead(*verdicts: Verdict, skipped=()) -> str:
    return headlines.scan_headline(Report("", "", tuple(KINDS[one] for one in verdicts), skipped=skipped)).lead


def test_leads():
    code, confirmed, suspected, none, without, open_, error = Verdict
    assert lead(confirmed, suspected, none) == "Backdoor confirmed in 1 of 3 checkpoints, suspected in 1"
    assert lead(confirmed) == "Backdoor confirmed"
    assert lead(without, open_) == "No trigger found in 1 of 2 checkpoints"
    assert lead(without) == "No trigger found"
    assert lead(code, suspected, none) == "Code execution in 1 of 3 checkpoints, backdoor suspected in 1"
    assert lead(code) == "Code execution: do not load this file elsewhere"
    assert lead(suspected, none) == "Backdoor suspected in 1 of 2 checkpoints"
    assert lead(none, none, open_) == "No evidence of a backdoor in 2 of 3 checkpoints"
    assert lead(open_, open_) == "Inconclusive: none of 2 checkpoints could be judged"
    assert lead(error, error, skipped=SKIPPED) == (
        "Nothing known: none of 2 checkpoints could be scored; 2 files skipped"
    )
    assert lead(none, error, skipped=SKIPPED[:1]) == (
        "No evidence of a backdoor in 1 of 2 checkpoints; 1 could not be scored, 1 file skipped"
    )
    assert lead() == "Nothing was scanned"
    assert lead(suspected) == "Backdoor suspected"
    assert lead(none, skipped=SKIPPED) == "No evidence of a backdoor; 2 files skipped"
    assert lead(open_) == "Inconclusive"
    assert lead(error) == "Could not be scored"


@pytest.mark.parametrize("chosen", [c for n in range(5) for c in itertools.combinations(KINDS, n)])
@pytest.mark.parametrize("skipped", [(), SKIPPED])
def test_what_was_not_scored_is_in_the_headline(chosen, skipped):
    report = Report("", "", tuple(KINDS[one] for one in chosen), skipped=skipped)
    headline = headlines.scan_headline(report)
    assert ("could not be scored" in headline.lead.lower()) == (Verdict.ERROR in chosen) or chosen == (Verdict.ERROR,)
    assert ("2 files skipped" in headline.lead) == bool(skipped)
    assert ("Nothing is known" in headline.detail) == (Verdict.ERROR in chosen or bool(skipped))
    assert headline.tone == ("bad" if {*headlines.ACCUSED} & {*chosen} else "open")
    assert "clean" not in headline.lead
    assert ("At most 5 %" in headline.detail) == (Verdict.SUSPECTED in chosen)
    assert ("not acquitted" in headline.detail) == bool({Verdict.NO_EVIDENCE, Verdict.NO_TRIGGER} & {*chosen})


def test_every_file_is_counted_once():
    report = fleet(200, suspected=7, errors=11, skipped=13)
    counts = headlines.tally(report)
    assert list(counts.values()) == [0, 0, 7, 163, 0, 19, 11, 13]
    assert sum(counts.values()) == len(report.findings) + len(report.skipped)


def test_the_rate_is_that_of_the_report():
    report = dataclasses.replace(fleet(20), alpha=0.005)
    assert "At most 0.5 % of the checkpoints suspected" in headlines.scan_headline(report).detail
    each = dataclasses.replace(report, control="each")
    assert "0.5 % of the clean checkpoints are expected" in headlines.scan_headline(each).detail


def test_order_of_suspicion():
    suspected, inconclusive = Verdict.SUSPECTED, Verdict.INCONCLUSIVE
    ranked = [
        finding("a", suspected, q_value=0.01, p_value=0.2),
        finding("b", suspected, q_value=0.02, p_value=0.001),
        finding("c", q_value=0.1, p_value=0.01, score=1.0),
        finding("d", q_value=0.1, p_value=0.01, score=0.5, z=3.0),
        finding("e", q_value=0.1, p_value=0.01, score=0.4, z=9.0),
        finding("f", q_value=NAN, p_value=NAN, score=NAN, z=99.0),
        finding("g", inconclusive, q_value=NAN, p_value=NAN, score=NAN, z=4.0),
        failed("h", "truncated"),
    ]
    for order in (ranked[::-1], ranked[4:] + ranked[:4]):
        assert [one.provenance.name for one in headlines.by_suspicion(order)] == list("abcdefgh")


def test_one_finding_tells_its_reason_and_its_evidence():
    layer = LayerSummary("bn", 3, 1, 1.0, 0.5, 5.0, 1, 2.6, 1)
    one = Finding(Provenance("m.npz"), Verdict.INCONCLUSIVE, "no reference profile", z=2.6, layers=(layer,))
    one = dataclasses.replace(one, search=TriggerSearch(source="100 images"), metrics=Metrics(0.978, 0.997))
    ((subject, headline),) = headlines.headlines(Report("", findings=(one,)))
    assert subject == "m.npz"
    assert headline.detail == (
        "No reference profile. Channels above their threshold 1 of 3; channels without a "
        "score 1; searched on 100 images; accuracy 97.8 %; success of the given trigger 99.7 %."
    )


def test_every_kind_of_verdict_is_in_the_headlines(full, owned):
    told = headlines.headlines(dataclasses.replace(full, ownerships=owned.ownerships[1:]))
    assert [headline.lead for _, headline in told] == [
        "Inconclusive: none of 2 checkpoints could be judged",
        "FT-SAM takes the backdoor out",
        "CLP leaves the backdoor in",
        *["Inconclusive: too few models independent of older.npz"] * 3,
    ]
    assert headlines.headlines(Report(""))[0][1].lead == "Nothing was scanned"
    assert headlines.headlines(Report("", matrices=owned.matrices)) == []


def repair(before: Metrics | None, after: Metrics | None, layers: tuple[LayerScores, ...] = ()) -> Repair:
    return Repair("m.npz", "clp", {}, layers, before=before, after=after)


@pytest.mark.parametrize(
    ("before", "after", "tone", "words"),
    [
        (Metrics(0.989, 0.997), Metrics(0.981, 0.006), "good", "CLP takes the backdoor out"),
        (Metrics(0.989, 0.997), Metrics(0.989, 0.997), "bad", "CLP leaves the backdoor in"),
        (Metrics(0.98, 0.99), Metrics(0.97, 0.40), "bad", "CLP weakens the backdoor but leaves it in"),
        (Metrics(0.98, 0.99), Metrics(0.60, 0.01), "bad", "CLP takes the backdoor out but harms the model"),
        (Metrics(0.98, 0.99), Metrics(0.60, 0.99), "bad", "CLP leaves the backdoor in and harms the model"),
        (Metrics(0.98, 0.02), Metrics(0.98, 0.01), "open", "CLP found no working backdoor to take out"),
        (Metrics(0.98, 0.02), Metrics(0.20, 0.01), "bad", "CLP harms the model"),
        (Metrics(0.98, 0.02), Metrics(0.98, 0.60), "bad", "CLP leaves the backdoor in"),
        (Metrics(0.98), Metrics(0.97), "open", "CLP was applied, its effect on a backdoor not measured: no trigger"),
        (None, None, "open", "CLP was applied, its effect not measured: no test data"),
        (Metrics(0.98, 0.9), Metrics(math.nan, 0.0), "open", "CLP was applied, its effect is undefined"),
    ],
)
def test_repair_outcome(before, after, tone, words):
    headline = headlines.repair_headline(repair(before, after))
    assert (headline.tone, headline.lead) == (tone, words)


def test_thresholds_are_inclusive_for_asr_and_exclusive_for_acc():
    at_limit = Metrics(0.90, headlines.REMOVED_ASR)
    before = Metrics(0.90 + headlines.HARMFUL_ACC_DROP / 2, 1.0)
    assert headlines.repair_headline(repair(before, at_limit)).tone == "good"
    above = Metrics(0.90, math.nextafter(headlines.REMOVED_ASR, 1))
    assert headlines.repair_headline(repair(Metrics(0.90, 1.0), above)).tone == "bad"


def test_repair_headline_carries_the_numbers():
    layers = (LayerScores("bn", np.zeros(224), 1.0, np.zeros(224, bool), np.zeros(224, bool)),)
    same = Metrics(0.989, 0.997)
    assert str(headlines.repair_headline(repair(same, same, layers))) == (
        "CLP leaves the backdoor in – ASR 99.7 % → 99.7 %, ACC 98.9 % → 98.9 %, 0 of 224 channels cut"
    )


def test_repair_headline_names_the_suspected_class():
    found = Repair("m.npz", "shapley", {}, trigger=recovered(10, size=4))
    assert headlines.repair_headline(found).detail == "class 0 suspected"
    nobody = dataclasses.replace(found, trigger=recovered(10, target=None, size=4))
    assert headlines.repair_headline(nobody).detail == "no class suspected"


@pytest.mark.parametrize(
    ("verdict", "tone", "lead"),
    [
        (Verdict.SUSPECTED, "bad", "Copy of m.npz suspected"),
        (Verdict.NO_EVIDENCE, "open", "No evidence of a copy of m.npz"),
        (Verdict.INCONCLUSIVE, "open", "Inconclusive: too few models independent of m.npz"),
    ],
)
def test_only_an_accusation_has_a_colour_of_its_own(verdict, tone, lead):
    one = dataclasses.replace(ownership(1, 0), owner="m.npz")
    found = dataclasses.replace(one.verifications[0], verdict=verdict)
    assert headlines.verification_headline(one, found)[:2] == (tone, lead)


def test_every_suspect_has_a_headline_where_they_are_few():
    one = ownership(3, 5)
    told = headlines.ownership_headlines(ownership_report(one))
    assert [name for name, _ in told] == [found.suspect for found in one.verifications]


def test_of_many_suspects_the_accused_are_named_and_the_rest_counted():
    one = ownership(3, 40, seed=3)
    accused = [found.suspect for found in one.verifications if found.verdict is Verdict.SUSPECTED]
    told = headlines.ownership_headlines(ownership_report(one))
    assert [name for name, _ in told[:-1]] == accused
    assert told[-1][0] == "Copies of runs/owner.safetensors"
    assert told[-1][1][:2] == ("open", f"{43 - len(accused)} more suspects: no evidence")
    many = headlines.ownership_headlines(ownership_report(ownership(20, 0)))
    assert len(many) == headlines.MAX_HEADLINES + 1
    assert many[-1][1][:2] == ("bad", "12 more suspects: copy suspected")
    quiet = headlines.ownership_headlines(ownership_report(ownership(0, 9, references=2)))
    assert [headline.lead for _, headline in quiet] == ["9 suspects: inconclusive"]
