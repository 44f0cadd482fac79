"""The kernels by Triton's compiler: the interpreter takes what it would refuse. Needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from fusionrag_integrations.kernels import online_softmax, segment_attention, sparse_attention

TYPES = dict.fromkeys(("positions", "slots", "first_slots", "table"), "*i64")
TYPES |= dict.fromkeys(("parts", "maxima", "totals", "cosines", "sines"), "*fp32")
TYPES |= {"other": "*i32", "stale": "*u8", "scaling": "fp32"}
TYPES |= dict.fromkeys(("queries", "keys", "values", "out"), "*bf16")


def compiled(kernel, **constants):
    names = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=names, constexprs=constants)
    return compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


sizes = {"SIZE": 64, "PADDED": 64}
flags = {"WINDOWED": True, "SPLIT": True, "WIDE": False}
for kernel in (sparse_attention._attend, segment_attention._attend_in_place):
    assert "wgmma" in compiled(kernel, **sizes, BLOCK_M=64, BLOCK_N=32, **flags)
assert compiled(online_softmax.combine, **sizes, SPLITS=4)
"""


def test_the_kernels_compile_to_a_hoppers_matrix_instructions(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert process.returncode == 0, process.stderr
