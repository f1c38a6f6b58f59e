"""What each process of test_processes does: its file, optimized, and tokens by gloo.

Run by `python -m torch.distributed.run --standalone --nproc-per-node N -m` and this module.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

import mla_opt
from mla_opt.runtimes.onnxruntime.ranks import RankSession
from tests.tensor_parallel import ranks
from tests.tensor_parallel.greedy import PROMPT, greedy, session_run


def main() -> None:
    dist.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        path = ranks.build(dist.get_rank(), dist.get_world_size(), Path(folder) / "rank.onnx")
        result = mla_opt.optimize(path)
        rank = RankSession(result.model, lambda array: dist.all_reduce(torch.from_numpy(array)))
        said = greedy(rank.run, PROMPT, 12)
        alone = greedy(session_run(ranks.whole(Path(folder) / "whole.onnx")), PROMPT, 12)
    assert said == alone, (said, alone)
    assert len(set(said)) > 3, "nothing was compared"
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
