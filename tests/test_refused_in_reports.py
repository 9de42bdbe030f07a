"""Why a file could not be scored, as one word in every report; and code in files that are skipped."""

import json
import pickle

import numpy as np
import pytest
import safetensors.numpy

from jaxguard import scanning
from jaxguard.fleet.executors import Stream
from jaxguard.fleet.local import Local
from jaxguard.report import page, sarif, schema
from jaxguard.types import Verdict
from tests.checkpoints import torch_bytes

LEAF = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header(**leaves) -> bytes:
    text = json.dumps(leaves).encode()
    return len(text).to_bytes(8, "little") + text


INFINITE = {"a.weight": np.full((4, 3), np.inf, np.float32), "b.weight": np.ones((2, 4), np.float32)}
REFUSED = {
    "unsupported.safetensors": (header(a=LEAF | {"dtype": "X9"}) + bytes(8), "unsupported"),
    "damaged.safetensors": (header(a=LEAF) + bytes(7), "damaged"),
    "hostile.safetensors": (header(a=LEAF, b=LEAF) + bytes(8), "hostile"),
    "infinite.safetensors": (safetensors.numpy.save(INFINITE), "not finite"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "unreadable"),
}


@pytest.fixture
def folder(tmp_path):
    for name, (content, _) in REFUSED.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("executor", [Local(), Stream()], ids=["local", "stream"])
def test_the_kind_of_a_refusal_reaches_every_report(folder, executor):
    report = scanning.scan(str(folder), executor=executor)
    found = {one.provenance.name.rpartition("/")[2]: one for one in report.findings}
    assert {name: one.kind for name, one in found.items()} == {name: kind for name, (_, kind) in REFUSED.items()}
    assert all(one.verdict is Verdict.ERROR for one in found.values())
    back = schema.from_json(schema.to_json(report))
    assert [one.kind for one in back.findings] == [one.kind for one in report.findings]
    run = json.loads(sarif.to_sarif(report))["runs"][0]
    told = [
        one["properties"]["kind"] for one in run["invocations"][0]["toolExecutionNotifications"] if "locations" in one
    ]
    assert sorted(told) == sorted(one.kind for one in report.findings)
    assert all(f"could not be scored: {kind}" in page.to_html(report) for kind in ("unsupported", "damaged", "hostile"))


def test_code_in_a_file_that_is_skipped_is_a_finding(tmp_path):
    program = b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n0cos\nsystem\n(" + torch_bytes.text("true") + b"tR."
    (tmp_path / "model.joblib").write_bytes(program)
    (tmp_path / "harmless.joblib").write_bytes(b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n.")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a.weight": np.ones((4, 3), np.float32)}))
    report = scanning.scan(str(tmp_path))
    (coded,) = [one for one in report.findings if one.verdict is Verdict.CODE_EXECUTION]
    assert coded.provenance.name.endswith("model.joblib") and "os.system" in coded.reason
    assert [(path.rpartition("/")[2], "a pickle of joblib" in why) for path, why in report.skipped] == [
        ("harmless.joblib", True)
    ]
