"""A tensor-parallel model, one process a rank: optimize each rank's part, in ONNX and in PyTorch.

    torchrun --standalone --nproc-per-node 2 examples/tensor_parallel.py [FOLDER]

Needs torch, transformers 5 and onnxscript. PyTorch's own styles split a tiny DeepSeek-V3: heads by
columns, o_proj by rows. Its weights are random. gloo adds up; on GPUs nccl does, see
docs/tensor-parallel.md. Each rank keeps the whole latent cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx_ir as ir
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from optimize_in_export_pipeline import (
    PROMPTS,
    WithFlatCache,
    arguments,
    dynamic_shapes,
    export,
    generate,
    generate_in_pytorch,
    tiny_model,
)
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mla_opt
from mla_opt.runtimes.onnxruntime.ranks import RankSession

HEADS, STEPS = 8, 12
PLAN = {
    "model.layers.*.self_attn.q_b_proj": ColwiseParallel,
    "model.layers.*.self_attn.kv_b_proj": ColwiseParallel,
    "model.layers.*.self_attn.o_proj": RowwiseParallel,
    "model.layers.0.mlp.gate_proj": ColwiseParallel,
    "model.layers.0.mlp.up_proj": ColwiseParallel,
    "model.layers.0.mlp.down_proj": RowwiseParallel,
}


class SumInOnnx(nn.Module):
    """The product of rows, and a node that adds what the other ranks have."""

    def __init__(self, rows: nn.Linear) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x):
        part = self.rows(x)
        how = {"dtype": part.dtype, "shape": part.shape, "version": 1}
        return torch.onnx.ops.symbolic("com.microsoft::AllReduce", (part,), **how)


class SumInTorch(SumInOnnx):
    """The same as an operator of PyTorch."""

    def forward(self, x):
        return collectives.all_reduce(self.rows(x), "sum", dist.group.WORLD)


def rank_model(mesh, summed: type[nn.Module]):
    """What this rank has of the model, its weights plain tensors.

    PyTorch 2.13 does not export modules whose weights are DTensors.
    """
    model = tiny_model(HEADS)
    parallelize_module(model, mesh, {name: style() for name, style in PLAN.items()})
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if isinstance(linear, nn.Linear) and isinstance(linear.weight, DTensor):
                weight = linear.weight.to_local()
                own = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                own.weight = nn.Parameter(weight, requires_grad=False)
                by_rows = linear.weight.placements[0].is_shard(1)
                setattr(module, name, summed(own) if by_rows else own)
    return model


def in_onnx(mesh, path: Path) -> list[list[int]]:
    """This rank's file: optimized by itself, run with the others."""
    result = mla_opt.optimize(export(rank_model(mesh, SumInOnnx)))
    ir.save(result.model, path)
    tell(f"{path.name}", result)
    session = RankSession(path, lambda array: dist.all_reduce(torch.from_numpy(array)))
    return generate(lambda feeds: list(session.run(feeds).values()), PROMPTS, STEPS)


def in_torch(mesh) -> list[list[int]]:
    """The same as a program. To verify it, all ranks run it together, so all have to optimize."""
    model = WithFlatCache(rank_model(mesh, SumInTorch)).eval()
    torch.manual_seed(0)
    example = arguments(batch=2, new=5, past=11, padding=2)
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=dynamic_shapes())
        result = mla_opt.optimize(program)
        tell("program", result)
        optimized = result.model.module()

        def run(feeds):
            return [each.numpy() for each in optimized(*map(torch.from_numpy, feeds.values()))]

        return generate(run, PROMPTS, STEPS)


def tell(what: str, result) -> None:
    for site in result.report.sites:
        heads = f"{site.geometry.num_heads} of {HEADS} heads"
        print(f"rank {dist.get_rank()}, {what}: {site.name}, {heads}, verified", flush=True)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    expected = generate_in_pytorch(tiny_model(HEADS), STEPS)
    said = in_onnx(mesh, folder / f"rank{rank}.mla.onnx"), in_torch(mesh)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        for what, tokens in zip(
            ("one process  ", "ranks in ONNX", "in PyTorch   "), (expected, *said)
        ):
            print(f"{what}: {tokens}")
    if any(tokens != expected for tokens in said):
        raise SystemExit(f"rank {rank} does not generate the same tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
