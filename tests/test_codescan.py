"""The scan for code alone: one finding per file, in words, quickly; and what a scan says of files it cannot reach."""

import pickle
import time
import zipfile

import numpy as np
import pytest

from jaxguard import checkpoints, codescan, scanning
from jaxguard.errors import CheckpointError
from jaxguard.report import headlines
from jaxguard.types import Verdict

RUN = b"\x80\x02cprofile\nrun\n)R."


def store(folder, count: int) -> None:
    """Containers of PyTorch, and pickles and archives of NumPy, with twenty arrays each."""
    arrays = {f"layer{n}.weight": np.ones((16, 9), np.float32) for n in range(20)}
    body = pickle.dumps(arrays, 2)
    for n in range(count):
        match n % 3:
            case 0:
                (folder / f"{n}.pkl").write_bytes(body)
            case 1:
                np.savez(folder / f"{n}.npz", **arrays)
            case _:
                with zipfile.ZipFile(folder / f"{n}.pt", "w") as archive:
                    archive.writestr("x/data.pkl", body)
                    archive.writestr("x/data/0", bytes(10_000))


def test_every_file_gets_its_finding(tmp_path):
    store(tmp_path, 3)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "bad").write_bytes(RUN)
    (tmp_path / "inner" / "broken.pkl").write_bytes(b"\x80\x02X")
    report = codescan.scan_code([tmp_path])
    verdicts = {one.provenance.name.rpartition("/")[2]: one.verdict for one in report.findings}
    assert verdicts == {
        "0.pkl": Verdict.INCONCLUSIVE,
        "1.npz": Verdict.INCONCLUSIVE,
        "2.pt": Verdict.INCONCLUSIVE,
        "bad": Verdict.CODE_EXECUTION,
        "broken.pkl": Verdict.ERROR,
    }
    told = headlines.scan_headline(report)
    assert told.lead == "Code execution in 1 of 5 files; 1 could not be followed to the end"
    assert told.detail.startswith("Weights were not examined.")
    told = headlines.scan_headline(codescan.scan_code([tmp_path / "0.pkl", tmp_path / "1.npz"]))
    assert told.lead == "No code that loading would run found in 2 of 2 files"
    with pytest.raises(CheckpointError, match="expected a local file or folder"):
        codescan.scan_code([tmp_path / "absent"])


def test_hundreds_of_files_take_a_second(tmp_path):
    """1,000 files take 2 s of processor time; a tenth of them is given five times as long."""
    store(tmp_path, 100)
    start = time.process_time()
    assert len(codescan.scan_code([tmp_path]).findings) == 100
    assert time.process_time() - start < 1


def test_what_cannot_be_downloaded_was_not_examined(monkeypatch):
    def fetched(given: str):
        raise CheckpointError(f"{given}: expected a file, got none")

    monkeypatch.setattr("jaxguard.checkpoints.remote.fetched", fetched)
    (finding,) = scanning.scan("hf://owner/name").findings
    assert finding.verdict is Verdict.ERROR
    assert finding.notes == ("Not examined for code: the file could not be downloaded.",)
    assert checkpoints.examine("hf://owner/name").problem == "hf://owner/name: expected a file, got none"
