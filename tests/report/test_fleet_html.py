"""The fleet page is complete, self-contained and escaped, and holds every file."""

import base64
import datetime
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from fleets import NAN, entry, fleet, hostile, unjudged
from samples import HOSTILE

from jaxguard.report import fleet_html, fleet_rows, fleet_wording, wording
from jaxguard.types import FleetReport

VOID = {"meta", "input", "br", "wbr"}


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

    def text(self, inside: str = "main") -> str:
        return " ".join(" ".join(self.texts.get(inside, ())).split())


def embedded(page: Page) -> dict:
    (rows,) = [text for text in page.texts["script"] if text.startswith('{"folder"')]
    return json.loads(rows)


STRANGE = f"{HOSTILE}\u2028</script><!--<script>\u0000\u05d0\udcff"
REPORTS = {
    "judged": lambda: fleet(300), "unjudged": unjudged, "hostile": lambda: hostile(HOSTILE),
    "strange": lambda: hostile(STRANGE), "empty": lambda: FleetReport("Nothing", "jaxguard scan nowhere", ()),
    "all failed": lambda: fleet(5, suspected=0, errors=5),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_page_is_self_contained(name):
    text = fleet_html.to_html(REPORTS[name]())
    text.encode("utf-8")  # a lone surrogate would not go into a file
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "img"}
        assert not [name for name in attributes if name.startswith("on")]
        assert not re.match(r"(?i)\s*(https?:|javascript:|data:|//)", attributes.get("href") or "#")
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    script = resources.files("jaxguard.report").joinpath("fleet.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    )  # fmt: skip
    assert text.count(f"<script>{script}</script>") == 1
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == [
        "application/json", "application/json", None,
    ]  # fmt: skip
    ids = re.findall(r'\bid="([^"]+)"', text[: text.index('<script type="application/json"')])
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("text", [HOSTILE, STRANGE])
def test_hostile_names_are_escaped_and_kept(text):
    page = Page(fleet_html.to_html(hostile(text)))
    rows = embedded(page)
    assert {rows["folder"] + path for path in rows["path"]} == {text}
    shown = page.text() + page.text("noscript")
    assert shown.count(" ".join(wording.printable(text).split())) > 8
    assert not [char for char in shown.replace(" ", "") if not char.isprintable() and char != "\xa0"]


def test_the_script_writes_text_only():
    script = resources.files("jaxguard.report").joinpath("fleet.js").read_text()
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(|DOMParser|fetch\(", script
    )
    assert "</script" not in script.lower()


def test_rows_hold_every_file():
    report = fleet(300, errors=7, skipped=4)
    rows = embedded(Page(fleet_html.to_html(report)))
    files = {one.uri: one for one in report.entries} | dict(report.skipped)
    assert len(rows["path"]) == 304 == len(files)
    for index, path in enumerate(rows["path"]):
        known = files[rows["folder"] + path]
        verdict, reason = rows["verdicts"][rows["verdict"][index]], rows["reasons"][rows["reason"][index]]
        numbers = [rows[name][index] for name in ("score", "p", "q", "z")]
        if isinstance(known, str):
            assert (verdict, reason, numbers) == ("skipped", known, [None] * 4)
            continue
        wanted = [known.score, known.p_value, known.q_value, known.z]
        assert (verdict, reason) == (known.verdict, known.reason)
        np.testing.assert_allclose(np.array(numbers, float), wanted, rtol=1e-5)  # null is NaN
        assert rows["architectures"][rows["architecture"][index]] == known.architecture
        assert (rows["sha256"][index], rows["size"][index], rows["deep"][index]) == (
            known.sha256,
            known.size,
            known.deep,
        )


def test_the_verdict_comes_first():
    report = fleet(300, suspected=3, errors=2, skipped=3)
    page = Page(fleet_html.to_html(report))
    shown = page.text()
    headline = fleet_wording.headline(report)
    assert headline.lead == "Backdoor suspected in 3 of 300 checkpoints; 2 could not be read, 3 files skipped"
    order = [headline.lead, "3 ✗ suspected", "○ no evidence", "? inconclusive", "2 ! could not be read", "3 – skipped"]
    order += ["Scores", "known to be clean", "Suspected checkpoints", "All files", "Notes", "How this was made"]
    places = [shown.index(words) for words in order]
    assert places == sorted(places)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links[:5] == [
        f"#verdict={name.replace(' ', '%20')}"
        for name in ("backdoor suspected", "no evidence", "inconclusive", "error", "skipped")
    ]
    assert "10 checkpoints/s" not in shown
    assert "31 s, 7.64 checkpoints/s, 427 MB/s" in shown


def test_units_and_p_and_q_are_explained():
    shown = Page(fleet_html.to_html(fleet(30))).text()
    for words in (
        "p how often an innocent checkpoint of the bucket would score as high.", "at 0.05 or less it is suspected.",
        "q the smallest false discovery rate", "Size bytes on disk", "Score how suspicious", "standard deviations",
    ):  # fmt: skip
        assert words in shown


def test_of_many_buckets_and_suspects_the_rest_is_counted():
    report = fleet(2000, suspected=90, buckets=20)
    text = fleet_html.to_html(report)
    page = Page(text)
    shown = page.text()
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(drawings) == fleet_html.MAX_BUCKETS + fleet_html.MAX_FLAGGED
    buckets = {one.bucket for one in report.entries if one.z == one.z}
    assert f"{len(buckets) - fleet_html.MAX_BUCKETS} more buckets with " in shown
    assert "70 more in the table." in shown
    listed = re.findall(r'<summary>.*?class="path" dir="ltr">(.*?)</span>', text)
    ranked = fleet_wording.by_suspicion(report.entries)
    assert listed == [one.uri for one in ranked[: fleet_html.MAX_FLAGGED]]
    assert text.count("<details") == fleet_html.MAX_FLAGGED
    assert text.count('<details class="flagged" open>') == 3


def test_flagged_checkpoints_name_their_layers():
    report = fleet(40, suspected=1)
    text = fleet_html.to_html(report)
    (flagged,) = [one for one in report.entries if one.verdict == "backdoor suspected"]
    best = sorted(flagged.layers, key=lambda layer: -layer.z)[: fleet_html.MAX_LAYERS]
    section = text[text.index("<details") : text.index("</details>")]
    assert re.findall(r"<code>(layer.*?)</code></th>", section) == [layer.name.replace(">", "&gt;") for layer in best]
    cells = re.findall(r'data-label="(.*?)">(.*?)</td>', section)
    assert cells[:3] == [
        ("Highest z", f"{best[0].z:.3g}"), ("Channel", str(best[0].channel)), ("Above threshold", "1 of 32"),
    ]  # fmt: skip
    bare = FleetReport("", "", (entry("a.npz", "backdoor suspected", reason="found by hand"),))
    assert "No layers were kept of this checkpoint." in Page(fleet_html.to_html(bare)).text()


def test_without_scripts_the_first_hundred_are_shown():
    report = fleet(300, skipped=4)
    page = Page(fleet_html.to_html(report))
    shown = page.text("noscript")
    assert "this page shows the first 100 of 304 files" in shown
    ranked = fleet_wording.by_suspicion(report.entries)
    names = [one.uri.removeprefix("/data/fleet/") for one in ranked[:100]]
    places = [shown.index(name) for name in names]
    assert places == sorted(places)
    assert ranked[100].uri.removeprefix("/data/fleet/") not in shown


def test_without_a_profile_no_score_is_claimed():
    shown = Page(fleet_html.to_html(unjudged())).text()
    assert "Without a reference profile there are only channel z-scores" in shown
    assert "known to be clean" not in shown.split("All files")[0].replace("from checkpoints known to be clean", "")
    assert "12 checkpoints, nothing to compare with" in shown
    assert "Suspected checkpoints" not in shown


def test_ends_are_told_without_content():
    written = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)
    shown = Page(fleet_html.to_html(FleetReport("Nothing", "jaxguard scan nowhere", ()), written=written)).text()
    assert "Nothing was scanned" in shown
    assert "jaxguard scan nowhere Page written 2026-03-01 12:00 UTC Reference profile none" in shown


def test_a_hundred_thousand_rows_are_compact():
    """Per row, not the whole page: 100,000 rows of this kind stay under 30 MB."""
    report = fleet(2000, suspected=0, errors=10)
    size = len(fleet_rows.embedded(fleet_rows.columns(fleet_rows.rows(report))))
    assert size / 2003 < 250


def test_numbers_that_json_lacks():
    rows = fleet_rows.columns([entry(score=float("inf"), p_value=NAN, z=-0.0)])
    assert (rows["score"], rows["p"], rows["z"]) == ([None], [None], [0.0])
    assert "Infinity" not in fleet_rows.embedded(rows)
