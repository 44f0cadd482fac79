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
from fusionrag_integrations.attention import gather, launch, online_softmax, scatter
from fusionrag_integrations.attention import segment_attention, sparse_attention

INTEGERS = ("table", "programs", "owners", "slots", "first_seen", "first_parts", "positions")
TYPES = dict.fromkeys((*INTEGERS, "work", "users", "chunks", "uses"), "*i64")
TYPES |= dict.fromkeys(("parts", "maxima", "totals", "sinks"), "*fp32")
TYPES |= {"other": "*i32", "scaling": "fp32", "softcap": "fp32"}
OF_KV = ("queries", "keys", "values", "out", "out_keys", "out_values")
TYPES |= dict.fromkeys(OF_KV, "*bf16")


def compiled(kernel, options=None, **constants):
    # As for aligned tensors, whose blocks are read ahead into shared memory.
    names = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in kernel.arg_names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(kernel.arg_names)
        if names[name].startswith("*") or name.endswith(("_row", "_head"))
    }
    source = ASTSource(fn=kernel, signature=names, constexprs=constants, attrs=aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options=options)


sizes = {"SIZE": 64, "PADDED": 64}
flags = {"CAPPED": True, "WINDOWED": True, "WIDE": False}
blocks = {"BLOCK_M": 64, "BLOCK_N": 32}
split = {"SINKS": True, "SPLIT": True, "COLUMNS": 6}
made = compiled(sparse_attention.attend_kernel, **sizes, **blocks, **flags, **split)
assert "wgmma" in made.asm["ptx"]
made = compiled(segment_attention.attend_in_place_kernel, **sizes, **blocks, **flags)
assert "wgmma" in made.asm["ptx"]
assert compiled(online_softmax.combine, **sizes, BLOCK=16)
assert compiled(gather.gather_kernel, **sizes, BLOCK=32, BY_TOKEN=True)
assert compiled(scatter.scatter_kernel, **sizes, BLOCK=32, COLUMNS=6)
layout = launch.launch_for(28, 4, 5_000, 32_000, 2 * 128, 132)
made = compiled(
    sparse_attention.attend_kernel,
    options={"num_warps": layout.warps, "num_stages": layout.stages},
    **(flags | split | {"SIZE": 128, "PADDED": 128}),
    BLOCK_M=layout.block_m,
    BLOCK_N=layout.block_n,
)
assert 192 * 1024 < made.metadata.shared <= 227 * 1024, made.metadata.shared
"""


def test_the_kernels_compile_for_a_hopper(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert process.returncode == 0, process.stderr
