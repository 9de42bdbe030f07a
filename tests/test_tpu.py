"""Programs are decided for devices that are not at hand, compiled for TPUs where libtpu is, and their traffic read."""

import functools
import pathlib
import sys
import types

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments"))
import tpu
import tpu_programs
import tpu_table
import tpu_traffic

from jaxguard import execution, meshes


def test_sizes_are_decided_for_the_devices_aimed_at():
    chip = types.SimpleNamespace(platform="tpu")
    here = (execution.is_cpu(), execution.devices(), execution.stack_bytes())
    with execution.aimed_at([chip] * 8):
        assert not execution.is_cpu()
        assert len(execution.devices()) == 8
        assert meshes.divisible(9) == 16
        assert execution.stamped_images_at_once() == 8 * 1024
        assert execution.coalitions_abreast() > 64
        with execution.aimed_at([chip]):
            assert meshes.divisible(9) == 9
        assert len(execution.devices()) == 8
    assert (execution.is_cpu(), execution.devices(), execution.stack_bytes()) == here


def test_memory_decides_sizes(monkeypatch):
    chip = types.SimpleNamespace(platform="tpu")
    monkeypatch.setattr(execution, "host_bytes", lambda: 64 * 10**9)
    with execution.aimed_at([chip] * 8):
        assert execution.search_bytes() == 4 * 10**9
        assert execution.stack_bytes() == 8 * 250 * 10**6 and execution.staging_bytes() == 6 * 10**9
        assert execution.networks_at_once(10**9) == 8 * 4 and execution.networks_at_once(10**11) == 8
    with execution.aimed_at([chip], memory=95 * 10**9):
        assert execution.search_bytes() == 95 * 10**9 // 4
        assert execution.stamped_images_at_once(10**9) == 23
        assert execution.stack_bytes() == 2**29  # no more, however large
    assert execution.search_bytes() == 2**32 and execution.staging_bytes() == 3 * 2**28
    monkeypatch.setattr(execution, "host_bytes", lambda: 10**9)  # of a small container
    assert execution.search_bytes() == execution.staging_bytes() == 25 * 10**7


def test_a_containers_memory_is_its_limit(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(execution.pathlib, "Path", lambda _: limit)
    whole = execution.host_bytes.__wrapped__()
    limit.write_text("max\n")
    assert execution.host_bytes.__wrapped__() == whole > 2**28
    limit.write_text("1000000\n")
    assert execution.host_bytes.__wrapped__() == 10**6


HLO = """
%body (p: (s32[], f32[4,100])) -> (s32[], f32[4,100]) {
  %p = (s32[]{:T(128)}, f32[4,100]{1,0:T(4,128)}) parameter(0)
  %x = f32[4,100]{1,0:T(4,128)} get-tuple-element(%p), index=1
  %y = f32[4,100]{1,0:T(4,128)S(1)} copy(%x)
  %z = f32[4,100]{1,0:T(4,128)} negate(%y)
  ROOT %t = (s32[]{:T(128)}, f32[4,100]{1,0:T(4,128)}) tuple(%i, %z)
}

%condition (p: (s32[], f32[4,100])) -> pred[] {
  %p = (s32[]{:T(128)}, f32[4,100]{1,0:T(4,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%fused (a: f32[1000,128], k: s32[]) -> f32[8,128] {
  %a = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %k = s32[]{:T(128)} parameter(1)
  ROOT %cut = f32[8,128]{1,0:T(8,128)} dynamic-slice(%a, %k, %k), dynamic_slice_sizes={8,128}
}

ENTRY %main (a: f32[1000,128], k: s32[]) -> f32[8,128] {
  %a = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %k = s32[]{:T(128)S(6)} parameter(1)
  %start = (s32[]{:T(128)}, f32[4,100]{1,0:T(4,128)}) tuple(%k, %a)
  %loop = (s32[]{:T(128)}, f32[4,100]{1,0:T(4,128)}) while(%start), condition=%condition, body=%body
  %cut = f32[2,128]{1,0:T(2,128)S(1)} dynamic-slice(%a, %k, %k), dynamic_slice_sizes={2,128}
  %put = f32[2,128]{1,0:T(2,128)S(1)} dynamic-update-slice(%cut, %cut, %k, %k)
  ROOT %part = f32[8,128]{1,0:T(8,128)S(1)} fusion(%a, %k), kind=kLoop, calls=%fused
}
"""


def test_traffic_counts_hbm_alone_with_padding_turns_and_slices():
    # Three turns of reading and writing 4 x 100 numbers, padded to 4 x 128; then 2 and 8 rows of 128 of the thousand.
    assert tpu_traffic.hbm_bytes(HLO) == 3 * 2 * 4 * 128 * 4 + (2 + 8) * 128 * 4
    assert tpu_traffic.unknown_loops(HLO) == 0
    unknown = HLO.replace(
        "%limit = s32[]{:T(128)} constant(3)", "%limit = s32[]{:T(128)} get-tuple-element(%p), index=0"
    )
    assert tpu_traffic.hbm_bytes(unknown) == 2 * 4 * 128 * 4 + (2 + 8) * 128 * 4
    assert tpu_traffic.unknown_loops(unknown) == 1


def test_a_program_that_does_not_compile_is_a_line_of_the_table():
    row = {"chips": 1, "work": "all", "error": "Error: 17 GB of 16", "fits": False}
    lines = list(tpu_table.table({"programs": {"large": {"v5e": row}}}, "v5e"))
    assert lines[2] == "| large | all | **does not compile**: Error: 17 GB of 16 | | | | | |"


@pytest.mark.parametrize(
    ("make", "reads"),
    [
        (functools.partial(tpu_programs.correlated, suspects=2, probes=40), None),
        (functools.partial(tpu_programs.fleet, "resnet20"), 3),
    ],
)
def test_it_compiles_for_a_chip_and_fits(make, reads):
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler, is not installed here; `make tpu` does it")
    row = tpu.row_of(tpu_programs.Program(make), "v5e")
    assert row["fits"], row
    assert 0 < row["memory_gigabytes"] < 1
    assert reads is None or 1 <= row["weight_reads"] <= reads
