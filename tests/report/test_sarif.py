"""SARIF logs are valid, say what the standard means by each word, and name every file.

The schema beside this file is the OASIS one; its origin and notices are in sarif-schema-2.1.0.md.
"""

import copy
import json
import os
import pathlib
import re
from urllib import parse

import jsonschema
import pytest
from fleets import NAN, failed, finding, fleet, hostile, unjudged
from samples import HOSTILE, ownership, ownership_report

import jaxguard
from jaxguard.report import sarif, sarif_uri
from jaxguard.types import Report, Verdict

SCHEMA = json.loads((pathlib.Path(__file__).parent / "sarif-schema-2.1.0.json").read_text())
VALIDATOR = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)

URI_REFERENCE = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?:(?:%[0-9A-Fa-f]{2})|[A-Za-z0-9._~!$&'()*+,;=:@/?#\[\]-])*")
"""All characters that RFC 3986 knows, and percent signs before two hexadecimal digits only."""


def run_of(report: Report) -> dict:
    log = json.loads(sarif.to_sarif(report))
    VALIDATOR.validate(log)
    (run,) = log["runs"]
    return run


def everywhere(value, key: str):
    """All values under a key, however deep."""
    if isinstance(value, dict):
        yield from ([value[key]] if key in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from everywhere(item, key)


REPORTS = {
    "judged": lambda: fleet(60), "unjudged": unjudged, "empty": lambda: Report("", "", ()),
    "hostile": lambda: hostile(HOSTILE), "surrogates": lambda: hostile("a\udcff\ud800[b](c){0}\n\u2028"),
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTS)
def test_every_log_is_valid(name):
    run = run_of(REPORTS[name]())
    for uri in everywhere({key: value for key, value in run.items() if key != "tool"}, "uri"):
        assert URI_REFERENCE.fullmatch(uri), uri
    for place in [*everywhere(run, "artifactLocation"), *everywhere(run, "location")]:
        assert ("uriBaseId" in place) == (parse.urlsplit(place["uri"]).scheme == "")  # 3.4.4
        assert place.get("uriBaseId", sarif_uri.BASE) in run["originalUriBaseIds"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "2.0.0"), (("runs", 0, "results", 0, "kind"), "suspicious"), (("runs", 0, "tool"), {}),
        (("runs", 0, "results", 0, "rank"), 101), (("runs", 0, "surprise"), 1),
        (("runs", 0, "invocations", 0), {"commandLine": ""}), (("runs", 0, "results", 0, "message"), {}),
    ],
)  # fmt: skip
def test_the_schema_can_refuse(path, value):
    log = json.loads(sarif.to_sarif(fleet(12)))
    spoilt = copy.deepcopy(log)
    place = spoilt
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert VALIDATOR.is_valid(log)
    assert not VALIDATOR.is_valid(spoilt)


def test_results_are_the_suspected_and_the_undecided():
    report = fleet(60)
    run = run_of(report)
    artifacts = run["artifacts"]
    assert [artifact["hashes"]["sha-256"] for artifact in artifacts if "hashes" in artifact] == [
        found.provenance.sha256 for found in report.findings if found.provenance.sha256
    ]
    wanted = [
        (index, found) for index, found in enumerate(report.findings)
        if found.verdict in (Verdict.SUSPECTED, Verdict.INCONCLUSIVE)
    ]  # fmt: skip
    assert len(run["results"]) == len(wanted) == 9
    for result, (index, found) in zip(run["results"], wanted, strict=True):
        place = result["locations"][0]["physicalLocation"]["artifactLocation"]
        assert place == {"uri": f"file://{parse.quote(found.provenance.name)}", "index": index}
        assert artifacts[index]["location"]["uri"] == place["uri"]
        assert result["partialFingerprints"] == {"checkpointSha256/v1": found.provenance.sha256}
        assert "fingerprints" not in result  # 3.27.16: not of a direct producer
        assert result["properties"]["verdict"] == found.verdict
    failing = [result for result in run["results"] if result["kind"] == "fail"]
    assert {result["level"] for result in failing} == {"error"}
    assert {result["rank"] for result in failing} == {96.88}
    assert {result["properties"]["pValue"] for result in failing} == {0.0154}
    names = [layer["fullyQualifiedName"] for layer in failing[0]["locations"][0]["logicalLocations"]]
    assert names == [layer.name for layer in wanted[[r["kind"] for r in run["results"]].index("fail")][1].layers]


def test_without_a_decision_there_is_no_level():
    """3.27.9 and 3.27.10: what is not `fail` has the level `none`, and no rank."""
    for result in run_of(unjudged())["results"]:
        assert (result["kind"], result["level"], "rank" in result) == ("open", "none", False)
        assert not {"pValue", "qValue", "score"} & result["properties"].keys()
        assert result["properties"]["z"] > 0


def test_what_was_not_scored_is_notified():
    report = fleet(30, errors=2, skipped=3)
    run = run_of(report)
    (invocation,) = run["invocations"]
    told = invocation["toolExecutionNotifications"]
    notices = run["tool"]["driver"]["notifications"]
    assert [notices[notice["descriptor"]["index"]]["id"] for notice in told] == [
        notice["descriptor"]["id"] for notice in told
    ]
    uris = [
        [place["physicalLocation"]["artifactLocation"]["uri"] for place in notice.get("locations", [])]
        for notice in told
    ]
    levels = [notice["level"] for notice in told]
    assert levels == ["error"] * 2 + ["warning"] * 3 + ["note"]
    bad = [found for found in report.findings if found.verdict is Verdict.ERROR]
    assert uris == [[f"file://{parse.quote(found.provenance.name)}"] for found in bad] + [
        [f"file://{path}"] for path, _ in report.skipped
    ] + [[]]
    assert [notice["message"]["text"] for notice in told[:2]] == [
        f"Could not be scored: {found.reason}" for found in bad
    ]
    assert invocation["executionSuccessful"] is False  # 3.20.21: an error means that the run failed
    assert run["properties"]["verdicts"] == {
        "code execution": 0, "confirmed": 0, "suspected": 3, "no evidence": 22, "no trigger found": 0,
        "inconclusive": 3, "error": 2, "skipped": 3,
    }  # fmt: skip


def test_a_run_without_errors_succeeds():
    (invocation,) = run_of(fleet(12, errors=0))["invocations"]
    assert invocation["executionSuccessful"] is True
    assert invocation["commandLine"].startswith("jaxguard scan")


def test_the_tool_names_itself():
    driver = run_of(fleet(3))["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("jaxguard", jaxguard.__version__)
    assert [rule["id"] for rule in driver["rules"]] == ["JG001", "JG002", "JG003"]


def test_messages_hold_no_links_and_no_placeholders():
    """3.11.5, 3.11.6: a name must not become a link or ask for arguments."""
    run = run_of(Report("", "", (failed("a.npz", "[click](http://evil.example) {0} \x1b[2J"),)))
    (notice,) = run["invocations"][0]["toolExecutionNotifications"]
    assert notice["message"]["text"] == r"Could not be scored: [click] (http://evil.example) {{0}} \x1b[2J"


def test_suspects_of_a_certificate_are_results_of_their_own_rule():
    one = ownership(2, 3, null=True)
    few = ownership(1, 0, references=5, seed=1)
    run = run_of(ownership_report(one, few))
    rules = run["tool"]["driver"]["rules"]
    told = [(rules[result["ruleIndex"]]["id"], result["kind"], result["level"]) for result in run["results"]]
    assert told == [("JG002", "fail", "error")] * 2 + [("JG002", "open", "none")]
    first, found = run["results"][0], one.verifications[0]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == found.suspect
    assert first["partialFingerprints"] == {"checkpointSha256/v1": found.sha256}
    assert first["properties"]["pValue"] == found.p_value
    assert first["message"]["text"].startswith("Copy of owner.safetensors suspected – ZEST score")
    assert len(run["artifacts"]) == 5  # one suspect was judged by both certificates


def test_repairs_and_matrices_are_notes(full, owned):
    run = run_of(full)
    notes = [notice["message"]["text"] for notice in run["invocations"][0]["toolExecutionNotifications"]]
    assert notes[0].startswith("FT-SAM takes the backdoor out – ASR 99.7 % → 0.6 %")
    (invocation,) = run_of(owned)["invocations"]
    texts = [notice["message"]["text"] for notice in invocation["toolExecutionNotifications"]]
    assert texts[0] == "Scores of 5 owners and 20 suspects by sac are in the other formats only."


def test_a_rank_needs_a_q_value():
    run = run_of(Report("", "", (finding("a.npz", Verdict.SUSPECTED, q_value=NAN),)))
    assert "rank" not in run["results"][0]


PATHS = ["a b.npz", "100%.npz", "ü/☃.npz", "#1?.npz", "a:b", "c:\\x", "x\n\u202e<y>\"'`^|{}[]", "-rf", "~/m", "a&b=c+d"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_come_back(path):
    relative, absolute = sarif_uri.location(path), sarif_uri.location(f"/{path}")
    assert relative["uriBaseId"] == sarif_uri.BASE
    for uri in (relative["uri"], absolute["uri"]):
        assert URI_REFERENCE.fullmatch(uri)
    joined = parse.urlsplit(parse.urljoin("http://base/folder/", relative["uri"]))
    assert parse.unquote(joined.path) == f"/folder/{path}"
    assert (joined.query, joined.fragment) == ("", "")
    assert parse.unquote(parse.urlsplit(absolute["uri"]).path) == f"/{path}"


def test_bytes_that_are_no_utf8_come_back():
    path = os.fsdecode(b"/data/\xff\xfe.npz")
    assert parse.unquote_to_bytes(parse.urlsplit(sarif_uri.location(path)["uri"]).path) == b"/data/\xff\xfe.npz"


def test_absolute_paths_are_canonical(tmp_path):
    """3.10.2, note 1: `..` behind a symbolic link is not the folder above it."""
    (tmp_path / "d2" / "d3").mkdir(parents=True)
    (tmp_path / "d1").symlink_to(tmp_path / "d2" / "d3")
    found = sarif_uri.location(f"{tmp_path}/./d1//../f")["uri"]
    assert found == pathlib.Path(os.path.realpath(tmp_path), "d2", "f").as_uri()


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("HTTPS://user@example.com:80/a%20b/ü?x=1&y=[2]#f", "https://user@example.com:80/a%20b/%C3%BC?x=1&y=%5B2%5D#f"),
        ("gs://bucket/100%/x y.npz", "gs://bucket/100%25/x%20y.npz"),
        ("hf://owner/name@v1.0/model.bin", "hf://owner/name@v1.0/model.bin"),
        ("http://[::1]:8000/m.npz", "http://[::1]:8000/m.npz"),
        ('s3://b/a<b>"c#d#e', "s3://b/a%3Cb%3E%22c#d%23e"),
    ],
)
def test_addresses_are_escaped_but_once(url, uri):
    assert sarif_uri.location(url) == {"uri": uri}
    assert sarif_uri.location(uri) == {"uri": uri}
