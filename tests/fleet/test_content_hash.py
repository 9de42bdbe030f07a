"""What contents are named by: BLAKE3 in fleets of their own, SHA-256 where they are compared with other scans."""

import hashlib
import os
from dataclasses import replace

import blake3
import pyarrow.parquet as pq
import pytest
import stores
from stores import MLP

from jaxguard import checkpoints, scanning
from jaxguard.detection import profile as profiles
from jaxguard.errors import DataError
from jaxguard.fleet.contents import with_blake3
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Results, Settings
from jaxguard.suspects import ModelOptions

SETTINGS = Settings(ModelOptions(arch=MLP))


def run(paths, *, compares=False, **options) -> Results:
    with Stream(**options).run([str(path) for path in paths], SETTINGS, compares=compares) as found:
        return found


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    told, read = [], checkpoints.read_into
    monkeypatch.setattr(checkpoints, "read_into", lambda path, *a, **k: told.append(path.name) or read(path, *a, **k))
    return told


def test_both_hashes_name_the_same_results(tmp_path):
    paths = stores.store(tmp_path / "store", 3)
    fast, slow = run(paths).records, run(paths, compares=True).records
    for path, one, other in zip(paths, fast, slow, strict=True):
        content = path.read_bytes()
        assert one.content == f"blake3:{blake3.blake3(content).hexdigest()}"
        assert (one.provenance.blake3, one.sha256) == (one.content.removeprefix("blake3:"), "")
        assert other.content == other.sha256 == hashlib.sha256(content).hexdigest()
        assert one.z == other.z


def test_results_on_disk_keep_their_hash_until_contents_are_compared(tmp_path, reads):
    paths, out = stores.store(tmp_path / "store", 3), tmp_path / "out"
    run(paths, out=out)
    reads.clear()
    assert run(paths, out=out).reused == 3 and not reads
    compared = run(paths, out=out, compares=True)
    assert compared.reused == 0 and len(reads) == 3
    assert all(one.sha256 for one in compared.records)
    reads.clear()
    again = run(paths, out=out)
    assert again.reused == 3 and not reads
    assert all(one.sha256 for one in again.records)
    assert len(again.records) == 3


def test_an_unchanged_file_is_told_by_size_and_time_unless_all_are_read(tmp_path):
    (path,), out = stores.store(tmp_path / "store", 1), tmp_path / "out"
    (before,) = run([path], out=out).records
    state = os.stat(path)
    stores.write(path, stores.leaves(7))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert os.stat(path).st_size == state.st_size
    (unread,) = run([path], out=out).records
    assert unread.content == before.content
    (read,) = run([path], out=out, verify_content=True).records
    assert read.content == f"blake3:{blake3.blake3(path.read_bytes()).hexdigest()}" != before.content
    assert read.z != before.z


def test_results_of_the_version_before_are_used(tmp_path, reads):
    paths, out = stores.store(tmp_path / "store", 2), tmp_path / "out"
    expected = run(paths, out=out, compares=True).records
    for part in out.rglob("*.parquet"):
        table = pq.ParquetFile(part).read()
        names = ["sha256" if name == "content" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names).replace_schema_metadata(pq.read_schema(part).metadata), part)
    reads.clear()
    found = run(paths, out=out)
    assert found.reused == 2 and not reads
    assert [(one.sha256, one.z) for one in found.records] == [(one.sha256, one.z) for one in expected]


def test_a_scan_chooses(tmp_path, monkeypatch):
    stores.store(tmp_path / "store", 3)
    chosen = {"options": ModelOptions(arch=MLP), "executor": Stream()}

    def hashes(**options) -> list[bool]:
        report = scanning.scan(tmp_path / "store", **(chosen | options))
        return [bool(one.provenance.sha256) for one in report.findings]

    assert hashes(deep=0) == [True] * 3  # few
    with pytest.raises(DataError, match="sha256 in trigger searches, of up to 16 checkpoints, and with a profile"):
        hashes(deep=0, content_hash="blake3")
    monkeypatch.setattr(scanning, "FEW", 2)
    assert hashes(deep=0) == hashes(deep=0, content_hash="blake3") == [False] * 3
    assert hashes(deep=0, content_hash="sha256") == [True] * 3
    with pytest.raises(DataError, match="expected sha256 or blake3, got 'md5'"):
        hashes(content_hash="md5")
    with pytest.raises(DataError, match="leave it out"):
        hashes(deep=1, content_hash="blake3")


def test_references_are_recognised_by_blake3_too(tmp_path):
    paths, options = stores.store(tmp_path / "store", 23), ModelOptions(arch=MLP)
    made = scanning.calibrate([str(path) for path in paths[:20]], options=options)
    (cohort,) = made.cohorts.values()
    contents = {blake3.blake3(path.read_bytes()).hexdigest() for path in paths[:20]}
    assert cohort.blake3.keys() == contents and set(cohort.blake3.values()) == cohort.contents
    profile = profiles.from_json(profiles.to_json(made), "text")
    assert profile.digest == made.digest and not profile.needs_sha256

    def scan(profile, **more):
        found = scanning.scan(
            [str(path) for path in paths], profile=profile, options=options, executor=Stream(), deep=0, **more
        ).findings
        return [one.provenance.blake3 != "" for one in found], [(one.verdict, one.reason, one.p_value) for one in found]

    by_blake3, judged = scan(profile)
    by_sha256, expected = scan(profile, content_hash="sha256")
    assert by_blake3 == [True] * 23 and by_sha256 == [False] * 23
    assert judged == expected
    assert sum("one of the references" in reason for _, reason, _ in judged) == 20
    older = replace(profile, cohorts={name: replace(one, blake3=None) for name, one in profile.cohorts.items()})
    assert older.needs_sha256 and profiles.from_json(profiles.to_json(older), "text").needs_sha256
    assert scan(older) == (by_sha256, expected)
    with pytest.raises(DataError, match="a profile that has no BLAKE3"):
        scan(older, content_hash="blake3")


def test_references_that_are_gone_or_far_are_known_by_sha256_alone(tmp_path):
    paths = stores.store(tmp_path / "store", 3)
    made = scanning.calibrate([str(path) for path in paths], options=SETTINGS.options)
    records = run(paths, compares=True).records
    assert not with_blake3(made, records).needs_sha256
    url = replace(records[1].provenance, name="https://example.org/1.safetensors")
    assert with_blake3(made, [records[0], records[1]._replace(provenance=url), records[2]]).needs_sha256
    paths[2].unlink()
    assert with_blake3(made, records).needs_sha256
