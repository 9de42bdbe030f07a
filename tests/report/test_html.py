"""The page is complete, self-contained, escaped, and renders."""

import dataclasses
import datetime
import os
import re
import shutil
import stat
import subprocess
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from PIL import Image
from samples import (
    HOSTILE,
    fingerprint_matrix,
    ownership_report,
    pruning_path,
    recovered,
    shapley_layers,
    shapley_report,
)

from jaxguard import report as reports
from jaxguard.errors import DataError, JaxguardError
from jaxguard.inversion import anomaly
from jaxguard.report import html, ownership_wording, schema, wording
from jaxguard.types import AuditReport

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects elements, addresses and visible text; notices tags that do not match."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.mark.parametrize("name", ["template.html.jinja", "ownership.html.jinja", "style.css"])
def test_template_is_package_data(name):
    assert resources.files("jaxguard.report").joinpath(name).is_file()


def test_page_is_well_formed(any_report):
    page = Page(html.to_html(any_report))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert labels <= set(ids)


def test_page_loads_nothing_and_runs_nothing(any_report):
    text = html.to_html(any_report)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", text)


def test_pictures_have_alternative_texts(full):
    page = Page(html.to_html(full))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    drawings = [attributes for tag, attributes in page.tags if tag == "svg" and "aria-hidden" not in attributes]
    assert len(images) == 3 and all(attributes["alt"] for attributes in images)
    assert len(drawings) == 4 and all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_verdicts_come_first(full):
    words = Page(html.to_html(full)).words()
    expected = [
        "Inconclusive: no reference fleet to compare with",
        "FT-SAM takes the backdoor out",
        "ASR 99.7 % → 0.6 %, ACC 98.9 % → 98.1 %",
        "CLP leaves the backdoor in",
        "0 of 224 channels cut",
        "The trigger",
        "Before and after",
        "Methods tried",
        "Channel scores, layer by layer",
        "Notes",
        "How this was made",
        "jaxguard repair runs/2026-03/suspect.safetensors --method ft_sam,clp",
        "9f2c" * 16,
        "0.10.2",
    ]
    positions = [words.find(part) for part in expected]
    assert -1 not in positions
    assert positions == sorted(positions)


def test_a_repair_with_the_scan_s_layers_is_not_drawn_twice(full):
    assert html.to_html(full).count('aria-label="Scores of 224 channels') == 1


def test_empty_sections_are_left_out(bare, scan_only):
    for report in (bare, scan_only):
        words = Page(html.to_html(report)).words()
        for heading in (
            "The trigger", "Before and after", "Methods tried", "Recovered trigger", "Channels cut one by one", "Notes",
        ):  # fmt: skip
            assert heading not in words
    assert "Nothing to draw" in Page(html.to_html(bare)).words()
    assert "neither a scan nor a repair" in Page(html.to_html(AuditReport("", ""))).words()


def test_what_an_inversion_found_is_told(shapley):
    words = Page(html.to_html(shapley)).words()
    expected = [
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
    ]
    positions = [words.find(part) for part in expected]
    assert -1 not in positions, expected[positions.index(-1)]
    assert positions == sorted(positions)
    assert "Channel scores, layer by layer" not in words  # estimates are ranked over the model instead
    for claim in ("proves", "is the target", "true trigger"):
        assert claim not in words


def table_rows(text: str) -> list[list[str]]:
    """Cells of the table of cut channels."""
    body = text[text.index("Accuracy after</th>") :].split("</table>", maxsplit=1)[0]
    return [re.findall(r"<t[hd] role=\"(?:rowheader|cell)\".*?>(.*?)</t[hd]>", row) for row in body.split("<tr")[1:]]


def test_cut_channels_have_a_row_each(shapley):
    path = shapley.repairs[0].path
    rows = table_rows(html.to_html(shapley))
    assert [re.sub("<.*?>", "", row[0]) for row in rows] == list(path.channels[:9])
    assert rows[0][1:] == [f"{path.values[0]:.4f} ± {path.errors[0]:.4f}", "73.5\u00a0%", "98.8\u00a0%"]
    assert "more channels were cut" not in html.to_html(shapley)


def test_many_cuts_are_counted():
    layers = shapley_layers((64, 64))
    text = html.to_html(shapley_report(recovered(43), layers, pruning_path(layers, tried=40, chosen=33)))
    assert len(table_rows(text)) == html.MAX_CUTS
    words = Page(text).words()
    assert "13 more channels were cut." in words
    assert "Pictures of 10 of 43 classes" in words


def test_no_class_stands_out(no_suspect):
    words = Page(html.to_html(no_suspect)).words()
    assert "No class suspected (highest anomaly index" in words
    assert "That is no proof that there is no backdoor." in words
    assert "no class suspected" in words
    for part in ("Beside the known trigger", "Channels cut one by one"):
        assert part not in words


def test_nothing_but_undefined(undefined):
    words = Page(html.to_html(undefined)).words()
    assert "Class 0 is suspected, though not flagged: its patch has undefined pixels; anomaly index undefined." in words
    assert "Of two classes neither can stand out" in words
    assert "No channel cut. Success of the recovered trigger undefined → undefined" in words
    assert "The highest Shapley values" in words


def test_estimates_without_a_path_are_ranked():
    words = Page(html.to_html(shapley_report(None, shapley_layers()))).words()
    assert "The scores are estimates" in words
    assert "The highest scores" in words
    for part in ("Shapley value", "Recovered trigger", "cuts kept", "Channel scores, layer by layer"):
        assert part not in words


def test_a_class_without_a_working_patch_is_explained():
    found = recovered(10)
    assert "counts with more than its norm" not in html.to_html(shapley_report(found))
    found.anomaly[np.argmax(found.norms)] = -100
    assert "counts with more than its norm" in html.to_html(shapley_report(found))


def test_two_repairs_with_findings_are_told_apart(shapley):
    repairs = tuple(dataclasses.replace(shapley.repairs[0], checkpoint=name) for name in ("a.npz", HOSTILE))
    text = html.to_html(dataclasses.replace(shapley, repairs=repairs))
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.words().count("ShapPruning on a.npz") == 2
    assert "<script" not in text


def test_findings_that_do_not_fit_are_refused(shapley):
    (repair,) = shapley.repairs
    for wrong in (
        dataclasses.replace(repair, trigger=dataclasses.replace(repair.trigger, target=10)),
        dataclasses.replace(repair, path=dataclasses.replace(repair.path, chosen=15)),
    ):
        with pytest.raises(DataError, match=r"in the (recovered trigger|pruning path)"):
            html.to_html(dataclasses.replace(shapley, repairs=(wrong,)))


def test_pictures_of_findings_have_alternative_texts(shapley):
    page = Page(html.to_html(shapley))
    images = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 + 10 + 4 and all(images)
    assert sum("Patch recovered for class" in text for text in images) == 10
    drawings = [a for tag, a in page.tags if tag == "svg" and "aria-hidden" not in a]
    assert len(drawings) == 4 and all(a["role"] == "img" and a["aria-label"] for a in drawings)


def test_the_report_s_threshold_is_the_one_of_the_inversion():
    assert wording.FLAGGED_ANOMALY == anomaly.FLAGGED


def test_ownership_is_told(owned):
    words = Page(html.to_html(owned)).words()
    one = owned.ownerships[0]
    expected = [
        f"{one.verifications[0].suspect} ✗ Copy of owner.safetensors suspected",
        "higher than all 39 independent models; an independent model would score as high once in 40 times",
        "Copies of runs/owner.safetensors ? 4 more suspects: no evidence",
        "Copies of runs/older.npz ? 3 suspects: inconclusive",
        "Stolen or not",
        "A suspected copy is not proven to be one, and without evidence a suspect is not proven innocent.",
        "runs/owner.safetensors by ZEST",
        f"{one.verifications[0].suspect} ✗ copy suspected -0.081 0.025 1.3e-39",
        "Null p the same by the method’s own null distribution",
        "Made forfine-tuned, pruned",
        "Blind tocopies with other classes",
        "Compared with39 independent models, scores",
        "Questions128 images to each suspect",
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
    ]
    positions = [words.find(part) for part in expected]
    assert -1 not in positions, expected[positions.index(-1)]
    assert positions == sorted(positions)
    for claim in ("clean", "is innocent", "is a copy of", "is stolen", "proves"):
        assert claim not in words


def test_verdicts_on_suspects_are_never_good(owned, crowd):
    for report in (owned, crowd):
        text = html.to_html(report)
        assert 'class="bad"' in text and 'class="open"' in text
        assert 'class="good"' not in text


def test_drawings_of_ownership_have_descriptions(owned):
    page = Page(html.to_html(owned))
    drawings = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert [text.split(" ", 1)[1][:14] for text in drawings] == ["scores against"] * 2 + [
        "scores of 20 s",
        "scores of 4 su",
    ]


def test_a_crowd_is_summed_up(crowd):
    text = html.to_html(crowd)
    assert text.count('<p class="lead">') <= ownership_wording.MAX_HEADLINES + 2
    assert "about 4 of 80 suspects, were all independent" in text
    assert text.count('data-label="Highest score"') == 30
    assert len(text) < 1_000_000


def test_nothing_judged_leaves_no_hole(unjudged):
    words = Page(html.to_html(unjudged)).words()
    for part in ("No suspect was asked.", "Nothing to draw: no score is defined.", "1 owner, 1 suspect by SAC"):
        assert part in words
    for part in ("Made for", "Blind to", "nan", "inf "):
        assert part not in words


def test_a_matrix_alone_needs_no_verdict(owned):
    words = Page(html.to_html(dataclasses.replace(owned, ownerships=()))).words()
    assert "Owners against suspects" in words
    assert "Stolen or not" not in words
    assert "neither a scan" not in words


def test_owners_with_few_suspects_of_their_own_fill_their_rows():
    """Thirteen owners, three of which are the suspects: those have two suspects besides themselves."""
    matrix = fingerprint_matrix(13, 3)
    matrix = dataclasses.replace(matrix, suspects=matrix.owners[:3])
    text = html.to_html(ownership_report(matrices=(matrix,)))
    body = text[text.index("Highest score</th>") :].split("</table>", maxsplit=1)[0]
    assert [row.count("<td") for row in body.split("<tr")[1:]] == [3] * 13


def test_date_of_writing_is_shown(bare):
    when = datetime.datetime(2026, 3, 9, 14, 5, tzinfo=datetime.UTC)
    assert "2026-03-09 14:05 UTC" in html.to_html(bare, written=when)
    assert html.to_html(bare, written=when) == html.to_html(bare, written=when)


def test_hostile_strings_are_text(hostile):
    text = html.to_html(hostile)
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
    palettes = re.findall(r":root \{(.*?)\}", html.to_html(bare), flags=re.DOTALL)
    assert len(palettes) == 3  # light, dark, print
    for palette in palettes:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", palette))
        for background in ("paper", "panel"):
            for name in ("ink", "muted", "good", "bad", "open"):
                assert contrast(colours[name], colours[background]) >= 4.5, (name, background)
            for name in ("before", "after", "alert"):
                assert contrast(colours[name], colours[background]) >= 3, (name, background)


def test_write_makes_both_files(full, tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = reports.write(full, folder)
    assert paths == [folder / "report.html", folder / "report.json"]
    assert sorted(folder.iterdir()) == paths
    assert schema.from_json(paths[1].read_text()).title == full.title
    assert "FT-SAM takes the backdoor out" in paths[0].read_text(encoding="utf-8")


def test_write_replaces_and_respects_the_umask(bare, tmp_path):
    (tmp_path / "report.json").write_text("old")
    mask = os.umask(0o027)
    try:
        reports.write(bare, tmp_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o640
    assert schema.from_json((tmp_path / "report.json").read_text()).title == bare.title


def test_write_into_a_file_fails_clearly(bare, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(JaxguardError, match="taken; choose another folder"):
        reports.write(bare, tmp_path / "taken")


def test_failed_write_leaves_no_partial_file(bare, tmp_path):
    (tmp_path / "report.json").mkdir()  # cannot be replaced by a file
    with pytest.raises(JaxguardError, match=r"report\.json"):
        reports.write(bare, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def screenshot(page, folder, *options: str) -> tuple[np.ndarray, list[str]]:
    """Renders a page in headless Chromium; returns pixels and console messages."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium, chromium-browser or google-chrome on PATH to render the page")
    picture = folder / "page.png"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --hide-scrollbars --window-size=900,1400"
    )
    command = [browser, *flags.split(), *options, f"--user-data-dir={folder / 'profile'}", f"--screenshot={picture}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return np.asarray(Image.open(picture).convert("RGB"), np.float32), console


@pytest.mark.parametrize("name", ["full", "shapley", "owned"])
@pytest.mark.parametrize(("options", "is_dark"), [((), False), (("--blink-settings=preferredColorScheme=0",), True)])
def test_browser_renders_without_complaint(request, tmp_path, name, options, is_dark):
    page, _ = reports.write(request.getfixturevalue(name), tmp_path)
    pixels, console = screenshot(page, tmp_path, *options)
    assert console == []
    assert (pixels[2, 2].mean() < 128) == is_dark
    background = np.abs(pixels - pixels[2, 2]).max(axis=-1) < 8
    assert 0.1 < 1 - background.mean() < 0.9
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


def test_browser_would_report_a_violation(tmp_path):
    """The check above can fail: the page's policy makes the browser complain about an outside picture."""
    policy = re.search(r"<meta http-equiv.*?>", html.to_html(AuditReport("", "")))
    assert policy is not None
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html>{policy[0]}<img src="http://outside.invalid/x.png">')
    _, console = screenshot(page, tmp_path)
    assert any("Content Security Policy" in line for line in console)
