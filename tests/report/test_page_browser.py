"""In a browser the table of 10,000 rows sorts, filters and pages as Python does, fast, and no other script runs."""

import html
import json
import re

import numpy as np
import pytest
from browsers import dump, screenshot
from fleets import NAN, failed, finding, fleet, hostile
from samples import HOSTILE

from jaxguard.report import headlines, rows, wording
from jaxguard.report import page as pages
from jaxguard.types import Report, Verdict

SLOWEST = 3000.0
"""Milliseconds for one sorting or filtering; some 50 are usual, but tests share their machine."""

DRIVER = """
<script>
const told = [];
const table = document.getElementById("files-table");
const copied = [];
Object.defineProperty(navigator, "clipboard", {value: {writeText: async (text) => { copied.push(text); }}});
const all = (selector) => [...table.querySelectorAll(selector)];
function tell(name) {
  told.push({
    name, status: document.getElementById("status").textContent, page: document.getElementById("page").textContent,
    count: Number(table.dataset.count), ms: Number(table.dataset.ms),
    paths: all("tbody .path").map((place) => place.textContent),
    cells: all("tbody tr").slice(0, 3).map((row) => [...row.cells].map((cell) => cell.textContent)),
    sorts: all("thead th").map((heading) => heading.getAttribute("aria-sort")),
    off: ["first", "previous", "next", "last"].filter((id) => document.getElementById(id).disabled),
    boxes: ["filter", "verdict", "sort", "rows"].map((id) => document.getElementById(id).value),
  });
}
const click = (selector) => document.querySelector(selector).click();
function put(id, value, event) {
  const box = document.getElementById(id);
  box.value = value;
  box.dispatchEvent(new Event(event));
}
function go(hash) {
  history.replaceState(null, "", hash);
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}
(async () => {
  STEPS
  const result = document.createElement("pre");
  result.id = "told";
  result.textContent = JSON.stringify({told, copied, hash: location.hash});
  document.body.append(result);
})();
</script>
"""


def drive(report: Report, folder, steps: str) -> dict:
    """Runs steps after the page's own script, for which the page has to do without its policy."""
    page = folder / "page.html"
    text = re.sub(r"<meta http-equiv.*?>", "", pages.to_html(report), count=1)
    page.write_text(text.replace("</body>", DRIVER.replace("STEPS", steps) + "</body>"), encoding="utf-8")
    dom, console = dump(page.as_uri(), folder, "--virtual-time-budget=5000")
    assert console == []
    found = re.search(r'<pre id="told">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def report() -> Report:
    return fleet(10_000, suspected=34, errors=12, skipped=5)


@pytest.fixture(scope="module")
def files(report) -> list[rows.Row]:
    """Most suspicious first, as they come."""
    return rows.rows(report, headlines.by_suspicion(report.findings))


KEYS = {
    "path": lambda one: one.path, "verdict": lambda one: list(headlines.SIGNS).index(one.verdict),
    "score": lambda one: one.score, "p": lambda one: one.p, "q": lambda one: one.q,
    "architecture": lambda one: one.architecture, "size": lambda one: one.size,
}  # fmt: skip


def expected(files, *, sort="", desc=False, words=(), verdict="") -> list[str]:
    """The same by Python's stable sort; what is unknown last."""
    found = [one for one in files if not verdict or one.verdict == verdict]
    texts = ((one, f"{one.path} {one.content} {one.architecture} {one.format} {one.reason}".lower()) for one in found)
    found = [one for one, text in texts if all(word in text for word in words)]
    if sort:
        key = KEYS[sort]
        unknown = [one for one in found if key(one) != key(one)]
        known = [one for one in found if key(one) == key(one)]
        found = sorted(known, key=key, reverse=desc) + unknown
    return [one.path.removeprefix("/data/fleet/") for one in found]


STATES = [
    *({"sort": sort, "desc": desc} for sort in KEYS for desc in (False, True)),
    {"words": ("id-0000123",)}, {"words": ("CNN:WIDTH", "final")}, {"words": ("header of 8 bytes",)},
    {"verdict": "error"}, {"verdict": "skipped"}, {"verdict": "suspected", "sort": "size", "desc": True},
    {"verdict": "inconclusive", "words": ("needed",), "sort": "p"}, {"words": ("nowhere to be found",)},
]  # fmt: skip


def hash_of(state, **more) -> str:
    told = {
        "sort": state.get("sort", ""),
        "desc": "1" if state.get("desc") else "0",
        "verdict": state.get("verdict", ""),
    }
    told |= {"filter": " ".join(state.get("words", ())), "rows": "200", **more}
    return "#" + "&".join(f"{name}={value.replace(' ', '+')}" for name, value in told.items())


def test_sorts_and_filters_as_python_does(report, files, tmp_path):
    """Python's reversed sort keeps equals in order too, so both directions agree."""
    steps = "".join(
        f"go({json.dumps(hash_of(state, page=page))}); tell('{page}');" for state in STATES for page in ("1", "99")
    )
    told = drive(report, tmp_path, steps)["told"]
    for state, first, last in zip(STATES, told[::2], told[1::2], strict=True):
        words = tuple(word for text in state.get("words", ()) for word in text.lower().split())
        paths = expected(files, **(state | {"words": words}))
        assert first["count"] == last["count"] == len(paths), state
        assert first["paths"] == paths[:200], state
        assert last["paths"] == paths[(len(paths) - 1) // 200 * 200 :] or not paths, state
        assert max(first["ms"], last["ms"]) < SLOWEST
        assert first["off"][:2] == ["first", "previous"]
        assert last["off"][-2:] == ["next", "last"]
    slowest = max(step["ms"] for step in told)
    print(f"slowest update of 10,005 rows, 200 of them shown: {slowest:.0f} ms")


def test_the_page_as_it_is_honours_its_address(report, files, tmp_path):
    """With its policy, by file://, nothing injected: 50 rows of a shared link."""
    page = tmp_path / "page.html"
    page.write_text(pages.to_html(report))
    dom, console = dump(f"{page.as_uri()}#sort=score&desc=1&filter=final+cnn&verdict=no+evidence&page=2", tmp_path)
    assert console == []
    wanted = expected(files, sort="score", desc=True, words=("final", "cnn"), verdict="no evidence")
    body = dom[dom.index('id="files-table"') :]
    shown = [html.unescape(re.sub("<.*?>", "", text)) for text in re.findall(r'<span class="path".*?</span>', body)]
    assert shown == wanted[50:100]
    assert f'data-count="{len(wanted)}"' in dom
    assert f"51–100 of {len(wanted):,} files, 10,005 in all" in dom
    heading = '<th role="columnheader" scope="col" class="num" aria-sort="descending"><button type="button" data-sort='
    assert f'{heading}"score">' in dom


def test_clicks_and_boxes(tmp_path):
    report = fleet(120)
    result = drive(
        report, tmp_path,
        """
        tell("start");
        for (const times of [1, 2, 3]) { click("[data-sort=score]"); tell("score"); }
        click("[data-sort=path]"); tell("path");
        click("#next"); tell("next"); click("#last"); tell("last");
        click("#previous"); tell("previous"); click("#first");
        put("sort", "p desc", "change"); tell("box");
        put("filter", "  Final  ", "input"); tell("filter");
        put("verdict", "error", "change"); tell("verdict");
        put("rows", "200", "change"); tell("rows");
        put("filter", "", "input"); put("verdict", "", "change");
        await new Promise((done) => setTimeout(done, 1000));
        click("tbody .copy"); click("[data-row='0'][data-column=path]"); click("[data-row='1'][data-column=content]");
        """,
    )  # fmt: skip
    told = iter(result["told"])
    start, down, up, none, path = (next(told) for _ in range(5))
    assert (start["status"], start["page"]) == ("1–50 of 123 files", "Page 1 of 3")
    sorts = [[kind for kind in step["sorts"] if kind] for step in (start, down, up, none, path)]
    assert sorts == [[], ["descending"], ["ascending"], [], ["ascending"]]
    assert none["paths"] == start["paths"]
    assert down["cells"][0][2] >= down["cells"][1][2] > up["cells"][0][2]
    assert path["paths"] == sorted(path["paths"])
    pages = [next(told) for _ in range(3)]
    assert [step["page"] for step in pages] == ["Page 2 of 3", "Page 3 of 3", "Page 2 of 3"]
    assert [step["status"] for step in pages[:2]] == ["51–100 of 123 files", "101–123 of 123 files"]
    box, filtered, verdict, rows = told
    assert box["page"] == "Page 1 of 3"
    assert box["boxes"][2] == "p desc"
    assert [kind for kind in box["sorts"] if kind] == ["descending"]
    assert filtered["count"] == sum("Final" in one.provenance.name for one in report.findings)
    assert verdict["count"] == sum(
        "Final" in one.provenance.name and one.verdict is Verdict.ERROR for one in report.findings
    )
    assert rows["boxes"] == ["Final", "error", "p desc", "200"] or rows["boxes"][1:] == ["error", "p desc", "200"]
    assert result["hash"] == "#sort=p&desc=1&rows=200"
    suspects = [one for one in headlines.by_suspicion(report.findings) if one.verdict is Verdict.SUSPECTED]
    lowest = max((one for one in report.findings if one.p_value == one.p_value), key=lambda one: one.p_value)
    assert result["copied"] == [
        lowest.provenance.name, suspects[0].provenance.name, suspects[1].provenance.sha256,
    ]  # fmt: skip


def test_texts_and_units(tmp_path):
    known = [
        finding("runs/a.npz", size=999, score=1.25, p_value=0.031249, q_value=1.0),
        finding("runs/b.npz", Verdict.INCONCLUSIVE, size=999_999, score=NAN, p_value=NAN, q_value=NAN, unsearched="no"),
        finding(
            "runs/c.npz", size=44_712_345, score=-10.5, p_value=3.2e-7, q_value=0.5,
            looks=("weights", "triggers"),
        ),
        failed("runs/d.npz", "truncated"),
    ]  # fmt: skip
    report = Report("", "", tuple(known), skipped=(("runs/notes.txt", "empty"),))
    told, reversed_ = drive(report, tmp_path, "go('#sort=path'); tell(''); go('#sort=verdict&desc=1'); tell('');")[
        "told"
    ]
    cells = [row[1:] for row in told["cells"]]
    assert cells == [
        ["○ no evidence", "1.25", "0.031", "1", "preact_resnet18", "999 B"],
        ["? inconclusive", "–", "–", "–", "preact_resnet18", "1.00 MB"],
        ["○ no evidence", "-10.50", "3.2e-7", "0.5", "preact_resnet18", "44.7 MB"],
    ]
    assert told["cells"][2][0].endswith("triggers searched") and told["cells"][1][0].endswith("triggers searched: no")
    assert told["paths"] == ["a.npz", "b.npz", "c.npz", "d.npz", "notes.txt"]
    assert reversed_["cells"][:2] == [
        ["notes.txt copyempty", "– skipped", "–", "–", "–", "–", "–"],
        ["d.npz copytruncated", "! could not be scored", "–", "–", "–", "unknown", "44.7 MB"],
    ]
    assert [wording.size(count) for count in (999, 999_999, 44_712_345)] == [row[-1] for row in cells]


STRANGE = f"{HOSTILE}\u2028</script><img src=x onerror=alert(1)>\t\u05d0\U000e0001\udcff"


def test_hostile_names_are_text_and_are_copied_whole(tmp_path):
    """What is shown is escaped as in the other forms of a report; what is copied is the path itself."""
    result = drive(hostile(STRANGE), tmp_path, "tell(''); click('tbody .copy'); click('button[data-row]');")
    (told,) = result["told"]
    folder = STRANGE[: STRANGE.rindex("/") + 1]
    assert told["paths"] == [wording.printable(STRANGE.removeprefix(folder))] * 6
    assert result["copied"] == [STRANGE, STRANGE]


def test_nothing_but_the_page_s_script_runs(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(pages.to_html(hostile(HOSTILE)))
    dom, console = dump(page.as_uri(), tmp_path)
    assert console == []
    assert "<script>alert" not in dom
    assert 'data-count="6"' in dom
    page.write_text(page.read_text().replace("</main>", "</main><script>document.title = 'broken in'</script>"))
    dom, console = dump(page.as_uri(), tmp_path)
    assert any("Content Security Policy" in line for line in console)  # so the check above can fail
    assert "<title>broken in</title>" not in dom


@pytest.mark.parametrize(
    ("name", "width", "is_dark"),
    [("full", 390, True), ("full", 1280, False), ("shapley", 390, False), ("owned", 390, True), ("fleet", 390, False)],
)
def test_pages_render_without_complaint_or_sideways_scrolling(request, tmp_path, name, width, is_dark):
    report = fleet(300, suspected=3) if name == "fleet" else request.getfixturevalue(name)
    page = tmp_path / "page.html"
    page.write_text(pages.to_html(report), encoding="utf-8")
    pixels, console = screenshot(page, tmp_path, width, is_dark=is_dark)
    assert console == []
    assert (pixels[2, 2].mean() < 128) == is_dark
    background = np.abs(pixels - pixels[2, 2]).max(axis=-1) < 8
    assert 0.05 < 1 - background.mean() < 0.9
    assert background[:, -4:].all()  # nothing reaches over the right margin
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
