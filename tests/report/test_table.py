"""The terminal's table puts verdicts first, fits, names what was not scored, and means the same without colour."""

import dataclasses
import io
import re

import pytest
from fleets import fleet, hostile, unjudged
from rich.console import Console
from samples import HOSTILE

from jaxguard.report import headlines, table
from jaxguard.types import Report, Verdict


def render(report: Report, width: int, *, colour: bool = False, **options) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None,
        no_color=not colour,
    )  # fmt: skip
    console.print(table.render(report, **options))
    return stream.getvalue()


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def assert_fits(report: Report, width: int):
    text = render(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text or report.title == HOSTILE  # a headline shortens the owner's name
    assert not {"\x1b", "\u202e"} & set(text)
    text.encode("utf-8")  # no lone surrogates


@pytest.mark.parametrize("width", [40, 80, 200])
def test_fits_without_truncation(any_report, width):
    assert_fits(any_report, width)


@pytest.mark.parametrize("report", [fleet(60), unjudged(), hostile(HOSTILE), hostile("[red]\udcff")])
@pytest.mark.parametrize("width", [60, 200])
def test_a_fleet_fits_without_truncation(report, width):
    assert_fits(report, width)


def test_verdicts_come_first(full, owned):
    lines = rows(render(full, 80))
    signed = [line for line in lines if line[:1] in headlines.SYMBOLS.values() and line]
    assert lines[0] == signed[0] == "? Inconclusive: none of 2 checkpoints could be judged."
    assert signed[1:3] == [
        "✓ FT-SAM takes the backdoor out. runs/2026-03/suspect.safetensors",
        "✗ CLP leaves the backdoor in. runs/2026-03/suspect.safetensors",
    ] or signed[1:3] == ["✓ FT-SAM takes the backdoor out.", "✗ CLP leaves the backdoor in."]
    assert lines.index(signed[2]) < lines.index("method ACC % ASR % RA % DER % cut s")
    assert rows(render(owned, 120))[0].startswith("✗ Copy of owner.safetensors suspected.")


def test_one_finding_is_told_from_verdict_to_layers(deep):
    lines = rows(render(deep, 120))
    assert lines[0] == "? Inconclusive."
    assert lines[1].startswith("No reference profile. Channels above their threshold")
    order = ["checkpoint deep.safetensors", "architecture resnet62", "format safetensors", "size 291 kB"]
    order += [f"sha256 {'cd' * 32}", "examined weights", "layer channels max z channel above undefined"]
    places = [lines.index(words) for words in order]
    assert places == sorted(places)
    (finding,) = deep.findings
    highest = max(finding.layers, key=lambda layer: -1 if layer.z != layer.z else layer.z)
    first = lines[places[-1] + 2]
    assert first.endswith(f"{highest.channels} {highest.z:.2f} {highest.channel} {highest.above} –")
    assert "The 20 layers of highest z-score, of 60." in lines
    assert "channels without a score 126" in " ".join(lines)


def test_few_findings_have_their_rates(full):
    lines = rows(render(full, 160))
    assert "checkpoint verdict ACC % ASR % RA %" in lines
    assert "suspect.safetensors ? inconclusive 98.9 99.7 0.3" in lines
    assert "vendor.safetensors ? inconclusive 97.8 – –" in lines
    assert "[runs/2026-03/suspect.safetensors] The last layer was not scored." in lines


def test_counts_rows_and_names():
    report = fleet(60)
    lines = rows(render(report, 160, top=5))
    assert lines[0] == "✗ Backdoor suspected in 3 of 60 checkpoints; 2 could not be scored, 3 files skipped."
    counts = ["3 ✗ suspected", "49 ○ no evidence", "6 ? inconclusive", "2 ! could not be scored", "3 – skipped"]
    start = lines.index(counts[0])
    assert lines[start : start + 5] == counts
    heading = lines.index("checkpoint verdict score p q")
    shown = lines[heading + 2 : heading + 7]
    assert [line.split(" ✗ ")[0] for line in shown[:3]] == [
        "id-00000002/model.safetensors", "id-00000001/model.safetensors", "id-00000000/Final model.safetensors",
    ]  # fmt: skip
    assert all("✗ suspected" in line for line in shown[:3])
    assert all("○ no evidence" in line for line in shown[3:])
    assert lines[heading + 7] == "The 5 most suspicious of 58. Paths below /data/fleet/."
    for one in report.findings:
        if one.verdict is Verdict.ERROR:
            assert f"{one.provenance.name}: {one.reason}" in lines
    assert "/data/fleet/notes-0.txt and 2 more files: no known format" in lines


def test_cohorts_are_described_and_the_rest_counted():
    report = fleet(200, suspected=2, cohorts=10)
    lines = rows(render(report, 300))
    start = lines.index("Cohorts")
    scored = [one for one in report.findings if one.verdict is not Verdict.ERROR]
    sizes = {name: sum(one.cohort == name for one in scored) for name in {one.cohort for one in scored}}
    told = re.compile(r"(.+): (\d+) checkpoints, (\d) suspected; (compared with 64|nothing to compare)")
    found = [told.match(line) for line in lines[start + 1 : start + 1 + table.MAX_COHORTS]]
    assert [int(one[3]) for one in found] == [1, 1, 0, 0, 0, 0]
    assert all(int(one[2]) == sizes[one[1]] for one in found)
    left = sum(sizes.values()) - sum(int(one[2]) for one in found)
    assert lines[start + 1 + table.MAX_COHORTS] == (
        f"{len(sizes) - table.MAX_COHORTS} cohorts more with {left} checkpoints"
    )


def test_of_many_files_the_rest_is_counted():
    lines = rows(render(fleet(100, errors=30, skipped=1200), 160, top=4))
    assert "26 files for other reasons; all are named in the other formats of this report." in lines
    assert "/data/fleet/notes-0.txt and 1,199 more files: no known format" in lines
    assert sum("no known format" in line for line in lines) == 1


def test_without_a_profile_nothing_is_claimed():
    text = render(unjudged(), 120)
    assert "? Inconclusive: none of 12 checkpoints could be judged." in rows(text)
    assert "Inconclusive: no reference profile was given." in rows(text)
    assert "no evidence" not in text


def test_repair_rows_at_80_columns(full):
    lines = rows(render(full, 80))
    assert "FT-SAM 98.9 → 98.1 99.7 → 0.6 0.3 → 97.1 99.2 – 14" in lines
    assert "CLP 98.9 → 98.9 99.7 → 99.7 0.3 → 0.3 50.0 0 of 224 0.02" in lines
    assert "[FT-SAM] 5 % of the training images were used." in lines
    assert not [line for line in lines if "class" in line or "kept" in line]


def test_what_a_repair_found_is_one_line(shapley, no_suspect, undefined):
    def found(report) -> str:
        (line,) = [line for line in rows(render(report, 200)) if line.startswith("ShapPruning: ")]
        return line.removeprefix("ShapPruning: ")

    anomaly = shapley.repairs[0].trigger.anomaly[0]
    assert found(shapley) == (
        f"class 0 suspected (L1 norm 5.80, anomaly index {anomaly:.2f}); "
        "9 of 14 cuts kept (the recovered trigger turns few images)"
    )
    assert re.fullmatch(r"no class suspected \(highest anomaly index \d\.\d\d, of class \d+\)", found(no_suspect))
    assert found(undefined) == (
        "class 0 suspected, though not flagged (L1 norm undefined, anomaly index undefined); no channel cut"
    )


def test_suspects_have_a_row_each(owned):
    text = render(owned, 80)
    lines = rows(text)
    words = {Verdict.SUSPECTED: "copy suspected", Verdict.NO_EVIDENCE: "no evidence"}
    for one in owned.ownerships:
        for found in one.verifications:
            told = f"{headlines.SIGNS[found.verdict].mark} {words.get(found.verdict, 'inconclusive')}"
            start = f"{found.suspect} {told} {found.score:.3f}"
            (row,) = [line for line in lines if line.startswith(start)]
            assert f" {found.p_value:.2g}" in row
    assert "compared with 5 independent models, scores" in " ".join(text.split())
    assert "method ZEST, 128 queries, 4.25 s; images=128, space=clr" in lines
    assert "blind to copies with other classes; independent models trained on the" in lines
    assert "[ZEST] The probes are training images of the owner." in lines
    first, second = [line for line in lines if line.startswith("suspect verdict score p")]
    assert (first.endswith("null p"), second.endswith("null p")) == (True, False)
    assert "by chance" not in text


def test_accusations_by_chance_are_counted(crowd):
    assert "by chance about 4 of 80 suspects, were all independent" in rows(render(crowd, 80))


def test_few_suspects_stand_side_by_side_and_of_many_the_best(owned):
    many, few = owned.matrices
    lines = rows(render(owned, 80))
    assert "owner 1 2 3 4" in lines
    scores = " ".join(f"{score:.4f}" for score in few.scores[0])
    assert any(line.startswith(f"owners/resnet20-seed0 {scores[:6]}") for line in lines)
    assert [line for line in lines if re.match(r"[1-4] fleet/", line)] == [
        f"{k} {name}" for k, name in enumerate(few.suspects, 1)
    ]
    for k in range(5):
        best = int(many.scores[k].argmax())
        name = many.suspects[best].removeprefix("fleet/")
        assert f"resnet20-seed{k} {name} {many.scores[k, best]:.3f}" in lines
    assert "The 3 best of 20 suspects of each owner." in lines


def test_colour_adds_nothing_but_colour_and_acquits_nobody(full, owned):
    for report in (full, owned, fleet(30)):
        coloured = render(report, 100, colour=True)
        assert "\x1b[" in coloured
        assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(report, 100)
    assert "\x1b[31m✗ copy suspected" in render(owned, 100, colour=True)
    assert "\x1b[33m○ no evidence" in render(owned, 100, colour=True)
    for report in (owned, fleet(30)):
        assert "\x1b[32m" not in render(report, 100, colour=True)


def test_hostile_markup_is_shown_and_not_obeyed(hostile):
    assert "[bold]" in render(hostile, 200)


def test_empty_answers_are_said(unjudged):
    text = render(unjudged, 80)
    assert "No suspect was judged." in text
    assert "no independent models: too few for p ≤ 0.05" in text
    assert "–" in render(dataclasses.replace(unjudged, ownerships=()), 80)
    assert rows(render(Report(""), 80)) == ["? Nothing was scanned."]
