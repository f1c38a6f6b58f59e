"""A rank's file: found, proved layer by layer, run between its sums, or refused."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime.ranks import RankSession
from tests.end_to_end.command import command
from tests.tensor_parallel import ranks
from tests.tensor_parallel.greedy import PROMPT, greedy, session_run

COUNT = 2


class Threads:
    """A group of ranks that are threads: a sum waits for all, as one of processes does."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=60)
        self.given: list[Any] = [None] * count

    def all_reduce(self, rank: int) -> Callable[[Any], None]:
        def summed(array: Any) -> None:
            self.given[rank] = array.copy()
            self.barrier.wait()
            array[...] = sum(self.given)
            self.barrier.wait()

        return summed

    def run(self, works: list[Callable[[], Any]]) -> list[Any]:
        results: list[Any] = [None] * len(works)

        def one(rank: int) -> None:
            try:
                results[rank] = works[rank]()
            except BaseException as error:
                results[rank] = error
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(works))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    ranks.whole(folder / "whole.onnx")
    for rank in range(COUNT):
        ranks.build(rank, COUNT, folder / f"rank{rank}.onnx")
    return folder


@pytest.fixture(scope="module")
def optimized(folder: Path) -> list[mla_opt.OptimizeResult]:
    return [mla_opt.optimize(folder / f"rank{rank}.onnx") for rank in range(COUNT)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[int]:
    return greedy(session_run(folder / "whole.onnx"), PROMPT, 12)


def together(models: list[Any]) -> list[list[int]]:
    group = Threads(len(models))
    sessions = [
        RankSession(m, group.all_reduce(i), intra_op_threads=1) for i, m in enumerate(models)
    ]
    return group.run([lambda each=each: greedy(each.run, PROMPT, 12) for each in sessions])


def test_ranks_say_together_what_the_whole_says(optimized, alone) -> None:
    assert together([each.model for each in optimized]) == [alone] * COUNT
    assert len(set(alone)) > 3, "nothing was compared"


def test_so_do_they_before_they_are_optimized(folder: Path, alone) -> None:
    assert together([folder / f"rank{rank}.onnx" for rank in range(COUNT)]) == [alone] * COUNT


def test_a_rank_is_proved_layer_by_layer(optimized) -> None:
    """Whole it cannot run alone, and what it hands to a sum is compared before the sum."""
    for result in optimized:
        assert [site.geometry.num_heads for site in result.report.sites] == [6, 6]
        proof = result.report.verification
        assert (proof["layers"], proof["passed"]) == (2, True)
        assert [each["detected"] for each in proof["controls"]] == [True] * 3


def test_a_fault_in_a_partial_sum_is_noticed(folder: Path, optimized) -> None:
    """One head too strong in one rank: another sum, which nothing else would tell."""
    wrong = optimized[1].model.clone()
    value = next(
        v for v in wrong.graph.initializers.values() if "w_uv" in v.name or "kv_b" in v.name
    )
    array = value.const_value.numpy().copy()
    array[0] *= 1.1
    value.const_value = ir.tensor(array, name=value.name)
    path = folder / "wrong.onnx"
    ir.save(wrong, path)
    done = command("verify", folder / "rank1.onnx", path)
    assert done.returncode == 4, done.stdout + done.stderr


def test_a_file_that_ends_in_a_partial_sum(tmp_path: Path) -> None:
    """No sum in the file: its outputs are what one rank has, and are compared as they are."""
    parts = []
    for rank in range(COUNT):
        model = onnx.load(ranks.build(rank, COUNT, tmp_path / f"rank{rank}.onnx", sums=False))
        cut_behind_attention(model)
        path = tmp_path / f"cut{rank}.onnx"
        onnx.save(model, path)
        result = mla_opt.optimize(path)
        assert result.report.verification["layers"] == 0, "it ran whole"
        assert result.report.verification["passed"]
        parts.append(tmp_path / f"cut{rank}.mla.onnx")
        ir.save(result.model, parts[-1])
    whole = onnx.load(ranks.whole(tmp_path / "whole.onnx"))
    cut_behind_attention(whole)
    onnx.save(whole, tmp_path / "cut.onnx")
    feeds = feeds_of(whole)
    expected = session_run(tmp_path / "cut.onnx")(feeds)["partial"]
    given = [session_run(part)(feeds)["partial"] for part in parts]
    np.testing.assert_allclose(sum(given), expected, atol=1e-5)
    assert np.abs(given[0] - given[1]).max() > 0.01, "both ranks have the same"


def cut_behind_attention(model: onnx.ModelProto) -> None:
    """Let the first attention be all: what its ``o_proj`` makes is the output ``partial``."""
    graph = model.graph
    product = next(n for n in graph.node if any("0.self_attn.o_proj" in name for name in n.input))
    last = list(graph.node).index(product)
    made = product.output[0]
    del graph.node[last + 1 :]
    product.output[0] = "partial"
    kept = {"present.0.keys", "present.0.values"}
    for place in reversed(range(len(graph.output))):
        if graph.output[place].name not in kept:
            del graph.output[place]
    for place in reversed(range(len(graph.input))):
        if ".1." in graph.input[place].name:
            del graph.input[place]
    shape = ["batch", "query", ranks.DIMS.hidden_size]
    graph.output.append(onnx.helper.make_tensor_value_info("partial", 1, shape))
    assert made != "partial"


def feeds_of(model: onnx.ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = {"batch": 2, "query": 3, "past": 5, "total": 8}
    feeds: dict[str, Any] = {
        "input_ids": rng.integers(0, 97, (2, 3)),
        "attention_mask": np.ones((2, 8), np.int64),
        "position_ids": np.tile(np.arange(5, 8), (2, 1)),
    }
    for each in model.graph.input:
        if each.name not in feeds:
            dims = each.type.tensor_type.shape.dim
            shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in dims]
            feeds[each.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def test_other_files_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has AllReduce nowhere; .* Open a file of one process"):
        RankSession(demo_model(), lambda array: None)
    model = onnx.load(folder / "rank0.onnx")
    for node in model.graph.node:
        if node.op_type == "AllReduce":
            node.op_type = "AllGather"
    with pytest.raises(InputError, match="talks to other ranks by AllGather, not sums alone"):
        RankSession(model, lambda array: None)


def test_a_rank_of_so_few_heads_that_nothing_is_saved(tmp_path: Path) -> None:
    """Keys and values of 2 heads are 512 numbers a token, as many as the latent row has."""
    path = ranks.build(0, 6, tmp_path / "rank0.onnx", dataclasses.replace(ranks.DIMS, mlp=36))
    with pytest.raises(mla_opt.NothingMatchedError, match="latent_not_narrower"):
        mla_opt.optimize(path)


def test_what_is_not_fed_is_named(folder: Path) -> None:
    rank = RankSession(folder / "rank0.onnx", lambda array: None)
    with pytest.raises(InputError, match=r"is not fed attention_mask, position_ids, past\.0"):
        rank.run({"input_ids": np.array([[1]])})


def test_a_rank_that_cannot_be_taken_apart_says_why(folder: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise InputError("not today")

    monkeypatch.setattr("mla_opt.verification.extent.verify_by_layer", refuse)
    message = r"is one rank of several \(AllReduce\), so it cannot be run whole here, and layer by"
    with pytest.raises(InputError, match=message + " layer: not today"):
        mla_opt.optimize(folder / "rank0.onnx")
