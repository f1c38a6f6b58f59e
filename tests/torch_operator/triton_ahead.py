"""Compiles the Triton kernels for devices that are not there, and prints what they need, as JSON.

    python -m tests.torch_operator.triton_ahead CAPABILITY C R ROWS BIAS PARTS ...

Arguments come in sixes. Each gives the registers of a thread, the bytes that were spilt, and the
shared memory of a program, of the attending kernel with everything else (ragged buffers, causal, a
sink) and of the combining one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mla_opt.kernels.triton.attend import attend_split
from mla_opt.kernels.triton.combine import combine_splits
from mla_opt.kernels.triton.tiles import MOST_SPLITS, tile_for
from mla_opt.operator.torch.call import make_call
from mla_opt.operator.torch.triton_launch import constants

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KINDS = {"past_len": "*i32", "partial": "*fp32", "log_sum": "*fp32", "scale": "fp32"}
# What PyTorch's allocator aligns, and strides and counts that are multiples of 16 in models.
ALIGNED = ("query", "rows", "rope", "past_len", "sink", "output", "partial", "log_sum", "heads")


def call(rank: int, rope: int, bias: str):
    """A call on no device, in bfloat16, of 128 heads."""

    def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    biases = {
        "none": None,
        "additive": on_meta(1, 1, 1, 64),
        "boolean": on_meta(1, 1, 1, 64, dtype=torch.bool),
    }
    return make_call(
        on_meta(1, 128, 1, rank + rope),
        on_meta(1, 1, 1, rank + rope),
        on_meta(1, 1, 64, rank + rope),
        on_meta(1, dtype=torch.int32),
        biases[bias],
        on_meta(128),
        scale=1.0,
        kv_lora_rank=rank,
        causal=True,
    )


def compiled(kernel, compiled_for: dict, capability: int, bias: str = "none", **options):
    names = kernel.arg_names
    kinds = {name: KINDS.get(name, "i32") for name in names}
    for name in ("query", "rows", "rope", "bias", "sink", "output"):
        if name in kinds:
            kinds[name] = "*u8" if (name, bias) == ("bias", "boolean") else "*bf16"
    kinds |= dict.fromkeys(compiled_for, "constexpr")
    source = ASTSource(
        kernel,
        signature=kinds,
        constexprs={(names.index(key),): value for key, value in compiled_for.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in ALIGNED if n in names},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def needs(kernel) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [os.fspath(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", said).groups()
    return {
        "registers": int(registers),
        "spilt": int(stack) + int(local),
        "shared": kernel.metadata.shared,
    }


def attending(capability: int, rank: int, rope: int, rows: int, bias: str, parts: int):
    tile = tile_for(divmod(capability, 10), rows, 2)
    compiled_for = constants(call(rank, rope, bias), tile) | {"ONE_SPLIT": parts == 1}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return compiled(attend_split, compiled_for, capability, bias, **options)


def combining(capability: int, rank: int):
    compiled_for = {"C": rank, "BLOCK_C": rank, "MOST_SPLITS": MOST_SPLITS, "SINK": True}
    return compiled(combine_splits, compiled_for, capability)


def main(words: list[str]) -> None:
    results = []
    for start in range(0, len(words), 6):
        capability, rank, rope, rows, bias, parts = words[start : start + 6]
        kernel = attending(int(capability), int(rank), int(rope), int(rows), bias, int(parts))
        combine = combining(int(capability), int(rank))
        results.append({"attend": needs(kernel), "combine": needs(combine)})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
