"""The README does what it says: its demo, its commands and its Python, in one folder, in order."""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import pytest

from jaxguard.demo import METHODS

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


# The demo repairs with nearly the same settings; here it matters that the commands run as printed.
SETTINGS = {
    "ft-sam": ("epochs=2",),
    "shapley": ("synthesis_steps=2", "inversion_steps=4", "restore_steps=2", "samples=1"),
    "otbr": ("steps=2",),
    "tsbd": ("unlearn_epochs=2", "epochs=2"),
}
BRIEFLY = {method: [word for one in given for word in ("--set", one)] for method, given in SETTINGS.items()}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


DEMO = """
import importlib
from jaxguard import demo
from jaxguard.cli import main

importlib.import_module("jaxguard.defenses.otbr").IMAGES_PER_CLASS = 4
demo.STEPS = 200
demo.OPTIONS["ft-sam"]["epochs"] = 20
demo.OPTIONS["tsbd"]["epochs"] = 15
demo.OPTIONS["shapley"] = {"images": 20, "inversion_steps": 200, "samples": 5, "restore_steps": 100}
main()
"""
"""The command, with fewer steps, images and samples: repairs are a little worse, which the test allows for."""


def run_demo(folder):
    """In a process of its own, with the least of LLVM's optimisation: without any, as in other tests, convolutions take
    ten times as long; with all of it, compilation takes longer than it saves here."""
    flags = os.environ["XLA_FLAGS"].replace("xla_backend_optimization_level=0", "xla_backend_optimization_level=1")
    environment = os.environ | {"XLA_FLAGS": flags}
    return subprocess.run(
        [sys.executable, "-c", DEMO, "demo", "--out", "demo"],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    start = time.perf_counter()
    done = run_demo(folder)
    assert done.returncode == 0, done.stderr
    print(f"demo: {time.perf_counter() - start:.0f} s")
    return folder


@pytest.mark.slow
def test_the_demo_finds_a_backdoor_and_takes_it_out(demo):
    report = json.loads((demo / "demo" / "report.json").read_text())
    backdoored, clean = report["findings"]
    assert backdoored["metrics"]["asr"] > 0.95
    assert backdoored["metrics"]["acc"] > 0.95 and clean["metrics"]["acc"] > 0.95
    assert clean["metrics"]["asr"] < 0.1
    assert [scan["verdict"] for scan in report["findings"]] == ["confirmed", "no trigger found"]
    by_kind = {one["kind"]: one["gap"] for one in backdoored["search"]["results"]}
    assert by_kind["patch"] > 2 and "into class 0" in backdoored["reason"]
    repairs = {repair["method"]: repair for repair in report["repairs"]}
    assert repairs.keys() == set(METHODS)
    for method, most in (("ft-sam", 0.03), ("shapley", 0.03), ("tsbd", 0.1), ("otbr", 0.25)):
        assert repairs[method]["after"]["asr"] < 0.1, method
        assert repairs[method]["before"]["acc"] - repairs[method]["after"]["acc"] < most, method
    assert repairs["clp"]["layers"]
    assert len((demo / "demo" / "report.html").read_text()) > 50_000
    for name in ("backdoored", "clean", *(f"repaired-{method}" for method in METHODS)):
        assert (demo / "demo" / f"{name}.safetensors").is_file()


@pytest.mark.slow
def test_the_commands_run(demo, jaxguard, monkeypatch, usual_promotion):
    monkeypatch.chdir(demo)
    monkeypatch.setattr(importlib.import_module("jaxguard.defenses.otbr"), "IMAGES_PER_CLASS", 1)
    commands = [
        line
        for block in blocks("bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("jaxguard ")
    ]
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command, comments=True)[1:]
        briefly = [word for method, given in BRIEFLY.items() if ["--method", method] == words[2:4] for word in given]
        code, _, errors = jaxguard(*words, *briefly)
        assert code == (1 if words[0] == "scan" and "--attack" in words else 0), f"{command}\n{errors}"  # confirmed


@pytest.mark.slow
def test_the_python_runs(demo, monkeypatch, usual_promotion):
    monkeypatch.chdir(demo)
    code = blocks("python")
    assert code
    for number, block in enumerate(code):
        exec(compile(block, f"block {number}", "exec"), {"__name__": "__main__"})


def test_its_files_exist():
    for path in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / path.partition("#")[0]).exists(), path
