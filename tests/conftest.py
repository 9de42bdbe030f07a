"""Fixtures shared by all tests."""

import atexit
import gc
import importlib.util
import itertools
import mmap
import os
import pathlib
import shutil
import sys
import tempfile
import threading

import pytest

FLAGS = {
    "xla_backend_optimization_level": "0",  # LLVM's
    "xla_cpu_use_fusion_emitters": "false",  # the older of two code generators is the quicker
    "xla_cpu_parallel_codegen_split_count": "1",
}
"""The suite compiles thousands of programs that run once or a few times: with these in a tenth of the time. Some
convolutions then run ten times slower, which networks of a few channels do not notice."""


def known_flags() -> str:
    """Those of FLAGS that this XLA has: it ends the process at any other."""
    folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
    known = []
    for library in folder.glob("libjax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
            known += [f"--{name}={value}" for name, value in FLAGS.items() if code.find(b"\0%b\0" % name.encode()) > 0]
    return " ".join(known)


# Before jax is imported, here and in the processes that tests start.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = known_flags()

# What one process has compiled none compiles again: neither the other worker, nor the commands that tests run, nor the
# same worker once it has dropped its programs. A folder named in the environment is kept from run to run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxguard-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Tracing makes many objects and little garbage: looking for it every 700 of them takes a seventh of the time.
gc.set_threshold(50_000)

MANY_MAPS, TOO_MANY_MAPS = 5_000, 20_000
PROGRAMS_OF_A_CONTEXT = 32
TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Arrays of two dtypes or two ranks meet by mistake more often than on purpose.

    Models that stand for users' code are `zoo.usual`, or in tests of `usual_promotion`.
    """
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_contexts():
    """MLIR contexts serve several programs, as in newer JAX: making one takes a third of a small compile."""
    from jax._src.interpreters import mlir

    make, own = getattr(mlir, "make_ir_context", None), threading.local()
    if make is None or hasattr(mlir, "_create_ir_context"):
        return

    def kept():
        if getattr(own, "left", 0) == 0:
            own.context, own.left = make(), PROGRAMS_OF_A_CONTEXT
        own.left -= 1
        return own.context

    mlir.make_ir_context = kept


@pytest.fixture
def usual_promotion():
    """JAX's defaults, for tests whose models stand for users' code or are run by other libraries."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


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
    from jaxguard.cli import console, main

    # Both, as a console reads COLUMNS when it is made, which may have been before.
    monkeypatch.setenv("COLUMNS", "200")
    for one in (console.out, console.err):
        monkeypatch.setattr(one, "width", 200)

    def run(*arguments: object) -> tuple[int | str, str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxguard", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def pytest_collection_modifyitems(items):
    """What takes minutes comes first, so that no worker is left with it when there is nothing else to do."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_runtest_teardown(item, nextitem):
    """Drops compiled programs after a module, with many of them about 3 GB; within one, before Linux maps no more."""
    ends = nextitem is None or nextitem.path != item.path
    limit = MANY_MAPS if ends else TOO_MANY_MAPS
    maps = pathlib.Path("/proc/self/maps")
    if (ends or next(TESTS) % 20 == 0) and maps.exists() and maps.read_bytes().count(b"\n") > limit:
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def _without_trigger_search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scans search no triggers, which takes seconds for each network, but in tests that ask for `searching`."""
    if "searching" not in request.fixturenames:
        monkeypatch.setattr("jaxguard.scanning.SEARCHES", False)


@pytest.fixture
def searching() -> None:
    """Scans search triggers, as they do outside of tests."""
