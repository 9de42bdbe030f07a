"""A trigger search on the page, in JSON, and in words."""

import dataclasses
import re

import numpy as np
import pytest
from fleets import finding
from test_page import Page, in_order, shown
from test_pictures import decode

from jaxguard.errors import DataError
from jaxguard.report import files, page, schema
from jaxguard.report.figures import pair_matrix, searches
from jaxguard.types import KindResult, Report, TriggerRow, TriggerSearch, Verdict


def search(channels=3, classes=14):
    pixels = np.zeros((classes, 2, 2, channels), np.float32)
    pixels[0] = 1  # the first belongs to the leading class
    margin, hits = -np.arange(classes) / 10, np.full(classes, 3)
    margin[4], hits[4] = 5.5, 39
    corners = np.tile([1, 2], (classes, 1))
    parameters = {"corners": corners, "pixels": pixels}
    columns = margin, hits, np.full(classes, 40), parameters
    row = TriggerRow("patch", 2.0, np.arange(classes), *columns, "a 2x2 patch at (1, 2)")
    result = KindResult(
        "patch",
        gap=row.gap,
        p_class=1e-4,
        pictures=np.full((2, 6, 6, channels), 0.5, np.float32),
        answers=np.array([[1, 4], [2, 2]]),
    )
    lower = dataclasses.replace(row, size=3.0, margin=margin / 2)
    return TriggerSearch(
        (row, lower),
        (result,),
        source="60 clean images",
        left_out=("No time was left for patches of 5 pixels of edge.",),
        num_classes=classes,
        shape=(6, 6, channels),
        forwards=1234,
        seconds=3.0,
    )


def report(found):
    return Report("", findings=(dataclasses.replace(finding("m.npz", Verdict.SUSPECTED), search=found),))


def test_the_page_shows_the_patch_the_images_and_the_classes():
    words = shown(report(search()))
    in_order(
        words,
        "Backdoor suspected: class 4",
        "Universal triggers",
        "The best trigger for class 4",
        "a 2x2 patch at (1, 2)",
        "images turned97.5 % of 40",
        "lead over the next4.95",
        "Answers: class12",
        "Answers: class42",
        "class 4 5.50 97.5 % 40",
        "class 0 0.00 7.5 % 40",
        "2 more with lower margins.",
        "2 class 4 4.95 97.5 %",
        "3 class 4 2.48 97.5 %",
        "1,234 forward passes",
        "No time was left for patches of 5 pixels of edge.",
    )


def test_pictures_are_those_of_the_patch():
    (drawn,) = searches.shown(search())
    assert (decode(drawn.alone)[..., :3] == 255).all()
    plain, stamped = decode(drawn.plain)[..., :3], decode(drawn.stamped)[..., :3]
    scale = plain.shape[0] // 6
    changed = (plain != stamped).any(-1)[::scale, : 6 * scale : scale]
    assert np.argwhere(changed).tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]
    assert [bar.label for bar in drawn.bars][:2] == ["class 4", "class 0"] and drawn.bars[0].share == 1


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_numbers_of_channels_are_drawn_too(channels):
    assert searches.shown(search(channels))[0].alone.startswith("data:image/png")


def several(classes=10):
    """Patches lead; pairs of classes, a perturbation, a pattern and a warping follow; one kind had no time."""
    found, number = search(classes=classes), classes * (classes - 1)
    sources, targets = np.nonzero(~np.eye(classes, dtype=bool))
    margin = -np.arange(number) / number
    margin[5] = 2.0
    hits = np.where(margin == 2.0, 11, 1)
    counts = margin, hits, np.full(number, 20)
    zeros = np.zeros((1, 6, 6, 3), np.float32)
    parts = {"mask": zeros[..., :1] + 0.25, "pattern": zeros}
    pair = TriggerRow("pair", 3.0, targets, *counts, parts, "p", sources=sources)
    one = found.rows[0]
    flow = np.zeros((1, 6, 6, 2), np.float32) + 1
    others = [
        dataclasses.replace(one, kind=kind, parameters=parts, label=f"a {kind}")
        for kind, parts in (("additive", {"delta": zeros + 0.01}), ("warp", {"flow": flow}))
    ]
    results = [KindResult(row.kind, gap=row.gap, p_class=0.5, label=f"searched {row.kind}") for row in (pair, *others)]
    results += [KindResult("late", problem="no size was searched to the end in the time it was given")]
    rows = (*found.rows, pair, *others)
    return dataclasses.replace(found, rows=rows, results=(*found.results, *results), unsearched=("blended",))


def test_every_kind_has_its_row_and_those_that_do_not_lead_can_be_opened():
    words = shown(report(several()))
    in_order(
        words,
        "pair searched pair class 0 → 6 1 55.0 %",
        "additive searched additive class 4 4.95",
        "warp searched warp",
        "late no size was searched to the end",
        "Not searched: blended.",
        "Patch, which leads",
        "Pair: class 0 → 6 leads by 1, 55.0 % of the images turned",
        "Images of one class (rows) turned into another",
        "What is added to the image, amplified 50 times around grey.",
        "A chequered image, moved.",
    )
    again = schema.from_json(schema.to_json(report(several()))).findings[0].search
    assert again.rows[2].sources.dtype == int and again.rows[2].parameters["mask"].max() == 0.25


def test_a_matrix_has_a_cell_for_each_pair_and_names_the_highest():
    drawn = searches.shown(several())[1].matrix
    assert (drawn.count(">55<"), drawn.count(">5<")) == (
        1,
        89 + 2,
    ) and "The highest: class 0 into class 6: 55.0 % of the images." in drawn
    assert pair_matrix.pair_matrix(several().rows[2], 51, name="m") == ""
    many = searches.shown(several(13))[1].matrix
    assert ">55<" not in many and "into class" in many


def test_a_trigger_with_a_class_for_every_class_is_shown_with_all_of_them():
    found = search(classes=5)
    assigned = np.stack([np.roll(np.arange(5), -k) for k in range(5)])
    row = dataclasses.replace(found.rows[0], kind="all-to-all", classes=np.full(5, -1), assignments=assigned)
    found = TriggerSearch((row,), (KindResult("all-to-all", gap=row.gap),), num_classes=5, shape=found.shape)
    told = report(found)
    assert found.target is None and "0 → 4, 1 → 0, 2 → 1, 3 → 2, 4 → 3" in shown(told)
    assert "each its own" in "".join(files.text(told, "table"))
    again = schema.from_json(schema.to_json(told)).findings[0].search.rows[0]
    assert again.assignments.tolist() == assigned.tolist() and again.sources is None and np.isnan(again.own_gap)
    with pytest.raises(DataError, match="fit images"):
        searches.shown(dataclasses.replace(found, rows=(dataclasses.replace(row, assignments=assigned[:3]),)))


def test_the_terminal_has_a_row_for_each_kind():
    text = "".join(files.text(report(several()), "table"))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "searched pair 0 → 6 1 55.0 %" in rows and "not searched: blended" in rows
    assert "late: no size was searched to the end in the time it was given – – –" in rows


def test_what_was_not_searched_is_counted_on_the_page():
    why = "not among the 1 most suspicious"
    others = [dataclasses.replace(finding(f"{k}.npz", Verdict.INCONCLUSIVE), unsearched=why) for k in range(3)]
    words = shown(Report("", findings=(*report(search()).findings, *others)))
    assert f"Triggers were searched in 1 of 4 checkpoints, in 3 not: {why}." in words


def test_a_search_without_a_statement_says_why():
    words = shown(report(TriggerSearch(problem="it answers all images alike", source="60 clean images")))
    in_order(words, "Universal triggers", "It answers all images alike.")


def test_json_gives_the_search_back():
    text = schema.to_json(report(search()))
    again = schema.from_json(text)
    assert schema.to_json(again) == text
    found = again.findings[0].search
    for name, part in search().leading.parameters.items():
        np.testing.assert_array_equal(found.leading.parameters[name], part)
        assert found.leading.parameters[name].dtype.kind == part.dtype.kind
    assert (found.target, found.success, found.gap) == (4, 39 / 40, search().gap)
    assert found.rows[0].classes.dtype == int and found.results[0].answers.tolist() == [[1, 4], [2, 2]]


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": {"corners": np.full((14, 2), 5), "pixels": np.zeros((14, 2, 2, 3))}},
        {"parameters": {"corners": np.zeros((14, 2), int), "pixels": np.zeros((14, 2, 2, 1))}},
        {"parameters": {"corners": np.zeros((3, 2), int), "pixels": np.zeros((2, 2, 2, 3))}},
        {"parameters": {"mask": np.zeros((1, 6, 6, 1))}},
        {"parameters": {"delta": np.zeros((15, 6, 6, 3))}},
        {"parameters": {}},
        {"hits": np.zeros(3, int)},
    ],
)
def test_a_search_whose_arrays_do_not_fit_is_one_error(changes):
    found = search()
    row = dataclasses.replace(found.rows[0], **changes)
    with pytest.raises(DataError, match="trigger search"):
        page.to_html(report(dataclasses.replace(found, rows=(row,))))


def test_hostile_reasons_are_escaped():
    text = page.to_html(report(TriggerSearch(problem="<script>x</script>", source="<b>")))
    assert "<script>x" not in text and not re.search(r"<b>(?!T</b>|Score|p<|q<|Size)", text)
    assert Page(text)


def test_triggers_that_are_no_patches_are_shown_by_what_they_do_to_images():
    change = {"delta": np.full((1, 6, 6, 3), 0.5, np.float32)}
    found = search()
    rows = tuple(dataclasses.replace(row, kind="additive", parameters=change, label="a change") for row in found.rows)
    results = (dataclasses.replace(found.results[0], kind="additive"),)
    found = dataclasses.replace(found, rows=rows, results=results)
    (drawn,) = searches.shown(found)
    stamped = decode(drawn.stamped)[..., :3]
    assert (stamped[:, : len(stamped)] == 255).all()  # the first of the square pictures: 0.5 and 0.5
    again = schema.from_json(schema.to_json(report(found))).findings[0].search
    np.testing.assert_allclose(again.trigger.delta, change["delta"][0])
