"""Counting what a program compiled for a GPU consists of, and, where XLA's GPU compiler is, compiling it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

# As XLA writes it: a loop of one kernel, a collective over two devices, and one convolution of each half.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%fused_add (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%b), index=1
  %loop_add_fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %loop_add_fusion)
}

%cond (c: (s32[], f32[8])) -> pred[] {
  %c = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] fusion(%c), kind=kLoop, calls=%fused_less
}

ENTRY %main.1 (x: bf16[2,8,8,4]) -> f32[8] {
  %x.1 = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %conv.1 = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %k), \
custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(step)/jvp(frozen)/conv_general_dilated"}
  %conv.2 = (f32[3,3,4,4]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %y), \
custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(step)/transpose(jvp())/conv"}
  %gemm_fusion_dot = f32[16,16]{1,0} fusion(%conv.2), kind=kCustom, calls=%g, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %wrapped_slice = f32[8]{0} fusion(%gemm_fusion_dot), kind=kLoop, calls=%s
  %while.1 = (s32[], f32[8]{0}) while(%init), condition=%cond, body=%body
  %all-reduce-start = (f32[8]{0}, bf16[4]{0}) all-reduce-start(%wrapped_slice, %z), to_apply=%sum
  %all-reduce-done = (f32[8]{0}, bf16[4]{0}) all-reduce-done(%all-reduce-start)
  %all-gather-start = (f32[8]{0}, f32[16]{0}) all-gather-start(%wrapped_slice), dimensions={0}
  %copy.1 = f32[8]{0:S(5)} copy(%wrapped_slice)
  ROOT %out = f32[8]{0} get-tuple-element(%while.1), index=1
}
"""


@pytest.fixture(scope="module")
def gpu_program():
    spec = importlib.util.spec_from_file_location("gpu_program", SCRIPTS / "gpu_program.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_programs_kernels_loops_transfers_and_collectives_are_counted(gpu_program):
    program = gpu_program.count(PROGRAM)
    kernels = {"fusion": 3, "convolution": 2, "GEMM": 1, "copy": 1, "all-reduce": 1, "all-gather": 1}
    assert program.kernels == kernels and program.launches == 9
    assert program.convolutions == {"frozen": {"bf16": 1}, "trained": {"f32": 1}}
    # 8 × 4 + 4 × 2 bytes reduced; 16 × 4 gathered, without the operand that the start hands through.
    assert program.collectives == {"all-reduce": (1, 40), "all-gather": (1, 64)}
    assert (program.loops, program.host_transfers) == (1, 1)


def test_a_text_without_a_program_is_refused(gpu_program):
    with pytest.raises(ValueError, match="no ENTRY computation"):
        gpu_program.count("HloModule empty")


@pytest.mark.slow
def test_the_step_compiled_for_gpus_has_no_loop_no_host_transfer_and_one_collective():
    python = os.environ.get("DIFFLID_GPU_PYTHON")
    if not python:
        pytest.skip("DIFFLID_GPU_PYTHON names no Python with jax[cuda12], see scripts/gpu_compile.py --help")
    command = [python, SCRIPTS / "gpu_compile.py", "--config.network.dtype=bfloat16", "--devices=8"]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    row = dict(re.findall(r"^\| (.+) \| (.+) \|$", result.stdout, re.MULTILINE))
    assert row["loops"] == row["host transfers"] == "0"
    assert re.fullmatch(r"\d+ in bf16", row["convolutions of the frozen half"])
    assert not {"all-gather", "all-to-all", "collective-permute", "reduce-scatter"} & set(row)
    assert int(row["all-reduce"].split(",")[0]) <= 2
