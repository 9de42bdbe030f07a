"""The page is complete, self-contained, escaped, and the same for one finding and thousands."""

import base64
import dataclasses
import datetime
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from fleets import NAN, finding, fleet, hostile, unjudged
from samples import (
    HOSTILE,
    fingerprint_matrix,
    ownership_report,
    pruning_path,
    recovered,
    shapley_layers,
    shapley_report,
)

from jaxguard.errors import DataError
from jaxguard.report import headlines, page, rows, wording
from jaxguard.types import Report, Verdict

VOID = {"meta", "img", "br", "wbr", "input"}
STRANGE = f"{HOSTILE}\u2028</script><!--<script>\u0000\u05d0\udcff"
FLEETS = {
    "judged": lambda: fleet(300), "unjudged": unjudged, "hostile": lambda: hostile(HOSTILE),
    "strange": lambda: hostile(STRANGE), "empty": lambda: Report("Nothing", "jaxguard scan nowhere"),
    "all failed": lambda: fleet(5, suspected=0, errors=5),
}  # fmt: skip


class Page(HTMLParser):
    """Collects elements, texts and scripts; notices tags that do not match."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        inside = next((tag for tag in ("script", "style", "noscript") if tag in self.open), "main")
        self.texts.setdefault(inside, []).append(data)

    def words(self, inside: str = "main") -> str:
        return " ".join("".join(self.texts.get(inside, ())).split())


def shown(report: Report, **options) -> str:
    return Page(page.to_html(report, **options)).words()


def in_order(words: str, *expected: str):
    positions = [words.find(part) for part in expected]
    assert -1 not in positions, expected[positions.index(-1)]
    assert positions == sorted(positions)


def assert_self_contained(text: str):
    text.encode("utf-8")  # a lone surrogate would not go into a file
    found = Page(text)
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    script = resources.files("jaxguard.report").joinpath("page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attributes["content"] for _, attributes in found.tags if "http-equiv" in attributes)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    scripts = [attributes.get("type") for tag, attributes in found.tags if tag == "script"]
    assert scripts in ([], ["application/json", "application/json", None])
    assert text.count(f"<script>{script}</script>") == bool(scripts)
    style = "".join(found.texts["style"])
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", style)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes["aria-labelledby"] for _, attributes in found.tags if "aria-labelledby" in attributes}
    assert labels <= set(ids)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    drawings = [a for tag, a in found.tags if tag == "svg" and "aria-hidden" not in a]
    assert all(attributes["alt"] for attributes in images)
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_page_is_self_contained(any_report):
    assert_self_contained(page.to_html(any_report))


@pytest.mark.parametrize("name", FLEETS)
def test_page_of_a_fleet_is_self_contained(name):
    assert_self_contained(page.to_html(FLEETS[name]()))


def test_verdicts_come_first(full):
    in_order(
        shown(full),
        "Inconclusive: none of 2 checkpoints could be judged",
        "FT-SAM takes the backdoor out",
        "ASR 99.7 % → 0.6 %, ACC 98.9 % → 98.1 %",
        "CLP leaves the backdoor in",
        "0 of 224 channels cut",
        "The trigger",
        "Before and after",
        "Methods tried",
        "Checkpoints",
        "resnet8:width=0.5, 291 kB",
        "runs/2026-03/vendor.safetensors",
        "All files",
        "Notes",
        "How this was made",
        "jaxguard repair runs/2026-03/suspect.safetensors --method ft_sam,clp",
        "0.10.2",
    )


def test_one_finding_is_shown_channel_by_channel(deep):
    text = page.to_html(deep)
    assert "<script" not in text  # a table of one row needs none
    in_order(
        Page(text).words(),
        "deep.safetensors",
        "Inconclusive",
        "No reference profile. Channels above their threshold",
        "Every dot is one channel",
        f"sha256 {'cd' * 32}",
        "The 3 layers of highest z-score, of 60.",
        "it cannot exceed (n − 1)/√n",
    )
    assert 'aria-label="Scores of 5577 channels in 60 layers: ' in text
    assert "All files" not in text


def test_a_repair_with_the_scan_s_layers_is_not_drawn_twice(full):
    assert page.to_html(full).count('aria-label="Scores of 224 channels') == 1
    cut = tuple(dataclasses.replace(layer, mask=np.arange(len(layer.mask)) < 1) for layer in full.repairs[1].layers)
    other = dataclasses.replace(full, repairs=(dataclasses.replace(full.repairs[1], layers=cut),))
    assert page.to_html(other).count('aria-label="Scores of 224 channels') == 2
    assert "Channels of the repairs" in shown(other)


def test_empty_sections_are_left_out(bare, scan_only):
    for report in (bare, scan_only):
        words = shown(report)
        for heading in (
            "The trigger", "Before and after", "Methods tried", "Recovered trigger", "Channels cut one by one", "Notes",
            "All files", "Scores A score", "Copy or not",
        ):  # fmt: skip
            assert heading not in words
    assert "Nothing to draw" in shown(bare)
    assert "Nothing was scanned" in shown(Report(""))


def test_what_an_inversion_found_is_told(shapley):
    words = shown(shapley)
    in_order(
        words,
        "ShapPruning takes the backdoor out",
        "class 0 suspected, 9 of 112 channels cut",
        "The trigger",
        "Methods tried",
        "Recovered trigger",
        "Class 0 is suspected: its patch has 5.80 pixels, the median of 10 classes is",
        "Found on 10 clean images.",
        "Class 0 suspected mask pattern stamped L1 norm5.80 images turned",
        "Beside the known trigger",
        "Channels cut one by one",
        "9 of 14 cuts kept (the recovered trigger turns few images).",
        "Success of the recovered trigger 98.0 % → 7.4 %, clean accuracy 99.0 % → 97.2 %.",
        "What was cut after that was put back.",
        "What each cut did",
        "The highest Shapley values",
        "In the order of cutting.",
        "How this was made",
    )
    assert "Channels of the repairs" not in words  # estimates are ranked over the model instead
    for claim in ("proves", "is the target", "true trigger"):
        assert claim not in words


def table_rows(text: str) -> list[list[str]]:
    """Cells of the table of cut channels."""
    body = text[text.index("Accuracy after</th>") :].split("</table>", maxsplit=1)[0]
    return [re.findall(r"<t[hd] role=\"(?:rowheader|cell)\".*?>(.*?)</t[hd]>", row) for row in body.split("<tr")[1:]]


def test_cut_channels_have_a_row_each(shapley):
    path = shapley.repairs[0].path
    rows = table_rows(page.to_html(shapley))
    assert [re.sub("<.*?>", "", row[0]) for row in rows] == list(path.channels[:9])
    assert rows[0][1:] == [f"{path.values[0]:.4f} ± {path.errors[0]:.4f}", "73.5\u00a0%", "98.8\u00a0%"]
    assert "more channels were cut" not in page.to_html(shapley)


def test_many_cuts_are_counted():
    layers = shapley_layers((64, 64))
    text = page.to_html(shapley_report(recovered(43), layers, pruning_path(layers, tried=40, chosen=33)))
    assert len(table_rows(text)) == page.MAX_CUTS
    words = Page(text).words()
    assert "13 more channels were cut." in words
    assert "Pictures of 10 of 43 classes" in words


def test_no_class_stands_out(no_suspect):
    words = Page(page.to_html(no_suspect)).words()
    assert "No class suspected (highest anomaly index" in words
    assert "That is no proof that there is no backdoor." in words
    assert "no class suspected" in words
    for part in ("Beside the known trigger", "Channels cut one by one"):
        assert part not in words


def test_nothing_but_undefined(undefined):
    words = Page(page.to_html(undefined)).words()
    assert "Class 0 is suspected, though not flagged: its patch has undefined pixels; anomaly index undefined." in words
    assert "Of two classes neither can stand out" in words
    assert "No channel cut. Success of the recovered trigger undefined → undefined" in words
    assert "The highest Shapley values" in words


def test_estimates_without_a_path_are_ranked():
    words = Page(page.to_html(shapley_report(None, shapley_layers()))).words()
    assert "The scores are estimates" in words
    assert "The highest scores" in words
    for part in ("Shapley value", "Recovered trigger", "cuts kept", "Channels of the repairs"):
        assert part not in words


def test_a_class_without_a_working_patch_is_explained():
    found = recovered(10)
    assert "counts with more than its norm" not in page.to_html(shapley_report(found))
    found.anomaly[np.argmax(found.norms)] = -100
    assert "counts with more than its norm" in page.to_html(shapley_report(found))


def test_two_repairs_with_findings_are_told_apart(shapley):
    repairs = tuple(dataclasses.replace(shapley.repairs[0], checkpoint=name) for name in ("a.npz", HOSTILE))
    text = page.to_html(dataclasses.replace(shapley, repairs=repairs))
    assert_self_contained(text)
    assert Page(text).words().count("ShapPruning on a.npz") == 2


def test_findings_that_do_not_fit_are_refused(shapley):
    (repair,) = shapley.repairs
    for wrong in (
        dataclasses.replace(repair, trigger=dataclasses.replace(repair.trigger, target=10)),
        dataclasses.replace(repair, path=dataclasses.replace(repair.path, chosen=15)),
    ):
        with pytest.raises(DataError, match=r"in the (recovered trigger|pruning path)"):
            page.to_html(dataclasses.replace(shapley, repairs=(wrong,)))


def test_ownership_is_told(owned):
    words, one = shown(owned), owned.ownerships[0]
    in_order(
        words,
        f"{one.verifications[0].suspect} ✗ Copy of owner.safetensors suspected",
        "higher than all 39 independent models; an independent model would score as high 1 time in 40",
        "Copies of runs/owner.safetensors ? 4 more suspects: no evidence",
        "Copies of runs/older.npz ? 3 suspects: inconclusive",
        "Copy or not",
        "A suspected copy is not proven to be one, and without evidence a suspect is not proven innocent.",
        "runs/owner.safetensors by ZEST",
        f"{one.verifications[0].suspect} ✗ copy suspected -0.081 0.025 1.3e-39",
        "Null p the same by the method’s own null distribution",
        "Made forfine-tuned, pruned",
        "Blind tocopies with other classes",
        "Compared with39 independent models, scores",
        "Queries128 images to each suspect",
        f"Certificate{one.certificate}",
        "runs/older.npz by SAC",
        "Compared with5 independent models, scores",
        "Owners against suspects",
        "5 owners, 20 suspects by SAC",
        "OwnerHighest scoreSecondThird",
        "1 owner, 4 suspects by SAC",
        "ZEST: The probes are training images of the owner.",
        "How this was made",
        one.owner_sha256,
        one.verifications[1].sha256,
    )
    for claim in ("clean", "is innocent", "is a copy of", "is stolen", "proves"):
        assert claim not in words


def test_verdicts_on_suspects_are_never_good(owned, crowd):
    for report in (owned, crowd):
        text = page.to_html(report)
        assert 'class="bad"' in text and 'class="open"' in text
        assert 'class="good"' not in text


def test_a_crowd_is_summed_up(crowd):
    text = page.to_html(crowd)
    assert text.count('<p class="lead">') <= headlines.MAX_HEADLINES + 2
    assert "about 4 of 80 suspects, were all independent" in text
    assert text.count('data-label="Highest score"') == 30
    assert len(text) < 1_000_000


def test_nothing_judged_leaves_no_hole(unjudged):
    words = Page(page.to_html(unjudged)).words()
    for part in ("No suspect was judged.", "Nothing to draw: no score is defined.", "1 owner, 1 suspect by SAC"):
        assert part in words
    for part in ("Made for", "Blind to", "nan", "inf "):
        assert part not in words


def test_a_matrix_alone_needs_no_verdict(owned):
    words = Page(page.to_html(dataclasses.replace(owned, ownerships=()))).words()
    assert "Owners against suspects" in words
    assert "Copy or not" not in words
    assert "Nothing was scanned" not in words


def test_owners_with_few_suspects_of_their_own_fill_their_rows():
    """Thirteen owners, three of which are the suspects: those have two suspects besides themselves."""
    matrix = fingerprint_matrix(13, 3)
    matrix = dataclasses.replace(matrix, suspects=matrix.owners[:3])
    text = page.to_html(ownership_report(matrices=(matrix,)))
    body = text[text.index("Highest score</th>") :].split("</table>", maxsplit=1)[0]
    assert [row.count("<td") for row in body.split("<tr")[1:]] == [3] * 13


def test_date_of_writing_is_shown(bare):
    when = datetime.datetime(2026, 3, 9, 14, 5, tzinfo=datetime.UTC)
    assert "2026-03-09 14:05 UTC" in page.to_html(bare, written=when)
    assert page.to_html(bare, written=when) == page.to_html(bare, written=when)


def test_hostile_strings_are_text(hostile):
    text = page.to_html(hostile)
    assert "<script" not in text
    assert not set("\x1b\u202e\udcff") & set(text)
    assert "<script>alert('x')</script>" in Page(text).words()  # it is there to read, only not to run


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_contrast_meets_wcag_aa_in_every_mode(bare):
    palettes = re.findall(r":root \{(.*?)\}", page.to_html(bare), flags=re.DOTALL)
    assert len(palettes) == 3  # light, dark, print
    for palette in palettes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", palette))
        for background in ("paper", "panel"):
            for name in ("ink", "muted", "good", "bad", "open"):
                assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
            for name in ("before", "after", "alert"):
                assert contrast(colours[name], colours[background]) >= 3, (name, background)


def embedded(report: Report) -> dict:
    found = Page(page.to_html(report))
    (text,) = [text for text in found.texts["script"] if text.startswith('{"folder"')]
    return json.loads(text)


@pytest.mark.parametrize("text", [HOSTILE, STRANGE])
def test_hostile_names_are_escaped_and_kept(text):
    report = hostile(text)
    table = embedded(report)
    assert {table["folder"] + path for path in table["path"]} == {text}
    found = Page(page.to_html(report))
    words = found.words() + found.words("noscript")
    assert words.count(" ".join(wording.printable(text).split())) > 8
    assert not [char for char in words.replace(" ", "") if not char.isprintable() and char != "\xa0"]


def test_the_script_writes_text_only():
    script = resources.files("jaxguard.report").joinpath("page.js").read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|DOMParser|fetch\(", script
    )
    assert "</script" not in script.lower()


def test_rows_hold_every_file():
    report = fleet(300, errors=7, skipped=4)
    table = embedded(report)
    files = {one.provenance.name: one for one in report.findings} | dict(report.skipped)
    assert len(table["path"]) == 304 == len(files)
    for index, path in enumerate(table["path"]):
        known = files[table["folder"] + path]
        verdict, reason = table["verdicts"][table["verdict"][index]], table["reasons"][table["reason"][index]]
        numbers = [table[name][index] for name in ("score", "p", "q")]
        if isinstance(known, str):
            assert (verdict, reason, numbers) == ("skipped", known, [None] * 3)
            continue
        wanted = [known.score, known.p_value, known.q_value]
        assert (verdict, reason) == (known.verdict, known.reason)
        np.testing.assert_allclose(np.array(numbers, float), wanted, rtol=1e-5)  # null is NaN
        assert table["architectures"][table["architecture"][index]] == known.provenance.architecture
        assert table["lookss"][table["looks"][index]] == ", ".join(known.looks)
        assert (table["content"][index], table["size"][index]) == (known.provenance.sha256, known.provenance.size)


def test_the_verdict_of_a_fleet_comes_first():
    report = fleet(300, suspected=3, errors=2, skipped=3)
    found = Page(page.to_html(report))
    headline = headlines.scan_headline(report)
    assert headline.lead == "Backdoor suspected in 3 of 300 checkpoints; 2 could not be scored, 3 files skipped"
    order = [
        headline.lead,
        "3 ✗ suspected",
        "○ no evidence",
        "? inconclusive",
        "2 ! could not be scored",
        "3 – skipped",
    ]
    order += ["Scores", "known to be clean", "Suspected checkpoints", "All files", "Notes", "How this was made"]
    in_order(found.words(), *order)
    links = [attributes["href"] for tag, attributes in found.tags if tag == "a"]
    kinds = (
        "code%20execution", "confirmed", "suspected", "no%20evidence", "no%20trigger%20found", "inconclusive", "error",
        "skipped",
    )  # fmt: skip
    assert links[:8] == [f"#verdict={name}" for name in kinds]
    assert "31 s, 7.64 checkpoints/s, 427 MB/s" in found.words()


def test_units_and_p_and_q_are_explained():
    words = shown(fleet(30))
    for text in (
        "p how often a clean checkpoint of the cohort would score as high.", "at 0.05 or less it is suspected.",
        "q the smallest false discovery rate", "Size bytes on disk", "Score how suspicious", "standard deviations",
    ):  # fmt: skip
        assert text in words


def test_of_many_cohorts_and_suspects_the_rest_is_counted():
    report = fleet(2000, suspected=90, cohorts=20)
    text = page.to_html(report)
    found = Page(text)
    drawings = [attributes for tag, attributes in found.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawings) == page.MAX_COHORTS + page.MAX_DETAILED
    counts = Counter(one.cohort for one in report.findings if one.score == one.score)
    cohorts = [name for name, count in counts.items() if count >= page.MIN_DRAWN]
    assert f"{len(cohorts) - page.MAX_COHORTS} more cohorts with " in found.words()
    assert "70 more in the table." in found.words()
    listed = re.findall(r'<summary>.*?class="path" dir="ltr">(.*?)</span>', text)
    ranked = headlines.by_suspicion(report.findings)
    assert listed == [one.provenance.name for one in ranked[: page.MAX_DETAILED]]
    assert text.count("<details") == page.MAX_DETAILED
    assert text.count('<details class="flagged" open>') == 3


def test_suspected_checkpoints_name_their_layers():
    report = fleet(40, suspected=1)
    text = page.to_html(report)
    (suspect,) = [one for one in report.findings if one.verdict is Verdict.SUSPECTED]
    best = sorted(suspect.layers, key=lambda layer: -layer.z)[: page.MAX_LAYERS]
    section = text[text.index("<details") : text.index("</details>")]
    assert re.findall(r"<code>(layer.*?)</code></th>", section) == [layer.name.replace(">", "&gt;") for layer in best]
    cells = re.findall(r'data-label="(.*?)">(.*?)</td>', section)
    assert cells[:3] == [
        ("Highest z", f"{best[0].z:.3g}"), ("Channel", str(best[0].channel)), ("Above threshold", "1 of 32"),
    ]  # fmt: skip
    bare = Report("", "", (finding("a.npz", Verdict.SUSPECTED, reason="found by hand"),))
    assert "No layers were kept of this checkpoint." in shown(bare)


def test_without_scripts_the_first_hundred_are_shown():
    report = fleet(300, skipped=4)
    words = Page(page.to_html(report)).words("noscript")
    assert "this page shows the first 100 of 304 files" in words
    ranked = [one.provenance.name.removeprefix("/data/fleet/") for one in headlines.by_suspicion(report.findings)]
    in_order(words, *ranked[:100])
    assert ranked[100] not in words


def test_without_a_profile_no_score_is_claimed():
    words = shown(unjudged())
    assert "known to be clean" not in words.split("All files")[0]
    assert not any(
        told in words for told in ("z-score", "Highest z", "nothing to compare with", "Suspected checkpoints")
    )


def test_ends_are_told_without_content():
    written = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
    words = shown(Report("Nothing", "jaxguard scan nowhere"), written=written)
    assert "Nothing was scanned" in words
    assert "jaxguard scan nowhere Page written2026-03-01 12:00 UTC" in words


def test_a_hundred_thousand_rows_are_compact():
    """Per row, not the whole page: 100,000 rows of this kind stay under 30 MB."""
    report = fleet(2000, suspected=0, errors=10)
    size = len(rows.embedded(rows.columns(rows.rows(report, report.findings))))
    assert size / 2003 < 250


def test_numbers_that_json_lacks():
    strange = finding(score=float("inf"), p_value=NAN, q_value=-0.0)
    table = rows.columns(rows.rows(Report(""), [strange]))
    assert (table["score"], table["p"], table["q"]) == ([None], [None], [0.0])
    assert "Infinity" not in rows.embedded(table)
