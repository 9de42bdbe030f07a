"""The table of docs/accelerators.md on precision, written from results/precision.json between two marks."""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "accelerators.md"
BEGIN, END = "<!-- written by experiments/precision.py --report -->", "<!-- end of precision -->"


def _span(values: list[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def rows(parts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was asked, and what differs."""
    clp, judged, success = parts["clp"], parts["p-values"], parts["success"]["rows"].values()
    named = ", ".join(clp["rows"]) or "none"
    yield (
        f"CLP, {clp['networks']} networks, {clp['decisions']:,} channels",
        f"u = 3: {clp['changed']['3']} decisions change; u = 2: {clp['changed']['2']} ({named})",
    )
    change = judged["feature_change_in_sd"]
    yield (
        "weight and response features, 12 networks",
        f"move by {change['median']:.2g} standard deviations of the references in the median, at most "
        f"{change['largest']:.2g}",
    )
    scores, bounds = judged["networks_move_scores_by_sd"], judged["networks_may_move_scores_by_sd"]
    yield (
        "their scores, in standard deviations of the references' scores",
        f"move by {_span(scores)}; the bound of `agreement` says {_span(bounds)}, "
        f"for the witness {judged['witness_moves_scores_by_sd']:g}",
    )
    p_change, verdicts = judged["largest_p_change"], judged["verdicts_changed"]
    yield (
        "their p-values, 24 references",
        f"move by at most {p_change['silent']:.2g} by the float32 profile and {p_change['own']:.2g} by one made in "
        f"bfloat16; verdicts that change: {verdicts['silent']} and {verdicts['own']}",
    )
    yield (
        "a scan in bfloat16 by the float32 profile",
        " and ".join(judged["verdicts_in_bfloat16_by_a_profile_in_float32"]),
    )
    asr = max(abs(row["asr"][1] - row["asr"][0]) for row in success)
    yield (
        f"ASR of {len(success)} backdoored networks, {parts['success']['images']} images",
        f"moves by at most {100 * asr:.1f} points; {sum(row['predictions_changed'] for row in success)} predictions on "
        "clean images change",
    )
    sac = parts["sac"]
    itself, others, moved = sac["to_itself"], sac["to_others"], sac["largest_change_to_others"]
    yield (
        f"SAC distance to itself; to {sac['others']} others {others['mean']:.3f}, deviation {others['sd']:.4f}",
        f"{itself['highest']:.1g} in float32, {itself['bfloat16']:.1g} in bfloat16, {itself['owner highest']:.2g} "
        "where the owner was asked in float32 and the suspect in bfloat16; to others it moves by up to "
        f"{max(moved.values()):.1g}",
    )
    for name, row in parts["search"]["rows"].items():
        gaps = [row[key] for key in ("highest", "bfloat16", "highest, other images")]
        yield (
            f"gap of a patch search, {name}",
            f"{gaps[0][0]:.3f} in float32, {gaps[1][0]:.3f} in bfloat16, {gaps[2][0]:.3f} in float32 on other images",
        )
    yield from third_party(parts.get("third-party"))


def third_party(part: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Rows of the networks that others trained."""
    if part is None:
        return
    masks = {name: row for name, row in part["rows"].items() if "changed" in row}
    asked = {name: row for name, row in part["rows"].items() if "logit_error_in_sd" in row}
    where = [", ".join(name for name, row in masks.items() if row["changed"][k]) or "none" for k in (0, 1)]
    counts = [sum(row["changed"][k] for row in masks.values()) for k in (0, 1)]
    without = len(part["rows"]) - len(masks)
    yield (
        f"CLP, {len(masks)} networks of others, {sum(row['channels'] for row in masks.values()):,} channels"
        + f" ({without} cannot be scored)" * bool(without),
        f"u = 3: {counts[1]} decisions change ({where[1]}); u = 2: {counts[0]} ({where[0]})",
    )
    rates = [abs(row["asr"][1] - row["asr"][0]) for row in asked.values() if None not in row["asr"]]
    accs = [abs(row["acc"][1] - row["acc"][0]) for row in asked.values()]
    errors = sorted(row["logit_error_in_sd"] for row in asked.values())
    changed = sum(row["predictions_changed"] for row in asked.values())
    yield (
        f"{len(asked)} of them on {part['images']} test images",
        f"logits move by up to {errors[-1]:.2g} of their deviation, in the median network by {np.median(errors):.2g}; "
        f"{changed} of {len(asked) * part['images']:,} predictions change; ACC moves by at most {100 * max(accs):.1f} "
        f"points, ASR by {100 * max(rates):.1f}",
    )


def write(result: dict[str, Any]) -> None:
    """Replace what stands between the marks of the page."""
    lines = ["| what | bfloat16 instead of float32 |", "|---|---|"]
    lines += [f"| {what} | {differs} |" for what, differs in rows(result["parts"])]
    made = result["parts"]["p-values"]["environment"]
    lines += [
        "",
        f"Measured on {made['date']} with jax {made['jax']}; {made['processor']}, under load; seed {made['seed']}.",
    ]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}")
