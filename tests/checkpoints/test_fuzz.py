"""A short run of the fuzzer over every format, and hypothesis; experiments/fuzz_checkpoints.py is the long run."""

import json
import math
import os
import pathlib
import resource
import subprocess
import time
import zipfile
from random import Random

import fuzz_blind
import fuzz_mutations
import fuzz_pickles
import fuzz_seeds
import fuzzing
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxguard import checkpoints
from jaxguard.errors import CheckpointError

MUTANTS = 75
KINDS = (*checkpoints.FORMATS, fuzz_seeds.FOLDER)
UNREADABLE = {"complex128.pt", "conjugate.pt", "no_tensors.pt", "quantized.pt", "sparse.pt", "pandas.h5"}
HOSTILE = {"lying_names.h5", "circle.h5", "soft_circle.h5", "missing_chunks.h5", "bomb.h5", "external.h5", "circle"}
EXAMPLES = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Where the canary would appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_sound(content: bytes, folder: pathlib.Path) -> fuzzing.Outcome:
    path = folder / "input"
    path.unlink(missing_ok=True)  # the one before may still be mapped
    path.write_bytes(content)
    outcome = fuzzing.examine(path)
    assert outcome.finding is None, outcome.finding
    return outcome


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def grown(size: float) -> bytes:
    """More memory than this process ever had, by `size`."""
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return b"x" * int(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident + size)


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_open_or_are_refused(kind, folder):
    outcomes = []
    for iteration in range(MUTANTS):
        outcome = fuzzing.attempt(0, kind, iteration, folder)
        assert outcome.finding is None, (
            f"python experiments/fuzz_checkpoints.py --seed 0 --replay {kind}:{iteration}\n{outcome.finding}"
        )
        outcomes.append(outcome)
    assert {outcome.verdict for outcome in outcomes} == {fuzzing.OPENED, fuzzing.REFUSED}
    assert len({outcome.message for outcome in outcomes}) > 10  # mutants get further than the first check


def test_mutants_of_other_formats_are_refused_by_name_or_open(folder):
    outcomes = [fuzzing.attempt(0, fuzz_seeds.FOREIGN, iteration, folder) for iteration in range(MUTANTS)]
    assert not [outcome.finding for outcome in outcomes if outcome.finding]
    assert len({outcome.message for outcome in outcomes}) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_open_as_what_they_are(kind, folder):
    for number, seed in enumerate(fuzz_seeds.seeds()[kind]):
        fuzzing.write(seed.files, folder / str(number))
        path = folder / str(number) / seed.target
        if seed.name.startswith("gadget"):
            assert checkpoints.examine(path).calls
        elif seed.name not in UNREADABLE | HOSTILE:
            found = checkpoints.load(path)
            assert kind in (found.format, fuzz_seeds.FOLDER)
            assert list(found.read_all()) == list(found.leaves)


def test_a_name_brings_an_input_back():
    for kind in KINDS:
        assert fuzzing.mutant(3, kind, 7) == fuzzing.mutant(3, kind, 7)
    assert len({str(fuzzing.mutant(3, "pickle", number)[1]) for number in range(50)}) > 45


@pytest.mark.parametrize(
    ("misbehaviour", "found"),
    [
        (lambda path: {}["key"], "KeyError"),
        (lambda path: math.factorial(-1), "ValueError"),
        (lambda path: os.system("true"), "os.system"),
        (lambda path: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda path: path.with_name("left").write_text("x"), "open for writing"),
        (lambda path: __import__("antigravity_of_no_module"), "import antigravity_of_no_module"),
        (lambda path: pathlib.Path(fuzz_seeds.CANARY).symlink_to("x"), "os.symlink"),
        (lambda path: busy(1.2 * fuzzing.MAX_SECONDS), "processor time"),
        (lambda path: grown(1.5 * fuzzing.MAX_GROWTH_BYTES), "MiB of memory"),
    ],
)
def test_the_watch_sees(misbehaviour, found, folder, monkeypatch):
    path = folder / "x.safetensors"
    checkpoints.save(path, {"w": np.ones(2)})
    assert fuzzing.examine(path).finding is None
    sound = checkpoints.load

    def load(given):
        misbehaviour(pathlib.Path(given))
        return sound(given)

    monkeypatch.setattr(checkpoints, "load", load)
    finding = fuzzing.examine(path).finding
    assert finding is not None
    assert found in finding


def test_mutants_of_archives_and_trees_keep_their_checksums(folder):
    rng, archives = Random(0), 0
    for seed in fuzz_seeds.seeds()["pytorch"]:
        (folder / "x.zip").write_bytes(fuzz_mutations._zip(seed.files["checkpoint"], [b"other"], rng))
        with zipfile.ZipFile(folder / "x.zip") as archive:
            assert archive.testzip() is None
            archives += 1
    assert archives > 10
    assert fuzz_mutations.crc32c(b"123456789") == 0xE3069283  # the check value of its catalogue


def test_mutants_of_trees_pass_their_checksums(folder):
    (seed,) = (seed for seed in fuzz_seeds.seeds()["orbax"] if seed.name == "uncompressed")
    rng, messages = Random(0), []
    for number in range(40):
        changed = fuzz_mutations._ocdbt(seed.files["manifest.ocdbt"], [b"other"], rng)
        fuzzing.write({**seed.files, "manifest.ocdbt": changed}, folder / str(number))
        try:
            checkpoints.load(folder / str(number))
        except CheckpointError as error:
            messages.append(str(error))
    assert messages
    assert not any("CRC-32C" in message for message in messages)


SIZES = st.integers(-2, 40) | st.sampled_from(fuzz_blind.INTEGERS)
TEXTS = st.text(max_size=8) | st.sampled_from([text for text in fuzz_mutations.TEXTS if text.isprintable()])
JSON = st.recursive(
    st.none() | st.booleans() | SIZES | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(checkpoints.DTYPES)) | TEXTS,
        "shape": st.lists(SIZES, max_size=4) | JSON,
        "data_offsets": st.tuples(SIZES, SIZES) | JSON,
    },
    optional={"more": JSON},
)


@EXAMPLES
@given(fields=st.dictionaries(TEXTS, ENTRIES | JSON, max_size=4) | JSON, data=st.binary(max_size=64))
def test_any_json_as_a_header_of_safetensors(fields, data, folder):
    text = json.dumps(fields).encode()
    assert_sound(len(text).to_bytes(8, "little") + text + data, folder)


@EXAMPLES
@given(fields=st.fixed_dictionaries({"weight_map": st.dictionaries(TEXTS, TEXTS, max_size=3) | JSON}))
def test_any_json_as_an_index(fields, folder):
    assert_sound(json.dumps(fields).encode(), folder)


ATOMS = st.sampled_from(
    [
        b"N",
        b"]",
        b"}",
        b")",
        b"(",
        b"K\x01",
        b"K\x02",
        b"h\x00",
        b"h\x01",
        b"C\x08" + bytes(8),
        b"X\x01\x00\x00\x00w",
        b"I-1\n",
    ]
)
STEPS = ATOMS | st.sampled_from(fuzz_pickles.SNIPPETS) | st.sampled_from(fuzz_pickles.GLOBALS)
TENSOR = fuzz_seeds.torch_bytes.tensor()


@EXAMPLES
@given(steps=st.lists(STEPS | st.just(TENSOR), max_size=25), protocol=st.integers(0, 5), zipped=st.booleans())
def test_any_program_as_a_pickle(steps, protocol, zipped, folder):
    program = fuzz_seeds.torch_bytes.mapping(w=TENSOR)[:-1] + b"".join(steps)
    if zipped:
        assert_sound(fuzz_seeds.torch_bytes.zipped(program + b"u"), folder)
    else:
        assert_sound(b"\x80" + bytes([protocol]) + b"}(X\x01\x00\x00\x00v" + b"".join(steps) + b"u.", folder)


ARRAYS = st.builds(
    lambda shape, dtype, data, code: msgpack.ExtType(code, msgpack.packb((shape, dtype, data))),
    st.lists(st.integers(-2, 40) | st.sampled_from((2**31, 2**62, 2**64 - 1)), max_size=3),
    st.sampled_from(("float32", "bfloat16", "object", "V2", "int9", "<M8", "float32\0")),
    st.binary(max_size=64),
    st.sampled_from((1, 1, 1, 2, 3, 4, 127)),
)
LEAVES = (
    ARRAYS | st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXTS | st.binary(max_size=9)
)
KEYS = (
    TEXTS
    | st.integers(0, 3)
    | st.sampled_from(("__msgpack_chunked_array__", "shape", "chunks", "0", "params", "opt_state"))
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


@EXAMPLES
@given(tree=st.dictionaries(TEXTS, TREES, min_size=1, max_size=4))
def test_any_tree_as_msgpack(tree, folder):
    assert_sound(msgpack.packb(tree), folder)


def test_surrogates_deep_in_a_configuration_do_not_become_metadata(folder):
    """Found by the fuzzer: only keys and texts right below an object were looked at, and printing the rest failed."""
    checkpoints.save(folder / "model.safetensors", {"w": np.ones(2)})
    for value in (["\udc80"], [{"a": ["\udc80"]}], "\udc80", {"\udc80": 1}):
        (folder / "config.json").write_text(json.dumps({"labels": value}))
        with pytest.raises(CheckpointError, match="surrogates not allowed"):
            checkpoints.load(folder)
    (folder / "config.json").write_text(json.dumps({"labels": ["\U0001f431"]}))  # a pair of them is a letter
    assert checkpoints.load(folder).metadata["labels"] == '["\U0001f431"]'
