"""Fixtures shared by all tests."""

import itertools
import os
import pathlib
import sys

# Before jax is imported, here and in the processes that tests start: the suite compiles thousands of programs that run
# once, and without LLVM's optimisations that takes two thirds of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

MANY_MAPS = 20_000
TESTS = itertools.count(1)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of the real datasets and third-party checkpoints; tests that need it skip where it is absent."""
    sibling = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("JAXGUARD_SHARED_DATA", sibling))
    if not (folder / "checkpoints").is_dir():
        pytest.skip(f"needs the third-party checkpoints: no folder {folder}/checkpoints; set JAXGUARD_SHARED_DATA")
    return folder


@pytest.fixture
def jaxguard(monkeypatch, capsys):
    """The command line: `(*arguments) -> (exit code, output, errors)`."""
    from jaxguard.cli import main

    def run(*arguments: object) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxguard", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def pytest_runtest_teardown():
    """Drops compiled programs where there are many: each takes memory maps, and Linux allows a process 65,530."""
    maps = pathlib.Path("/proc/self/maps")
    if next(TESTS) % 20 == 0 and maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
