"""Terminal tables fit, lose nothing, and mean the same without colour."""

import io
import re

import pytest
from rich.console import Console

from jaxguard.report import ownership_table, table


def render(renderable, width: int, *, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=colour, color_system="truecolor" if colour else None).print(
        renderable
    )
    return stream.getvalue()


FORMS = (table.scan_table, table.repair_table, ownership_table.ownership_table, ownership_table.matrix_table)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_fits_without_truncation(any_report, form, width):
    text = render(form(any_report), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_repair_rows_at_80_columns(full):
    lines = rows(render(table.repair_table(full), 80))
    assert "FT-SAM 98.9 → 98.1 99.7 → 0.6 0.3 → 97.1 99.2 – 14" in lines
    assert "CLP 98.9 → 98.9 99.7 → 99.7 0.3 → 0.3 50.0 0 of 224 0.02" in lines
    assert "✗ CLP leaves the backdoor in." in lines
    assert "[FT-SAM] 5 % of the training images were used." in lines


def test_scan_rows(full):
    lines = rows(render(table.scan_table(full), 160))
    assert "1 runs/2026-03/suspect.safetensors ? inconclusive 3.06 0 of 224 98.9 99.7 0.3 0.02" in lines
    assert "[1] No reference fleet was given, so the score has no p-value." in lines


def test_undefined_channels_are_told(deep):
    assert "[1] 126 channels have no score." in render(table.scan_table(deep), 80)


def test_findings_are_one_line_under_the_outcome(shapley, no_suspect, undefined):
    def below_outcome(report) -> str:
        lines = rows(render(table.repair_table(report), 200))
        (outcome,) = [index for index, line in enumerate(lines) if line[:1] in "✓✗?"]
        return "".join(lines[outcome + 1 :])

    anomaly = shapley.repairs[0].trigger.anomaly[0]
    assert below_outcome(shapley) == (
        f"class 0 suspected (L1 norm 5.80, anomaly index {anomaly:.2f}); "
        "9 of 14 cuts kept (the recovered trigger turns few images)"
    )
    assert re.fullmatch(
        r"no class suspected \(highest anomaly index \d\.\d\d, of class \d+\)", below_outcome(no_suspect)
    )
    assert below_outcome(undefined) == (
        "class 0 suspected, though not flagged (L1 norm undefined, anomaly index undefined); no channel cut"
    )


def test_nothing_is_added_without_findings(full):
    lines = rows(render(table.repair_table(full), 80))
    assert lines[lines.index("✗ CLP leaves the backdoor in.") + 1] == ""
    assert not [line for line in lines if "suspected" in line or "kept" in line]


def test_colour_adds_nothing_but_colour(full):
    coloured = render(table.repair_table(full), 80, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(table.repair_table(full), 80)


def test_hostile_strings_reach_no_terminal(hostile):
    text = "".join(render(form(hostile), 200) for form in FORMS)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]" in text  # rich markup is shown, not obeyed
    text.encode("utf-8")  # no lone surrogates


def test_suspects_have_a_row_each(owned):
    text = render(ownership_table.ownership_table(owned), 80)
    lines = rows(text)
    for one in owned.ownerships:
        for found in one.verifications:
            sign = {"copy suspected": "✗", "no evidence": "?", "inconclusive": "?"}[found.verdict]
            (row,) = [
                line for line in lines if line.startswith(f"{found.suspect} {sign} {found.verdict} {found.score:.3f}")
            ]
            assert f" {found.p_value:.2g}" in row
    assert "compared with 5 independent models, scores" in " ".join(text.split())
    assert "method ZEST, 128 questions, 4.25 s; images=128, space=clr" in lines
    assert "blind to copies with other classes; independent models trained on the" in lines
    assert "[ZEST] The probes are training images of the owner." in lines
    first, second = [line for line in lines if line.startswith("suspect verdict score p")]
    assert (first.endswith("null p"), second.endswith("null p")) == (True, False)


def test_accusations_by_chance_are_told(crowd, owned):
    lines = rows(render(ownership_table.ownership_table(crowd), 80))
    assert "by chance about 4 of 80 suspects, were all independent" in lines
    assert "by chance" not in render(ownership_table.ownership_table(owned), 80)


def test_few_suspects_stand_side_by_side(owned):
    matrix = owned.matrices[1]
    lines = rows(render(ownership_table.matrix_table(owned), 80))
    assert "owner 1 2 3 4" in lines
    scores = " ".join(f"{score:.4f}" for score in matrix.scores[0])
    assert any(line.startswith(f"owners/resnet20-seed0 {scores[:6]}") for line in lines)
    assert [line for line in lines if re.match(r"[1-4] fleet/", line)] == [
        f"{k} {name}" for k, name in enumerate(matrix.suspects, 1)
    ]


def test_of_many_suspects_the_best_are_told(owned):
    matrix = owned.matrices[0]
    lines = rows(render(ownership_table.matrix_table(owned), 80))
    for k in range(5):
        best = int(matrix.scores[k].argmax())
        name = matrix.suspects[best].removeprefix("fleet/")
        assert f"resnet20-seed{k} {name} {matrix.scores[k, best]:.3f}" in lines
    assert "The 3 best of 20 suspects of each owner." in lines


def test_a_verdict_is_never_painted_as_good(owned):
    coloured = render(ownership_table.ownership_table(owned), 80, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render(ownership_table.ownership_table(owned), 80)
    assert "\x1b[31m✗ copy suspected" in coloured
    assert "\x1b[33m? no evidence" in coloured
    assert "\x1b[32m" not in coloured


def test_empty_answers_are_said(unjudged):
    text = render(ownership_table.ownership_table(unjudged), 80)
    assert "No suspect was asked." in text
    assert "no independent models: too few for p ≤ 0.05" in text
    assert "–" in render(ownership_table.matrix_table(unjudged), 80)
